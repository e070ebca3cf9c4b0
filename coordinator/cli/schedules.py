"""``coordinator schedules put|get|list|pause|resume|delete``."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from coordinator.cli.api import Api
from coordinator.cli.options import F, JsonFile, by_option, client_options
from coordinator.cli.output import Row, print_fields, print_json, print_rows
from coordinator.cli.selection import warn_of_missing


@click.group()
def schedules() -> None:
    """Keep schedules: commands that are submitted by the clock."""


def _path(name: str, rest: str = "") -> str:
    return f"/v1/schedules/{quote(name, safe='')}{rest}"


@schedules.command()
@click.argument("name")
@click.argument("schedule", metavar="FILE|-", type=JsonFile())
@by_option
@client_options
def put(name: str, schedule: Any, by: str, server: str, as_json: bool) -> None:
    """Make the schedule NAME of what is in FILE, or replace it; the same content again changes nothing.

    For example {"cron": "0 9 1 * *", "timezone": "Europe/Zurich", "command": {"type": "Invoices"}}.
    """
    if not isinstance(schedule, dict):
        raise click.UsageError("a schedule is a JSON object")
    with Api(server) as api:
        _show(api.call("PUT", _path(name), body=schedule, query={"by": by}), as_json)


@schedules.command()
@click.argument("name")
@client_options
def get(name: str, server: str, as_json: bool) -> None:
    """Show the schedule NAME: when it runs next, and what became of its last run."""
    with Api(server) as api:
        _show(api.get(_path(name)), as_json)


@schedules.command("list")
@client_options
def list_schedules(server: str, as_json: bool) -> None:
    """List the schedules by name."""
    with Api(server) as api:
        rows, missing = api.gathered("/v1/schedules")
    print_json(rows) if as_json else print_rows([_row(row) for row in rows], nothing="no schedules")
    warn_of_missing(missing, "schedules")


def _asker(verb: F) -> F:
    return click.option("--reason", default="", help="Why; it is recorded.")(by_option(verb))


@schedules.command()
@click.argument("name")
@_asker
@client_options
def pause(name: str, reason: str, by: str, server: str, as_json: bool) -> None:
    """Begin no further run of NAME until it is resumed; what falls due meanwhile is not run later."""
    with Api(server) as api:
        _show(api.post(_path(name, "/pause"), {"reason": reason, "by": by}), as_json)


@schedules.command()
@click.argument("name")
@_asker
@client_options
def resume(name: str, reason: str, by: str, server: str, as_json: bool) -> None:
    """Let NAME go on, with its next due time."""
    with Api(server) as api:
        _show(api.post(_path(name, "/resume"), {"reason": reason, "by": by}), as_json)


@schedules.command()
@click.argument("name")
@_asker
@client_options
def delete(name: str, reason: str, by: str, server: str, as_json: bool) -> None:
    """Delete NAME; a run that has begun goes on."""
    with Api(server) as api:
        answer = api.call("DELETE", _path(name), query={"reason": reason, "by": by})
    print_json(answer) if as_json else click.echo(f"the schedule {name} is deleted")


def _show(schedule: Row, as_json: bool) -> None:
    if as_json:
        print_json(schedule)
        return
    spec = schedule.get("spec") or {}
    skipped = schedule.get("skipped")
    print_fields(
        {
            **_row(schedule),
            "overlap": spec.get("overlap", "skip"),
            "start": spec.get("start"),
            "end": spec.get("end"),
            "command": spec.get("command"),
            "skipped": f"{skipped['due']}: {skipped['reason']}" if skipped else None,
            "by": schedule.get("by"),
            "reason": schedule.get("reason"),
        }
    )


def _row(schedule: Row) -> Row:
    """What a list shows of a schedule: when, and how it goes."""
    spec, last = schedule.get("spec") or {}, schedule.get("last") or {}
    zone = f" ({spec['timezone']})" if "timezone" in spec else ""
    return {
        "name": schedule.get("name"),
        "state": schedule.get("state"),
        "when": f"{spec['cron']}{zone}" if spec.get("cron") else f"every {spec.get('every')}",
        "next": schedule.get("next"),
        "last": " ".join(filter(None, (last.get("command"), last.get("state")))),
        "waiting": schedule.get("waiting"),
    }
