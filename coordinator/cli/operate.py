"""Verbs about the whole: dead-letters, quarantine, services, cluster, log."""

from __future__ import annotations

from urllib.parse import quote

import click

from coordinator.cli.api import Api
from coordinator.cli.letters import Letters, letter_options
from coordinator.cli.options import client_options
from coordinator.cli.output import Row, print_fields, print_json, print_rows, rows_of


@click.command("dead-letters")
@letter_options
@client_options
def dead_letters(type: str | None, of_step: str | None, service: str | None, server: str, as_json: bool) -> None:
    """List the steps that wait for an operator (see requeue, retry, resolve, cancel, abort)."""
    with Api(server) as api:
        rows = Letters(type, of_step, service).rows(api)
    print_json(rows) if as_json else print_rows(rows, nothing="no dead letters")


@click.command()
@client_options
def quarantine(server: str, as_json: bool) -> None:
    """List the records of the log that cannot be read or applied, and what became of them.

    parked: their command waits for you (see history, abort).  passed_over: nothing hung on them.  stopped: their
    partition must not be read on.
    """
    with Api(server) as api:
        answer = api.get("/v1/quarantine")
    if as_json:
        print_json(answer)
        return
    columns = ("position", "effect", "kind", "command_id", "size", "reason")
    rows = [{"partition": row.get("partition"), **{name: row.get(name) for name in columns}} for row in rows_of(answer)]
    print_rows(rows, nothing="nothing is in quarantine")


@click.group(invoke_without_command=True)
@client_options
@click.pass_context
def services(ctx: click.Context, server: str, as_json: bool) -> None:
    """Show the services: breakers, calls in flight, delayed steps."""
    if ctx.invoked_subcommand is not None:
        return
    with Api(server) as api:
        answer = api.get("/v1/services")
    if as_json:
        print_json(answer)
        return
    rows = [each for row in rows_of(answer) for each in _by_instance(row)]
    print_rows(rows, nothing="no services are configured")


def _by_instance(row: Row) -> list[Row]:
    """A service as the instance that was asked sees it, then as the others do."""
    others = row.pop("instances", None) or {}
    if not others:
        return [row]
    named = [{"name": row["name"], "instance": name, **seen} for name, seen in sorted(others.items())]
    return [{"name": row["name"], "instance": "(asked)", **row}, *named]


@services.command()
@click.argument("name")
@click.argument("state", type=click.Choice(["open", "closed", "auto"]))
@client_options
def breaker(name: str, state: str, server: str, as_json: bool) -> None:
    """Hold the breaker of service NAME open or closed, or leave it to itself again (auto)."""
    with Api(server) as api:
        answer = api.post(f"/v1/services/{quote(name, safe='')}/breaker", {"state": state})
    print_json(answer) if as_json else print_fields(answer)


@click.command()
@client_options
def cluster(server: str, as_json: bool) -> None:
    """Show the instances of the group, and for each partition its owner, epoch, end, lag and since when."""
    with Api(server) as api:
        answer = api.get("/v1/cluster")
    if as_json:
        print_json(answer)
        return
    for name, columns in _CLUSTER.items():
        rows = answer.pop(name, None) or []
        if name == "instances":
            rows = [{**row, "partitions": ", ".join(map(str, row.get("partitions") or []))} for row in rows]
        click.echo(f"{name}:")
        print_rows(rows, columns, f"no {name}")
        click.echo()
    print_fields(answer)


_CLUSTER = {
    "instances": ["instance", "address", "state", "partitions", "commands"],
    "partitions": ["partition", "state", "owner", "address", "epoch", "end", "lag", "since"],
}


@click.group()
def log() -> None:
    """What is kept of the log."""


@log.command("explain")
@client_options
def log_explain(server: str, as_json: bool) -> None:
    """Tell, of each partition: from where to where its log is, what a take-over would have to read, and what keeps the
    log from being trimmed further.

    A log is trimmed only where [log] retain says for how long its records are kept, and only at an offset that a
    confirmed snapshot covers.  Commands that wait for long are in the snapshots, so they never pin it.
    """
    with Api(server) as api:
        answer = api.get("/v1/log")
    if as_json:
        print_json(answer)
        return
    rows = rows_of(answer)
    print_rows([_log_row(row) for row in rows], nothing="no partition has an owner that answers")
    if rows:
        click.echo()
    for row in rows:
        click.echo(f"partition {row['partition']}: {row['why']}.")


def _log_row(row: Row) -> Row:
    """One partition in one line; the reasons follow below the table."""
    snapshot = row["snapshot"]
    return {
        "partition": row["partition"],
        "owner": row["owner"],
        "log": f"{row['first']}..{row['end']}",
        "snapshot": f"below {snapshot['covered']}, {snapshot['age']} ago" if snapshot else "none yet",
        "replay": f"{row['replay_records']} records, {row['replay_estimate']} of {row['recovery_target']}",
        "retain": row["retain"] or "everything",
        "trim to": row["trim_to"],
        "pinned by": row["pinned_by"],
    }
