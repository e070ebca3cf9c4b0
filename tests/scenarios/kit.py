"""What the scenarios share: a stage with a real daemon, services of the test's own, and a hand that kills.

A scenario is written once, as a client, the services and an operator see it, and then run four ways: its command in
code and as a JSON definition, in peace and with **the daemon killed at every point**.  The points are those at which a
crash can make a difference that is seen from outside:

- a service has been asked and has done nothing yet (the daemon dies while it waits for the answer),
- a service has done it, and the answer is on its way or has just been recorded,
- a command waits, and the scenario says so (`Stage.point`).

At each the daemon dies by kill -9 and starts again on the same files and ports, once a point, all of them in one run.
What a scenario asserts must hold all the same; effects are counted by Idempotency-Key, as services do.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from itertools import count
from json import dumps
from pathlib import Path
from typing import Any

import httpx

from coordinator.demo.processes import free_port
from tests.integration.daemon import READY_S, Arrival, Daemon, Service, environment
from tests.scenarios.nursery import Nursery

PATIENCE_S = 20
LOOK_S = 0.02  # how often it is looked whether something has become true
FINAL = {"completed", "compensated", "failed", "aborted"}
ENGINE = 'slow_retry_interval = "50ms"\nretry_jitter = "0ms"'

Answer = tuple[int, Any] | Callable[[Arrival], tuple[int, Any]]


class QuickDaemon(Daemon):
    """A daemon out of the nursery, on HTTP and the protocol between instances."""

    def __init__(self, nursery: Nursery, directory: Path, config: str, *, app: str | None = None) -> None:
        super().__init__(directory, config, app=app)
        self._nursery = nursery

    def start(self, *extra: str) -> QuickDaemon:
        """Starts, and waits until its log says that it is ready: that costs less than asking again and again."""
        self.spawn(*extra)
        self.listening()
        deadline = time.monotonic() + READY_S
        while '"event": "ready"' not in self.text():
            self._alive()
            assert time.monotonic() < deadline, self.tail()
            time.sleep(0.01)
        return self

    def spawn(self, *extra: str) -> None:
        http = self.ports.get("http") or free_port()
        argv = ["coordinator", "serve", "--config", str(self.config), "--grpc", "off"]
        argv += ["--tcp", "127.0.0.1:0", "--http", f"127.0.0.1:{http}"]
        if self.app:
            argv += ["--app", self.app]
        self.log.touch()
        self._from = self.log.stat().st_size
        self.process = self._nursery.bear([*argv, *extra], self.log, self.cwd, environment())  # type: ignore[assignment]


class Party(Service):
    """A service of the test's: it keeps its promise about keys, and answers 200 unless ``says`` tells otherwise.

    ``says[path]`` is an answer or a function of what has arrived; a path that a call has no script for is answered with
    ``{"id": <the step's name>}``.  ``held`` are paths whose callers wait until they are taken out of it.
    """

    def __init__(self, name: str, stage: Stage) -> None:
        super().__init__()
        self.name = name
        self.stage = stage
        self.says: dict[str, Answer] = {}
        self.held: set[str] = set()

    async def hold(self, arrival: Arrival) -> None:
        life = self.stage.lives
        await self.stage.point(f"{arrival.key} asked", life)
        await self.until(lambda: arrival.path not in self.held or self.stage.lives != life)
        if self.stage.lives != life:
            raise ConnectionResetError("who asked is dead, and nothing was done")

    async def answered(self, arrival: Arrival) -> None:
        await self.stage.point(f"{arrival.key} answered")

    def release(self, path: str) -> None:
        self.held.discard(path)
        self.changed.set()

    def _answer(self, arrival: Arrival) -> tuple[int, Any]:
        if self.down:
            return 503, {"error": "down"}
        if arrival.key in self.remembered:
            return 200, self.remembered[arrival.key]
        said = self.says.get(arrival.path, (200, None))
        status, body = said(arrival) if callable(said) else said
        if status < 300:
            self.remembered[arrival.key] = body = {"id": arrival.key.partition("/")[2]} if body is None else body
        return status, body

    def effects(self, command: str) -> list[str]:
        """The steps of a command that took effect here, in order (``charge``, ``charge/undo``)."""
        return [key.partition("/")[2] for key in self.remembered if key.startswith(f"{command}/")]

    def asked(self, command: str, step: str) -> Any:
        """The body with which a step was asked for last."""
        return [each.json for each in self.arrivals if each.key == f"{command}/{step}"][-1]

    def has_been_asked(self, command: str, step: str) -> bool:
        return f"{command}/{step}" in self.keys()


class Stage:
    """A daemon, the services that it knows, and a client; ``deadly``: it dies at each point, once."""

    def __init__(
        self, nursery: Nursery, directory: Path, names: Sequence[str], *, app: str | None, deadly: bool, engine: str
    ) -> None:
        self.nursery = nursery
        self.directory = directory
        self.app = app
        self.engine = engine
        self.parties = {name: Party(name, self) for name in names}
        self.deadly = deadly
        self.points: list[str] = []
        self.lives = 1
        self.daemon: QuickDaemon
        self._reviving = asyncio.Lock()
        self._ids = count(1)
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        lines = ["[coordinator]", 'name = "scenarios"', ENGINE, self.engine]
        lines += ["[log]", f'data_dir = "{self.directory / "data"}"']
        for name, party in self.parties.items():
            await party.start()
            lines += [f"[services.{name}]", f'url = "{party.url}"', 'timeout = "5s"', "breaker = { failures = 1000 }"]
        self.daemon = QuickDaemon(self.nursery, self.directory, "\n".join(lines) + "\n", app=self.app)
        await asyncio.to_thread(self.daemon.start)

    def fresh(self) -> None:
        """Services that say nothing of their own, for another test."""
        for party in self.parties.values():
            party.says.clear()
            party.held.clear()
            party.down = False

    # ------------------------------------------------------------ the daemon

    async def point(self, name: str, life: int | None = None) -> None:
        """A place at which the daemon may die; it has started again when this returns.

        ``life`` is the one to which it belongs: if that is over, there is nothing left to kill.
        """
        if not self.deadly or name in self.points:
            return
        async with self._reviving:
            if name not in self.points and life in (None, self.lives):
                self.points.append(name)
                await self._die_and_start()

    async def crash(self) -> None:
        """kill -9 and another start."""
        async with self._reviving:
            await self._die_and_start()

    async def _die_and_start(self) -> None:
        self.daemon.kill()
        self.lives += 1
        await asyncio.to_thread(self.daemon.start)

    # ------------------------------------------------------------ asking

    async def ask(self, method: str, path: str, json: Any = None, **rest: Any) -> httpx.Response:
        """Asks until it is answered by a daemon that is ready."""
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=PATIENCE_S)
        if method in ("POST", "PUT"):
            rest |= {"content": dumps(json).encode(), "headers": {"content-type": "application/json"}}
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    answer = await self._client.request(method, self.daemon.http + path, **rest)
                    if answer.status_code != 503:
                        return answer
                await asyncio.sleep(LOOK_S)

    async def done(self, method: str, path: str, json: Any = None, **rest: Any) -> Any:
        """Asks for what is not refused."""
        answer = await self.ask(method, path, json, **rest)
        assert answer.status_code < 300, answer.text
        return answer.json()

    async def refused(self, method: str, path: str, json: Any = None, **rest: Any) -> dict[str, Any]:
        """Asks for what is refused; the problem, with ``status`` and ``code``."""
        answer = await self.ask(method, path, json, **rest)
        assert answer.status_code >= 400, answer.text
        problem: dict[str, Any] = answer.json()
        return problem

    async def submit(self, what: str | dict[str, Any], payload: Any = None, **rest: Any) -> str:
        """Begins a command, of a type or by a definition; its id."""
        kind = "type" if isinstance(what, str) else "definition"
        id = rest.pop("id", None) or f"c-{next(self._ids)}"
        await self.done("POST", "/v1/commands", {"id": id, kind: what, "payload": payload or {}, **rest})
        return id

    async def view(self, id: str) -> dict[str, Any]:
        view: dict[str, Any] = await self.done("GET", f"/v1/commands/{id}")
        return view

    async def until(self, id: str, holds: str | Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The command once it is in a state, or like this."""
        view: dict[str, Any] = {}
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    view = await self.view(id)
                    if view["state"] == holds if isinstance(holds, str) else holds(view):
                        return view
                    assert view["state"] not in FINAL or not isinstance(holds, str), view
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise AssertionError(f"not {holds}: {view}\n{await self.explain(id)}") from None

    async def waiting(self, id: str, *names: str) -> dict[str, Any]:
        """The command once it waits for exactly this; a point."""
        view = await self.until(id, lambda view: view["state"] == "waiting" and set(view["waiting_for"]) == set(names))
        await self.point(f"{id} waits for {', '.join(names)}")
        return view

    async def ended(self, id: str, state: str = "completed") -> dict[str, Any]:
        """The command at its end, which is to be this; then what everybody may rely on is checked."""
        view: dict[str, Any] = {}
        async with asyncio.timeout(PATIENCE_S):
            while view.get("state") not in FINAL:
                view = await self.done("GET", f"/v1/commands/{id}?wait=5s")
        assert view["state"] == state, view
        assert not self.deadly or self.lives > len(self.points) > 1
        await self._check(view)
        return view

    async def _check(self, view: dict[str, Any]) -> None:
        """One outcome a step and one undo an outcome; history, explain and diagram tell the same end."""
        history = await self.history(view["id"])
        for kind in ("Outcome", "Undone"):
            of_steps = [each["step"] for each in history if each["kind"] == kind]
            assert len(of_steps) == len(set(of_steps)), history
        positions = [each["position"] for each in history]
        assert len(positions) == len(set(positions))
        assert (await self.explain(view["id"]))["state"] == view["state"]
        drawn = await self.diagram(view["id"])
        for step in view["steps"]:
            assert f"<b>{step['name'].removeprefix('savepoint:').partition('#')[0]}" in drawn, drawn

    async def history(self, id: str) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = await self.done("GET", f"/v1/commands/{id}/history")
        return records

    async def explain(self, id: str) -> dict[str, Any]:
        told: dict[str, Any] = await self.done("GET", f"/v1/commands/{id}/explain")
        return told

    async def diagram(self, id: str) -> str:
        return (await self.ask("GET", f"/v1/commands/{id}/diagram")).text

    async def provide(self, id: str, name: str, value: Any, signal_id: str | None = None) -> Any:
        """Gives a datum, under an id of its own unless one is given (``""``: none)."""
        signal_id = f"s-{next(self._ids)}" if signal_id is None else signal_id
        query = f"?signal_id={signal_id}" if signal_id else ""
        return await self.done("POST", f"/v1/commands/{id}/data/{name}{query}", value)

    async def decide(self, id: str, step: str, approve: bool, by: str = "ann", **rest: Any) -> None:
        """Decides, whoever dies meanwhile: a refusal that names this very decision is its receipt."""
        path = f"/v1/commands/{id}/decisions/{step}"
        answer = await self.ask("POST", path, {"approve": approve, "by": by, **rest})
        decided = answer.json().get("decided", {}) if answer.status_code == 409 else {}
        assert answer.status_code == 200 or (decided.get("by"), decided.get("approve")) == (by, approve), answer.text

    async def control(self, id: str, operation: str, by: str = "op", **body: Any) -> dict[str, Any]:
        """An operator's request, whoever dies meanwhile: a refusal of what the history has already is its receipt."""
        answer = await self.ask("POST", f"/v1/commands/{id}/{operation}", {"by": by, **body})
        if self.deadly and answer.status_code == 409:
            done = [(each["operation"], each["by"]) for each in await self.history(id) if each["kind"] == "Control"]
            assert (operation, by) in done, answer.text
            return await self.view(id)
        assert answer.status_code == 200, answer.text
        view: dict[str, Any] = answer.json()
        return view

    async def close(self) -> None:
        self.deadly = False
        if self._client is not None:
            await self._client.aclose()
        async with self._reviving:
            self.daemon.close()
        for party in self.parties.values():
            party.held.clear()
            await party.stop()


def step(name: str, **fields: Any) -> dict[str, Any]:
    """A definition's step at ``stock`` that has an undo, as `sagas.do` makes it in code."""
    return {"name": name, "service": "stock", "path": f"/{name}", "undo": {"path": f"/{name}/undo"}, **fields}


def definition(name: str, *steps: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"name": name, "version": 1, "steps": list(steps), **rest}


def undone(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """The steps that were undone, in order."""
    return [record["step"] for record in history if record["kind"] == "Undone"]


def effects(stage: Stage, id: str) -> dict[str, list[str]]:
    """What took effect for a command, by service."""
    return {name: done for name, party in stage.parties.items() if (done := party.effects(id))}


def states(view: Mapping[str, Any]) -> dict[str, str]:
    return {step["name"]: step["state"] for step in view["steps"]}


def outcomes(view: Mapping[str, Any]) -> dict[str, Any]:
    return {step["name"]: step["outcome"] for step in view["steps"] if step["state"] == "succeeded"}


@contextlib.asynccontextmanager
async def staged(
    nursery: Nursery, directory: Path, *names: str, app: str | None = None, deadly: bool = False, engine: str = ""
) -> AsyncIterator[Stage]:
    """A stage with these services, whose daemon has started."""
    stage = Stage(nursery, directory, names, app=app, deadly=deadly, engine=engine)
    try:
        await stage.start()
        yield stage
    finally:
        await stage.close()
