"""Answers on a terminal: tables for people, JSON for programs.

Text that others chose (ids, payloads, messages) is printed with control characters escaped, so that a command's payload
cannot drive the operator's terminal; JSON escapes them by itself.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]
WIDE = 100_000

COLOURS = {
    "completed": "green", "succeeded": "green", "closed": "green", "acting": "green", "up": "green",
    "running": "cyan", "waiting": "cyan", "pending": "dim", "skipped": "dim", "undone": "yellow",
    "compensated": "yellow", "compensating": "yellow", "undoing": "yellow",
    "paused": "yellow", "delayed": "yellow", "half_open": "yellow",
    "blocked": "red", "open": "red", "failed": "red", "aborted": "red", "dead_letter": "bold red",
    "leaving": "yellow", "down": "red", "no_owner": "red",
}  # fmt: skip


def print_json(value: Any) -> None:
    """One value a line, ready for ``jq``."""
    click.echo(json.dumps(value, ensure_ascii=not _is_utf8()))


def _is_utf8() -> bool:
    return (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"


def cell(value: Any) -> str:
    """A value in a table: text as it is, anything else as JSON, nothing as a dash."""
    if value is None or value in ("", [], {}):
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _console() -> Console:
    from rich.console import Console

    # A pipe has no width: nothing is folded there, so that `grep` and `awk` see whole lines.
    return Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else WIDE)


def print_rows(rows: list[Row], columns: list[str] | None = None, nothing: str = "nothing") -> None:
    """A table with the ``columns`` named, or with every key that occurs."""
    from rich.table import Table
    from rich.text import Text

    if not rows:
        click.echo(nothing, err=True)
        return
    columns = columns or list(dict.fromkeys(key for row in rows for key in row))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(row.get(column)), COLOURS.get(str(row.get(column)), "")) for column in columns))
    _console().print(table)


def print_fields(fields: Row) -> None:
    """Keys and values, a line each; what is a list of tables follows as tables."""
    from rich.table import Table
    from rich.text import Text

    tables = {key: value for key, value in fields.items() if _is_rows(value)}
    table = Table.grid(padding=(0, 2, 0, 0))
    for key, value in fields.items():
        if key not in tables and value not in (None, "", [], {}):
            table.add_row(Text(key.replace("_", " "), "bold"), Text(cell(value), COLOURS.get(str(value), "")))
    _console().print(table)
    for key, rows in tables.items():
        click.echo(f"\n{key.replace('_', ' ')}:")
        print_rows(rows)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def rows_of(answer: Any) -> list[Row]:
    """The list in an answer, whether it stands alone or under one key of an object."""
    if isinstance(answer, dict):
        answer = next((value for value in answer.values() if isinstance(value, list)), [])
    return [row for row in answer if isinstance(row, dict)]


def print_command(command: Row) -> None:
    """A command as people want to see it."""
    head = {
        "id": command.get("id"),
        "type": f"{command.get('type')} v{command.get('version')}",
        "state": command.get("state"),
        "result": command.get("result"),
        "error": _error(command.get("error")),
        "reason": command.get("reason"),
        "waiting_for": ", ".join(map(str, command.get("waiting_for") or [])),
        "attributes": command.get("attributes"),
        "submitted": command.get("submitted_at"),
        "finished": command.get("finished_at"),
        "position": command.get("position"),
    }
    print_fields(head)
    if steps := command.get("steps"):
        click.echo()
        rows = [{**step, "outcome": step.get("outcome") or _error(step.get("error"))} for step in steps]
        print_rows(rows, ["name", "service", "state", "attempts", "outcome"])


def _error(error: Any) -> str:
    if not isinstance(error, dict):
        return ""
    step = f" in step {error['step']}" if error.get("step") else ""
    return f"{error.get('code')}{step}: {error.get('message') or ''}".rstrip(": ")
