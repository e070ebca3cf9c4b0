"""How a call is served, whichever it is: bytes in, message, handler, message, bytes out, and errors as metadata.

Messages are parsed and written here rather than by grpc, so that bytes that are no message become INVALID_ARGUMENT with
a code like every other fault, instead of an INTERNAL with a traceback in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, TypeVar, cast

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
import structlog
from google.protobuf.message import DecodeError, Message

from coordinator.errors import CoordinatorError, Internal, Malformed
from coordinator.transport.base import TRACE_CONTEXT, Caller, caller
from coordinator.transport.grpc import messages

log = structlog.get_logger(__name__)

M = TypeVar("M", bound=Message)
Context = Any  # grpc.aio.ServicerContext, which has no types
ERROR_BYTES_MAX: Final = 4096  # clients take 8 KiB of metadata by default
DETAIL_CHARS_MAX: Final = 1000


def unary(name: str, request: type[Message], handler: Callable[[Any, Context], Awaitable[Message]]) -> Any:
    """A call with one message each way."""

    async def serve(raw: bytes, context: Context) -> bytes:
        asks(context)
        try:
            reply = await handler(parse(request, raw), context)
            return reply.SerializeToString()
        except Exception as error:
            await refuse(name, context, error)
            raise

    return grpc.unary_unary_rpc_method_handler(serve)


def server_stream(name: str, request: type[Message], handler: Callable[[Any, Context], AsyncIterator[Message]]) -> Any:
    """A call that is answered by a stream."""

    async def serve(raw: bytes, context: Context) -> None:
        asks(context)
        try:
            async with aclosing(cast("Any", handler(parse(request, raw), context))) as replies:
                async for reply in replies:
                    await context.write(reply.SerializeToString())
        except Exception as error:
            await refuse(name, context, error)

    return grpc.unary_stream_rpc_method_handler(serve)


def both_streams(name: str, handler: Callable[[Context], Awaitable[None]]) -> Any:
    """A call that reads and writes by itself (`context.read`, `context.write`), in bytes."""

    async def serve(_: AsyncIterator[bytes], context: Context) -> None:
        asks(context)
        try:
            await handler(context)
        except Exception as error:
            await refuse(name, context, error)

    return grpc.stream_stream_rpc_method_handler(serve)


def asks(context: Context) -> None:
    """Who asks, for whomever the Front forwards it to; a call is a task of its own."""
    meta = {name: value for name, value in context.invocation_metadata() or () if name in TRACE_CONTEXT}
    left_s = context.time_remaining()
    if meta or left_s is not None:
        caller.set(Caller(None if left_s is None else asyncio.get_running_loop().time() + left_s, meta))


def parse(type_: type[M], raw: bytes) -> M:
    """The message in ``raw``; raises Malformed."""
    try:
        return type_.FromString(raw)
    except DecodeError:
        raise Malformed(f"the message is not a {type_.DESCRIPTOR.full_name}") from None


async def refuse(name: str, context: Context, error: Exception) -> None:
    """Ends the call with the error's status and metadata; what is no CoordinatorError is logged and told `internal`."""
    if isinstance(error, grpc.aio.AbortError | asyncio.CancelledError):
        raise error
    if not isinstance(error, CoordinatorError):
        log.error("call failed", call=name, exc_info=error)
        error = Internal("an internal error; it has been logged")
    status = getattr(grpc.StatusCode, error.grpc)
    await context.abort(status, error.detail[:DETAIL_CHARS_MAX], trailing_metadata=metadata(error))


def metadata(error: CoordinatorError) -> tuple[tuple[str, str | bytes], ...]:
    """The trailing metadata of an error, as proto/coordinator.proto promises."""
    told = messages.error(error)
    told.detail = told.detail[:DETAIL_CHARS_MAX]
    if told.ByteSize() > ERROR_BYTES_MAX:  # many faults: the first ones say enough
        faults = error.extra.get("faults", [])[:5]
        told.extra_json = messages.to_json({"faults": faults}) if faults else b""
    if told.ByteSize() > ERROR_BYTES_MAX:
        told.extra_json = b""
    pairs: list[tuple[str, str | bytes]] = [
        ("coordinator-code", error.code),
        ("coordinator-error-bin", told.SerializeToString()),
    ]
    if error.retry_after_ms is not None:
        pairs.append(("retry-after-ms", str(error.retry_after_ms)))
    return tuple(pairs)
