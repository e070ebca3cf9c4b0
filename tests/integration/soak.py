"""A soak: commands of every kind, services that misbehave, and a daemon that is killed with -9 again and again.

    python -m tests.integration.soak --commands 500 --kills 8 [--rivals 2] [--log sqlite|kafka] [--seed N]

Nothing here knows how the daemon works.  Clients submit until they are told "accepted"; services keep a ledger of what
arrived and what took effect, in one common order; at the end `audit` compares what clients were told with the ledger:

- every accepted command has ended, once, and nothing reached a service for it afterwards;
- a completed command has each of its steps' effects, any other has none left: each was taken back after it was made;
- what is recorded as outcome is what the service answered;
- no forward call follows an undo of the same command, and its fences never go back.

With rivals, several daemons share the log: they are killed, and stopped and continued, while the others take over.  A
call that one of them had under way when it lost the partition may then arrive late.  A service that forgets its own
refusals, as these do, must look at the fence to be safe from that, so these do: a call of an older epoch than it has
seen for the command is refused.  The order of arrivals is not judged then, but every effect is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tests.integration.daemon import Daemon

NAMES = ("stock", "payments", "shipping")
FINAL = {"completed", "compensated", "failed", "aborted"}

APP = """
import asyncio
import random
import msgspec
from coordinator import App, Delayed, Saga, StepFailed, post

app = App()


async def compute(n: int) -> int:
    await asyncio.sleep(0.002)
    if random.random() < 0.1:
        raise Delayed("not now")
    return n * n


@app.command(services=["stock", "payments", "shipping"])
class Trip(msgspec.Struct):
    n: int
    decline: dict[str, int] = {}

    def do(self, saga: Saga, service: str, name: str):
        body = {"decline": self.decline.get(name, 0)}
        return saga.step(name, post(service, "/do", body), undo=post(service, "/undo"))

    async def branch(self, saga: Saga, side: str):
        await self.do(saga, "stock", f"{side}_stock")
        return await self.do(saga, "payments", f"{side}_pay")

    async def exec(self, saga: Saga) -> dict:
        first = await self.do(saga, "stock", "first")
        left, right = await saga.all(self.branch(saga, "left"), self.branch(saga, "right"))
        try:
            await self.do(saga, "shipping", "maybe")
        except StepFailed:
            await self.do(saga, "shipping", "instead")
        square = await saga.step("square", compute, self.n)
        last = await self.do(saga, "payments", "last")
        return {"square": square, "keys": [each["key"] for each in (first, left, right, last)]}
"""


def _step(name: str, service: str, **rest: Any) -> dict[str, Any]:
    body = {"decline": f"${{payload.decline.{name}}}"}
    return {"name": name, "service": service, "path": "/do", "body": body, "undo": {"path": "/undo"}, **rest}


LINE = [_step("one", "stock"), _step("two", "payments"), _step("three", "shipping")]
DIAMOND = [
    _step("top", "stock"),
    _step("left", "payments", after=["top"], retry={"attempts": 3, "first": "20ms"}),
    _step("right", "shipping", after=["top"]),
    _step("bottom", "stock", after=["left", "right"], retry={"attempts": 4, "backoff": "exponential", "first": "10ms"}),
]


class Arrival(NamedTuple):
    """One request as a service saw it; ``at`` is its place in the order of all services."""

    at: int
    command: str
    key: str
    undo: bool
    fence: tuple[int, ...]
    effect: bool


class Ledgers:
    """What all services saw, in one order."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.answered: dict[str, Any] = {}  # by key: what the service has done
        self.refused: Counter[str] = Counter()
        self.epochs: dict[str, int] = {}  # by command: the newest seen
        self.ended: dict[str, int] = {}  # command: how many arrivals there were when a client saw it final


class Service:
    """An idempotent service that is slow, down for a moment, silent before its work or silent after it, by chance."""

    def __init__(self, name: str, ledgers: Ledgers, chance: random.Random) -> None:
        self.name = name
        self.ledgers = ledgers
        self.chance = chance
        self.calm = False
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> Service:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                answer = await self._answer(head[0].split(" ")[1], headers, json.loads(body) if body else {})
                if answer is None:
                    break
                status, value = answer
                data = json.dumps(value).encode()
                line = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
                writer.write(line.encode() + data)
                await writer.drain()
        writer.close()

    async def _answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, Any] | None:
        dice = 1.0 if self.calm else self.chance.random()
        if dice < 0.04:
            await asyncio.sleep(self.chance.uniform(0.02, 0.3))
        done = self._take(path, headers, body, unable=0.04 <= dice < 0.14)
        if 0.04 <= dice < 0.09:
            return 503, {"error": "busy"}
        if 0.09 <= dice < 0.19:  # below 0.14 before the work was done, above it after
            return None
        return done

    def _take(self, path: str, headers: dict[str, str], body: dict[str, Any], *, unable: bool) -> tuple[int, Any]:
        ledgers, key = self.ledgers, headers["idempotency-key"]
        command = key.partition("/")[0]
        fence = tuple(int(part) for part in headers["coordinator-fence"].split("."))
        newest = ledgers.epochs[command] = max(fence[0], ledgers.epochs.get(command, 0))
        known = key in ledgers.answered
        declined = 0 if known else int(body.get("decline", 0))
        late = fence[0] < newest
        refuse = not unable and not late and (declined < 0 or ledgers.refused[key] < declined)
        effect = not (unable or known or refuse or late)
        place = len(ledgers.arrivals)
        ledgers.arrivals.append(Arrival(place, command, key, path == "/undo", fence, effect))
        if late:
            return 409, {"error": "an older fence"}
        if refuse:
            ledgers.refused[key] += 1
            return 409, {"error": "declined"}
        if effect:
            ledgers.answered[key] = {"key": key, "place": place}
        return 200, ledgers.answered.get(key)


class Soak:
    """One run.  ``log`` is the [log] section of the configuration, ``rivals`` how many daemons share it."""

    def __init__(self, directory: Path, log: str, *, commands: int, kills: int, seed: int, rivals: int = 1) -> None:
        self.directory = directory
        self.log = log
        self.count = commands
        self.kills = kills
        self.chance = random.Random(seed)
        self.clients = 24
        self.rivals = rivals
        self.daemons: list[Daemon] = []
        self.ledgers = Ledgers()
        self.accepted: dict[str, dict[str, Any]] = {}
        self.faults: list[str] = []
        self.refusals: Counter[str] = Counter()

    async def run(self) -> Counter[str]:
        """Returns how many commands ended in which state; what is wrong is in ``faults``."""
        services = [await Service(name, self.ledgers, self.chance).start() for name in NAMES]
        text = self._config(services)
        for number in range(self.rivals):
            directory = self.directory / str(number)
            directory.mkdir(parents=True)
            (directory / "soak_app.py").write_text(APP)
            self.daemons.append(Daemon(directory, text, app="soak_app:app"))
        try:
            for daemon in self.daemons:
                await asyncio.to_thread(daemon.start)
            async with httpx.AsyncClient(timeout=30) as client:
                submitting = asyncio.create_task(self._submit_all(client))
                for _ in range(self.kills):
                    await asyncio.sleep(self.chance.uniform(0.1, 1.2))
                    await self._trouble(self.chance.choice(self.daemons))
                await submitting
                for service in services:
                    service.calm = True
                states = await self._finals(client)
                await self._audit(client)
            for daemon in self.daemons:
                if (code := await asyncio.to_thread(daemon.stop)) != 0:
                    self.faults.append(f"a daemon ended with {code} on SIGTERM")
        finally:
            for daemon in self.daemons:
                daemon.close()
            for service in services:
                service.stop()
        return states

    async def _trouble(self, daemon: Daemon) -> None:
        """kill -9 and a new start; or, where somebody else can take over meanwhile, a stop for a while."""
        if self.rivals > 1 and self.chance.random() < 0.5:
            daemon.signal(signal.SIGSTOP)
            await asyncio.sleep(self.chance.uniform(0.2, 5))
            daemon.signal(signal.SIGCONT)
            return
        daemon.kill()
        daemon.spawn()
        await asyncio.to_thread(daemon.listening)

    async def _send(self, client: httpx.AsyncClient, method: str, path: str, **rest: Any) -> httpx.Response | None:
        """One request to any of the daemons; None when it was not answered."""
        daemon = self.chance.choice(self.daemons)
        try:
            return await client.request(method, f"{daemon.http}{path}", timeout=15, **rest)
        except httpx.TransportError as error:
            self.refusals[type(error).__name__] += 1
            return None

    async def _ask_until_told(self, client: httpx.AsyncClient, path: str, **rest: Any) -> Any:
        """What the owner says to a GET; a problem's text if it is none to be waited out."""
        while True:
            answer = await self._send(client, "GET", path, **rest)
            if answer is not None and answer.status_code != 503:
                return answer.json()
            await asyncio.sleep(0.02)

    def _config(self, services: list[Service]) -> str:
        lines = ["[coordinator]", 'name = "soak"', "max_commands = 400", 'slow_retry_interval = "50ms"']
        lines += ['retry_jitter = "20ms"', "[log]", self.log]
        for service in services:
            lines += [f"[services.{service.name}]", f'url = "http://127.0.0.1:{service.port}"', 'timeout = "2s"']
            lines += ['breaker = { failures = 6, reset = "100ms" }']
        return "\n".join(lines) + "\n"

    # ------------------------------------------------------------ clients

    async def _submit_all(self, client: httpx.AsyncClient) -> None:
        waiting = iter([self._command(number) for number in range(self.count)])
        await asyncio.gather(*(self._client(client, waiting) for _ in range(self.clients)))

    async def _client(self, client: httpx.AsyncClient, waiting: Any) -> None:
        for command in waiting:
            await self._until_accepted(client, command)
            await asyncio.sleep(self.chance.uniform(0, 2 * self.kills * 0.6 * self.clients / self.count))
            if self.chance.random() < 0.08:
                await self._disturb(client, command["id"], self.chance.choice(["cancel", "pause"]))

    def _command(self, number: int) -> dict[str, Any]:
        names = {
            "trip": ["left_pay", "right_stock", "maybe", "last"],
            "line": ["one", "two", "three"],
            "diamond": ["top", "left", "right", "bottom"],
        }
        kind = self.chance.choice(list(names))
        decline = dict.fromkeys(names[kind] if kind == "line" or kind == "diamond" else [], 0)
        if self.chance.random() < 0.4:
            decline[self.chance.choice(names[kind])] = self.chance.choice([-1, 1, 2])
        command: dict[str, Any] = {"id": f"{kind}-{number}", "payload": {"n": number, "decline": decline}}
        if kind == "trip":
            command["type"] = "Trip"
        else:
            steps = LINE if kind == "line" else DIAMOND
            command["definition"] = {"name": kind, "version": 1, "steps": steps, "result": "${steps}"}
            command["definition"]["result"] = f"${{steps.{steps[-1]['name']}}}"
        if self.chance.random() < 0.05:
            command["timeout"] = f"{self.chance.randrange(50, 800)}ms"
        return command

    async def _until_accepted(self, client: httpx.AsyncClient, command: dict[str, Any]) -> None:
        while True:
            answer = await self._send(client, "POST", "/v1/commands", json=command)
            if answer is None:
                await asyncio.sleep(0.05)
                continue
            if answer.status_code in (200, 202):
                self.accepted[command["id"]] = command
                return
            problem = answer.json()
            self.refusals[problem["code"]] += 1
            if answer.status_code not in (429, 503):
                self.faults.append(f"{command['id']}: refused with {problem}")
                return
            await asyncio.sleep(self.chance.uniform(0.02, 0.2))

    async def _disturb(self, client: httpx.AsyncClient, id: str, operation: str) -> None:
        """An operator's request, which may be too late; a pause is always ended."""
        if not await self._ask(client, id, operation) or operation != "pause":
            return
        await asyncio.sleep(self.chance.uniform(0, 0.3))
        await self._ask(client, id, "resume")

    async def _ask(self, client: httpx.AsyncClient, id: str, operation: str) -> bool:
        while True:
            answer = await self._send(client, "POST", f"/v1/commands/{id}/{operation}", json={"reason": "soak"})
            if answer is not None and answer.status_code != 503:
                if answer.status_code not in (200, 409) or (answer.status_code == 409) != (
                    "legal_states" in answer.text
                ):
                    self.faults.append(f"{id}: {operation} answered {answer.status_code} {answer.text}")
                return answer.status_code == 200
            await asyncio.sleep(0.05)

    async def _finals(self, client: httpx.AsyncClient) -> Counter[str]:
        deadline = time.monotonic() + 60
        states: Counter[str] = Counter()
        for id in self.accepted:
            view = {"state": "?"}
            while view.get("state") not in FINAL and time.monotonic() < deadline:
                view = await self._ask_until_told(client, f"/v1/commands/{id}", params={"wait": "10s"})
                if view.get("status") == 404:
                    break
            self.ledgers.ended[id] = len(self.ledgers.arrivals)
            states[view.get("state", "?")] += 1
        return states

    # ------------------------------------------------------------ audit

    async def _audit(self, client: httpx.AsyncClient) -> None:
        await asyncio.sleep(0.5)  # for what must not come any more
        arrivals: dict[str, list[Arrival]] = defaultdict(list)
        for arrival in self.ledgers.arrivals:
            arrivals[arrival.command].append(arrival)
        for id in arrivals.keys() - self.accepted.keys():
            self.faults.append(f"{id}: called, but never accepted")
        for id in self.accepted:
            view = await self._ask_until_told(client, f"/v1/commands/{id}")
            if view.get("state") not in FINAL:
                self.faults.append(f"{id}: accepted, and now {view.get('state') or view}")
                continue
            history = await self._ask_until_told(client, f"/v1/commands/{id}/history")
            self._audit_one(id, view, history, arrivals[id])

    def _audit_one(self, id: str, view: dict[str, Any], history: Any, arrivals: list[Arrival]) -> None:
        def fault(text: str) -> None:
            self.faults.append(f"{id}: {text}")

        kinds = Counter(entry["kind"] for entry in history)
        if kinds["Submitted"] != 1 or history[-1]["kind"] != "Finished":
            fault(f"is {view['state']} with the records {dict(kinds)}")
        self._audit_effects(id, view, arrivals)
        if self.rivals > 1:
            return
        if arrivals and arrivals[-1].at >= self.ledgers.ended[id]:
            fault("was called after its end")
        undone_at = min((each.at for each in arrivals if each.undo), default=len(self.ledgers.arrivals))
        if any(not each.undo and each.at > undone_at for each in arrivals):
            fault("went forward after it had begun to undo")
        last: dict[str, tuple[int, ...]] = {}
        for each in arrivals:
            if each.fence < last.get(each.key, (0,)):
                fault(f"{each.key}: fence {each.fence} after {last[each.key]}")
            last[each.key] = each.fence

    def _audit_effects(self, id: str, view: dict[str, Any], arrivals: list[Arrival]) -> None:
        made = {each.key: each.at for each in arrivals if each.effect and not each.undo}
        taken = {each.key.removesuffix("/undo"): each.at for each in arrivals if each.effect and each.undo}
        left = set(made) - set(taken)
        shown = {f"{id}/{step['name']}": step for step in view["steps"]}
        if any(made.get(key, len(self.ledgers.arrivals)) > at for key, at in taken.items()):
            self.faults.append(f"{id}: undone before it was done")
        if view["state"] == "completed":
            wanted = {key for key, step in shown.items() if step["state"] == "succeeded" and step["service"] in NAMES}
            if left != wanted:
                self.faults.append(f"{id}: completed, with the effects {left ^ wanted} missing or left over")
        elif left:
            self.faults.append(f"{id}: {view['state']} with the effects {left} left")
        for key, step in shown.items():
            answered = self.ledgers.answered.get(key)
            if step["state"] == "succeeded" and step["service"] in NAMES and step["outcome"] != answered:
                self.faults.append(f"{key}: recorded {step['outcome']}, answered {answered}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Soak a daemon that is killed again and again.")
    parser.add_argument("--commands", type=int, default=500)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--rivals", type=int, default=1, help="how many daemons share the log")
    parser.add_argument("--log", choices=("sqlite", "kafka"), default="sqlite")
    parser.add_argument("--bootstrap", help="a Kafka that runs; else one is started")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="coordinator-soak-") as scratch, contextlib.ExitStack() as stack:
        log = f'data_dir = "{scratch}/data"'
        if options.log == "kafka":
            from coordinator.testing.kafka import Cluster

            bootstrap = options.bootstrap
            if not bootstrap:
                bootstrap = stack.enter_context(Cluster(Path(scratch) / "kafka")).bootstrap
            topic = f"soak{time.monotonic_ns()}"
            log += (
                f'\nkind = "kafka"\nbootstrap = "{bootstrap}"\ntopic = "{topic}"\npartitions = 3\nappend_timeout = "3s"'
            )
        soak = Soak(
            Path(scratch) / "daemons",
            log,
            commands=options.commands,
            kills=options.kills,
            seed=options.seed,
            rivals=options.rivals,
        )
        began = time.monotonic()
        states = asyncio.run(soak.run())
    print(f"seed {options.seed}: {time.monotonic() - began:.1f} s, {len(soak.ledgers.arrivals)} calls, {dict(states)}")
    print(f"refusals: {dict(soak.refusals)}")
    print("\n".join(soak.faults[:50]) or "nothing lost, nothing doubled, nothing half done")
    return 1 if soak.faults or states.total() != options.commands else 0


if __name__ == "__main__":
    sys.exit(main())
