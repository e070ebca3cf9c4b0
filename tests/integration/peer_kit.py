"""What the tests of links stand on: a Front that does what it is told, a Cluster to change by hand, an instance around
both, in this process or in one of its own (``python -m tests.integration.peer_kit INSTANCE GROUP PORT``).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

from coordinator import errors
from coordinator.cluster.base import Held, Member
from coordinator.cluster.peers import LinkSettings, Peers
from coordinator.demo.processes import free_port
from coordinator.errors import CoordinatorError, UnknownCommand
from coordinator.model.command import CommandView, State, Submission
from coordinator.transport.base import Event, Front, OutcomeItem, Traffic, Unwatch, Want, Watcher
from coordinator.transport.tcp import Identity, TcpServer, TcpSettings

GROUP = "orders"


def view(id: str, state: State = State.COMPLETED, result: Any = None) -> CommandView:
    return CommandView(
        id=id,
        type="T",
        version=1,
        state=state,
        result=result,
        error=None,
        steps=[],
        waiting_for=[],
        attributes={},
        submitted_at="2026-01-02T03:04:05.006Z",
        finished_at=None,
        partition=0,
        position="0:1",
    )


class ScriptedFront:
    """Runs commands at once, unless told to hold them; the payload of some says how to answer."""

    dedupe_horizon_ms = 3_600_000

    def __init__(self) -> None:
        self.submitted: list[tuple[Submission, Want]] = []
        self.held: dict[str, Watcher] = {}
        self.left: asyncio.Queue[str] = asyncio.Queue()  # ids whose watcher has left
        self.holding = False
        self.outcome_batches = 0

    def submit(self, submission: Submission, watcher: Watcher | None, want: Want = "events") -> tuple[str, Unwatch]:
        assert submission.id is not None
        assert watcher is not None
        id = submission.id
        self.submitted.append((submission, want))
        if isinstance(submission.payload, dict) and (code := submission.payload.get("refuse")):
            raise errors.tree()[code]("so it was asked", retry_after_ms=70, legal_states=["paused"], faults=[])
        loop = asyncio.get_running_loop()
        if self.holding:
            self.held[id] = watcher
            return id, lambda: self._leave(id)
        loop.call_soon(self._run, id, submission.payload, watcher, want)
        return id, lambda: None

    def _leave(self, id: str) -> None:
        del self.held[id]
        self.left.put_nowait(id)

    def _run(self, id: str, payload: Any, watcher: Watcher, want: Want) -> None:
        shown = view(id, State.RUNNING) if want == "accepted" else None
        watcher(Event("accepted", id, "0:1", "running", view=shown))
        if want == "events":
            watcher(Event("step", id, "0:2", "running", record={"kind": "outcome", "step": "a"}))
            watcher(Event("state", id, "0:2", "delayed"))
        if want != "accepted":
            watcher(Event("final", id, "0:3", "completed", view=view(id, result=payload)))

    def watch(self, id: str, watcher: Watcher, after: str | None = None) -> Unwatch:
        if id == "unknown":
            raise UnknownCommand(f"no command has the id {id!r}")
        self.held[id] = watcher
        asyncio.get_running_loop().call_soon(watcher, Event("accepted", id, after or "0:1", "delayed"))
        return lambda: self._leave(id)

    async def get(self, id: str, wait_ms: int = 0) -> CommandView:
        if id == "unknown":
            raise UnknownCommand(f"no command has the id {id!r}")
        if wait_ms:
            try:
                await asyncio.sleep(wait_ms / 1000)
            except asyncio.CancelledError:
                self.left.put_nowait(id)
                raise
        return view(id)

    async def outcomes(
        self, service: str, start: str | None, follow: bool, partitions: Any = None
    ) -> AsyncIterator[list[OutcomeItem]]:
        item = OutcomeItem(
            position="0:1", service=service, command_id="c", type="T", step="a", outcome="x" * 1000, at="…"
        )
        for number in range(int(start or 0)):
            self.outcome_batches = number + 1
            yield [item] * 10
        if follow:
            await asyncio.Event().wait()


class Elsewhere(ScriptedFront):
    """A Front that forwards would answer strangers itself and keep one for what was forwarded already."""

    def __init__(self) -> None:
        super().__init__()
        self.local = ScriptedFront()


class HandCluster:
    """A Cluster that owns what the test says."""

    def __init__(self) -> None:
        self.leaving = False
        self.taken: list[tuple[int, int, str]] = []
        self._owned: dict[int, int] = {}
        self._callbacks: list[Callable[[], None]] = []

    def owned(self) -> Held:
        return self._owned

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    @property
    def followers(self) -> int:
        return len(self._callbacks)

    def change(self, owned: dict[int, int], leaving: bool = False) -> None:
        self._owned, self.leaving = owned, leaving
        for callback in self._callbacks:
            callback()

    async def take(self, partition: int, epoch: int, by: str) -> bool:
        self.taken.append((partition, epoch, by))
        if partition == 13:
            raise CoordinatorError("not that one")
        return not self.leaving


class Instance:
    """An instance in this process: a TCP listener around a scripted Front and a Cluster."""

    def __init__(self, server: TcpServer, front: Any, cluster: HandCluster) -> None:
        self.server, self.front, self.cluster = server, front, cluster
        host, port = server.address
        self.member = Member(server.identity.instance, f"{host}:{port}")


@contextlib.asynccontextmanager
async def instance(
    name: str = "b",
    *,
    group: str = GROUP,
    port: int = 0,
    front: Any = None,
    settings: TcpSettings | None = None,
    alone: bool = False,
    traffic: Traffic | None = None,
) -> AsyncIterator[Instance]:
    front, cluster = front or ScriptedFront(), HandCluster()
    server = TcpServer(
        front,
        host="127.0.0.1",
        port=port,
        settings=settings,
        identity=Identity(instance=name, group=group),
        cluster=None if alone else cluster,
        traffic=traffic,
    )
    await server.start()
    try:
        yield Instance(server, front, cluster)
    finally:
        await server.close()


class Process:
    """An instance in a process of its own, to be killed and stopped."""

    def __init__(self, process: asyncio.subprocess.Process, member: Member) -> None:
        self._process, self.member = process, member

    @classmethod
    async def start(cls, name: str, *, group: str = GROUP, port: int | None = None) -> Process:
        port = port or free_port()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, name, group, str(port), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"listening\n"
        return cls(process, Member(name, f"127.0.0.1:{port}"))

    @property
    def port(self) -> int:
        return int(self.member.address.rpartition(":")[2])

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


class Listener:
    """What Peers tells, as a list and as something to wait for."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self._changed = asyncio.Event()

    def __getattr__(self, name: str) -> Callable[[str], None]:
        if name not in ("died", "lives", "told"):
            raise AttributeError(name)

        def hear(instance: str) -> None:
            self.heard.append((name, instance))
            self._changed.set()

        return hear

    async def until(self, what: Callable[[], Any], timeout_s: float = 10) -> None:
        """Waits until the condition holds; looked at whenever something was told."""
        async with asyncio.timeout(timeout_s):
            while not what():
                self._changed.clear()
                await self._changed.wait()

    def deaths(self) -> list[str]:
        return [instance for name, instance in self.heard if name == "died"]

    def lives(self) -> list[str]:
        return [instance for name, instance in self.heard if name == "lives"]


@contextlib.asynccontextmanager
async def peers(
    listener: Listener, *members: Member, silence_ms: int = 6_000, settings: LinkSettings | None = None
) -> AsyncIterator[Peers]:
    """The links of instance ``a``."""
    made = Peers(
        Member("a", "127.0.0.1:1"),
        group=GROUP,
        on_died=listener.__getattr__("died"),
        on_lives=listener.__getattr__("lives"),
        on_told=listener.__getattr__("told"),
        silence_ms=silence_ms,
        settings=settings,
    )
    made.know(members)
    try:
        yield made
    finally:
        await made.close()


async def _main(name: str, group: str, port: str) -> None:
    front: Front = ScriptedFront()  # type: ignore[assignment]  # the part of it that is asked for
    async with instance(name, group=group, port=int(port), front=front):
        print("listening", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
