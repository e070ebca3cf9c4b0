"""The view: finished commands, on local disk.

Finished commands leave memory, so that it stays flat as history grows.  What clients may still ask of them (get,
list, history, the fingerprint that a repeated id is compared with) is served from this SQLite file.  It is fed in
batches off the hot path, never fsynced on its own account, and can be rebuilt from the log at any time: a row is
written only after its command's Finished record was applied, and ``watermark`` tells up to which offset of a
partition that has happened.  Rows that are not committed yet are served from memory, so there is no moment at which a
command is in neither place.

The file belongs to one log: each partition's ``identity`` (its first Epoch's token) is kept, and a partition that has
another one is forgotten here and filled again.

*Trouble.*  A file that cannot be written (the disk is full) keeps the rows in memory until it can.  One that is damaged
is made anew, empty, and ``on_damage`` is called, whereupon the pipeline replays the log into it; who asked meanwhile
is told to ask again.  Errors of SQLite never leave this module: it raises `Unavailable`, or StartupError from `open`.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from coordinator.errors import CorruptLog, StartupError, Unavailable
from coordinator.model.command import CommandView

log = structlog.get_logger(__name__)

FLUSH_AFTER_S = 0.5
FLUSH_ROWS = 2_000
FLUSH_AGAIN_S = 5.0  # after a failure
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
# What no repetition mends: damage, another program's tables under our names, rows that are no rows of ours.
_DAMAGE = frozenset({"SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR", "SQLITE_MISMATCH", "SQLITE_CONSTRAINT"})
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
    ``on_damage`` is called when the file had to be made anew: every partition is to be replayed.
    """

    def __init__(self, path: Path, show: Show) -> None:
        self.path = path
        self.on_damage: Callable[[Unavailable], None] = _nobody
        self._show = show
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="view")
        self._pending: dict[str, FinishedCommand] = {}
        self._flushing: dict[str, FinishedCommand] = {}
        self._marks: dict[int, int] = {}
        self._identities: dict[int, bytes] = {}
        self._filling = 0  # grows whenever what was known of the file's contents is void
        self._timer: asyncio.TimerHandle | None = None
        self._flush_task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Opens or makes the file; one of another layout, or a damaged one, is made anew: the log has everything."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connect()
            except sqlite3.Error as error:
                if not _is_damage(error):
                    raise
                log.warning("the view cannot be used and is made anew", path=str(self.path), error=str(error))
                self._make_anew()
        except (sqlite3.Error, OSError) as error:
            raise StartupError(f"the view {self.path} cannot be used: {error}") from error

    def _connect(self) -> None:
        self._writer = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._writer.execute("PRAGMA journal_mode=WAL")
        self._writer.execute("PRAGMA synchronous=NORMAL")
        (layout,) = self._writer.execute("PRAGMA user_version").fetchone()
        if layout not in (0, _LAYOUT):
            raise _Damaged(f"it has layout {layout}, not {_LAYOUT}")
        self._writer.executescript(_SCHEMA)
        self._writer.execute(f"PRAGMA user_version={_LAYOUT}")
        self._reader = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._reader.execute("PRAGMA query_only=1")
        rows = self._reader.execute("SELECT partition, identity, watermark FROM partitions").fetchall()
        self._marks = {partition: mark for partition, _, mark in rows}
        self._identities = {partition: identity for partition, identity, _ in rows}

    def _make_anew(self) -> None:
        """An empty file in place of what is there."""
        self._filling += 1
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self._connect()

    def _trouble(self, error: sqlite3.Error) -> Unavailable:
        """What the caller is told of an error; damage is mended here and now."""
        if not _is_damage(error):
            return Unavailable(f"the view of finished commands cannot be used: {error}", retry_after_ms=1000)
        told = Unavailable(f"the view was damaged ({error}) and is being made anew", retry_after_ms=1000)
        log.error("the view is damaged and is made anew from the log", path=str(self.path), error=str(error))
        try:
            self._make_anew()
        except (sqlite3.Error, OSError) as worse:
            log.error("the view cannot be made anew", path=str(self.path), error=str(worse))
        self.on_damage(told)
        return told

    # ------------------------------------------------------------ filling

    def adopt(self, partition: int, identity: bytes) -> int:
        """The partition of a log is (re)played: returns the offset up to which its finished commands are here.

        Raises Unavailable, as do all that follow.
        """
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
        try:
            self._writer.execute("DELETE FROM commands WHERE partition=?", (partition,))
            self._writer.execute("INSERT OR REPLACE INTO partitions VALUES (?,?,0)", (partition, identity))
        except sqlite3.Error as error:
            raise self._trouble(error) from error
        self._filling += 1
        self._pending = {id: each for id, each in self._pending.items() if each.partition != partition}
        self._flushing = {id: each for id, each in self._flushing.items() if each.partition != partition}
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
            try:
                self._write(commands, marks)
            except sqlite3.Error as error:
                raise self._trouble(error) from error
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
        try:
            while self._pending:
                if not await self._flush_once():
                    self._timer = asyncio.get_running_loop().call_later(FLUSH_AGAIN_S, self._start_flush)
                    return
        finally:
            self._flush_task = None

    async def _flush_once(self) -> bool:
        """Writes what is pending; False if the file does not take it: it stays in memory, and serves from there."""
        self._flushing, self._pending = self._pending, {}
        rows, marks, filling = list(self._flushing.values()), dict(self._marks), self._filling
        for command in rows:
            marks[command.partition] = max(marks.get(command.partition, 0), command.end + 1)
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._write, rows, marks)
        except sqlite3.Error as error:
            log.warning(
                "the view cannot be written; finished commands stay in memory", rows=len(rows), error=str(error)
            )
            self._trouble(error)
        else:
            if filling == self._filling:  # else the rows went into a file that is no more, or were forgotten
                self._marks = marks
                self._flushing = {}
                return True
        self._pending = {**self._flushing, **self._pending}
        self._flushing = {}
        return False

    def _write(self, rows: list[FinishedCommand], marks: dict[int, int]) -> None:
        writer = self._writer
        writer.execute("BEGIN IMMEDIATE")
        try:
            _insert(writer, [row.row() for row in rows])
            writer.executemany(
                "UPDATE partitions SET watermark=? WHERE partition=?", [(mark, at) for at, mark in marks.items()]
            )
            writer.execute("COMMIT")
        except BaseException:
            if writer.in_transaction:  # a full disk has rolled back already
                writer.execute("ROLLBACK")
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

    def _ask(self, query: str, values: Sequence[Any]) -> list[Any]:
        try:
            return self._reader.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._trouble(error) from error

    def _decoded(self, blob: bytes) -> list[tuple[int, bytes]]:
        try:
            return _decode_records(blob)
        except msgspec.MsgspecError as error:
            raise self._trouble(_Damaged(f"a row cannot be read: {error}")) from error

    def _shown(self, partition: int, records: list[tuple[int, bytes]]) -> CommandView:
        try:
            return self._show(partition, records)
        except CorruptLog as error:  # its copy here, not the log, of which every record was read at the start
            raise self._trouble(_Damaged(str(error))) from error

    def _recent(self, id: str) -> FinishedCommand | None:
        return self._pending.get(id) or self._flushing.get(id)

    def fingerprint(self, id: str) -> bytes | None:
        """The fingerprint of a finished command, or None: one look-up a submission."""
        recent = self._recent(id)
        if recent is not None:
            return recent.fingerprint
        rows = self._ask("SELECT fingerprint FROM commands WHERE id=?", (id,))
        return rows[0][0] if rows else None

    def get(self, id: str) -> CommandView | None:
        found = self.records(id)
        return self._shown(*found) if found else None

    def records(self, id: str) -> tuple[int, list[tuple[int, bytes]]] | None:
        """The partition and the (offset, record) pairs of a finished command."""
        recent = self._recent(id)
        if recent is not None:
            return recent.partition, recent.records
        rows = self._ask("SELECT partition, records FROM commands WHERE id=?", (id,))
        return (rows[0][0], self._decoded(rows[0][1])) if rows else None

    def newest(
        self,
        *,
        state: str | None,
        type: str | None,
        attributes: dict[str, str],
        limit: int,
        before: tuple[int, str] | None,
        partitions: Collection[int] | None = None,
    ) -> list[tuple[int, CommandView]]:
        """Up to ``limit`` finished commands that match, newest first, below the cursor ``before`` (submitted_at, id);
        of all partitions, or of these only."""
        where, values = ["1"], list[Any]()
        if partitions is not None:
            where.append(f"partition IN ({','.join(['?'] * len(partitions))})")
            values += partitions
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
        rows = self._ask(f"{wanted_rows} {order}", [*values, limit])
        found = {(at, id): (partition, self._decoded(records)) for at, id, partition, records in rows}
        for recent in [*self._flushing.values(), *self._pending.values()]:
            place = (recent.submitted_at, recent.id)
            if partitions is not None and recent.partition not in partitions:
                continue
            if matches(recent, state, type, attributes) and (before is None or place < before):
                found[place] = (recent.partition, recent.records)
        return [(place[0], self._shown(*found[place])) for place in sorted(found, reverse=True)[:limit]]


class _Damaged(sqlite3.DatabaseError):
    """What SQLite itself does not see."""


def _is_damage(error: sqlite3.Error) -> bool:
    name = getattr(error, "sqlite_errorname", None) or ""
    return isinstance(error, _Damaged) or "_".join(name.split("_")[:2]) in _DAMAGE


def _nobody(_told: Unavailable) -> None:
    pass


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
