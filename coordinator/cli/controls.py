"""Verbs by which an operator steers one command: pause, resume, cancel, abort, retry, requeue."""

from __future__ import annotations

from typing import Any

import click

from coordinator.cli.api import Api, command_path
from coordinator.cli.options import Json, client_options
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


def _verb(operation: Operation) -> click.Command:
    @click.command(operation.value, help=HELP[operation])
    @click.argument("id")
    @click.option("--reason", default="", help="Why; it is recorded.")
    @client_options
    def verb(id: str, reason: str, server: str, as_json: bool) -> None:
        _control(id, operation.value, {"reason": reason}, server, as_json)

    return verb


pause, resume, cancel, abort, retry = map(_verb, HELP)


@click.command()
@click.argument("id")
@click.argument("step")
@click.option("--input", "input", type=Json(), help="Replaces the request's body: JSON, @FILE, or -.")
@click.option("--reason", default="", help="Why; it is recorded.")
@client_options
@click.pass_context
def requeue(ctx: click.Context, id: str, step: str, input: Any, reason: str, server: str, as_json: bool) -> None:
    """Run the dead-lettered STEP of the command ID again (its undo, if that is what was dead-lettered)."""
    body = {"step": step, "reason": reason}
    if ctx.get_parameter_source("input") is click.core.ParameterSource.COMMANDLINE:
        body["input"] = input  # `--input null` is an input, too
    _control(id, "requeue", body, server, as_json)
