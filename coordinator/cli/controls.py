"""Verbs by which an operator steers commands, one or many: pause, resume, cancel, abort, retry, requeue, resolve."""

from __future__ import annotations

import sys
from typing import Any

import click

from coordinator.cli import bulk
from coordinator.cli.api import Api, command_path
from coordinator.cli.letters import Letters, letter_options
from coordinator.cli.options import F, Json, by_option, client_options
from coordinator.cli.output import print_command, print_json
from coordinator.cli.selection import Filter, filter_options
from coordinator.model.command import Operation

HELP = {
    Operation.PAUSE: "Start no further step of the commands until they are resumed.",
    Operation.RESUME: "Let paused commands go on.",
    Operation.CANCEL: "Undo the commands back to their start; steps in doubt are resolved first.",
    Operation.ABORT: "End the commands at once, without undo.",
    Operation.RETRY: "Let the commands go on after their last success; what waits for its next try is tried now.",
}
MANY = """

Of commands by their IDs, or of all that the filters find (those under way, unless --state names an end).  What a
filter finds is shown with --dry-run, and confirmed on a terminal.  Exits with 1 if any was refused."""


def _asker(verb: F) -> F:
    return click.option("--reason", default="", help="Why; it is recorded.")(by_option(verb))


def _ask(api: Api, id: str, operation: str, body: dict[str, Any]) -> dict[str, Any]:
    return dict(api.post(command_path(id, f"/{operation}"), body))


def _show(command: dict[str, Any], as_json: bool) -> None:
    print_json(command) if as_json else print_command(command)


def _verb(operation: Operation) -> click.Command:
    @click.command(operation.value, help=HELP[operation] + MANY)
    @click.argument("ids", metavar="[ID]...", nargs=-1)
    @filter_options
    @bulk.bulk_options
    @_asker
    @client_options
    def verb(
        ids: tuple[str, ...], type: str | None, state: str | None, attributes: tuple[tuple[str, str], ...],
        limit: int | None, dry_run: bool, yes: bool, reason: str, by: str, server: str, as_json: bool,
    ) -> None:  # fmt: skip
        wanted = Filter(type, state, attributes)
        if bool(ids) == bool(wanted):
            raise click.UsageError("give either IDs or a filter (--type, --state, --attribute)")
        if ids and limit is not None:
            raise click.UsageError("--limit goes with a filter, not with IDs")
        body = {"reason": reason, "by": by}
        distinct = list(dict.fromkeys(ids))
        with Api(server) as api:
            if len(distinct) == 1 and not dry_run:
                _show(_ask(api, distinct[0], operation, body), as_json)
                return
            if dry_run:
                found = bulk.looked_up(api, distinct) if ids else bulk.chosen(api, wanted, limit)
                bulk.rehearse(found, lambda _: operation, as_json)
                sys.exit(0 if len(found) >= len(distinct) else 1)
            found = [bulk.Target(id) for id in distinct] or bulk.chosen(api, wanted, limit)
            if wanted and not bulk.confirmed(found, operation, "command", yes):
                sys.exit(1)
            code = bulk.perform(found, lambda target: _ask(api, target.id, operation, body), as_json)
        sys.exit(code)

    return verb


pause, resume, cancel, abort, retry = map(_verb, HELP)


@click.command()
@click.argument("id", required=False)
@click.argument("step", required=False)
@click.option("--input", "input", type=Json(), help="Replaces the request's body: JSON, @FILE, or -.")
@letter_options
@bulk.bulk_options
@_asker
@client_options
@click.pass_context
def requeue(
    ctx: click.Context, id: str | None, step: str | None, input: Any, type: str | None, of_step: str | None,
    service: str | None, limit: int | None, dry_run: bool, yes: bool, reason: str, by: str, server: str, as_json: bool,
) -> None:  # fmt: skip
    """Run the dead-lettered STEP of the command ID again (its undo, if that is what was dead-lettered).

    Or, with --type, --step and --service in place of ID and STEP, every dead letter that they match (see
    dead-letters); where no step but the command's code was dead-lettered, that is a retry.  --dry-run lists them.
    """
    letters = Letters(type, of_step, service)
    body: dict[str, Any] = {"reason": reason, "by": by}
    if ctx.get_parameter_source("input") is click.core.ParameterSource.COMMANDLINE:
        body["input"] = input  # `--input null` is an input, too
    if id is not None:
        if step is None:
            raise click.UsageError("Missing argument 'STEP'.")
        if letters or limit is not None or dry_run:
            raise click.UsageError("give either ID and STEP, or --type, --step, --service")
        with Api(server) as api:
            _show(_ask(api, id, Operation.REQUEUE, {"step": step, **body}), as_json)
        return
    if not letters:
        raise click.UsageError("give either ID and STEP, or one of --type, --step, --service")
    if "input" in body:
        raise click.UsageError("--input is for one dead letter: give ID and STEP")
    with Api(server) as api:
        found = letters.targets(api)[:limit]
        if dry_run:
            bulk.rehearse(found, _again, as_json)
            return
        if not bulk.confirmed(found, "requeue", "dead letter", yes):
            sys.exit(1)
        code = bulk.perform(
            found,
            lambda letter: _ask(
                api, letter.id, _again(letter), {**({"step": letter.step} if letter.step else {}), **body}
            ),
            as_json,
        )
    sys.exit(code)


def _again(letter: bulk.Target) -> Operation:
    """What runs a dead letter again: one that is no step's is the command's own code."""
    return Operation.REQUEUE if letter.step else Operation.RETRY


@click.command()
@click.argument("id")
@click.argument("step")
@click.option("--reason", required=True, help="What was done by hand, and why; it is recorded.")
@by_option
@client_options
def resolve(id: str, step: str, reason: str, by: str, server: str, as_json: bool) -> None:
    """Mark the undo of STEP as done by hand: it failed (see dead-letters), and you have mended it yourself.

    The command goes on undoing what came before.  Who said so, and why, stays in its history.
    """
    with Api(server) as api:
        _show(_ask(api, id, Operation.RESOLVE, {"step": step, "reason": reason, "by": by}), as_json)
