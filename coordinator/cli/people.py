"""Verbs by which people and other programs answer a command that waits for them: decide, decisions, provide."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from coordinator.cli.api import Api, command_path
from coordinator.cli.options import Json, by_option, client_options
from coordinator.cli.output import Row, print_command, print_json, print_rows
from coordinator.cli.selection import warn_of_missing


@click.command()
@click.argument("id")
@click.argument("step")
@click.option("--approve/--reject", default=None, help="What is decided; one of them is needed.")
@click.option("--comment", default="", help="Why; it is part of the step's outcome.")
@click.option("--role", "roles", multiple=True, help="A role that you have; repeatable.")
@by_option
@client_options
def decide(
    id: str, step: str, approve: bool | None, comment: str, roles: tuple[str, ...], by: str, server: str, as_json: bool
) -> None:
    """Approve or reject what STEP of the command ID asks (see decisions).

    A decision stands: a second one is refused, and told who decided, and when.
    """
    if approve is None:
        raise click.UsageError("give --approve or --reject")
    body: dict[str, Any] = {"approve": approve, "by": by, "comment": comment}
    if roles:
        body["roles"] = list(roles)
    with Api(server) as api:
        command = api.post(command_path(id, f"/decisions/{quote(step, safe='')}"), body)
    print_json(command) if as_json else print_command(command)


@click.command()
@client_options
def decisions(server: str, as_json: bool) -> None:
    """List the decisions that are waited for, the oldest first."""
    with Api(server) as api:
        rows, missing = api.gathered("/v1/decisions")
    if as_json:
        print_json(rows)
    else:
        print_rows([_row(row) for row in rows], nothing="no decisions are waited for")
    warn_of_missing(missing, "decisions")


def _row(decision: Row) -> Row:
    ends = decision.get("timeout_at")
    return {
        "command": decision.get("command_id"),
        "type": decision.get("type"),
        "step": decision.get("step"),
        "input": decision.get("input"),
        "roles": ", ".join(map(str, decision.get("roles") or [])) or "anybody",
        "since": decision.get("since"),
        "timeout": f"{ends} ({decision.get('on_timeout')})" if ends else "",
    }


@click.command()
@click.argument("id")
@click.argument("name")
@click.option("--payload", type=Json(), required=True, help="The data: JSON, @FILE, or - for standard input.")
@click.option("--signal-id", help="The same id is counted once, however often it is sent.")
@by_option
@client_options
def provide(id: str, name: str, payload: Any, signal_id: str | None, by: str, server: str, as_json: bool) -> None:
    """Give the command ID the data NAME, which a step of it waits for, or will."""
    path = command_path(id, f"/data/{quote(name, safe='')}")
    with Api(server) as api:
        command = api.post(path, payload, signal_id=signal_id, by=by or None)
    print_json(command) if as_json else print_command(command)
