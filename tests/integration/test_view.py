"""The view on a real disk: what it keeps over a restart, what it forgets, and what it does when the disk will not."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from coordinator.admission.receipts import RECEIPT_BYTES, Receipts
from coordinator.errors import Unavailable
from coordinator.view import FinishedCommand, View

A, B = b"a" * 8, b"b" * 8


def never_shown(_partition: int, _records: Any) -> NoReturn:
    raise AssertionError("nobody asks how it looks")


def command(n: int, partition: int = 0, *, id: str = "", at: int | None = None, fingerprint: bytes = b"f" * 16) -> Any:
    """One that began at offset 2n and ended at 2n + 1, at that time."""
    return FinishedCommand(
        id or f"c{n}",
        "T",
        "completed",
        n,
        partition,
        fingerprint,
        {},
        [(2 * n, b"submitted"), (2 * n + 1, b"finished")],
        2 * n + 1 if at is None else at,
    )


@pytest.fixture
async def open_view(tmp_path: Path) -> AsyncIterator[Callable[[], View]]:
    """``open_view()`` is the next process's view of the same file."""
    opened: list[View] = []

    def open_view() -> View:
        view = View(tmp_path / "view.sqlite3", never_shown)
        view.open()
        opened.append(view)
        return view

    yield open_view
    for view in opened:
        await view.close()


@pytest.fixture
def view(open_view: Callable[[], View]) -> View:
    return open_view()


async def receipts(view: View, since_ms: int = 0, partition: int = 0, page: int = 3) -> list[bytes]:
    run = b"".join([each async for each in view.receipts(partition, since_ms, page)])
    return [run[at : at + RECEIPT_BYTES] for at in range(0, len(run), RECEIPT_BYTES)]


async def test_what_is_known_outlives_the_process(view: View, open_view: Callable[[], View]) -> None:
    """Rows, watermark, resume offset and Epochs are written together."""
    assert view.begin(0, A) == 0
    view.saw(0, 0, A)
    view.put_many([command(1), command(2)])
    view.reached(0, 6, 4)
    view.put(command(3))
    view.saw(0, 8, B)
    view.reached(0, 9, 9)
    assert view.filled(0)
    await view.close()
    again = open_view()
    assert (again.watermark(0), again.epochs(0)) == ((9, 9), [(0, A), (8, B)])
    assert [again.records(f"c{n}") is not None for n in (1, 2, 3, 4)] == [True, True, True, False]
    assert again.begin(0, A, 9, B) == 9
    assert again.filled(0)


async def test_another_log_is_another_view(view: View) -> None:
    """The first Epoch names the log: with another one all of that partition is forgotten, and only of that."""
    for partition in (0, 1):
        view.begin(partition, A)
        view.saw(partition, 0, A)
        view.put_many([command(1, partition, id=f"in-{partition}")])
        view.reached(partition, 4, 4)
    assert view.begin(0, B) == 0
    assert view.records("in-0") is None
    assert view.epochs(0) == []
    assert view.records("in-1") is not None
    assert view.begin(1, A) == 4


async def test_a_log_with_another_history_is_noticed_where_a_replay_begins(view: View) -> None:
    """It was put back in time and has grown since: another token is in force there."""
    view.begin(0, A)
    view.saw(0, 0, A)
    view.put_many([command(1)])
    view.reached(0, 9, 9)
    assert view.begin(0, A, 4, B) == 0
    assert view.records("c1") is None


async def test_a_log_with_another_history_is_noticed_on_the_way(view: View) -> None:
    """The replay passes an Epoch that the view has not, below the view's watermark: the owner begins again."""
    view.begin(0, A)
    view.saw(0, 0, A)
    view.put_many([command(1)])
    view.reached(0, 9, 9)
    view.begin(0, A)
    view.saw(0, 0, A)
    view.saw(0, 6, B)
    with pytest.raises(Unavailable, match="put back in time"):
        view.reached(0, 9, 9)
    assert view.records("c1") is None
    assert view.begin(0, A) == 0


async def test_a_shorter_log_is_noticed(view: View) -> None:
    """It ends below what the view knows."""
    view.begin(0, A)
    view.put_many([command(1)])
    view.reached(0, 9, 9)
    assert not view.ahead(0, 9)
    assert view.ahead(0, 8)
    assert view.records("c1") is None


async def test_of_two_commands_with_one_id_the_later_one_stays(view: View) -> None:
    """Whichever is put first: a filler brings old ones after the owner has put new ones."""
    view.begin(0, A)
    view.put_many([command(5, id="same")])
    view.put_many([command(2, id="same")])
    assert view.records("same") == (0, command(5).records)
    view.put(command(7, id="same"))
    view.put(command(6, id="same"))
    assert view.records("same") == (0, command(7).records)
    await view.flush()
    assert view.records("same") == (0, command(7).records)


async def test_receipts_come_sorted_written_or_not(view: View) -> None:
    """All of one partition since a time, in the order of their hashes, in pages, each once."""
    view.begin(0, A)
    view.put_many([command(n) for n in range(8)])
    view.put_many([command(99, 1)])
    for n in range(8, 12):
        view.put(command(n))
    expected = sorted(command(n).receipt() for n in range(12))
    assert await receipts(view) == expected
    await view.flush()
    assert await receipts(view) == expected
    assert await receipts(view, since_ms=9) == sorted(command(n).receipt() for n in range(4, 12))
    assert await receipts(view, partition=1) == [command(99).receipt()]
    assert await receipts(view, partition=2) == []
    found = Receipts(b"".join(expected)).find("c3")
    assert found is not None
    assert (found.fingerprint, found.first, found.end, found.finished_at) == (b"f" * 16, 6, 7, 7)


async def test_a_command_without_a_known_request_has_a_receipt(view: View) -> None:
    """Its Submitted is in quarantine: the fingerprint is that of no request."""
    view.begin(0, A)
    view.put(command(1, fingerprint=b""))
    [receipt] = await receipts(view)
    found = Receipts(receipt).find("c1")
    assert found is not None
    assert found.fingerprint == bytes(16)


async def test_what_was_trimmed_is_forgotten(view: View, open_view: Callable[[], View]) -> None:
    """Commands that ended below, written or not, and Epochs but the one in force; the other partitions keep theirs."""
    view.begin(0, A)
    view.saw(0, 0, A)
    view.saw(0, 3, B)
    view.put_many([command(n) for n in range(4)])
    view.put_many([command(n, 1, id=f"other-{n}") for n in range(4)])
    view.put(command(4))
    view.put(command(5))
    view.reached(0, 12, 12)
    assert await view.forget_below(0, 10) == 4
    assert [n for n in range(6) if view.records(f"c{n}")] == [5]
    assert all(view.records(f"other-{n}") for n in range(4))
    await view.flush()
    await view.close()
    again = open_view()
    assert [n for n in range(6) if again.records(f"c{n}")] == [5]
    assert again.epochs(0) == [(3, B)]
    assert await again.forget_below(0, 10) == 0


async def test_a_full_disk_keeps_what_is_filled_in_memory(view: View) -> None:
    """The filler is told, so that no more gathers; when there is room again all is written."""
    view.begin(0, A, 100, B)
    view.reached(0, 100, 100)
    (pages,) = view._writer.execute("PRAGMA page_count").fetchone()
    view._writer.execute(f"PRAGMA max_page_count={pages}")
    many = [command(n, id=f"{n}" * 90) for n in range(40)]
    with pytest.raises(Unavailable, match="cannot be written"):
        await view.fill(0, many, [(0, A)], 0, 90, 90)
    assert view.records("7" * 90) is not None
    assert not await view.flush()
    view._writer.execute("PRAGMA max_page_count=1000000")
    assert await view.flush()
    assert view.watermark(0) == (90, 90)
    assert view._ask("SELECT count(*) FROM commands", ()) == [(40,)]


async def test_a_filler_of_a_former_view_is_refused(view: View) -> None:
    """The view has forgotten meanwhile: what the filler brings would leave a hole below it."""
    view.begin(0, A, 100, B)
    await view.fill(0, [command(1)], [(0, A)], 0, 10, 10)
    view.begin(0, B, 100, B)
    with pytest.raises(Unavailable, match="being made anew"):
        await view.fill(0, [command(9)], [], 10, 20, 20)
    assert view.watermark(0) == (0, 0)
    assert view.records("c9") is None


async def test_a_damaged_file_is_made_anew(view: View) -> None:
    """Who asks is told to ask again, the pipeline is told to replay, and the new file takes what comes."""
    told: list[Unavailable] = []
    view.on_damage = told.append
    view.begin(0, A)
    view.put_many([command(1)])
    with sqlite3.connect(view.path) as db:
        db.execute("DROP TABLE commands")
    with pytest.raises(Unavailable, match="damaged"):
        view.records("c1")
    assert len(told) == 1
    with pytest.raises(Unavailable, match="made anew"):
        view.watermark(0)
    assert view.begin(0, A) == 0
    view.put_many([command(1)])
    assert view.records("c1") == (0, command(1).records)


async def test_a_view_of_the_former_layout_is_made_anew(view: View, open_view: Callable[[], View]) -> None:
    """The log has everything."""
    view.begin(0, A)
    view.put_many([command(1)])
    view.reached(0, 5, 5)
    await view.close()
    with sqlite3.connect(view.path) as db:
        db.execute("PRAGMA user_version=3")
    again = open_view()
    assert again.records("c1") is None
    assert again.begin(0, A) == 0
