"""The synchronous client: an AsyncClient on an event loop of its own, in a background thread.

One implementation of retries and protocols serves both. The thread is a daemon; it starts with the first call and ends
with `close`. Any number of threads may share one client, and their calls share its pipelined connections. After
``os.fork`` make a new one.
"""

from __future__ import annotations

import asyncio
import builtins
import threading
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from coordinator_client.aio import PATIENCE_S, AsyncClient
from coordinator_client.models import Command, Event, Outcome, PendingDecision, Schedule
from coordinator_client.values import Duration

T = TypeVar("T")
Records = list[dict[str, Any]]


class _Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="coordinator-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``; an interrupt (Ctrl-C) cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Client:
    """As AsyncClient, blocking: see there for what each method does, waits for and raises."""

    def __init__(
        self, url: str | Sequence[str], *, connections: int = 1, deadline: Duration = PATIENCE_S, **options: Any
    ) -> None:
        self._client = AsyncClient(url, connections=connections, deadline=deadline, **options)
        self._lock = threading.Lock()
        self._loop: _Loop | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections and ends the thread."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.run(self._client.close())
            loop.stop()

    def submit(
        self,
        type: str | None = None,
        payload: Any = None,
        *,
        definition: Mapping[str, Any] | None = None,
        id: str | None = None,
        version: int | None = None,
        timeout: Duration | None = None,
        attributes: Mapping[str, str | int | float | bool] | None = None,
        priority: int = 0,
        admit_within: Duration | None = None,
        delay: Duration | None = None,
        wait: Duration | None = None,
        deadline: Duration | None = None,
        result_type: type[Any] | None = None,
    ) -> Command:
        return self._run(
            self._client.submit(
                type,
                payload,
                definition=definition,
                id=id,
                version=version,
                timeout=timeout,
                attributes=attributes,
                priority=priority,
                admit_within=admit_within,
                delay=delay,
                wait=wait,
                deadline=deadline,
                result_type=result_type,
            )
        )

    def start(self, type: str | None = None, payload: Any = None, **options: Any) -> str:
        return self._run(self._client.start(type, payload, **options))

    def get(self, id: str, *, result_type: type[Any] | None = None, deadline: Duration | None = None) -> Command:
        return self._run(self._client.get(id, result_type=result_type, deadline=deadline))

    def wait(self, id: str, timeout: Duration | None = None, *, result_type: type[Any] | None = None) -> Command:
        return self._run(self._client.wait(id, timeout, result_type=result_type))

    def watch(self, id: str, after: str | None = None, *, deadline: Duration | None = None) -> Iterator[Event]:
        return self._iterate(self._client.watch(id, after, deadline=deadline))

    def list(
        self,
        *,
        state: str | None = None,
        type: str | None = None,
        attributes: Mapping[str, str] | None = None,
        limit: int | None = None,
        page: int = 100,
    ) -> Iterator[Command]:
        return self._iterate(self._client.list(state=state, type=type, attributes=attributes, limit=limit, page=page))

    def history(self, id: str) -> Records:
        return self._run(self._client.history(id))

    def explain(self, id: str) -> dict[str, Any]:
        return self._run(self._client.explain(id))

    def diagram(self, id: str) -> str:
        return self._run(self._client.diagram(id))

    def pause(self, id: str, reason: str = "", by: str = "") -> Command:
        return self._run(self._client.pause(id, reason, by))

    def resume(self, id: str, reason: str = "", by: str = "") -> Command:
        return self._run(self._client.resume(id, reason, by))

    def cancel(self, id: str, reason: str = "", by: str = "") -> Command:
        return self._run(self._client.cancel(id, reason, by))

    def abort(self, id: str, reason: str = "", by: str = "") -> Command:
        return self._run(self._client.abort(id, reason, by))

    def retry(self, id: str, reason: str = "", by: str = "") -> Command:
        return self._run(self._client.retry(id, reason, by))

    def requeue(self, id: str, step: str, *, input: Any = msgspec.UNSET, reason: str = "", by: str = "") -> Command:
        return self._run(self._client.requeue(id, step, input=input, reason=reason, by=by))

    def resolve(self, id: str, step: str, reason: str = "", by: str = "") -> Command:
        return self._run(self._client.resolve(id, step, reason, by))

    def provide(self, id: str, name: str, value: Any, *, signal_id: str | None = None, by: str = "") -> Command:
        return self._run(self._client.provide(id, name, value, signal_id=signal_id, by=by))

    def decide(
        self, id: str, step: str, *, approve: bool, by: str = "", comment: str = "", roles: Collection[str] = ()
    ) -> Command:
        return self._run(self._client.decide(id, step, approve=approve, by=by, comment=comment, roles=roles))

    def decisions(self) -> builtins.list[PendingDecision]:
        return self._run(self._client.decisions())

    def put_schedule(self, name: str, content: Mapping[str, Any], by: str = "") -> Schedule:
        return self._run(self._client.put_schedule(name, content, by))

    def get_schedule(self, name: str) -> Schedule:
        return self._run(self._client.get_schedule(name))

    def schedules(self) -> builtins.list[Schedule]:
        return self._run(self._client.schedules())

    def pause_schedule(self, name: str, reason: str = "", by: str = "") -> Schedule:
        return self._run(self._client.pause_schedule(name, reason, by))

    def resume_schedule(self, name: str, reason: str = "", by: str = "") -> Schedule:
        return self._run(self._client.resume_schedule(name, reason, by))

    def delete_schedule(self, name: str, reason: str = "", by: str = "") -> None:
        return self._run(self._client.delete_schedule(name, reason, by))

    def outcomes(
        self, service: str, start: str | None = None, *, follow: bool = False, deadline: Duration | None = None
    ) -> Iterator[Outcome]:
        return self._iterate(self._client.outcomes(service, start, follow=follow, deadline=deadline))

    def dead_letters(self) -> Records:
        return self._run(self._client.dead_letters())

    def quarantine(self) -> Records:
        return self._run(self._client.quarantine())

    def log(self) -> Records:
        return self._run(self._client.log())

    def services(self) -> Records:
        return self._run(self._client.services())

    def set_breaker(self, service: str, state: str) -> dict[str, Any]:
        return self._run(self._client.set_breaker(service, state))

    def cluster(self) -> dict[str, Any]:
        return self._run(self._client.cluster())

    def put_definition(self, name: str, version: int, content: Mapping[str, Any], by: str = "") -> bool:
        return self._run(self._client.put_definition(name, version, content, by))

    def get_definition(self, name: str, version: int | None = None) -> dict[str, Any]:
        return self._run(self._client.get_definition(name, version))

    def definitions(self) -> Records:
        return self._run(self._client.definitions())

    def definition_diagram(self, name: str, version: int) -> str:
        return self._run(self._client.definition_diagram(name, version))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._loop is None:
                self._loop = _Loop()
            loop = self._loop
        return loop.run(work)

    def _iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """Steps an asynchronous iterator; leaving the loop early closes it at once."""

        async def step() -> tuple[bool, T | None]:
            try:
                return True, await anext(items)
            except StopAsyncIteration:  # must not leave a coroutine
                return False, None

        async def close() -> None:
            finish = getattr(items, "aclose", None)
            if finish is not None:
                await finish()

        try:
            while (found := self._run(step()))[0]:
                yield found[1]  # type: ignore[misc]
        finally:
            self._run(close())
