"""The ledger of one service: one row for each Idempotency-Key, in one SQLite file.

The row *is* the memory that makes the service idempotent (asked again with the same key, it repeats the answer
instead of the deed) and it is the book of what was really done.  Both are one insert, so a service that is killed can
not have done the deed and forgotten the key.  Refusals are rows too: a service that forgot them could refuse a
charge, be asked again after a crash, and charge.

A double charge is not prevented here: a second one for the same order under a *new* key is written down
like any other, since that is how a real payment provider behaves.  It is the coordinator's task to keep to one key;
`audit` checks that it did.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

Action = Literal["done", "undone", "refused"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
  number  INTEGER PRIMARY KEY,           -- the order in which things happened
  key     TEXT NOT NULL UNIQUE,          -- Idempotency-Key
  order_id TEXT NOT NULL,
  action  TEXT NOT NULL,                 -- done, undone, refused
  status  INTEGER NOT NULL,              -- the answer that was given, and is given again
  answer  TEXT NOT NULL,
  fence   TEXT NOT NULL,                 -- the Coordinator-Fence of the latest request
  asked   INTEGER NOT NULL DEFAULT 1     -- how often this key came
)
"""


class Entry(Struct, frozen=True):
    """One row: what this service did about an order.  ``asked`` counts requests, of which all but one were repeats."""

    order: str
    action: Action
    key: str = ""
    fence: str = ""
    asked: int = 1


class Ledger:
    """A service's book.  One process writes it; anyone may read it meanwhile (WAL)."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        # NORMAL: a killed process loses nothing; a power cut could.  The coordinator's own log uses FULL.
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(_SCHEMA)

    def remembered(self, key: str, fence: str) -> tuple[int, Any] | None:
        """The answer (status, JSON) that this key was given before, or None; counts the repeat."""
        rows = self._db.execute(
            "UPDATE entries SET asked = asked + 1, fence = ? WHERE key = ? RETURNING status, answer", (fence, key)
        ).fetchall()  # all, since only an exhausted statement commits
        return (rows[0][0], json.loads(rows[0][1])) if rows else None

    def next_number(self) -> int:
        """The number that the next entry will get; services make their ids of it."""
        return int(self._db.execute("SELECT coalesce(max(number), 0) + 1 FROM entries").fetchone()[0])

    def order_of(self, number: int) -> str | None:
        """The order that entry ``number`` did something for, or None if it did nothing."""
        row = self._db.execute(
            "SELECT order_id FROM entries WHERE number = ? AND action = 'done'", (number,)
        ).fetchone()
        return row[0] if row else None

    def write(self, key: str, order: str, action: Action, status: int, answer: Any, fence: str) -> None:
        """Does the deed: one durable row under a key that is not there yet."""
        self._db.execute(
            "INSERT INTO entries (key, order_id, action, status, answer, fence) VALUES (?, ?, ?, ?, ?, ?)",
            (key, order, action, status, json.dumps(answer), fence),
        )

    def close(self) -> None:
        self._db.close()


def read_entries(path: Path) -> list[Entry]:
    """All entries of a ledger in the order they were written, as an auditor reads them: from the file, read-only."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        rows = db.execute("SELECT order_id, action, key, fence, asked FROM entries ORDER BY number").fetchall()
    finally:
        db.close()
    return [Entry(*row) for row in rows]
