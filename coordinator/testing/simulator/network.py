"""The network between the machines: connections of bytes, as instances of a group have them to each other.

The real `cluster.peers` and the real `transport.tcp` speak over it, frame by frame, so what is played is only what a
network does:

- a write arrives later, in order; to a paused process the kernel still takes it, and it is read when that wakes up;
- a connection *breaks* at any write: what was under way is lost, and both ends are told;
- a process that dies leaves a closed connection behind, and nobody who listens;
- two machines are *cut* from each other: nothing arrives, not even the news of a death, until the cut is mended; then
  all of it does, as a protocol that sends again would have it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any, Final, cast

from coordinator.testing.virtual import Strand

if TYPE_CHECKING:
    from coordinator.testing.simulator.process import Process
    from coordinator.testing.simulator.world import World

SERVES_PEER: ContextVar[bool] = ContextVar("serves_peer", default=False)
"""Whether what runs was asked for by another instance: what such a one asks must not be forwarded again."""

_APART_NS: Final = 1_000  # between two arrivals of one direction: timers of one moment fire in any order

Factory = Callable[[], asyncio.BaseProtocol]


class Network:
    """See the module; `virtual.Network` for the loop."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._processes: dict[Strand, Process] = {}
        self._listeners: dict[tuple[str, int], Listener] = {}
        self._ends: dict[End, None] = {}  # that are open
        self._cuts: dict[frozenset[str], deque[Callable[[], None]]] = {}  # with what cannot pass

    def joins(self, process: Process) -> None:
        self._processes[process.strand] = process

    # ------------------------------------------------------------ the loop's port

    def listen(self, strand: Strand, factory: Factory, host: str, port: int) -> Listener:
        listener = Listener(self, self._processes[strand], factory, host, port)
        self._listeners[host, port] = listener
        return listener

    async def connect(
        self, strand: Strand, factory: Factory, host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        process = self._processes[strand]
        await asyncio.sleep(self.world.latency())
        while self.is_cut(process.machine.name, host):  # noqa: ASYNC110 - in virtual time
            await asyncio.sleep(1.0)  # as one asks again who got no answer
        listener = self._listeners.get((host, port))
        if listener is None:
            raise ConnectionRefusedError(f"nobody listens at {host}:{port}")
        near, far = End(self, process, process.strand.context), End(self, listener.process, listener.context)
        near.other, far.other = far, near
        self._ends |= {near: None, far: None}
        far.adopt(listener.factory)
        protocol = near.protocol = factory()
        protocol.connection_made(near)
        return near, protocol

    def close_listener(self, listener: Listener) -> None:
        place = (listener.host, listener.port)
        if self._listeners.get(place) is listener:
            del self._listeners[place]

    # ------------------------------------------------------------ what travels

    def send(self, end: End, what: Callable[..., None], *args: Any) -> None:
        """Something travels from this end to the other one."""
        pair = frozenset((end.process.machine.name, end.other.process.machine.name))
        held = self._cuts.get(pair)
        if held is not None:
            held.append(lambda: self._send(end, what, *args))
        else:
            self._send(end, what, *args)

    def _send(self, end: End, what: Callable[..., None], *args: Any) -> None:
        loop, other = self.world.loop, end.other
        end.arrives_ns = max(end.arrives_ns + _APART_NS, loop.now_ns + round(self.world.latency() * 1e9))
        loop.call_at(end.arrives_ns / 1e9, what, *args, context=other.context)

    # ------------------------------------------------------------ what goes wrong

    def is_cut(self, one: str, other: str) -> bool:
        return frozenset((one, other)) in self._cuts

    def cut(self, one: str, other: str) -> None:
        """Nothing passes between two machines, until `mend`."""
        self._cuts.setdefault(frozenset((one, other)), deque())

    def mend(self, one: str, other: str) -> None:
        for passes in self._cuts.pop(frozenset((one, other)), ()):
            passes()

    def mend_all(self) -> None:
        for pair in list(self._cuts):
            self.mend(*pair)

    def died(self, process: Process) -> None:
        """Its kernel closes what it had open."""
        for listener in [each for each in self._listeners.values() if each.process is process]:
            self.close_listener(listener)
        for end in [each for each in self._ends if each.process is process]:
            self.closed(end)
            self.send(end, end.other.lost, ConnectionResetError("reset by peer"))

    def closed(self, end: End) -> None:
        end.open = False
        self._ends.pop(end, None)


class Listener:
    """What `asyncio.Server` is to a TCP server."""

    def __init__(self, network: Network, process: Process, factory: Factory, host: str, port: int) -> None:
        self.network, self.process, self.factory = network, process, factory
        self.host, self.port = host, port
        self.context: Context = process.strand.context.copy()
        self.context.run(SERVES_PEER.set, True)

    @property
    def sockets(self) -> list[Any]:
        return [self]

    def getsockname(self) -> tuple[str, int]:
        return self.host, self.port

    def close(self) -> None:
        self.network.close_listener(self)

    async def wait_closed(self) -> None:
        pass


class End(asyncio.Transport):
    """One end of a connection, in one process."""

    other: End
    protocol: asyncio.BaseProtocol

    def __init__(self, network: Network, process: Process, context: Context) -> None:
        super().__init__()
        self.network, self.process, self.context = network, process, context
        self.open = True
        self.arrives_ns = 0  # when what was sent last arrives
        self._made = False
        self._reading = True
        self._unread: deque[tuple[Callable[..., None], Any]] = deque()

    def adopt(self, factory: Factory) -> None:
        """The accepting side: its process sees the connection when it runs next."""

        def made() -> None:
            if self.open:
                self.protocol = factory()
                self._made = True
                self.protocol.connection_made(self)

        self.network.world.loop.call_soon(made, context=self.context)

    # ------------------------------------------------------------ arriving

    def receives(self, data: bytes) -> None:
        if not self.open:
            return
        if not self._reading:
            self._unread.append((self.receives, data))
            return
        cast("asyncio.Protocol", self.protocol).data_received(data)

    def receives_eof(self) -> None:
        if not self.open:
            return
        if not self._reading:
            self._unread.append((lambda _: self.receives_eof(), None))
        elif not cast("asyncio.Protocol", self.protocol).eof_received():
            self.close()

    def lost(self, why: Exception | None) -> None:
        if self.open:
            self.network.closed(self)
            self._tell_lost(why)

    def _tell_lost(self, why: Exception | None) -> None:
        if hasattr(self, "protocol"):
            self.protocol.connection_lost(why)

    # ------------------------------------------------------------ what asyncio asks of a transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.open or not data:
            return
        world = self.network.world
        if world.chance("links/write"):
            world.fault("link broken", self.process.name, self.other.process.name)
            self._break()
            return
        self.network.send(self, self.other.receives, bytes(data))

    def _break(self) -> None:
        """What was under way is lost, and both ends are told."""
        why = ConnectionResetError("the connection broke")
        self.network.send(self, self.other.lost, why)
        self.network.world.loop.call_soon(self.lost, why, context=self.context)

    def write_eof(self) -> None:
        if self.open:
            self.network.send(self, self.other.receives_eof)

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        if self.open:
            self.network.send(self, self.other.receives_eof)
            self.network.closed(self)
            self.network.world.loop.call_soon(self._tell_lost, None, context=self.context)

    def abort(self) -> None:
        if self.open:
            self.network.send(self, self.other.lost, ConnectionResetError("reset by peer"))
            self.network.closed(self)
            self.network.world.loop.call_soon(self._tell_lost, None, context=self.context)

    def is_closing(self) -> bool:
        return not self.open

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        unread, self._unread = self._unread, deque()
        for what, data in unread:
            self.network.world.loop.call_soon(what, data, context=self.context)

    def is_reading(self) -> bool:
        return self._reading

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default
