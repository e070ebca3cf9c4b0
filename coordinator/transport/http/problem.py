"""Every error answer: problem details (RFC 9457) as ``application/problem+json``.

Most come from a CoordinatorError.  A few exist only in HTTP (405, 408, 415, 431) and are made here.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import msgspec
from msgspec import Struct

from coordinator.errors import CoordinatorError

MEDIA: Final = b"application/problem+json"
RETRY_DEFAULT_MS: Final = 1000  # what a 429 or 503 advises where the error itself knows no better
_encode = msgspec.json.Encoder().encode

Headers = list[tuple[bytes, bytes]]


class Fault(Struct, frozen=True):
    """One wrong place: ``path`` is ``$.field…`` in the body, ``?name`` in the query, or a header's name."""

    path: str
    fault: str


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error's body; ``code`` is for programs, ``detail`` for people.

    ``retry_after_ms`` comes with 429 and 503 beside the header ``Retry-After``; ``legal_states`` with
    ``illegal_state``, ``services`` with ``suspended``, ``faults`` wherever a place can be named (``invalid_payload``,
    ``malformed``, ``too_large``, ``unknown_type``), ``roles`` that may with ``forbidden``, ``details`` with an instance
    that is not ready.  ``in_doubt``: what was asked may have been recorded, or not; look before asking again.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    retry_after_ms: int | None = None
    legal_states: list[str] | None = None
    services: list[str] | None = None
    faults: list[Fault] | None = None
    roles: list[str] | None = None
    in_doubt: bool | None = None
    details: dict[str, Any] | None = None


class HttpError(Exception):
    """An error that only HTTP knows; ``headers`` go with the answer."""

    def __init__(self, status: HTTPStatus, code: str, detail: str, headers: Headers | None = None) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.headers = status, code, detail, headers or []


def render(error: CoordinatorError | HttpError) -> tuple[int, Headers, bytes]:
    """Status, headers (content type and length included) and body of an error's answer."""
    if isinstance(error, HttpError):
        status, title, headers = int(error.status), error.status.phrase, list(error.headers)
        members: dict[str, Any] = {}
    else:
        status, title, headers = error.http, error.title, []
        members = error.extra
    retry_after_ms = retry_delay_ms(error, status)
    if retry_after_ms is not None:
        headers.append((b"retry-after", b"%d" % max(1, -(-retry_after_ms // 1000))))
    standard: dict[str, Any] = {
        "type": f"urn:coordinator:error:{error.code}",
        "title": title,
        "status": status,
        "detail": error.detail,
        "code": error.code,
    }
    if retry_after_ms is not None:
        standard["retry_after_ms"] = retry_after_ms
    body = _encode({**standard, **members, **standard})  # the standard ones come first, and win
    headers += [(b"content-type", MEDIA), (b"content-length", b"%d" % len(body))]
    return status, headers, body


def retry_delay_ms(error: CoordinatorError | HttpError, status: int) -> int | None:
    """The delay that an answer advises; never None with 429 and 503."""
    known = error.retry_after_ms if isinstance(error, CoordinatorError) else None
    if known is not None:
        return max(0, known)
    return RETRY_DEFAULT_MS if status in (429, 503) else None


def raw(error: CoordinatorError | HttpError) -> bytes:
    """A whole HTTP/1.1 answer that closes the connection: for what goes wrong before a request exists."""
    status, headers, body = render(error)
    lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
    lines += [name + b": " + value for name, value in (*headers, (b"connection", b"close"))]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
