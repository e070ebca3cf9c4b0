"""The listeners of a daemon: made from its Config, started and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, Protocol

import httpx

from coordinator.cluster.base import Cluster
from coordinator.errors import CoordinatorError, StartupError
from coordinator.server.config import Config, advertised, split_address
from coordinator.server.metrics import Metrics
from coordinator.transport.base import Front
from coordinator.wire import frames


class Listener(Protocol):
    """What TCP, HTTP and gRPC servers have in common."""

    @property
    def address(self) -> tuple[str, int]: ...

    async def start(self) -> None: ...

    async def drain(self) -> None: ...

    async def close(self, grace_ms: int) -> None: ...


class Transports:
    """All listeners that the configuration has on."""

    def __init__(
        self, front: Front, config: Config, metrics: Metrics, instance: str, cluster: Cluster | None = None
    ) -> None:
        self.addresses: dict[str, tuple[str, int]] = {}
        self._advertise = config.listen.advertise
        self._listeners = {
            name: _make(name, front, config, metrics, instance, cluster, host, port)
            for name, (host, port) in config.listen.addresses().items()
        }
        self._started: list[Listener] = []

    @property
    def advertised(self) -> str:
        """Where a standby asks whether this instance lives: ``host:port`` of TCP, else HTTP's URL, else nothing."""
        if "tcp" in self.addresses:
            return self.advertised_tcp
        return self.http_url

    @property
    def http_url(self) -> str:
        """Where HTTP listens, without a path; empty where it is off."""
        return f"http://{_joined(*self.addresses['http'])}" if "http" in self.addresses else ""

    @property
    def advertised_tcp(self) -> str:
        """``host:port`` at which other instances reach the TCP listener; empty where there is none."""
        if "tcp" not in self.addresses:
            return ""
        host, port = self.addresses["tcp"]
        if not self._advertise:
            return _joined(host, port)
        return _joined(*split_address(advertised(self._advertise, port)))

    async def start(self) -> None:
        for name, listener in self._listeners.items():
            try:
                await listener.start()
            except OSError as error:
                host, port = listener_address(listener)
                raise StartupError(
                    f"cannot listen on {host}:{port} (listen.{name}): {error.strerror or error}"
                ) from error
            self._started.append(listener)
            self.addresses[name] = listener.address

    async def drain(self) -> None:
        for listener in self._started:
            await listener.drain()

    async def close(self, grace_ms: int) -> None:
        started, self._started = self._started, []
        await asyncio.gather(*(listener.close(grace_ms) for listener in started))


def listener_address(listener: Any) -> tuple[str, int]:
    """The address that a listener was told to take (it has no other before it listens)."""
    return getattr(listener, "_host", "?"), getattr(listener, "_port", 0)


def _make(
    name: str,
    front: Front,
    config: Config,
    metrics: Metrics,
    instance: str,
    cluster: Cluster | None,
    host: str,
    port: int,
) -> Listener:
    limits = config.limits
    if name == "tcp":
        from coordinator.transport.tcp import TcpServer
        from coordinator.wire.connection import Identity, TcpSettings

        tcp = TcpSettings(
            connections_max=limits.connections,
            frame_bytes_max=limits.body_bytes,
            in_flight_max=limits.in_flight,
            write_buffer_max=max(limits.write_buffer_bytes, limits.body_bytes),
            read_timeout_ms=int(limits.read_timeout),
            idle_timeout_ms=int(limits.idle_timeout),
            ping_interval_ms=max(1, int(limits.idle_timeout) // 3),
        )
        identity = Identity(instance=instance, group=config.coordinator.name)
        traffic = metrics.traffic(name)
        return TcpServer(front, host=host, port=port, settings=tcp, identity=identity, traffic=traffic, cluster=cluster)
    if name == "http":
        from coordinator.transport.http import HttpServer, HttpSettings

        http = HttpSettings(
            body_bytes_max=limits.body_bytes,
            head_bytes_max=limits.header_bytes,
            connections_max=limits.connections,
            pipelined_max=limits.in_flight,
            body_timeout_ms=int(limits.read_timeout),
            idle_timeout_ms=int(limits.idle_timeout),
        )
        return HttpServer(
            front,
            host=host,
            port=port,
            settings=http,
            registry=metrics.registry,
            name=config.coordinator.name,
            traffic=metrics.traffic(name),
        )
    from coordinator.transport.grpc import GrpcServer, GrpcSettings

    grpc = GrpcSettings(
        message_bytes_max=limits.body_bytes,
        connection_calls_max=limits.in_flight,
        idle_ms=int(limits.idle_timeout),
    )
    traffic = metrics.traffic(name, sees_connections=False)
    return GrpcServer(front, host=host, port=port, settings=grpc, traffic=traffic)


def _joined(host: str, port: int) -> str:
    host = _reachable(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reachable(host: str) -> str:
    """A listener on every address is reached by the machine's own: nobody can dial 0.0.0.0."""
    if host not in ("0.0.0.0", "::", ""):
        return host
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return socket.gethostname()


PROBE_TIMEOUT_S = 1.0


async def probe(address: str, instance: str) -> bool:
    """Whether the instance answers at the address of its Epoch: a hint for a standby, never a proof of anything.

    One that advertises nothing is taken to live: its standby waits for an operator.
    """
    if not address:
        return True
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            return await (_probe_http if address.startswith("http://") else _probe_tcp)(address) == instance
    except (OSError, ValueError, TimeoutError, EOFError, CoordinatorError, httpx.HTTPError):
        return False


async def _probe_tcp(address: str) -> str | None:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        hello = frames.Hello(0, frames.MAGIC, frames.VERSION_MIN, frames.VERSION_MAX, "probe")
        writer.write(frames.encode(hello))
        (size,) = frames.PREFIX.unpack(await reader.readexactly(4))
        answer = frames.read_from_server(await reader.readexactly(min(size, frames.HELLO_BYTES_MAX)))
        return answer.options.instance if isinstance(answer, frames.Hello) else None
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _probe_http(address: str) -> str | None:
    async with httpx.AsyncClient() as client:
        answer = (await client.get(f"{address}/v1/cluster")).json()
        return answer.get("instance") if isinstance(answer, dict) else None
