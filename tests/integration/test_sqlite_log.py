"""The embedded log against a real disk: kill -9, full, locked, read-only, foreign and newer files."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.errors import StartupError
from coordinator.log.base import LogError, Pointer, Rejected
from coordinator.log.owned import OwnedPartition, SteppedDown
from coordinator.log.sqlite import FILE, SqliteLog
from coordinator.model.damaged import Damaged
from coordinator.model.ids import CommandId
from coordinator.model.records import Record, Timer
from coordinator.wire.codec import encode


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    log = SqliteLog(tmp_path, busy_timeout_ms=300)
    await log.open()
    yield log
    await log.close()


async def everything(log: SqliteLog) -> list[bytes]:
    return [data async for batch in log.read(0, 0) for _, data in batch]


def other_process(path: Path) -> sqlite3.Connection:
    """A connection as another process would have it."""
    return sqlite3.connect(path, isolation_level=None)


# ---------------------------------------------------------------- opening


async def test_the_directory_is_created(tmp_path: Path) -> None:
    """A first start needs no preparation."""
    log = SqliteLog(tmp_path / "a" / "b")
    await log.open()
    await log.append(0, [b"x"])
    await log.close()
    assert (tmp_path / "a" / "b" / FILE).is_file()


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        pytest.param(lambda path: path.parent.write_text("a file"), "cannot be created", id="a file for a directory"),
        pytest.param(lambda path: path.mkdir(parents=True), "cannot be opened", id="a directory for the file"),
        pytest.param(
            lambda path: (path.parent.mkdir(), path.write_bytes(b"no database " * 1000)), "not a SQLite", id="noise"
        ),
    ],
)
async def test_what_cannot_be_opened_is_named(tmp_path: Path, prepare: object, says: str) -> None:
    """The operator reads the path and what is wrong with it."""
    path = tmp_path / "data" / FILE
    prepare(path)  # type: ignore[operator]
    with pytest.raises(StartupError, match=rf"(?s){tmp_path}.*{says}"):
        await SqliteLog(path.parent).open()


async def test_a_directory_that_is_not_writable_is_named() -> None:
    """Even root cannot create files there."""
    with pytest.raises(StartupError, match=r"/proc/self/log.sqlite3.*cannot be opened or created"):
        await SqliteLog("/proc/self").open()


async def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    """Nothing is written into a file that is not ours."""
    with contextlib.closing(other_process(tmp_path / FILE)) as db:
        db.execute("CREATE TABLE theirs (x)")
    with pytest.raises(StartupError, match="another program"):
        await SqliteLog(tmp_path).open()


async def test_a_newer_layout_is_refused(tmp_path: Path, log: SqliteLog) -> None:
    """A file that a newer version has changed is left alone."""
    with contextlib.closing(other_process(log.path)) as db:
        db.execute("PRAGMA user_version = 7")
    with pytest.raises(StartupError, match="layout version 7"):
        await SqliteLog(tmp_path).open()


async def test_a_log_of_the_former_layout_is_taken_over(tmp_path: Path) -> None:
    """A file of layout 1, before there were pointers, keeps its records and gets the new columns."""
    old = SqliteLog(tmp_path)
    await old.open()
    writer = await old.writer(0)
    await writer.append([b"kept"])
    await old.close()
    with contextlib.closing(sqlite3.connect(old.path)) as db:
        db.execute("ALTER TABLE partitions DROP COLUMN position")
        db.execute("ALTER TABLE partitions RENAME COLUMN covered TO watermark")
        db.execute("PRAGMA user_version = 1")
    log = SqliteLog(tmp_path)
    await log.open()
    assert [batch async for batch in log.read(0, 0)] == [[(0, b"kept")]]
    assert await log.load_pointer(0) is None
    await log.save_pointer(0, Pointer(position=1, covered=1))
    await log.close()
    again = SqliteLog(tmp_path)
    await again.open()
    assert await again.load_pointer(0) == Pointer(position=1, covered=1)
    await again.close()


async def test_a_locked_file_is_told_at_open(tmp_path: Path, log: SqliteLog) -> None:
    """Waiting has an end."""
    with contextlib.closing(other_process(log.path)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StartupError, match="locked by another process"):
            await SqliteLog(tmp_path, busy_timeout_ms=50).open()


async def test_a_failed_open_can_be_closed(tmp_path: Path) -> None:
    """The caller closes what it made, opened or not."""
    log = SqliteLog(tmp_path)
    await log.close()
    with pytest.raises(LogError):
        await log.append(0, [b"x"])
    with pytest.raises(LogError):
        await log.bounds(0)


# ---------------------------------------------------------------- appending


async def test_a_full_disk_is_refused_and_recovers(log: SqliteLog) -> None:
    """Nothing of the batch is stored; once there is room, the next append succeeds by itself."""
    await log.append(0, [b"before"])
    assert log._db is not None
    pages = log._db.execute("PRAGMA page_count").fetchone()[0]
    log._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Rejected, match="the disk is full"):
        await log.append(0, [b"x" * 100_000] * 3)
    assert await everything(log) == [b"before"]
    log._db.execute("PRAGMA max_page_count = 1000000")
    assert await log.append(0, [b"after"]) == 1
    assert await everything(log) == [b"before", b"after"]


async def test_a_read_only_file_is_refused_and_recovers(log: SqliteLog) -> None:
    """The reason names what an operator can change."""
    assert log._db is not None
    log._db.execute("PRAGMA query_only = ON")
    with pytest.raises(Rejected, match="read-only"):
        await log.append(0, [b"x"])
    log._db.execute("PRAGMA query_only = OFF")
    assert await log.append(0, [b"x"]) == 0


async def test_a_lock_is_waited_for(log: SqliteLog) -> None:
    """Another process's transaction delays an append, off the event loop; one that never ends refuses it."""
    with contextlib.closing(other_process(log.path)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(Rejected, match="locked by another process"):
            await log.append(0, [b"never"])
        append = asyncio.ensure_future(log.append(0, [b"soon"]))
        await asyncio.sleep(0)  # the loop is free to run this test
        db.execute("ROLLBACK")
        assert await append == 0


async def test_an_owner_is_told_why_the_disk_refused(log: SqliteLog) -> None:
    """The log line that an operator sees says that the disk is full."""
    owner = OwnedPartition(log, 0, instance="a", address="a:1", clock=lambda: 1)
    await owner.acquire(lambda _: None)
    assert log._db is not None
    log._db.execute("PRAGMA max_page_count = 1")
    with pytest.raises(SteppedDown, match="the disk is full"):
        await owner.append([b"x" * 100_000])
    log._db.execute("PRAGMA max_page_count = 1000000")
    successor = OwnedPartition(log, 0, instance="a", address="a:1", clock=lambda: 1)
    assert await successor.acquire(lambda _: None) == 1


async def test_big_groups_and_slow_disks_go_through_the_thread(log: SqliteLog) -> None:
    """Both ways of committing give the same log, mixed as they come."""
    log._commit_s = 1.0  # as if this disk were slow
    slow = await asyncio.gather(*(log.append(0, [b"slow"]) for _ in range(10)))
    log._commit_s = 0.0
    big = await log.append(0, [b"big"] * 1000)
    quick = await log.append(0, [b"quick"])
    assert (slow, big, quick) == (list(range(10)), 10, 1010)
    assert len(await everything(log)) == 1011


async def test_a_cancelled_append_still_lands(log: SqliteLog) -> None:
    """Cancelling the caller does not take the batch out of its group."""
    append = asyncio.ensure_future(log.append(0, [b"x"]))
    await asyncio.sleep(0)
    append.cancel()
    await asyncio.wait([append])
    await log.append(0, [b"y"])
    assert (await everything(log))[-1] == b"y"


async def test_the_wal_is_copied_back_and_used_again(log: SqliteLog) -> None:
    """However much is appended, the WAL stays bounded."""
    for _ in range(80):
        await log.append(0, [b"x" * 250_000] * 4)
    wal = log.path.with_name(FILE + "-wal")
    assert wal.stat().st_size < 40_000_000
    assert log.path.stat().st_size > 50_000_000


async def test_a_damaged_file_stops_the_reader(log: SqliteLog) -> None:
    """Damage is not an outage: trying again would not help."""
    await log.append(0, [b"x" * 1000] * 500)
    await log.close()
    data = bytearray(log.path.read_bytes())
    data[8192:200_000] = b"\xff" * (200_000 - 8192)
    log.path.write_bytes(data)
    damaged = SqliteLog(log.path.parent)
    with pytest.raises(StartupError, match="damaged"):
        await open_and_read(damaged)
    await damaged.close()


async def open_and_read(log: SqliteLog) -> None:
    await log.open()
    await everything(log)


# ---------------------------------------------------------------- other processes, and their deaths

_CHILD = """
import asyncio, os, resource, signal, sys
from coordinator.log.base import LogError
from coordinator.log.owned import OwnedPartition
from coordinator.log.sqlite import SqliteLog
from coordinator.model.records import Timer
from coordinator.wire.codec import encode

directory, mode = sys.argv[1:]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    log = SqliteLog(directory)
    await log.open()
    if mode == "full":
        await log.append(0, [b"before"])
        size = os.path.getsize(str(log.path) + "-wal")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10000, hard))
        try:
            await log.append(0, [b"x" * 200000])
        except LogError as error:
            print(type(error).__name__, error, flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        print(await log.append(0, [b"after"]), [data async for batch in log.read(0, 0) for _, data in batch])
        await log.close()
        return
    owner = OwnedPartition(log, 0, instance="child", address="c:1", clock=lambda: 1)
    await owner.acquire(lambda _: None)
    if mode == "after":
        log._deliver = die
    if mode == "before":
        log._write = lambda db, job: (SqliteLog._write(db, job), die())
    n = 0
    while True:
        print(await owner.append([encode(Timer(1, owner.token, 1, f"c{n}", "deadline"))] * 3), flush=True)
        n += 1

asyncio.run(main())
"""


def child(directory: Path, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(directory), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the traceback with which a fenced child ends
        text=True,
    )


async def ids_of_next_owner(directory: Path) -> list[str]:
    ids: list[str] = []

    def learn(records: list[tuple[int, Record | Damaged]]) -> None:
        ids.extend(record.id for _, record in records if isinstance(record, Timer))

    log = SqliteLog(directory)
    await log.open()
    owner = OwnedPartition(log, 0, instance="next", address="n:1", clock=lambda: 1)
    await owner.acquire(learn)
    await owner.append([encode(Timer(1, owner.token, 1, CommandId("next"), "deadline"))])
    await owner.close()
    await log.close()
    return ids


@pytest.mark.parametrize(("mode", "left"), [("after", ["c0"] * 3), ("before", [])])
async def test_kill_9_round_a_commit(tmp_path: Path, mode: str, left: list[str]) -> None:
    """Killed between commit and ack the batch is there, killed before the commit nothing of it is."""
    process = child(tmp_path, mode)
    output, _ = await asyncio.to_thread(process.communicate)
    assert (process.returncode, output) == (-9, "")
    assert await ids_of_next_owner(tmp_path) == left


async def test_kill_9_loses_nothing_that_was_confirmed(tmp_path: Path) -> None:
    """Whatever the dead process had acted on, the next owner knows."""
    with child(tmp_path, "run") as process:
        assert process.stdout is not None
        bases = [int(await asyncio.to_thread(process.stdout.readline)) for _ in range(100)]
        process.kill()
        rest, _ = await asyncio.to_thread(process.communicate)
    confirmed = len(bases) + len(rest.splitlines())
    ids = await ids_of_next_owner(tmp_path)
    assert ids[: 3 * confirmed] == [f"c{n}" for n in range(confirmed) for _ in range(3)]
    assert len(ids) % 3 == 0


async def test_a_full_disk_in_earnest(tmp_path: Path) -> None:
    """With a real limit on the file's size: nothing torn, and the log goes on when there is room."""
    process = child(tmp_path, "full")
    output, _ = await asyncio.to_thread(process.communicate)
    refused, recovered = output.splitlines()
    assert str(tmp_path) in refused
    assert recovered == "1 [b'before', b'after']"


async def test_a_second_daemon_takes_over_while_the_first_runs(tmp_path: Path) -> None:
    """Two processes on one directory: the older one, in full swing, steps down and ends."""
    with child(tmp_path, "run") as process:
        assert process.stdout is not None
        await asyncio.to_thread(process.stdout.readline)
        log = SqliteLog(tmp_path)
        await log.open()
        owner = OwnedPartition(log, 0, instance="younger", address="y:1", clock=lambda: 1)
        ids: list[str] = []
        await owner.acquire(lambda batch: ids.extend(r.id for _, r in batch if isinstance(r, Timer)))
        rest, _ = await asyncio.to_thread(process.communicate)  # it ends by itself, by SteppedDown
        assert process.returncode == 1
        assert 3 * (1 + len(rest.splitlines())) == len(ids)
        await owner.append([encode(Timer(1, owner.token, 1, CommandId("c"), "deadline"))])
        await owner.close()
        await log.close()
