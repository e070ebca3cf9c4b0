"""What goes out: the pure part of building a request, shared by all callers so that all refuse the same.

Methods, paths and headers come from definitions and code, and from there often from what a client submitted.  So
nothing in them can end a line, start a header or lead to another host: paths are percent-encoded, header values that
could break a line are refused, and the headers on which the protocol or the exactly-once promise rests cannot be
overridden.  A request that cannot be built is never sent; its step fails with the code ``bad_request_built``.

**Keys.**  ``Idempotency-Key`` is ``<command id>/<step>``.  Ids may hold any letters, headers and gRPC metadata may
not, so characters other than visible ASCII, and ``%`` itself, are percent-encoded (UTF-8).  Two keys never become
the same header, an ASCII key goes out as it is, and ``unquote`` gives back the original.

The head of a request is mostly the same for each call of a service: `HttpTemplate` prepares it once, since building
requests is on the hottest path of the program.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Struct

from coordinator.errors import ConfigError
from coordinator.gateway.classify import GRPC_FAILURES, GRPC_UNKNOWNS, OVERRIDES
from coordinator.model.call import Request
from coordinator.model.settings import ServiceSettings

USER_AGENT: Final = "coordinator"
KEY_HEADER: Final = "Idempotency-Key"
FENCE_HEADER: Final = "Coordinator-Fence"

OURS: Final = frozenset({"idempotency-key", "coordinator-fence"})
"""Nobody else may set these: retries are safe because of them."""
FRAMING: Final = frozenset({
    "connection", "content-length", "expect", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding",
    "upgrade",
})  # fmt: skip
"""These say where a message ends and what becomes of the connection: the client's own business."""

_METHODS: Final = {name: name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
_METHOD = re.compile(r"[A-Za-z][A-Za-z0-9!#$&'*+.^_`|~-]{0,31}")
_BODY_METHODS: Final = frozenset({"POST", "PUT", "PATCH"})
_SAFE: Final = "/?-._~!$&'()*+,;=:@"
_PLAIN_PATH = re.compile(r"/(?!/)[A-Za-z0-9/?\-._~!$&'()*+,;=:@]*").fullmatch
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|//")
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_KEY_UNSAFE = re.compile(r"[^!-$&-~]").search
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")
_HEADER_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_ANSWER_KEY = re.compile(r"[1-5](?:\d\d|xx|XX)")
_encode_json = msgspec.json.Encoder().encode


class BadRequest(ValueError):
    """The request cannot be built; the text says what is wrong and what is allowed."""


class Address(Struct, frozen=True):
    """Where a service is; ``authority`` is what Host says (IPv6 in brackets), ``base`` the first path."""

    scheme: str
    host: str
    port: int
    authority: str
    base: str


_PORTS: Final = {"http": 80, "https": 443, "grpc": 80, "grpcs": 443}


def address(settings: ServiceSettings) -> Address:
    """Reads a service's URL; raises ConfigError."""
    url, where = settings.url, f"services.{settings.name}.url"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        host = host and host.encode("idna").decode() if host and not host.isascii() else host
    except ValueError as error:
        raise ConfigError(f"{where}: {url!r} is no URL: {error}") from None
    if parts.scheme not in _PORTS:
        raise ConfigError(f"{where}: {url!r} must start with http://, https://, grpc:// or grpcs://")
    if not host or any(c <= " " or c == "\x7f" for c in url):
        raise ConfigError(f"{where}: {url!r} needs a host, as in http://127.0.0.1:9001, and no spaces")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(f"{where}: {url!r} must not hold a user, a query or a fragment (credentials go into headers)")
    base = encode_path(parts.path).rstrip("/")
    if parts.scheme in ("grpc", "grpcs") and base:
        raise ConfigError(f"{where}: {url!r} must be host and port only; the step names the method")
    default = _PORTS[parts.scheme]
    bracketed = f"[{host}]" if ":" in host else host
    authority = bracketed if port in (None, default) else f"{bracketed}:{port}"
    return Address(parts.scheme, host, default if port is None else port, authority, base)


# ---------------------------------------------------------------- parts of a request


def encode_path(path: str) -> str:
    """``path`` (with its query) as it may stand in a request line; raises BadRequest.

    Percent-encodes what is not allowed there; keeps what is encoded already.  A path without a leading slash gets
    one; a whole URL, or ``//host``, is refused: where a request goes is the configuration's word.
    """
    if _PLAIN_PATH(path):
        return path
    if _ABSOLUTE.match(path):
        raise BadRequest(f"the path must be a path, not a URL: {path[:200]!r}")
    if path and path[0] not in "/?":
        path = "/" + path
    try:
        return quote(_LONE_PERCENT.sub("%25", path), safe=_SAFE + "%")
    except UnicodeEncodeError:
        raise BadRequest(f"the path holds half a character (a lone surrogate): {path[:200]!r}") from None


def encode_key(key: str) -> str:
    """``key`` in visible ASCII, injectively (see the top of this module); raises BadRequest."""
    if not _KEY_UNSAFE(key):
        return key
    try:
        return quote(key, safe="".join(map(chr, range(0x21, 0x7F))).replace("%", ""))
    except UnicodeEncodeError:
        raise BadRequest("the idempotency key holds half a character (a lone surrogate)") from None


def encode_method(method: str) -> str:
    """An HTTP method in upper case; raises BadRequest."""
    known = _METHODS.get(method)
    if known is not None:
        return known
    if not _METHOD.fullmatch(method):
        raise BadRequest(f"the method must be a word such as POST, not {method[:100]!r}")
    if method.upper() == "CONNECT":
        raise BadRequest("the method CONNECT opens a tunnel; a step cannot use it")
    return method.upper()


def encode_body(body: Any) -> tuple[bytes | None, str]:
    """The body's bytes (None: no body) and their content type; raises BadRequest."""
    if body is None:
        return None, ""
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body), "application/octet-stream"
    try:
        return _encode_json(body), "application/json"
    except Exception as error:
        # Whatever is wrong with the value (its type, its depth, half a character), it is the step's, not ours.
        raise BadRequest(f"the body cannot be written as JSON: {type(error).__name__}: {error}") from None


def check_header(name: Any, value: Any, forbidden: frozenset[str]) -> tuple[str, str]:
    """The header as it may be sent; raises BadRequest."""
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
        raise BadRequest(f"a header's name is a word, not {str(name)[:100]!r}")
    if name.lower() in forbidden:
        raise BadRequest(f"the header {name} is set by the coordinator and cannot be overridden")
    if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
        raise BadRequest(f"the value of header {name} must be text without line breaks and control characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"the value of header {name} holds half a character (a lone surrogate)") from None
    return name, value.strip(" \t")


def check_answers(answers: Mapping[str, str]) -> None:
    """Refuses overrides that could never apply, before the request is sent; raises BadRequest."""
    for status, meaning in answers.items():
        if not (_ANSWER_KEY.fullmatch(status) or status in GRPC_FAILURES or status in GRPC_UNKNOWNS or status == "OK"):
            raise BadRequest(f'answers: {status!r} is no status: "404", "4xx" or a gRPC name such as "NOT_FOUND"')
        if meaning not in OVERRIDES:
            raise BadRequest(f"answers: {status} must be outcome, failure or delayed, not {meaning!r}")


def service_headers(settings: ServiceSettings) -> dict[str, tuple[str, str]]:
    """The headers that the configuration adds to each call, by lower-case name; raises ConfigError."""
    try:
        pairs = [check_header(name, value, OURS | FRAMING) for name, value in settings.headers.items()]
    except BadRequest as error:
        raise ConfigError(f"services.{settings.name}.headers: {error}") from None
    return {name.lower(): (name, value) for name, value in pairs}


_REQUEST_FORBIDDEN: Final = OURS | FRAMING | {"host"}


class HttpTemplate:
    """Builds the requests of one HTTP service.

    A host name in the service's configured headers is respected (virtual hosts); a request's own may not name one.
    """

    __slots__ = ("_base", "_headers", "_static")

    def __init__(self, settings: ServiceSettings, authority: str, base: str = "") -> None:
        self._base = base
        self._headers = {
            "host": ("Host", authority),
            "user-agent": ("User-Agent", USER_AGENT),
            "accept": ("Accept", "application/json, */*;q=0.5"),
            "accept-encoding": ("Accept-Encoding", "identity"),
        } | service_headers(settings)
        self._static = _lines(self._headers)

    def target(self, path: str) -> str:
        """The request target: the base path and the encoded path; raises BadRequest."""
        path = path if _PLAIN_PATH(path) else encode_path(path)
        return self._base + path if path[:1] == "/" else (self._base or "/") + path

    def wire(self, request: Request, key: str, epoch: int, attempt: int) -> bytes:
        """The bytes of a call; raises BadRequest."""
        method = _METHODS.get(request.method) or encode_method(request.method)
        if request.answers:
            check_answers(request.answers)
        path = request.path
        target = self._base + path if _PLAIN_PATH(path) else self.target(path)
        body, content_type = encode_body(request.body)
        static = self._static
        if request.headers or (content_type and "content-type" in self._headers):
            merged = self.merged(request)
            if "content-type" in merged:
                content_type = ""
            static = _lines(merged)
        if body is not None:
            more = f"\r\nContent-Length: {len(body)}\r\n\r\n"
        else:
            more = "\r\nContent-Length: 0\r\n\r\n" if method in _BODY_METHODS else "\r\n\r\n"
        if content_type:
            more = f"\r\nContent-Type: {content_type}{more}"
        key = encode_key(key) if _KEY_UNSAFE(key) else key
        head = f"{method} {target} HTTP/1.1\r\n{static}{key}\r\nCoordinator-Fence: {epoch}.{attempt}{more}".encode()
        return head if body is None else head + body

    def merged(self, request: Request) -> dict[str, tuple[str, str]]:
        """The service's headers with the request's own over them, by lower-case name; raises BadRequest."""
        if not request.headers:
            return self._headers
        pairs = [check_header(name, value, _REQUEST_FORBIDDEN) for name, value in request.headers.items()]
        return self._headers | {name.lower(): (name, value) for name, value in pairs}


def _lines(headers: Mapping[str, tuple[str, str]]) -> str:
    """Header lines, and the start of the line that follows them in every request."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers.values()) + f"{KEY_HEADER}: "
