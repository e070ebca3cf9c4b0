"""What an answer of a service means: pure functions from what came back to an `Answer`.

A saga only moves on what is *known* (DESIGN section 5), so everything that comes back is one of three things:

    OUTCOME   the step is done                        2xx · gRPC OK
    FAILURE   the service said no, and meant it       3xx, 4xx · NOT_FOUND, INVALID_ARGUMENT …
    DELAYED   nobody knows whether it was done        408, 425, 429, 5xx · UNAVAILABLE … · timeouts, lost connections

A step may override the rule for a status ("404": outcome), a class ("5xx": failure) or a gRPC name; exact wins.

**Bodies.**  A service that said 2xx has done its work, so no body, however broken, may turn that into a doubt: an
unreadable one is kept as it came.  What is recorded, as msgpack:

- empty → null;
- JSON (``application/json``, ``+json``, or no content type) → the value.  Integers beyond 64 bits, which msgpack
  cannot hold, become strings of their digits (an id survives that, a float would not be the id any more); the last
  of duplicate keys counts; what is not JSON after all (NaN, nesting deeper than 128, …) is kept as text;
- text (``text/*``, XML, forms, YAML) → a string, except that a text that starts with ``{`` or ``[`` and is JSON is
  read as JSON, since servers that guess the content type (Go's do) call their JSON ``text/plain``;
- any other content type, or text that cannot be decoded → bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final

import msgspec
from msgspec import Raw

from coordinator.model.call import Answer, Verdict
from coordinator.model.records import NIL, Failure

RETRY_AFTER_MS_MAX: Final = 3_600_000
DEPTH_MAX: Final = (
    128  # of JSON that is recorded as a value; whoever reads it again may stand deep in a stack of its own
)
MESSAGE_MAX: Final = 500

_NOT_KNOWN: Final = frozenset({408, 425, 429})
_VERDICTS: Final = {"outcome": Verdict.OUTCOME, "failure": Verdict.FAILURE, "delayed": Verdict.DELAYED}
_JSON_TYPES: Final = frozenset(
    {"", "application/json", "application/json; charset=utf-8", "application/json;charset=utf-8"}
)
_TEXT_TYPES: Final = frozenset(
    f"application/{kind}"
    for kind in ("xml", "javascript", "x-www-form-urlencoded", "x-ndjson", "yaml", "x-yaml", "graphql", "sql")
)
_CHARSETS: Final = frozenset({"us-ascii", "iso-8859-1", "latin-1", "windows-1252", "utf-16", "utf-16le", "utf-16be"})

_decode_json = msgspec.json.Decoder().decode
_encode = msgspec.msgpack.Encoder().encode

GRPC_FAILURES: Final = frozenset({
    "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "UNAUTHENTICATED", "FAILED_PRECONDITION",
    "OUT_OF_RANGE", "UNIMPLEMENTED",
})  # fmt: skip
GRPC_UNKNOWNS: Final = frozenset({
    "ABORTED", "CANCELLED", "UNKNOWN", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE",
    "DATA_LOSS",
})  # fmt: skip
OVERRIDES: Final = frozenset(_VERDICTS)


# ---------------------------------------------------------------- answers that were made here


def delayed(code: str, message: str, *, retry_after_ms: int | None = None, traceback: str | None = None) -> Answer:
    """Nobody knows: ``code`` says what happened instead of an answer."""
    return Answer(Verdict.DELAYED, NIL, Failure(code, message, traceback=traceback), retry_after_ms)


def refused(code: str, message: str, *, traceback: str | None = None) -> Answer:
    """Known to have failed, without an answer of a service."""
    return Answer(Verdict.FAILURE, NIL, Failure(code, message, traceback=traceback))


# ---------------------------------------------------------------- HTTP


def http_answer(
    status: int, headers: Mapping[str, str], body: bytes, overrides: Mapping[str, str] = {}, now_ms: int = 0
) -> Answer:
    """Classifies a whole HTTP answer; never raises.

    ``headers`` has lower-case names (``content-type`` and ``retry-after`` are looked at), ``status`` is 200 to 599,
    ``now_ms`` (since 1970) is what a date in ``Retry-After`` is compared with.
    """
    if status < 300 and not overrides:  # the hot path
        return Answer(Verdict.OUTCOME, body_as_msgpack(body, headers.get("content-type", "")))
    verdict = _http_verdict(status, overrides)
    content_type = headers.get("content-type", "")
    if verdict is Verdict.OUTCOME:
        return Answer(verdict, body_as_msgpack(body, content_type))
    value = decode_body(body, content_type)
    failure = Failure(f"http_{status}", _message(status, value), status, _as_msgpack(value))
    wish = (
        retry_after(headers["retry-after"], now_ms) if verdict is Verdict.DELAYED and "retry-after" in headers else None
    )
    return Answer(verdict, NIL, failure, wish)


def _http_verdict(status: int, overrides: Mapping[str, str]) -> Verdict:
    if overrides:
        family = status // 100
        for name in (str(status), f"{family}xx", f"{family}XX"):
            chosen = _VERDICTS.get(overrides.get(name, ""))
            if chosen is not None:
                return chosen
    if status < 300:
        return Verdict.OUTCOME
    if status >= 500 or status in _NOT_KNOWN:
        return Verdict.DELAYED
    return Verdict.FAILURE


def retry_after(text: str, now_ms: int) -> int | None:
    """Milliseconds that ``Retry-After`` (seconds, or an HTTP date) asks for, at most an hour; None for nonsense."""
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return min(int(text[:12]) * 1000, RETRY_AFTER_MS_MAX) if len(text) < 12 else RETRY_AFTER_MS_MAX
    try:
        date = parsedate_to_datetime(text)
        if date.tzinfo is None:  # "-0000": UTC by RFC 5322
            date = date.replace(tzinfo=UTC)
        wait = round(date.timestamp() * 1000) - now_ms
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(wait, RETRY_AFTER_MS_MAX) if wait >= 0 else None


# ---------------------------------------------------------------- gRPC


def grpc_answer(
    status: str, message: str, body: bytes, overrides: Mapping[str, str] = {}, *, as_json: bool = True
) -> Answer:
    """Classifies the end of a gRPC call: ``status`` is a name of grpc.StatusCode, ``body`` what came with OK.

    ``as_json``: the body is read as JSON (and kept as text or bytes if it is none), else it is kept as bytes.
    """
    verdict = _VERDICTS.get(overrides.get(status, "")) if overrides else None
    if verdict is None:
        known = Verdict.FAILURE if status in GRPC_FAILURES else Verdict.DELAYED
        verdict = Verdict.OUTCOME if status == "OK" else known
    outcome = body_as_msgpack(body, "" if as_json else "application/octet-stream")
    if verdict is Verdict.OUTCOME:
        return Answer(verdict, outcome)
    code = "timeout" if status == "DEADLINE_EXCEEDED" else f"grpc_{status.lower()}"
    return Answer(verdict, NIL, Failure(code, f"{status}: {message}"[:MESSAGE_MAX], None, outcome))


# ---------------------------------------------------------------- bodies


def body_as_msgpack(body: bytes, content_type: str) -> Raw:
    """What is recorded of a body (see the top of this module); never raises."""
    if not body:
        return NIL
    if len(body) <= 2 * DEPTH_MAX and content_type in _JSON_TYPES:  # the hot path: too short to be too deep
        try:
            return Raw(_encode(_decode_json(body)))
        except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError):
            pass  # something rare: below
    return _as_msgpack(decode_body(body, content_type))


def decode_body(body: bytes, content_type: str) -> Any:
    """The body as a value that msgpack can hold, but for integers beyond 64 bits; never raises."""
    if not body:
        return None
    if content_type in _JSON_TYPES:
        return _json(body, "")
    kind, _, parameters = content_type.lower().partition(";")
    kind = kind.strip()
    if kind in _JSON_TYPES or kind.endswith("+json"):
        return _json(body, parameters)
    if kind.startswith("text/") or kind.endswith("+xml") or kind in _TEXT_TYPES:
        return _json(body, parameters) if body.lstrip()[:1] in (b"{", b"[") else _text(body, parameters)
    return body


def _json(body: bytes, parameters: str) -> Any:
    try:
        value = _decode_json(body)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        if body.startswith(b"\xef\xbb\xbf"):  # a byte order mark is no JSON, but is common enough
            return _json(body[3:], parameters)
        return _text(body, parameters)
    # Only a long body with many brackets can be deep: the measuring is kept off the usual path.
    if len(body) > 2 * DEPTH_MAX and body.count(b"[") + body.count(b"{") > DEPTH_MAX and _deeper(value, DEPTH_MAX):
        return _text(body, parameters)
    return value


def _deeper(value: Any, limit: int) -> bool:
    """Whether ``value`` nests deeper than ``limit``, level by level so that depth costs no stack."""
    level = [value]
    for _ in range(limit + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not inner:
            return False
        level = inner
    return True


def _text(body: bytes, parameters: str) -> str | bytes:
    charset = "utf-8"
    if "charset" in parameters:
        named = parameters.partition("charset=")[2].partition(";")[0].strip(" \"'")
        charset = named if named in _CHARSETS else charset
    try:
        return body.decode(charset)
    except ValueError:
        return body


def _as_msgpack(value: Any) -> Raw:
    try:
        return Raw(_encode(value))
    except OverflowError:
        return Raw(_encode(_narrow(value)))


def _narrow(value: Any) -> Any:
    """``value`` with the integers that msgpack cannot hold as strings; its depth is bounded by DEPTH_MAX."""
    if isinstance(value, dict):
        return {key: _narrow(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_narrow(item) for item in value]
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return _digits(value)
    return value


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # Python refuses to print more than 4,300 digits in decimal
        return hex(value)


def _message(status: int, value: Any) -> str:
    """A sentence for people: the body's own (problem details and their relatives), else the status."""
    text = _said(value)
    if text is None:
        try:
            text = f"{status} {HTTPStatus(status).phrase}"
        except ValueError:
            text = f"status {status}"
    return text[:MESSAGE_MAX]


def _said(value: Any) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, dict):
        for name in ("detail", "message", "error", "error_description", "title"):
            found = value.get(name)
            if isinstance(found, str) and found.strip():
                return found.strip()
        nested = value.get("error")  # {"error": {"message": …}}
        if isinstance(nested, dict) and isinstance(nested.get("message"), str):
            return str(nested["message"]).strip() or None
    return None
