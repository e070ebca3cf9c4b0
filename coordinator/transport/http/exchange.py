"""One request and its answer, between ASGI's messages and the handlers.

A handler is given a Request and returns an Answer: whole (`Whole`: a body whose length is known) or streamed (`Stream`:
pieces as they come).  Errors are raised, never returned; `application` renders them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any, Final, Protocol, TypeVar

import msgspec
from msgspec import Struct

from coordinator.errors import InvalidPayload, LimitReached, Malformed, TooLarge
from coordinator.model.ids import command_id
from coordinator.transport.http.problem import Headers, HttpError
from coordinator.transport.http.routing import JSON
from coordinator.transport.json_input import NESTING_MAX, decode

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode


class Whole(Struct, frozen=True):
    """An answer whose body is complete."""

    status: int
    body: bytes
    media: str = JSON
    headers: Headers = []


class Stream(Protocol):
    """An answer that goes on.

    Made before the answer's first byte (so that errors can still be problems), iterated once at the reader's pace, and
    closed in any case, also if the iteration never began.
    """

    media: str

    def pieces(self) -> AsyncIterator[bytes]:
        """What is sent; ends when there is no more to come.  Raises nothing: errors become its last piece."""
        ...

    def stop(self) -> None:
        """The daemon stops: tell the reader, and end."""
        ...

    async def close(self) -> None:
        """Releases what feeds it."""
        ...


Answer = Whole | Stream


def json(document: Any, status: int = 200, headers: Headers | None = None) -> Whole:
    """``document`` (structs or plain values) as a JSON answer."""
    return Whole(status, _encode(document), JSON, headers or [])


class Intake:
    """How much of bodies that are still arriving is in memory, over all connections."""

    def __init__(self, body_bytes_max: int, bodies_bytes_max: int) -> None:
        self.body_bytes_max = body_bytes_max
        self._bodies_bytes_max = bodies_bytes_max
        self._held = 0

    def hold(self, size: int) -> None:
        """Raises LimitReached when that would be too much; otherwise `release` it."""
        if self._held + size > self._bodies_bytes_max:
            raise LimitReached("too many large requests at once", retry_after_ms=1000)
        self._held += size

    def release(self, size: int) -> None:
        self._held -= size


class Request:
    """A request as handlers see it."""

    __slots__ = ("_intake", "_receive", "_scope", "path", "query")

    def __init__(self, scope: Any, receive: Any, path: dict[str, str], query: dict[str, Any], intake: Intake) -> None:
        self._scope = scope
        self._receive = receive
        self._intake = intake
        self.path = path
        self.query = query

    def header(self, name: bytes) -> str | None:
        """The first header ``name`` (lower case), decoded as UTF-8 or else Latin-1; None without it."""
        for key, value in self._scope["headers"]:
            if key == name:
                try:
                    return bytes(value).decode()
                except UnicodeDecodeError:
                    return bytes(value).decode("latin-1")
        return None

    def accepts(self, media: str) -> bool:
        """Whether the client names this media type in ``Accept``."""
        return media in (self.header(b"accept") or "")

    @property
    def media(self) -> str:
        """The media type that the body claims, lower case, without parameters; empty where it claims none."""
        return (self.header(b"content-type") or "").partition(";")[0].strip().lower()

    async def read(self, decoder: msgspec.json.Decoder[T], *, empty: T | None = None, levels: int = NESTING_MAX) -> T:
        """The body as ``decoder``'s type; ``empty`` is what no body at all means, an error if None; it nests at most
        ``levels`` deep.

        It is read as JSON whatever its content type says: nothing else is taken here, and what ``curl -d`` claims to
        send is a form.  Raises TooLarge (before reading on), HttpError (415: compressed), Malformed, InvalidPayload.
        """
        body = await self.body()
        if empty is not None and not body:
            return empty
        return decode(decoder, body, levels=levels)

    async def body(self) -> bytes:
        """The whole body, never more than the limit in memory."""
        self._check_headers()
        message = await self._message()
        body: bytes = message.get("body", b"")
        self._within_limit(len(body))
        if not message.get("more_body", False):
            return body
        return await self._rest(body)

    async def _rest(self, body: bytes) -> bytes:
        pieces, size = [body], len(body)
        held = 0
        try:
            while True:
                message = await self._message()
                piece: bytes = message.get("body", b"")
                self._intake.hold(len(piece))
                held += len(piece)
                self._within_limit(size + held)
                pieces.append(piece)
                if not message.get("more_body", False):
                    return b"".join(pieces)
        finally:
            self._intake.release(held)

    async def _message(self) -> Any:
        message = await self._receive()
        if message["type"] != "http.request":
            raise Malformed("the connection was lost within the body")  # nobody reads this
        return message

    def _check_headers(self) -> None:
        for name, value in self._scope["headers"]:
            if name == b"content-length":
                if len(value) > 18 or int(value) > self._intake.body_bytes_max:
                    raise self._too_large()
            elif name == b"content-encoding" and value.strip().lower() != b"identity":
                raise HttpError(
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                    "unsupported_media_type",
                    "send the body without a content-encoding",
                    [(b"accept-encoding", b"identity")],
                )

    def _within_limit(self, size: int) -> None:
        if size > self._intake.body_bytes_max:
            raise self._too_large()

    def _too_large(self) -> TooLarge:
        limit = self._intake.body_bytes_max
        return TooLarge(
            f"a request's body is limited to {limit} bytes",
            limit_bytes=limit,
            faults=[{"path": "$", "fault": f"more than {limit} bytes"}],
        )


_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,200}")
NAME_RULE: Final = "1 to 200 characters, none of them a control character"


def name_at(place: str, text: str) -> str:
    """``text``, which names a datum, a step, a signal or a schedule; raises InvalidPayload at ``place``."""
    if not _NAME.fullmatch(text):
        raise InvalidPayload.at(place, NAME_RULE)
    return text


def same_id(id: str | None, key: str | None) -> str | None:
    """The one id of ``id`` in the body and the header ``Idempotency-Key``.

    Raises InvalidPayload at the header where they differ, or where the header is no id.
    """
    if key is None:
        return id
    if id is not None and key != id:
        raise InvalidPayload.at("Idempotency-Key", "differs from $.id; send one of them, or the same in both")
    return command_id(key, "Idempotency-Key")
