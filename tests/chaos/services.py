"""Three services in a process of their own, each with a ledger: one line of JSON for every request, before its answer.

They are what the coordinator asks of a service, and no better: idempotent by key, refusals remembered like deeds, no
look at the fence.  Now and then one is slow, busy (503, nothing done) or silent (done, and the connection closed), as
the seed has it.  Times are the machine's monotonic clock, which the harness shares.

    python -m tests.chaos.services HOST DIRECTORY SEED       prints {"stock": port, …} once it listens
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import uvloop

NAMES: Final = ("stock", "payments", "shipping")
WORK_S: Final = (0.02, 0.1)
SLOW_S: Final = 0.4

Did = Literal["done", "undone", "refused", "again", "busy"]


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One request: ``did`` says what it changed (``again``: answered from memory; ``busy``: a 503, nothing changed).

    ``epoch`` and ``attempt`` are the fence that came with it; ``at`` is seconds of the monotonic clock.
    """

    at: float
    command: str
    key: str
    undo: bool
    epoch: int
    attempt: int
    did: Did

    @property
    def step(self) -> str:
        return self.key.removesuffix("/undo").rpartition("/")[2]


def read_ledger(path: Path) -> list[Entry]:
    """A service's entries in its own order."""
    decode = msgspec.json.Decoder(Entry).decode
    return [decode(line) for line in path.read_bytes().splitlines()]


class Service:
    """One of them."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self._chance = chance
        self._known: dict[str, tuple[int, Any]] = {}

    async def start(self, host: str) -> int:
        server = await asyncio.start_server(self._serve, host, 0)
        self._server = server
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                answer = await self._answer(head[0].split(" ")[1], headers, json.loads(body) if body else {})
                if answer is None:
                    break
                data = json.dumps(answer[1]).encode()
                line = (
                    f"HTTP/1.1 {answer[0]} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
                )
                writer.write(line.encode() + data)
                await writer.drain()
        writer.close()

    async def _answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, Any] | None:
        arrived = time.monotonic()
        dice = self._chance.random()
        busy = dice < 0.02
        known = headers["idempotency-key"] in self._known
        answer = self._take(arrived, path == "/undo", headers, body, busy=busy)  # the deed comes first, then the delay
        if not busy:
            held = body.get("hold", 0) if not known else 0
            await asyncio.sleep(self._chance.uniform(*WORK_S) + (SLOW_S if dice > 0.97 else 0) + held)
        return None if 0.02 <= dice < 0.035 else answer

    def _take(
        self, at: float, undo: bool, headers: dict[str, str], body: dict[str, Any], *, busy: bool
    ) -> tuple[int, Any]:
        key = headers["idempotency-key"]
        epoch, _, attempt = headers["coordinator-fence"].partition(".")
        did: Did = "busy" if busy else "again" if key in self._known else "undone" if undo else "done"
        if did == "done" and body.get("decline"):
            did = "refused"
        if did in ("done", "undone"):
            self._known[key] = 200, {"key": key, "number": len(self._known)}
        elif did == "refused":
            self._known[key] = 409, {"error": "declined"}
        entry = Entry(at, key.partition("/")[0], key, undo, int(epoch), int(attempt), did)
        os.write(self._file, msgspec.json.encode(entry) + b"\n")
        return (503, {"error": "busy"}) if busy else self._known[key]


async def _main(host: str, directory: Path, seed: int) -> None:
    chance = random.Random(seed)
    ports = {name: await Service(directory / f"{name}.ledger", chance).start(host) for name in NAMES}
    print(json.dumps(ports), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
