"""The view: finished commands, on local disk.

Finished commands leave memory, so that it stays flat as history grows.  What clients may still ask of them (get,
list, history, the fingerprint that a repeated id is compared with) is served from this SQLite file.  It is fed in
batches off the hot path, never fsynced on its own account, and can be rebuilt from the log at any time: a row is
written only after its command's Finished record was applied, and ``watermark`` tells up to which offset of a
partition that has happened.  Rows that are not committed yet are served from memory, so there is no moment at which a
command is in neither place.

The file belongs to one log: each partition's ``identity`` (its first Epoch's token) is kept, and a partition that has
another one is forgotten here and filled again.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from coordinator.errors import StartupError
from coordinator.model.command import CommandView

FLUSH_AFTER_S = 0.5
FLUSH_ROWS = 2_000
_LAYOUT = 3

_SCHEMA = """
CREATE TABLE IF NOT EXISTS commands (
    id TEXT NOT NULL UNIQUE, type TEXT NOT NULL, state TEXT NOT NULL, submitted_at INTEGER NOT NULL,
    partition INTEGER NOT NULL, fingerprint BLOB NOT NULL, attributes TEXT NOT NULL, records BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS newest ON commands (submitted_at, id);
CREATE TABLE IF NOT EXISTS partitions (
    partition INTEGER PRIMARY KEY, identity BLOB NOT NULL, watermark INTEGER NOT NULL
);
"""

_COLUMNS = 8
_CHUNKS = (64, 16, 4, 1)
_ATTRIBUTE = "EXISTS (SELECT 1 FROM json_each(commands.attributes) AS a WHERE a.key=? AND a.value=?)"
_encode = msgspec.msgpack.encode
_decode_records = msgspec.msgpack.Decoder(list[tuple[int, bytes]]).decode


Show = Callable[[int, list[tuple[int, bytes]]], CommandView]


class FinishedCommand(Struct, frozen=True):
    """One row: what a list filters by, and its ``records`` as (offset, encoded), in log order, Finished last."""

    id: str
    type: str
    state: str
    submitted_at: int
    partition: int
    fingerprint: bytes
    attributes: dict[str, Any]
    records: list[tuple[int, bytes]]

    @property
    def end(self) -> int:
        """The offset of its Finished record."""
        return self.records[-1][0]

    def row(self) -> tuple[Any, ...]:
        return (
            self.id,
            self.type,
            self.state,
            self.submitted_at,
            self.partition,
            self.fingerprint,
            json.dumps({name: _text(value) for name, value in self.attributes.items()}) if self.attributes else "{}",
            _encode(self.records),
        )


class View:
    """One SQLite file with one writing thread; reads by id are answered on the caller's thread (about 10 µs).

    ``show`` makes the view that clients see from a partition and records, by the same fold that made the command.
    """

    def __init__(self, path: Path, show: Show) -> None:
        self.path = path
        self._show = show
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="view")
        self._pending: dict[str, FinishedCommand] = {}
        self._flushing: dict[str, FinishedCommand] = {}
        self._marks: dict[int, int] = {}
        self._identities: dict[int, bytes] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._flush_task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Opens or makes the file; one of another layout, or a damaged one, is made anew: the log has everything."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connect()
        except sqlite3.DatabaseError:
            self._remove()
            try:
                self._connect()
            except sqlite3.Error as error:
                raise StartupError(f"cannot use the view {self.path}: {error}") from error
        rows = self._reader.execute("SELECT partition, identity, watermark FROM partitions").fetchall()
        self._marks = {partition: mark for partition, _, mark in rows}
        self._identities = {partition: identity for partition, identity, _ in rows}

    def _connect(self) -> None:
        self._writer = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._writer.execute("PRAGMA journal_mode=WAL")
        self._writer.execute("PRAGMA synchronous=NORMAL")
        (layout,) = self._writer.execute("PRAGMA user_version").fetchone()
        if layout not in (0, _LAYOUT):
            raise sqlite3.DatabaseError(f"layout {layout}")
        self._writer.executescript(_SCHEMA)
        self._writer.execute(f"PRAGMA user_version={_LAYOUT}")
        self._reader = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._reader.execute("PRAGMA query_only=1")

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    # ------------------------------------------------------------ filling

    def adopt(self, partition: int, identity: bytes) -> int:
        """The partition of a log is (re)played: returns the offset up to which its finished commands are here."""
        if self._identities.get(partition) != identity:
            self._forget(partition, identity)
        return self._marks[partition]

    def ahead(self, partition: int, end: int) -> bool:
        """Whether the view knows more than the log that ends at ``end`` (it was restored); if so, the view forgets."""
        if self._marks.get(partition, 0) <= end:
            return False
        self._forget(partition, self._identities[partition])
        return True

    def _forget(self, partition: int, identity: bytes) -> None:
        self._writer.execute("DELETE FROM commands WHERE partition=?", (partition,))
        self._writer.execute("INSERT OR REPLACE INTO partitions VALUES (?,?,0)", (partition, identity))
        self._identities[partition] = identity
        self._marks[partition] = 0

    def put_many(self, commands: list[FinishedCommand]) -> None:
        """Takes what a replay has found, at once: a replay may be longer than memory is large."""
        if self._flush_task is not None:
            for command in commands:
                self.put(command)
        elif commands:
            marks = dict(self._marks)
            marks[commands[0].partition] = max(command.end for command in commands) + 1
            self._write(commands, marks)
            self._marks = marks

    def put(self, command: FinishedCommand) -> None:
        """Takes a finished command; it can be found from now on."""
        self._pending[command.id] = command
        if self._flush_task is not None:
            return
        if len(self._pending) >= FLUSH_ROWS:
            self._start_flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_AFTER_S, self._start_flush)

    def _start_flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flush_task is None and self._pending:
            self._flush_task = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._pending:
                self._flushing, self._pending = self._pending, {}
                marks = dict(self._marks)
                for command in self._flushing.values():
                    partition = command.partition
                    marks[partition] = max(marks.get(partition, 0), command.end + 1)
                rows = list(self._flushing.values())
                try:
                    await loop.run_in_executor(self._thread, self._write, rows, marks)
                except sqlite3.Error:
                    # A full disk: what is in memory still serves; a later flush or the next start fills the gap.
                    self._pending = {**self._flushing, **self._pending}
                    self._timer = loop.call_later(5.0, self._start_flush)
                    return
                self._marks = marks
                self._flushing = {}
        finally:
            self._flush_task = None

    def _write(self, rows: list[FinishedCommand], marks: dict[int, int]) -> None:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            _insert(self._writer, [row.row() for row in rows])
            self._writer.executemany(
                "UPDATE partitions SET watermark=? WHERE partition=?", [(mark, at) for at, mark in marks.items()]
            )
            self._writer.execute("COMMIT")
        except BaseException:
            self._writer.execute("ROLLBACK")
            raise

    async def close(self) -> None:
        self._start_flush()
        if self._flush_task is not None:
            await self._flush_task
        if self._timer is not None:
            self._timer.cancel()
        self._thread.shutdown(wait=True)
        self._writer.close()
        self._reader.close()

    # ------------------------------------------------------------ asking

    def _recent(self, id: str) -> FinishedCommand | None:
        return self._pending.get(id) or self._flushing.get(id)

    def fingerprint(self, id: str) -> bytes | None:
        """The fingerprint of a finished command, or None: one look-up a submission."""
        recent = self._recent(id)
        if recent is not None:
            return recent.fingerprint
        row = self._reader.execute("SELECT fingerprint FROM commands WHERE id=?", (id,)).fetchone()
        return row[0] if row else None

    def get(self, id: str) -> CommandView | None:
        found = self.records(id)
        return self._show(*found) if found else None

    def records(self, id: str) -> tuple[int, list[tuple[int, bytes]]] | None:
        """The partition and the (offset, record) pairs of a finished command."""
        recent = self._recent(id)
        if recent is not None:
            return recent.partition, recent.records
        row = self._reader.execute("SELECT partition, records FROM commands WHERE id=?", (id,)).fetchone()
        return (row[0], _decode_records(row[1])) if row else None

    def newest(
        self,
        *,
        state: str | None,
        type: str | None,
        attributes: dict[str, str],
        limit: int,
        before: tuple[int, str] | None,
    ) -> list[tuple[int, CommandView]]:
        """Up to ``limit`` finished commands that match, newest first, below the cursor ``before`` (submitted_at,
        id)."""
        where, values = ["1"], list[Any]()
        for column, wanted in (("state", state), ("type", type)):
            if wanted is not None:
                where.append(f"{column}=?")
                values.append(wanted)
        for key, wanted in attributes.items():
            where.append(_ATTRIBUTE)
            values += [key, wanted]
        if before is not None:
            where.append("(submitted_at, id) < (?, ?)")
            values += before
        wanted_rows = f"SELECT submitted_at, id, partition, records FROM commands WHERE {' AND '.join(where)}"
        order = "ORDER BY submitted_at DESC, id DESC LIMIT ?"
        rows = self._reader.execute(f"{wanted_rows} {order}", [*values, limit]).fetchall()
        found = {(at, id): (partition, _decode_records(records)) for at, id, partition, records in rows}
        for recent in [*self._flushing.values(), *self._pending.values()]:
            place = (recent.submitted_at, recent.id)
            if matches(recent, state, type, attributes) and (before is None or place < before):
                found[place] = (recent.partition, recent.records)
        return [(place[0], self._show(*found[place])) for place in sorted(found, reverse=True)[:limit]]


def _insert(database: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> None:
    """Many rows a statement.

    SQLite runs without the interpreter's lock, and each statement hands that lock over and back while the event loop is
    busy: a statement a row cost 100 µs of CPU a row, 64 rows a statement cost 15 (measured).
    """
    at = 0
    for size in _CHUNKS:
        row = f"({','.join('?' * _COLUMNS)})"
        statement = f"INSERT OR REPLACE INTO commands VALUES {','.join([row] * size)}"
        while len(rows) - at >= size:
            database.execute(statement, list(chain.from_iterable(rows[at : at + size])))
            at += size


def matches(
    view: CommandView | FinishedCommand, state: str | None, type: str | None, attributes: dict[str, str]
) -> bool:
    """Whether a command is in a list with these filters; attributes are compared as text."""
    if state is not None and view.state != state:
        return False
    if type is not None and view.type != type:
        return False
    return all(_text(view.attributes.get(key)) == wanted for key, wanted in attributes.items())


def _text(value: Any) -> str | None:
    """How an attribute is written in a filter; the column has the same text, so that both ways to look agree."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)
