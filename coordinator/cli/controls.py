"""Verbs by which an operator steers one command: pause, resume, cancel, abort, retry, requeue."""

from __future__ import annotations

import getpass
from typing import Any

import click

from coordinator.cli.api import Api, command_path
from coordinator.cli.options import F, Json, client_options
from coordinator.cli.output import print_command, print_json
from coordinator.model.command import Operation

HELP = {
    Operation.PAUSE: "Start no further step of the command ID until it is resumed.",
    Operation.RESUME: "Let the paused command ID go on.",
    Operation.CANCEL: "Undo the command ID back to its start; steps in doubt are resolved first.",
    Operation.ABORT: "End the command ID at once, without undo.",
    Operation.RETRY: "Let the command ID go on after its last success.",
}


def _control(id: str, operation: str, body: dict[str, Any], server: str, as_json: bool) -> None:
    with Api(server) as api:
        command = api.post(command_path(id, f"/{operation}"), body)
    print_json(command) if as_json else print_command(command)


def _user() -> str:
    """Who asks, for the record: the account of this machine, for want of a login."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return ""


def _asker(verb: F) -> F:
    reason = click.option("--reason", default="", help="Why; it is recorded.")
    by = click.option("--by", default=_user, help="Who asks; it is recorded. Your user name if absent.")
    return reason(by(verb))


def _verb(operation: Operation) -> click.Command:
    @click.command(operation.value, help=HELP[operation])
    @click.argument("id")
    @_asker
    @client_options
    def verb(id: str, reason: str, by: str, server: str, as_json: bool) -> None:
        _control(id, operation.value, {"reason": reason, "by": by}, server, as_json)

    return verb


pause, resume, cancel, abort, retry = map(_verb, HELP)


@click.command()
@click.argument("id")
@click.argument("step")
@click.option("--input", "input", type=Json(), help="Replaces the request's body: JSON, @FILE, or -.")
@_asker
@client_options
@click.pass_context
def requeue(
    ctx: click.Context, id: str, step: str, input: Any, reason: str, by: str, server: str, as_json: bool
) -> None:
    """Run the dead-lettered STEP of the command ID again (its undo, if that is what was dead-lettered)."""
    body = {"step": step, "reason": reason, "by": by}
    if ctx.get_parameter_source("input") is click.core.ParameterSource.COMMANDLINE:
        body["input"] = input  # `--input null` is an input, too
    _control(id, "requeue", body, server, as_json)
