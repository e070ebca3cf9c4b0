"""The embedded log: one SQLite file in the data directory, safe against kill -9 and loss of power.

*Durable* means: WAL with ``synchronous=FULL``, so a commit returns after the WAL was synced.  *Group commit*: whatever
appends are waiting when a commit begins share it, and while one runs the next group gathers.

*Where the commit runs.*  On this project's machine (ext4 on a virtual disk; p50 of 1,000 commits of 1 / 8 / 64 records
of 200 bytes) a commit on the event loop takes 0.40 / 0.22 / 0.36 ms and 140-290 µs of CPU, through a thread 0.46 /
0.45 / 0.57 ms and 350-500 µs: the hop costs more than the sync.  So a small group is committed right on the loop as
long as this disk's recent commits were quick, and by the one writer thread when the group is big, the disk is slow or
another process holds the lock.  Both use the same connection, never at once.

*Two processes on one directory* are allowed: the base offset is read inside the write transaction, so their batches
interleave without gaps, and the epochs in the log (`ownership`) tell which of them owns it.

*A file that is deleted or replaced while it is open* would go on taking appends that nobody can ever read again.  So
commits look, some times a second, whether file and WAL are still the ones that were opened, and are Rejected if not;
put back, they serve again.

*Full disk, read-only file*: the transaction is rolled back and the append Rejected; the next one simply tries again,
so the log recovers when the disk does.  Only an I/O error while committing leaves doubt (Unknown).

*Trimming* deletes the head in slices, each a commit that it shares with the appends that wait, so that nobody waits for
all of it.  SQLite uses the space again for what is appended next; the file does not shrink.

Layout: a table a partition, ``log_<partition>(offset, data)``; ``partitions`` with the first offset kept (what is
deleted stays counted, also when nothing is left) and the pointer to the newest Snapshot; ``meta``.  ``user_version``
is the layout's version, ``application_id`` marks the file as ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

from coordinator.errors import CorruptLog, StartupError
from coordinator.log.base import RECORD_BYTES_MAX, LogError, Pointer, Rejected, Unknown
from coordinator.log.times import first_at

FILE: Final = "log.sqlite3"
LAYOUT: Final = 2
_APPLICATION_ID: Final = 0x636F6F72  # "coor"

_INLINE_RECORDS: Final = 64  # a bigger group goes to the thread
_INLINE_BYTES: Final = 64 << 10
_INLINE_SECONDS: Final = 0.002  # as does every group on a disk that lately took longer than this
_LOOK_S: Final = 0.05  # between two looks at the files' names, 7 µs each
_CHECKPOINT_PAGES: Final = 4000  # of 4 KiB, in the WAL, roughly
_PAGE_ROWS: Final = 1024  # a page of reading: about 0.5 ms
_PAGE_BYTES: Final = 1 << 20
_FETCH_ROWS: Final = 64
_TRIM_ROWS: Final = 2_000  # a slice of trimming: some milliseconds

_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE partitions (partition INTEGER PRIMARY KEY, first INTEGER NOT NULL, covered INTEGER, position INTEGER);
"""
_FROM_LAYOUT_1: Final = """
ALTER TABLE partitions RENAME COLUMN watermark TO covered;
ALTER TABLE partitions ADD COLUMN position INTEGER;
"""

# Errors of COMMIT after which SQLite has surely undone the transaction, also for a later recovery of the WAL.
_SURELY_UNDONE: Final = frozenset({"SQLITE_FULL", "SQLITE_BUSY", "SQLITE_READONLY"})

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)


class _Append:
    """A batch that waits for its commit."""

    __slots__ = ("bytes", "done", "partition", "records", "rows")

    def __init__(self, partition: int, done: asyncio.Future[int], records: Sequence[bytes]) -> None:
        self.partition = partition
        self.done = done
        self.records = records
        self.rows = len(records)
        self.bytes = sum(map(len, records))

    def write(self, db: sqlite3.Connection) -> int:
        """Inside a write transaction; returns the base offset."""
        base = _end(db, self.partition)
        db.executemany(f"INSERT INTO log_{self.partition} VALUES (?, ?)", enumerate(self.records, base))
        return base


class _Point:
    """A pointer to be saved."""

    __slots__ = ("done", "partition", "pointer")

    rows = bytes = 1

    def __init__(self, partition: int, done: asyncio.Future[int], pointer: Pointer) -> None:
        self.partition = partition
        self.done = done
        self.pointer = pointer

    def write(self, db: sqlite3.Connection) -> int:
        db.execute(
            "UPDATE partitions SET covered = ?, position = ? WHERE partition = ?",
            (self.pointer.covered, self.pointer.position, self.partition),
        )
        return 0


class _Trim:
    """A slice of a trim: the next `_TRIM_ROWS` rows at most."""

    __slots__ = ("before", "done", "partition")

    rows = _TRIM_ROWS  # as many as the thread does, not the loop
    bytes = 16 * _TRIM_ROWS  # what the WAL takes, by a rule of thumb: freed pages are listed, not written

    def __init__(self, partition: int, done: asyncio.Future[int], before: int) -> None:
        self.partition = partition
        self.done = done
        self.before = before

    def write(self, db: sqlite3.Connection) -> int:
        """Returns the first offset kept."""
        first = _first(db, self.partition)
        kept = min(self.before, first + _TRIM_ROWS, _end(db, self.partition))
        if kept <= first:
            return first
        db.execute(f"DELETE FROM log_{self.partition} WHERE offset < ?", (kept,))
        db.execute("UPDATE partitions SET first = ? WHERE partition = ?", (kept, self.partition))
        return kept


_Job = _Append | _Point | _Trim


class SqliteLog:
    """The `Log` port over ``<data_dir>/log.sqlite3``.

    ``busy_timeout_ms`` bounds the wait for another process's transaction, at open and at an append.
    """

    def __init__(self, data_dir: str | Path, partitions: int = 1, *, busy_timeout_ms: int = 2_000) -> None:
        self.partitions = partitions
        self.record_bytes_max = RECORD_BYTES_MAX
        self.path = Path(data_dir) / FILE
        self._busy_timeout_s = busy_timeout_ms / 1000
        self._writing = ThreadPoolExecutor(1, "log-writer")
        self._reading = ThreadPoolExecutor(1, "log-reader")
        self._db: sqlite3.Connection | None = None  # of the writer: the loop's or its thread's, whoever commits
        self._reader: sqlite3.Connection | None = None  # of the reading thread
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: list[_Job] = []
        self._committing = False  # a commit or a checkpoint runs in the writer's thread
        self._scheduled = False
        self._commit_s = 0.0  # moving average
        self._looked_at = 0.0
        self._files: dict[str, tuple[int, int]] = {}  # the file and its WAL as they were opened: device and inode
        self._wal_pages = 0

    # ------------------------------------------------------------ opening

    async def open(self) -> None:
        """Opens the file, creating directory and file if need be; raises StartupError with what is wrong."""
        self._loop = asyncio.get_running_loop()
        self._db = await self._loop.run_in_executor(self._writing, self._open_writer)
        self._reader = await self._loop.run_in_executor(self._reading, self._open_reader)

    def _open_writer(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartupError(f"the data directory {self.path.parent} cannot be created: {error.strerror}") from error
        db: sqlite3.Connection | None = None
        try:
            db = self._connect()
            mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise StartupError(f"{self.path}: this file system does not support SQLite's WAL (it gives {mode!r})")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA fullfsync = ON")  # where fsync alone does not reach the disk (macOS)
            db.execute("PRAGMA wal_autocheckpoint = 0")  # `_checkpoint` does it, after the acks are out
            db.execute("BEGIN IMMEDIATE")
            self._check_or_create(db)
            db.execute("COMMIT")
            db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            self._files = {name: _identity(name) for name in (str(self.path), f"{self.path}-wal")}
            db.execute("PRAGMA busy_timeout = 0")  # from here on waiting is done where it stalls nobody
        except sqlite3.Error as error:
            if db is not None:
                db.close()
            raise StartupError(f"the log cannot be opened: {self._explain(error)}") from error
        except StartupError:
            if db is not None:
                db.close()
            raise
        return db

    def _open_reader(self) -> sqlite3.Connection:
        try:
            db = self._connect()
            db.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            raise StartupError(f"the log cannot be opened: {self._explain(error)}") from error
        return db

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False)

    def _check_or_create(self, db: sqlite3.Connection) -> None:
        """Inside a write transaction: the layout is ours and has these partitions, or is made so."""
        layout = db.execute("PRAGMA user_version").fetchone()[0]
        application = db.execute("PRAGMA application_id").fetchone()[0]
        if layout == 0 and not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            for partition in range(self.partitions):
                db.execute(f"CREATE TABLE log_{partition} (offset INTEGER PRIMARY KEY, data BLOB NOT NULL)")
                db.execute("INSERT INTO partitions VALUES (?, 0, NULL, NULL)", (partition,))
            db.execute("INSERT INTO meta VALUES ('partitions', ?)", (self.partitions,))
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {LAYOUT}")
            return
        if application != _APPLICATION_ID:
            raise StartupError(f"{self.path} is a SQLite database of another program, not a coordinator's log")
        if layout > LAYOUT:
            raise StartupError(
                f"{self.path} has layout version {layout}, this version of coordinator reads up to {LAYOUT}: "
                "start the newer version that wrote it"
            )
        stored = db.execute("SELECT value FROM meta WHERE key = 'partitions'").fetchone()[0]
        if layout == 1:
            for statement in _FROM_LAYOUT_1.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {LAYOUT}")
        if stored != self.partitions:
            raise StartupError(
                f"{self.path} was created with {stored} partitions, the configuration says {self.partitions} "
                "(log.partitions); the number of an existing log cannot be changed"
            )
        # Proves that the file can be written, so that a full disk or a read-only file is told at the start.
        db.execute("UPDATE meta SET value = value WHERE key = 'partitions'")

    # ------------------------------------------------------------ appending

    async def writer(self, partition: int) -> SqliteWriter:
        """A session; SQLite itself needs none, so this costs nothing."""
        return SqliteWriter(self, partition)

    async def append(self, partition: int, records: Sequence[bytes]) -> int:
        """Appends a batch with the next group; a cancelled append still lands."""
        return await self._submit(_Append(partition, self._future(), records))

    async def save_pointer(self, partition: int, pointer: Pointer) -> None:
        await self._submit(_Point(partition, self._future(), pointer))

    async def trim(self, partition: int, before: int) -> int:
        first = await self._in_reader(_first, partition)
        while True:
            kept = await self._submit(_Trim(partition, self._future(), before))
            if kept >= before or kept == first:
                return kept
            first = kept

    def _future(self) -> asyncio.Future[int]:
        if self._loop is None or self._db is None:
            raise Rejected("the log is not open")
        return self._loop.create_future()

    def _submit(self, job: _Job) -> asyncio.Future[int]:
        self._queue.append(job)
        self._schedule()
        return job.done

    def _schedule(self) -> None:
        if not self._scheduled and not self._committing and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Commits everything that waits."""
        self._scheduled = False
        if self._committing or not self._queue or self._loop is None:
            return
        group, self._queue = self._queue, []
        if self._quick(group):
            result = self._commit(group, wait=False)
            if result is not None:
                self._deliver(group, result)
                return
        self._committing = True
        committed = self._loop.run_in_executor(self._writing, self._commit, group)
        committed.add_done_callback(lambda done: self._committed(group, done))

    def _quick(self, group: list[_Job]) -> bool:
        """Whether the loop itself should commit this."""
        if self._commit_s > _INLINE_SECONDS:
            return False
        return sum(job.rows for job in group) <= _INLINE_RECORDS and sum(job.bytes for job in group) <= _INLINE_BYTES

    def _committed(self, group: list[_Job], done: asyncio.Future[list[int] | LogError | None]) -> None:
        self._committing = False
        error = done.exception()
        result = done.result() if error is None else Unknown(f"the commit failed: {error!r}")
        assert result is not None
        self._deliver(group, result)

    def _deliver(self, group: list[_Job], result: list[int] | LogError) -> None:
        """Answers the group, then starts what comes next."""
        if isinstance(result, LogError):
            for job in group:
                if not job.done.done():
                    job.done.set_exception(result)
        else:
            for job, base in zip(group, result, strict=True):
                if not job.done.done():
                    job.done.set_result(base)
        if self._wal_pages > _CHECKPOINT_PAGES and self._loop is not None:
            self._wal_pages = 0
            self._committing = True
            self._loop.run_in_executor(self._writing, self._checkpoint).add_done_callback(self._checkpointed)
        elif self._queue:
            self._schedule()

    def _checkpointed(self, done: asyncio.Future[None]) -> None:
        self._committing = False
        done.result()
        if self._queue:
            self._schedule()

    # ------------------------------------------------------------ on the loop or in the writer's thread

    def _commit(self, group: list[_Job], wait: bool = True) -> list[int] | LogError | None:
        """One transaction for the group: base offsets, or why not; None if it would have to wait and must not."""
        db = self._db
        if db is None:
            return Rejected("the log is closed")
        began = time.monotonic()
        if began - self._looked_at > _LOOK_S:
            if gone := self._gone():
                return Rejected(gone)
            self._looked_at = began
        try:
            while not self._begin(db):
                if not wait:
                    return None
                if time.monotonic() - began > self._busy_timeout_s:
                    return Rejected(f"{self.path} was locked by another process for {self._busy_timeout_s:g} s")
                time.sleep(0.002)
            places = [self._write(db, job) for job in group]
        except sqlite3.Error as error:
            self._roll_back(db)
            return Rejected(self._explain(error))
        try:
            db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(db)
            surely_undone = _name(error) in _SURELY_UNDONE
            return Rejected(self._explain(error)) if surely_undone else Unknown(self._explain(error))
        # An old spike must not send a quick disk's commits to the thread for long, nor one quick commit bring them
        # back.
        self._commit_s += (time.monotonic() - began - self._commit_s) / 8
        self._wal_pages += 2 + sum(job.bytes for job in group) // 4000
        return places

    def _gone(self) -> str:
        """Which of our files is not at its place any more, as a sentence; empty if all are."""
        for name, opened in self._files.items():
            try:
                now = _identity(name)
            except OSError:
                return f"{name} was deleted or moved while it was open; put it back, or stop and restore the log"
            if now != opened:
                return f"{name} was replaced by another file while it was open; stop, and see which is the log"
        return ""

    @staticmethod
    def _begin(db: sqlite3.Connection) -> bool:
        """Takes the write lock; False while another process holds it."""
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if _name(error) == "SQLITE_BUSY":
                return False
            raise
        return True

    @staticmethod
    def _write(db: sqlite3.Connection, job: _Job) -> int:
        return job.write(db)

    @staticmethod
    def _roll_back(db: sqlite3.Connection) -> None:
        if db.in_transaction:  # some errors have rolled back already
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")

    def _checkpoint(self) -> None:
        """Copies the WAL into the file, so that it is used from its beginning again; harmless when it fails."""
        if self._db is None:
            return
        try:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            logger.warning("checkpoint: %s", self._explain(error))

    # ------------------------------------------------------------ reading

    async def read(self, partition: int, start: int) -> AsyncGenerator[list[tuple[int, bytes]], None]:
        first, end = await self.bounds(partition)
        if start < first:
            raise LogError(f"offset {start} of partition {partition} is below the log's start {first}")
        while start < end:
            page = await self._in_reader(self._read_page, partition, start, end)
            if not page or page[0][0] != start:
                raise LogError(f"offset {start} of partition {partition} was deleted while it was being read")
            yield page
            start = page[-1][0] + 1

    def _read_page(self, db: sqlite3.Connection, partition: int, start: int, end: int) -> list[tuple[int, bytes]]:
        """Some rows from ``start``: enough to be worth a hop, not so many as to hold much memory or pin the WAL."""
        cursor = db.execute(
            f"SELECT offset, data FROM log_{partition} WHERE offset >= ? AND offset < ? ORDER BY offset", (start, end)
        )
        page: list[tuple[int, bytes]] = []
        size = 0
        while len(page) < _PAGE_ROWS and size < _PAGE_BYTES:
            rows = cursor.fetchmany(_FETCH_ROWS)
            page += rows
            size += sum(len(data) for _, data in rows)
            if len(rows) < _FETCH_ROWS:
                break
        cursor.close()
        return page

    async def bounds(self, partition: int) -> tuple[int, int]:
        return await self._in_reader(self._bounds, partition)

    def _bounds(self, db: sqlite3.Connection, partition: int) -> tuple[int, int]:
        return _first(db, partition), _end(db, partition)

    async def end(self, partition: int) -> int:
        if gone := self._gone():
            raise LogError(gone)
        return await self._in_reader(_end, partition)

    async def load_pointer(self, partition: int) -> Pointer | None:
        return await self._in_reader(_pointer, partition)

    async def offset_at(self, partition: int, at_ms: int) -> int:
        return await self._in_reader(_offset_at, partition, at_ms)

    async def _in_reader(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """``function(connection, *args)`` in the reading thread; raises LogError."""
        db, loop = self._reader, self._loop
        if db is None or loop is None:
            raise LogError("the log is not open")
        try:
            return await loop.run_in_executor(self._reading, lambda: function(db, *args, **kwargs))
        except sqlite3.Error as error:
            if _name(error) in {"SQLITE_CORRUPT", "SQLITE_NOTADB"}:
                raise CorruptLog(self._explain(error)) from error
            raise LogError(self._explain(error)) from error

    # ------------------------------------------------------------ closing

    async def close(self) -> None:
        """Lets a running commit end, refuses what still waits, and closes the file."""
        queue, self._queue = self._queue, []
        for job in queue:
            if not job.done.done():
                job.done.set_exception(Rejected("the log is closed"))
        loop, self._loop = self._loop, None
        if loop is None:
            return
        await loop.run_in_executor(self._reading, self._close_reader)
        await loop.run_in_executor(self._writing, self._close_writer)
        self._reading.shutdown(wait=False)
        self._writing.shutdown(wait=False)

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _close_writer(self) -> None:
        if self._db is not None:
            self._db.close()  # the last connection also checkpoints and removes the WAL
            self._db = None

    # ------------------------------------------------------------ errors

    def _explain(self, error: sqlite3.Error) -> str:
        """A sentence for the operator."""
        name = _name(error)
        for known, meaning in _MEANINGS.items():
            if name.startswith(known):
                return f"{self.path}: {meaning} ({error})"
        return f"{self.path}: {error} ({name})"


_MEANINGS: Final = {
    "SQLITE_FULL": "the disk is full",
    "SQLITE_READONLY": "the file or its directory is read-only",
    "SQLITE_CANTOPEN": "the file cannot be opened or created: is the directory writable?",
    "SQLITE_PERM": "access is denied",
    "SQLITE_NOTADB": "the file is not a SQLite database, so not a coordinator's log",
    "SQLITE_BUSY": "the file is locked by another process",
    "SQLITE_LOCKED": "the file is locked",
    "SQLITE_CORRUPT": "the file is damaged",
    "SQLITE_IOERR": "the disk failed",
}


def _name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", None) or type(error).__name__


def _identity(name: str) -> tuple[int, int]:
    found = os.stat(name)
    return found.st_dev, found.st_ino


def _first(db: sqlite3.Connection, partition: int) -> int:
    row = db.execute("SELECT first FROM partitions WHERE partition = ?", (partition,)).fetchone()
    return int(row[0])


def _end(db: sqlite3.Connection, partition: int) -> int:
    """The next offset to be written; right inside a write transaction, whatever other processes do."""
    last = db.execute(f"SELECT max(offset) FROM log_{partition}").fetchone()[0]
    return _first(db, partition) if last is None else int(last) + 1


def _pointer(db: sqlite3.Connection, partition: int) -> Pointer | None:
    query = "SELECT position, covered FROM partitions WHERE partition = ?"
    position, covered = db.execute(query, (partition,)).fetchone()
    readable = isinstance(position, int) and isinstance(covered, int) and min(position, covered) >= 0
    return Pointer(position, covered) if readable else None


def _offset_at(db: sqlite3.Connection, partition: int, at_ms: int) -> int:
    def record(offset: int) -> bytes | None:
        row = db.execute(f"SELECT data FROM log_{partition} WHERE offset = ?", (offset,)).fetchone()
        return None if row is None else row[0]

    return first_at(record, _first(db, partition), _end(db, partition), at_ms)


class SqliteWriter:
    """A session of a `SqliteLog`."""

    def __init__(self, log: SqliteLog, partition: int) -> None:
        self._log = log
        self._partition = partition
        self._closed = False

    async def append(self, records: Sequence[bytes]) -> int:
        if self._closed:
            raise Rejected("the session is closed")
        return await self._log.append(self._partition, records)

    async def close(self) -> None:
        self._closed = True
