"""The view: finished commands, on local disk.

Finished commands leave memory, so that it stays flat as history grows.  What clients may still ask of them (get,
list, history, the fingerprint that a repeated id is compared with) is served from this SQLite file.  It is fed in
batches off the hot path, never fsynced on its own account, and can be rebuilt from the log at any time: a row is
written only after its command's Finished record was applied, and what is known of each partition (`marks`: up to which
offset everything is here, and which token was in force where) is written with the rows that make it true.  Rows that
are not committed yet are served from memory, so there is no moment at which a command is in neither place.

An owner puts in what finishes while it owns; what finished below the place where its replay began, a `filler` brings
in the background.

The file belongs to one log: each partition's ``identity`` (its first Epoch's token) is kept, and a partition that has
another one, or another history, is forgotten here and filled again.

*One thread writes*, whoever asks for it: so what is written, forgotten and made anew has one order.

*Trouble.*  A file that cannot be written (the disk is full) keeps the rows in memory until it can.  One that is damaged
is made anew, empty, and ``on_damage`` is called, whereupon the pipeline replays the log into it; who asked meanwhile
is told to ask again.  Errors of SQLite never leave this module: it raises `Unavailable`, or StartupError from `open`.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import json
import sqlite3
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from coordinator.admission.receipts import hash_of, packed
from coordinator.errors import CorruptLog, StartupError, Unavailable
from coordinator.logs import get_logger
from coordinator.marks import Diverged, Epochs, Marks
from coordinator.model.command import CommandView

log = get_logger(__name__)

FLUSH_AFTER_S = 0.5
FLUSH_ROWS = 2_000
FLUSH_AGAIN_S = 5.0  # after a failure
FORGET_ROWS = 5_000  # in one go: some ten milliseconds
RECEIPTS_PAGE = 1_000
_LAYOUT = 4

_SCHEMA = """
CREATE TABLE IF NOT EXISTS commands (
    id TEXT NOT NULL UNIQUE, type TEXT NOT NULL, state TEXT NOT NULL, submitted_at INTEGER NOT NULL,
    partition INTEGER NOT NULL, fingerprint BLOB NOT NULL, attributes TEXT NOT NULL, records BLOB NOT NULL,
    hash BLOB NOT NULL, first INTEGER NOT NULL, ended INTEGER NOT NULL, finished_at INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS newest ON commands (submitted_at, id);
CREATE INDEX IF NOT EXISTS receipts ON commands (partition, finished_at);
CREATE INDEX IF NOT EXISTS ends ON commands (partition, ended);
CREATE TABLE IF NOT EXISTS partitions (
    partition INTEGER PRIMARY KEY, identity BLOB NOT NULL, watermark INTEGER NOT NULL, resume INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS epochs (
    partition INTEGER NOT NULL, offset INTEGER NOT NULL, token BLOB NOT NULL, PRIMARY KEY (partition, offset)
) WITHOUT ROWID;
"""

_COLUMNS = 12
_CHUNKS = (64, 16, 4, 1)
_NEWER = (  # of two commands with one id, whichever is put first, the one that ended last stays
    "ON CONFLICT (id) DO UPDATE SET type=excluded.type, state=excluded.state, submitted_at=excluded.submitted_at,"
    "partition=excluded.partition, fingerprint=excluded.fingerprint, attributes=excluded.attributes,"
    "records=excluded.records, hash=excluded.hash, first=excluded.first, ended=excluded.ended,"
    "finished_at=excluded.finished_at WHERE excluded.partition<>commands.partition OR excluded.ended>=commands.ended"
)
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
    finished_at: int

    @property
    def first(self) -> int:
        """The offset of its Submitted record."""
        return self.records[0][0]

    @property
    def end(self) -> int:
        """The offset of its Finished record."""
        return self.records[-1][0]

    def receipt(self) -> bytes:
        """What a Snapshot keeps of it."""
        return packed(hash_of(self.id), self.fingerprint, self.first, self.end, self.finished_at)

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
            hash_of(self.id),
            self.first,
            self.end,
            self.finished_at,
        )


class Row(NamedTuple):
    """A finished command as a list finds it."""

    at: int
    id: str
    partition: int
    records: list[tuple[int, bytes]]


class _Told(NamedTuple):
    """What the file is told of a partition; ``epochs`` are those that it does not have yet."""

    partition: int
    identity: bytes
    watermark: int
    resume: int
    epochs: Epochs


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
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="view-reader")  # for what takes long
        self._searching = ThreadPoolExecutor(2, thread_name_prefix="view-search")  # for lists, which may
        self._pending: dict[str, FinishedCommand] = {}
        self._flushing: dict[str, FinishedCommand] = {}
        self._marks: dict[int, Marks] = {}
        self._durable: dict[int, int] = {}  # the watermarks that the file has
        self._timer: asyncio.TimerHandle | None = None
        self._flush_task: asyncio.Task[bool] | None = None

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
        epochs: dict[int, Epochs] = {}
        for partition, offset, token in self._reader.execute("SELECT * FROM epochs ORDER BY partition, offset"):
            epochs.setdefault(partition, []).append((offset, token))
        rows = self._reader.execute("SELECT partition, identity, watermark, resume FROM partitions").fetchall()
        self._marks = {
            partition: Marks(identity, watermark, resume, epochs.get(partition))
            for partition, identity, watermark, resume in rows
        }
        self._durable = {partition: each.watermark for partition, each in self._marks.items()}

    def _make_anew(self) -> None:
        """An empty file in place of what is there."""
        for connection in ("_writer", "_reader"):
            with contextlib.suppress(sqlite3.Error, AttributeError):
                getattr(self, connection).close()
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
            self._thread.submit(self._make_anew).result()
        except (sqlite3.Error, OSError) as worse:
            log.error("the view cannot be made anew", path=str(self.path), error=str(worse))
        self.on_damage(told)
        return told

    # ------------------------------------------------------------ what the owner knows

    def begin(self, partition: int, identity: bytes, start: int = 0, token: bytes = b"") -> int:
        """An ownership replays the partition from the offset ``start``, where ``token`` is in force.

        Returns the watermark: what finished below it is here already.  Raises Unavailable, as do all that follow.
        """
        marks = self._marks.get(partition)
        if marks is None or marks.identity != identity:
            marks = self._forget(partition, identity)
        try:
            marks.begin(start, token)
        except Diverged:
            log.warning("the log has another history than its view, which is made anew", partition=partition)
            marks = self._forget(partition, identity)
            marks.begin(start, token)
        return marks.watermark

    def saw(self, partition: int, offset: int, token: bytes) -> None:
        """The owner's fold has passed an Epoch."""
        self._known(partition).saw(offset, token)

    def reached(self, partition: int, upto: int, resume: int) -> None:
        """The owner's fold stands at the offset ``upto``, all that finished below was put, and ``resume`` is where the
        earliest command that is open there began (``upto`` if none is)."""
        marks = self._marks.get(partition)
        try:
            if marks is not None:
                marks.reached(upto, resume)
        except Diverged:
            raise self._diverged(partition) from None

    def ahead(self, partition: int, end: int) -> bool:
        """Whether the view knows more than the log that ends at ``end`` (it was restored); if so, the view forgets."""
        marks = self._marks.get(partition)
        if marks is None or marks.watermark <= end:
            return False
        self._forget(partition, marks.identity)
        return True

    def _known(self, partition: int) -> Marks:
        marks = self._marks.get(partition)
        if marks is None:
            raise Unavailable(f"the view of partition {partition} is being made anew", retry_after_ms=1000)
        return marks

    def _diverged(self, partition: int) -> Unavailable:
        self._forget(partition, self._known(partition).identity)
        told = "the log was put back in time, the view was not; the view is made anew"
        return Unavailable(told, retry_after_ms=1000)

    def _forget(self, partition: int, identity: bytes) -> Marks:
        marks = Marks(identity)
        try:
            self._thread.submit(self._delete, partition, identity).result()
        except sqlite3.Error as error:
            raise self._trouble(error) from error
        self._pending = {id: each for id, each in self._pending.items() if each.partition != partition}
        self._flushing = {id: each for id, each in self._flushing.items() if each.partition != partition}
        self._marks[partition] = marks
        self._durable[partition] = 0
        return marks

    def _delete(self, partition: int, identity: bytes) -> None:
        with self._transaction() as writer:
            writer.execute("DELETE FROM commands WHERE partition=?", (partition,))
            writer.execute("DELETE FROM epochs WHERE partition=?", (partition,))
            writer.execute("INSERT OR REPLACE INTO partitions VALUES (?,?,0,0)", (partition, identity))

    # ------------------------------------------------------------ what a filler brings

    def watermark(self, partition: int) -> tuple[int, int]:
        """Up to where all that finished is here, and from where on the log is to be read to go on from there."""
        marks = self._known(partition)
        return marks.watermark, marks.resume

    def filled(self, partition: int) -> bool:
        """Whether all that has finished in the log of a partition that is owned is here."""
        marks = self._marks.get(partition)
        return marks is not None and marks.filled

    def progress(self, partition: int) -> tuple[int, int]:
        """How far filling is, as (watermark, offset up to which it goes); equal when there is nothing to do."""
        marks = self._marks.get(partition)
        if marks is None or marks.live is None:
            return 0, 0
        return min(marks.watermark, marks.live.start), marks.live.start

    def restart(self, partition: int, offset: int, token: bytes, resume: int) -> None:
        """Filling begins at ``offset``, where ``token`` is in force: what was below is not in the log any more."""
        self._known(partition).restart(offset, token, resume)

    async def fill(
        self, partition: int, commands: Sequence[FinishedCommand], epochs: Epochs, since: int, upto: int, resume: int
    ) -> None:
        """All that finished between ``since``, which is the watermark, and ``upto``, and the Epochs there; returns when
        it is written.

        A cancel leaves it written or about to be.  Raises Unavailable when the file does not take it (it is kept in
        memory all the same), and when the view has forgotten the partition meanwhile.
        """
        marks = self._known(partition)
        if marks.watermark < since:
            raise Unavailable(f"the view of partition {partition} is being made anew", retry_after_ms=1000)
        for command in commands:
            self._keep(command)
        marks.fill(epochs, upto, resume)
        if not await self.flush():
            raise Unavailable("the view of finished commands cannot be written", retry_after_ms=1000)

    def disown(self, partition: int) -> None:
        """What a filler has read contradicts what is here: the view forgets, and the partition is to be replayed."""
        self.on_damage(self._diverged(partition))

    # ------------------------------------------------------------ putting

    def put_many(self, commands: list[FinishedCommand]) -> None:
        """Takes what a replay has found, at once: a replay may be longer than memory is large."""
        for command in commands:
            self._keep(command)
        if self._pending and self._flush_task is None:
            rows, told = list(self._pending.values()), self._told()
            try:
                self._thread.submit(self._write, rows, told).result()
            except sqlite3.Error as error:
                raise self._trouble(error) from error
            self._pending = {}
            self._written(told)

    def put(self, command: FinishedCommand) -> None:
        """Takes a finished command; it can be found from now on."""
        self._keep(command)
        if self._flush_task is not None:
            return
        if len(self._pending) >= FLUSH_ROWS:
            self._start_flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_AFTER_S, self._start_flush)

    def _keep(self, command: FinishedCommand) -> None:
        known = self._pending.get(command.id)
        if known is None or known.partition != command.partition or known.end <= command.end:
            self._pending[command.id] = command

    async def flush(self) -> bool:
        """Writes all that was put so far; False if the file does not take it now."""
        while (running := self._flush_task) is not None:
            await asyncio.wait([running])
        running = self._start_flush()
        return running is None or await asyncio.shield(running)

    def _start_flush(self) -> asyncio.Task[bool] | None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flush_task is None and (self._pending or self._told()):
            self._flush_task = asyncio.get_running_loop().create_task(self._flush())
        return self._flush_task

    async def _flush(self) -> bool:
        try:
            while True:
                if not await self._flush_once():
                    self._timer = asyncio.get_running_loop().call_later(FLUSH_AGAIN_S, self._start_flush)
                    return False
                if not self._pending:
                    return True
        finally:
            self._flush_task = None

    async def _flush_once(self) -> bool:
        """Writes what is pending; False if the file does not take it: it stays in memory, and serves from there."""
        self._flushing, self._pending = self._pending, {}
        rows, told = list(self._flushing.values()), self._told()
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._write, rows, told)
        except sqlite3.Error as error:
            log.warning(
                "the view cannot be written; finished commands stay in memory", rows=len(rows), error=str(error)
            )
            self._trouble(error)
            later, self._pending = self._pending, self._flushing
            self._flushing = {}
            for command in later.values():
                self._keep(command)
            return False
        self._flushing = {}
        self._written(told)
        return True

    def _told(self) -> list[_Told]:
        """What has changed of the marks; true as soon as all that was put so far is written."""
        return [
            _Told(
                partition,
                marks.identity,
                marks.watermark,
                marks.resume,
                [epoch for epoch in marks.epochs if epoch[0] >= self._durable[partition] - 1],
            )
            for partition, marks in self._marks.items()
            if marks.watermark > self._durable[partition]
        ]

    def _written(self, told: list[_Told]) -> None:
        for each in told:
            marks = self._marks.get(each.partition)
            if marks is not None and marks.identity == each.identity and marks.watermark >= each.watermark:
                self._durable[each.partition] = each.watermark

    def _write(self, rows: list[FinishedCommand], told: list[_Told]) -> None:
        with self._transaction() as writer:
            _insert(writer, [row.row() for row in rows])
            for partition, identity, watermark, resume, epochs in told:
                writer.execute(
                    "UPDATE partitions SET watermark=?, resume=? WHERE partition=? AND identity=?",
                    (watermark, resume, partition, identity),
                )
                writer.executemany(
                    "INSERT OR REPLACE INTO epochs VALUES (?,?,?)", [(partition, *epoch) for epoch in epochs]
                )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        writer = self._writer
        writer.execute("BEGIN IMMEDIATE")
        try:
            yield writer
            writer.execute("COMMIT")
        except BaseException:
            if writer.in_transaction:  # a full disk has rolled back already
                writer.execute("ROLLBACK")
            raise

    async def forget_below(self, partition: int, offset: int, before_ms: int = 1 << 62) -> int:
        """The log was trimmed: drops the commands that ended below ``offset`` and before ``before_ms``.

        Returns how many; a cancel leaves some of them.
        """
        self._pending = {
            id: each
            for id, each in self._pending.items()
            if each.partition != partition or each.end >= offset or each.finished_at >= before_ms
        }
        count = 0
        try:
            in_thread = asyncio.get_running_loop().run_in_executor
            while (gone := await in_thread(self._thread, self._delete_below, partition, offset, before_ms)) > 0:
                count += gone
        except sqlite3.Error as error:
            raise self._trouble(error) from error
        if (marks := self._marks.get(partition)) is not None:
            marks.forget_below(offset)
        return count

    def _delete_below(self, partition: int, offset: int, before_ms: int) -> int:
        """Some of them; 0 when none is left, and then the Epochs too."""
        rows = "SELECT rowid FROM commands WHERE partition=? AND ended<? AND finished_at<? LIMIT ?"
        query = f"DELETE FROM commands WHERE rowid IN ({rows})"
        if gone := self._writer.execute(query, (partition, offset, before_ms, FORGET_ROWS)).rowcount:
            return gone
        last = "SELECT max(offset) FROM epochs WHERE partition=? AND offset<?"
        query = f"DELETE FROM epochs WHERE partition=? AND offset<({last})"
        self._writer.execute(query, (partition, partition, offset))
        return 0

    async def close(self) -> None:
        """Writes what can be written, and closes the file."""
        await self.flush()
        if self._timer is not None:
            self._timer.cancel()
        self._release()

    def _release(self) -> None:
        for threads in (self._aside, self._searching, self._thread):
            threads.shutdown(wait=True)
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

    def epochs(self, partition: int) -> Epochs:
        """The Epochs of the partition's log as (offset, token) in order: all from its first offset up to the watermark.

        One that lay below the log's first offset when filling began stands at the offset before that.
        """
        marks = self._marks.get(partition)
        return list(marks.epochs) if marks is not None else []

    def token_at(self, partition: int, offset: int) -> bytes | None:
        """The token in force at an offset, also of what the owner has seen; empty before the first Epoch, None where it
        is not known yet."""
        marks = self._marks.get(partition)
        return marks.token_at(offset) if marks is not None else None

    async def receipts(
        self, partition: int, since_ms: int = 0, page: int = RECEIPTS_PAGE
    ) -> AsyncGenerator[bytes, None]:
        """The receipts (`admission.receipts`) of what finished at ``since_ms`` or later, sorted by hash, in pages of
        ``page`` receipts, each page one run of bytes.

        What was put before the first page is in it, written or not; what is put meanwhile may be.  SQLite sorts them in
        a thread: a million take a second or two.
        """
        in_thread = asyncio.get_running_loop().run_in_executor
        recent = sorted(
            command.receipt()
            for command in (*self._flushing.values(), *self._pending.values())
            if command.partition == partition and command.finished_at >= since_ms
        )
        try:
            reading = await in_thread(self._aside, _Receipts, self.path, partition, since_ms, recent)
            try:
                while run := await in_thread(self._aside, reading.page, page):
                    yield run
            finally:
                with contextlib.suppress(RuntimeError):  # the view itself was closed meanwhile
                    self._aside.submit(reading.close)  # not awaited: who stops half way may be gone
        except sqlite3.Error as error:
            raise self._trouble(error) from error

    async def newest(
        self,
        *,
        state: str | None,
        type: str | None,
        attributes: dict[str, str],
        limit: int,
        before: tuple[int, str] | None,
        partitions: Collection[int] | None = None,
    ) -> list[Row]:
        """Up to ``limit`` finished commands that match, newest first, below the cursor ``before`` (submitted_at, id);
        of all partitions, or of these only.  `shown` makes views of them.

        A filter that hardly any matches reads the whole file: that is another thread's work, on a connection of its
        own.  What finishes meanwhile may be in it.
        """
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
        # Left to itself, SQLite takes an index of the partition, and sorts a hundred thousand rows for a page of fifty.
        wanted_rows = "SELECT submitted_at, id, partition, records FROM commands INDEXED BY newest"
        query = f"{wanted_rows} WHERE {' AND '.join(where)} ORDER BY submitted_at DESC, id DESC LIMIT ?"
        recent = [*self._flushing.values(), *self._pending.values()]  # before the file is read: it may have them then
        in_thread = asyncio.get_running_loop().run_in_executor
        try:
            rows = await in_thread(self._searching, _rows, self.path, query, [*values, limit])
        except sqlite3.Error as error:
            raise self._trouble(error) from error
        found = {(at, id): Row(at, id, partition, self._decoded(records)) for at, id, partition, records in rows}
        for each in recent:
            place = (each.submitted_at, each.id)
            if partitions is not None and each.partition not in partitions:
                continue
            if matches(each, state, type, attributes) and (before is None or place < before):
                found[place] = Row(*place, each.partition, each.records)
        return [found[place] for place in sorted(found, reverse=True)[:limit]]

    def shown(self, row: Row) -> CommandView:
        """The command of a row, folded from its records: some hundred microseconds."""
        return self._shown(row.partition, row.records)


class _Receipts:
    """One reading of receipts, from the file as it was and ``recent`` ones (sorted), on the view's thread."""

    def __init__(self, path: Path, partition: int, since_ms: int, recent: list[bytes]) -> None:
        self._reader = sqlite3.connect(path, isolation_level=None)
        rows = self._reader.execute(
            "SELECT hash, fingerprint, first, ended, finished_at FROM commands INDEXED BY receipts"
            " WHERE partition=? AND finished_at>=? ORDER BY hash, fingerprint, first, ended",
            (partition, since_ms),
        )
        self._runs = heapq.merge((packed(*row) for row in rows), recent)
        self._last = b""

    def page(self, size: int) -> bytes:
        """The next receipts; one that is in both is given once."""
        page = []
        for each in self._runs:
            if each != self._last:
                page.append(each)
                self._last = each
                if len(page) >= size:
                    break
        return b"".join(page)

    def close(self) -> None:
        self._reader.close()


def _rows(path: Path, query: str, values: list[Any]) -> list[tuple[int, str, int, bytes]]:
    """What a query finds in the file as it is, on a connection of its own."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("PRAGMA query_only=1")
        return reader.execute(query, values).fetchall()


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
        statement = f"INSERT INTO commands VALUES {','.join([row] * size)} {_NEWER}"
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
    return has_attributes(view.attributes, attributes)


def has_attributes(attributes: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    """Whether a command has these attributes, compared as text."""
    return all(_text(attributes.get(key)) == text for key, text in wanted.items())


def _text(value: Any) -> str | None:
    """How an attribute is written in a filter; the column has the same text, so that both ways to look agree."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)
