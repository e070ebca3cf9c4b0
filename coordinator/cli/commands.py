"""Verbs about one command, or a list of them: submit, get, watch, history, explain, diagram, list."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import click

from coordinator.cli.api import Api, Lost, command_path
from coordinator.cli.errors import Refused, Unreachable
from coordinator.cli.options import DefinitionFile, Duration, Json, Pair, client_options, server_option
from coordinator.cli.output import print_command, print_fields, print_json, print_rows
from coordinator.cli.selection import Filter, filter_options, pages, warn_of_missing
from coordinator.model.command import FINAL, State, StepState
from coordinator.model.durations import format_duration

PAUSE_S = 0.5
ASK_S = 30.0
FINALS = frozenset(state.value for state in FINAL)


def _ends(command: dict[str, Any]) -> int:
    """The exit code for a command as it stands: 1 if it ended otherwise than completed."""
    return 1 if command.get("state") in FINALS - {State.COMPLETED.value} else 0


@click.command()
@click.argument("type", required=False)
@click.option("--definition", type=DefinitionFile(), help="An inline definition, in place of TYPE.")
@click.option("--payload", type=Json(), default="null", help="The payload: JSON, @FILE, or - for standard input.")
@click.option("--id", help="The command's id; made here if absent, so that a retry is safe.")
@click.option("--version", type=click.IntRange(min=1), help="The type's version; the newest if absent.")
@click.option("--timeout", type=Duration(), help="The command's deadline, from its submission.")
@click.option("--attribute", "attributes", type=Pair(), multiple=True, help="Something to find it by; repeatable.")
@click.option("--delay", type=Duration(), help="Begin no sooner than so long from now; --timeout counts from then.")
@click.option("--priority", type=int, default=0, hidden=True)
@click.option("--wait", type=Duration(), help="Wait so long for the command's end.")
@client_options
def submit(
    type: str | None, definition: Any, payload: Any, id: str | None, version: int | None, timeout: int | None,
    attributes: tuple[tuple[str, str], ...], delay: int | None, priority: int, wait: int | None, server: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Submit a command of TYPE, or of an inline --definition.

    With --wait a refusal that may be retried, and a lost connection, are retried with the same id while the time lasts.
    Exits with 1 if the command ended otherwise than completed, with 0 if it completed or is still under way.
    """
    if (type is None) == (definition is None):
        raise click.UsageError("give either TYPE or --definition FILE")
    body = {
        "id": id or os.urandom(16).hex(),
        "type": type,
        "definition": definition,
        "version": version,
        "payload": payload,
        "timeout": None if timeout is None else format_duration(timeout),
        "delay": None if delay is None else format_duration(delay),
        "attributes": dict(attributes) or None,
        "priority": priority or None,
    }
    sent = {name: value for name, value in body.items() if value is not None or name == "payload"}
    with Api(server) as api:
        command = _submitted(api, sent, wait)
    _shown(command, as_json)


def _submitted(api: Api, body: dict[str, Any], wait: int | None) -> dict[str, Any]:
    """Submits; within ``wait`` ms it outlasts restarts, suspensions and full slots, since the id makes that safe."""
    if wait is None:
        return dict(api.post("/v1/commands", body))
    until = time.monotonic() + wait / 1000
    reached = False
    while True:
        began = time.monotonic()
        left = max(0.0, until - began)
        try:
            answer = api.post("/v1/commands", body, wait_s=left, wait=_asked(left))
        except (Refused, Unreachable) as fault:
            reached = reached or isinstance(fault, Refused | Lost)
            worth_it = fault.retryable if isinstance(fault, Refused) else reached
            pause = getattr(fault, "retry_after_s", None) or PAUSE_S
            if not worth_it or pause >= left:
                raise
        else:
            reached, pause = True, _rest(began)
            if answer["state"] in FINALS or time.monotonic() + pause >= until:
                return dict(answer)
        time.sleep(pause)


def _awaited(api: Api, id: str, wait: int | None) -> dict[str, Any]:
    """The command, at its end if that comes within ``wait`` ms."""
    until = time.monotonic() + (wait or 0) / 1000
    while True:
        began = time.monotonic()
        left = max(0.0, until - began)
        answer = api.get(command_path(id), wait_s=left, wait=_asked(left) if wait else None)
        if answer["state"] in FINALS or time.monotonic() + _rest(began) >= until:
            return dict(answer)
        time.sleep(_rest(began))


def _asked(left_s: float) -> str:
    """How long one request waits: the server has a limit of its own, and idle proxies have one, too."""
    return format_duration(round(min(left_s, ASK_S) * 1000))


def _rest(began: float) -> float:
    """What keeps a server that does not wait at all from being asked without a pause."""
    return max(0.0, PAUSE_S - (time.monotonic() - began))


def _shown(command: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(command)
    else:
        print_command(command)
    sys.exit(_ends(command))


@click.command()
@click.argument("id")
@click.option("--wait", type=Duration(), help="Wait so long for the command's end.")
@client_options
def get(id: str, wait: int | None, server: str, as_json: bool) -> None:
    """Show the command ID; exits with 1 if it ended otherwise than completed."""
    with Api(server) as api:
        command = _awaited(api, id, wait)
    _shown(command, as_json)


@click.command()
@click.argument("id")
@client_options
def watch(id: str, server: str, as_json: bool) -> None:
    """Follow the command ID until it ends, from its first event on.

    A lost connection is taken up again where it broke.  Exits with 1 if the command ended otherwise than completed.
    """
    from coordinator.cli.watching import events

    with Api(server) as api:
        for event in events(api, id):
            if as_json:
                print_json(event)
            else:
                click.echo(_event_line(event))
            if event.get("kind") == "final":
                command = event.get("view") or api.get(command_path(id))
                sys.exit(_ends(command))


def _event_line(event: dict[str, Any]) -> str:
    record = event.get("record") or {}
    view = event.get("view") or {}
    state = event.get("state") or view.get("state") or ""
    parts = [
        record.get("at") or view.get("finished_at") or view.get("submitted_at") or "",
        event.get("position") or "",
        record.get("kind") or event.get("kind") or "",
        record.get("step") or "",
        state if state not in set(StepState) or event.get("kind") != "step" else "",
    ]
    from coordinator.cli.output import cell

    return "  ".join(cell(part) for part in parts if part)


@click.command()
@click.argument("id")
@client_options
def history(id: str, server: str, as_json: bool) -> None:
    """Show every record of the command ID, in log order."""
    from coordinator.cli.output import rows_of

    with Api(server) as api:
        answer = api.get(command_path(id, "/history"))
    if as_json:
        print_json(answer)
        return
    first = ("position", "at", "kind", "step", "by")
    rows = [
        {
            **{key: row.get(key) for key in first},
            "details": ", ".join(f"{key}={_brief(value)}" for key, value in row.items() if key not in (*first, "id")),
        }
        for row in rows_of(answer)
    ]
    print_rows(rows)


def _brief(value: Any) -> str:
    from coordinator.cli.output import cell

    text = cell(value)
    return text if len(text) <= 80 else text[:79] + "…"


@click.command()
@click.argument("id")
@client_options
def explain(id: str, server: str, as_json: bool) -> None:
    """Tell why the command ID is not moving: step, attempts, next retry, breaker, limit, since when."""
    with Api(server) as api:
        answer = api.get(command_path(id, "/explain"))
    print_json(answer) if as_json else print_fields(answer)


@click.command()
@click.argument("id")
@server_option
def diagram(id: str, server: str) -> None:
    """Draw the steps of the command ID with their states, as Mermaid."""
    with Api(server) as api:
        click.echo(api.text(command_path(id, "/diagram")))


@click.command("list")
@filter_options
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--cursor", help="Go on where an earlier list ended.")
@client_options
def list_commands(
    state: str | None, type: str | None, attributes: tuple[tuple[str, str], ...], limit: int, cursor: str | None,
    server: str, as_json: bool,
) -> None:  # fmt: skip
    """List commands, newest first."""
    found: list[dict[str, Any]] = []
    missing: set[int] = set()
    with Api(server) as api:
        for page in pages(api, Filter(type, state, attributes), limit, cursor):
            found += page["commands"]
            cursor = page.get("next_cursor")
            missing.update(page.get("incomplete") or ())
    if as_json:
        print_json({"commands": found, "next_cursor": cursor, "incomplete": sorted(missing)})
        return
    print_rows(found, ["id", "type", "version", "state", "submitted_at", "finished_at"], "no commands")
    if cursor:
        click.echo(f"there are more: --cursor {cursor}", err=True)
    warn_of_missing(missing)
