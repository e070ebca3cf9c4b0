"""The gRPC listener: grpc.aio with our limits, health and reflection beside the Coordinator service."""

from __future__ import annotations

from typing import Any, Final

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2 as reflected

from coordinator.errors import StartupError
from coordinator.transport.base import Front, Traffic
from coordinator.transport.grpc import health, service
from coordinator.transport.grpc.settings import GrpcSettings
from coordinator.transport.streams import FAREWELL_MS

REFLECTION: Final = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
"""The two names of one protocol: tools ask for the first, older ones for the second; the messages are the same."""


class GrpcServer:
    """Serves ``front`` on ``host:port`` (port 0: any free one, see `address`); ``credentials`` make it TLS."""

    def __init__(
        self,
        front: Front,
        *,
        host: str,
        port: int,
        settings: GrpcSettings | None = None,
        credentials: grpc.ServerCredentials | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        self._front = front
        self._host, self._port = host, port
        self._settings = settings or GrpcSettings()
        self._credentials = credentials
        self._traffic = traffic or Traffic(sees_connections=False)
        self._service = service.Service(front, self._settings, self._traffic)
        self._draining = False
        self._server: Any = None

    async def start(self) -> None:
        """Listens.  Raises StartupError where the address cannot be had."""
        server = grpc.aio.server(
            interceptors=(Counting(self._traffic),),
            options=_options(self._settings),
            maximum_concurrent_rpcs=self._settings.calls_max,
        )
        server.add_generic_rpc_handlers(tuple(self._handlers()))
        host = f"[{self._host}]" if ":" in self._host else self._host
        target = f"{host}:{self._port}"
        try:
            if self._credentials is None:
                port = server.add_insecure_port(target)
            else:
                port = server.add_secure_port(target, self._credentials)
        except RuntimeError as error:
            raise StartupError(f"cannot listen for gRPC on {target}: {error}") from None
        if port == 0:
            raise StartupError(f"cannot listen for gRPC on {target}")
        await server.start()
        self._server, self._port = server, port

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are listened on."""
        assert self._server is not None, "not started"
        return self._host, self._port

    async def drain(self) -> None:
        """The daemon is about to stop: health says NOT_SERVING; calls are still taken, the Front refuses new work."""
        self._draining = True

    async def close(self, grace_ms: int = 0) -> None:
        """Stops: no new calls, streams end with an error, what is under way has ``grace_ms`` to finish."""
        self._draining = True
        self._service.streams.stop()
        if self._server is not None:
            await self._server.stop(max(grace_ms, FAREWELL_MS) / 1000)

    def _ready(self) -> bool:
        return not self._draining and self._front.ready()[0]

    def _handlers(self) -> list[Any]:
        checks = health.Health((service.NAME,), self._ready, self._service.streams)
        names = (service.NAME, health.NAME, *REFLECTION)
        reflector = reflection.aio.ReflectionServicer(names)
        reflect = grpc.stream_stream_rpc_method_handler(
            reflector.ServerReflectionInfo,
            request_deserializer=reflected.ServerReflectionRequest.FromString,
            response_serializer=reflected.ServerReflectionResponse.SerializeToString,
        )
        return [
            grpc.method_handlers_generic_handler(service.NAME, self._service.handlers()),
            grpc.method_handlers_generic_handler(health.NAME, checks.handlers()),
            *(grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": reflect}) for name in REFLECTION),
        ]


class Counting(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Counts every call; what comes on a session counts as well (`session`)."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        self._traffic.requested()
        return await continuation(details)


def _options(settings: GrpcSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # else a second daemon on the same port would silently take half of the calls
        ("grpc.max_receive_message_length", settings.message_bytes_max),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", settings.connection_calls_max),
        ("grpc.max_metadata_size", settings.metadata_bytes_max),
        ("grpc.absolute_max_metadata_size", settings.metadata_bytes_max),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", settings.ping_interval_ms_min),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", settings.keepalive_ms),
        ("grpc.keepalive_timeout_ms", settings.keepalive_timeout_ms),
        ("grpc.max_connection_idle_ms", settings.idle_ms),
    ]
