"""The command ``coordinator``: its verbs, and how every one of them ends.

    0  success
    1  the command ended otherwise than completed, or the server refused what was asked
    2  wrong usage, or a wrong configuration
    3  the server cannot be reached

Start-up time is part of a command line's manners, so nothing heavy is imported here or at the top of a verb's module:
the verbs are found by name and their modules loaded one at a time (`VERBS`), and HTTP clients, web servers and tables
are imported where they are used.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, NoReturn

import click

from coordinator.cli.errors import Refused, Unreachable, explain
from coordinator.errors import ConfigError, StartupError

VERBS = {
    # verb: (module, attribute, what --help says)
    "serve": ("serve", "serve", "Run the coordinator."),
    "demo": ("demo", "demo", "Run orders through an outage and a kill -9, then audit."),
    "simulate": ("simulate", "simulate", "Crash your sagas at every append and call, and see what they keep."),
    "submit": ("commands", "submit", "Submit a command."),
    "get": ("commands", "get", "Show a command."),
    "watch": ("commands", "watch", "Follow a command until it ends."),
    "history": ("commands", "history", "Show every record of a command, in log order."),
    "explain": ("commands", "explain", "Tell why a command is not moving."),
    "diagram": ("commands", "diagram", "Draw a command's steps and states as Mermaid."),
    "list": ("commands", "list_commands", "List commands, newest first."),
    "decisions": ("people", "decisions", "List the decisions that are waited for."),
    "decide": ("people", "decide", "Approve or reject what a command asks."),
    "provide": ("people", "provide", "Give a command data that it waits for."),
    "pause": ("controls", "pause", "Start no further step of commands until they are resumed."),
    "resume": ("controls", "resume", "Let paused commands go on."),
    "cancel": ("controls", "cancel", "Undo commands back to their start."),
    "abort": ("controls", "abort", "End commands at once, without undo."),
    "retry": ("controls", "retry", "Go on after the last success."),
    "requeue": ("controls", "requeue", "Run dead-lettered steps again, with another input if given."),
    "resolve": ("controls", "resolve", "Mark a failed undo as done by hand."),
    "replay": ("replay", "replay", "Stream a service's past outcomes, to a service or to standard output."),
    "definitions": ("definitions", "definitions", "Register, read and draw definitions."),
    "schedules": ("schedules", "schedules", "Keep commands that are submitted by the clock."),
    "dead-letters": ("operate", "dead_letters", "List the steps that wait for an operator."),
    "quarantine": ("operate", "quarantine", "List the records of the log that cannot be read or applied."),
    "services": ("operate", "services", "Show services and set their breakers."),
    "cluster": ("operate", "cluster", "Show instances, partitions and epochs."),
    "schema": ("schema", "schema", "Print the JSON Schema of definitions or of coordinator.toml."),
    "log": ("operate", "log", "Tell what is kept of the log, and what pins it."),
}


class Verbs(click.Group):
    """Loads a verb's module only when the verb is used; ``--help`` reads the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, attribute, _ = VERBS[cmd_name]
        command = getattr(importlib.import_module(f"coordinator.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader (head, less) has seen enough, which is no fault.  Standard output is closed for good, so that
            # Python does not complain about it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, help) for verb, (_, _, help) in VERBS.items()])


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        import coordinator

        click.echo(f"coordinator {coordinator.__version__}")
        ctx.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
def cli() -> None:
    """A networked saga coordinator over a distributed log.

    Verbs that talk to a server take --server, or COORDINATOR_SERVER, or http://127.0.0.1:8080.
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs a verb and exits; a fault is told in a sentence, never as a traceback."""
    try:
        code = cli.main(arguments, prog_name="coordinator", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as fault:
        fault.show()
        sys.exit(fault.exit_code)
    except ConfigError as fault:
        _tell(str(fault))
        sys.exit(2)
    except StartupError as fault:
        _tell(str(fault))
        sys.exit(1)
    except Refused as refusal:
        _tell(explain(refusal))
        sys.exit(1)
    except Unreachable as fault:
        _tell(str(fault))
        sys.exit(3)


def _tell(text: str) -> None:
    click.echo(f"coordinator: {text}", err=True)
