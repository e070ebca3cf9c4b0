"""gRPC services: any unary method by its full name, without generated code.

``Request.method`` is the full name (``shop.Stock/Reserve``), ``path`` is empty.  The payload is JSON, or bytes that
the command made itself (a serialized protobuf message): the serializers are the identity.  A JSON request's answer
is read as JSON, a bytes request's answer stays bytes.  The key and the fence go as metadata ``idempotency-key`` and
``coordinator-fence``.

grpc.aio makes several objects and a task for each call anyway, so these calls are tasks as well.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Final

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]

from coordinator.errors import ConfigError
from coordinator.gateway.classify import delayed, grpc_answer
from coordinator.gateway.request import (
    FENCE_HEADER,
    FRAMING,
    KEY_HEADER,
    OURS,
    BadRequest,
    address,
    check_answers,
    check_header,
    encode_body,
    encode_key,
    service_headers,
)
from coordinator.gateway.tasks import TaskCaller
from coordinator.model.call import Answer, Call, Request
from coordinator.model.settings import ServiceSettings

_METHOD = re.compile(r"/?([A-Za-z_][\w.]*/[A-Za-z_]\w*)", re.ASCII)
_FORBIDDEN: Final = OURS | FRAMING | {"host", "content-type", "user-agent"}
_BACKSTOP_MS: Final = 250  # how much longer than gRPC's own deadline is waited for gRPC to keep it


class GrpcCaller(TaskCaller):
    """Calls one gRPC service; ``settings.url`` is ``grpc://host:port`` or, with TLS, ``grpcs://host:port``."""

    def __init__(self, settings: ServiceSettings, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(settings.name, loop, limit=max(1, settings.max_in_flight), timeout_ms=settings.timeout_ms)
        self._settings = settings
        self._address = address(settings)
        self._metadata = [(name, value) for name, (_, value) in service_headers(settings).items()]
        self._credentials = _credentials(settings) if self._address.scheme == "grpcs" else None
        self._opened: grpc.aio.Channel | None = None
        self._methods: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = {}

    async def answer(self, call: Call) -> Answer:
        request = call.request
        assert isinstance(request, Request)
        if request.answers:
            check_answers(request.answers)
        method = self._method(request.method)
        body, kind = encode_body(request.body)
        timeout_ms = call.timeout_ms if call.timeout_ms is not None else self._settings.timeout_ms
        as_json = kind != "application/octet-stream"
        try:
            got = await method(body or b"", timeout=timeout_ms / 1000, metadata=self._headers(call, request))
        except grpc.aio.AioRpcError as error:
            status, text = error.code().name, error.details() or ""
            if status == "RESOURCE_EXHAUSTED" and "larger than max" in text:  # refused here, not by the service
                return delayed("answer_too_large", f"{self.name} sent too large an answer: {text}")
            return grpc_answer(status, text, b"", request.answers)
        return grpc_answer("OK", "", got, request.answers, as_json=as_json)

    async def close(self) -> None:
        await super().close()
        if self._opened is not None:
            await self._opened.close()

    def _headers(self, call: Call, request: Request) -> list[tuple[str, str]]:
        own = [check_header(name, value, _FORBIDDEN) for name, value in request.headers.items()]
        metadata = dict(self._metadata) | {name.lower(): value for name, value in own}
        for name, value in metadata.items():
            if name.endswith("-bin") or name.startswith("grpc-") or not value.isascii():
                raise BadRequest(
                    f"the metadata {name} must be ASCII text, and its name not end in -bin or begin with grpc-"
                )
        return [*metadata.items(), (KEY_HEADER.lower(), encode_key(call.key)), (FENCE_HEADER.lower(), call.fence)]

    def _method(self, name: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
        known = self._methods.get(name)
        if known is None:
            match = _METHOD.fullmatch(name)
            if match is None:
                raise BadRequest(f"the method must be a full name such as shop.Stock/Reserve, not {name[:100]!r}")
            known = self._methods[name] = self._channel().unary_unary(f"/{match[1]}")
        return known

    def _channel(self) -> grpc.aio.Channel:
        """The channel, opened at the first call, since it belongs to the loop that runs then."""
        if self._opened is None:
            where, settings = self._address, self._settings
            host = f"[{where.host}]" if ":" in where.host else where.host
            options = [
                ("grpc.max_receive_message_length", settings.response_bytes_max),
                ("grpc.max_send_message_length", -1),
                ("grpc.enable_retries", 0),  # retries are the engine's
                # The engine paces the retries.  gRPC's own back-off of up to two minutes would keep a service down
                # that has long recovered.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", max(100, settings.connect_timeout_ms)),
                ("grpc.max_reconnect_backoff_ms", 1_000),
                ("grpc.use_local_subchannel_pool", 1),
            ]
            target = f"{host}:{where.port}"
            if self._credentials is None:
                self._opened = grpc.aio.insecure_channel(target, options)
            else:
                self._opened = grpc.aio.secure_channel(target, self._credentials, options)
        return self._opened


def _credentials(settings: ServiceSettings) -> grpc.ChannelCredentials:
    if not settings.tls_verify:
        raise ConfigError(f"services.{settings.name}.tls_verify: gRPC always verifies; name the service's CA in tls_ca")
    try:
        roots = Path(settings.tls_ca).read_bytes() if settings.tls_ca else None
    except OSError as error:
        raise ConfigError(f"services.{settings.name}.tls_ca: {settings.tls_ca} cannot be read: {error}") from None
    return grpc.ssl_channel_credentials(roots)
