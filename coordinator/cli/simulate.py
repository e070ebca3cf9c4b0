"""``coordinator simulate``: a user's own sagas, crashed at every append and at every call."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coordinator.errors import ConfigError

if TYPE_CHECKING:
    from coordinator.saga import App
    from coordinator.testing.simulator.plan import Crash
    from coordinator.testing.simulator.sagas import Examples, Run, Sagas

TOLD_MAX = 5
"""Mistakes that are told one by one; the others are only counted."""

_NUMBERS = re.compile(r"\d+")  # what differs in them alone is one mistake


@click.command()
@click.option("--app", metavar="MODULE:ATTRIBUTE", help="The application with the commands in code.")
@click.option("--type", "type_", metavar="TYPE", help="Only commands of this type.")
@click.option("--definition", type=click.Path(dir_okay=False, path_type=Path), help="A definition (JSON) to run.")
@click.option("--payload", metavar="JSON|@FILE", help="The payload of --type or --definition; else it is made up.")
@click.option(
    "--examples",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A JSON file with commands, answers of services, and services that only read.",
)
@click.option("--seeds", type=click.IntRange(0), default=100, show_default=True, help="How many worlds to run.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The first world's seed.")
@click.option("--minutes", type=float, help="Instead of --seeds: run worlds for so long.")
@click.option("--strict", is_flag=True, help="An effect without an undo, in a command that fails, is a mistake.")
@click.option("--replay", is_flag=True, help="Run the one world of --seed, and tell all that happens in it.")
@click.option("--command", type=click.IntRange(0), help="Run one command in peace, and tell all that happens.")
@click.option("--crash", metavar="append|call:N:before|after", help="With --command: the process dies there.")
@click.option("--declining", metavar="STEP", default="", help="With --command: this step is refused for good.")
def simulate(
    app: str | None, type_: str | None, definition: Path | None, payload: str | None, examples: Path | None, seeds: int,
    seed: int, minutes: float | None, strict: bool, replay: bool, command: int | None, crash: str | None,
    declining: str,
) -> None:  # fmt: skip
    """Crash your sagas at every append and at every call, and see whether they keep what they promise.

    Real are the coordinator and your code; the services, the network and the clock are played from a seed.  Functions
    that your sagas run as steps are not run: they are answered like any service.  Exit code 1: a mistake was found.
    """
    from coordinator.testing.simulator.sagas import Sagas, Unusable

    application = _application(app)
    given = _given(application, app, examples, type_, definition, payload)
    try:
        sagas = Sagas(application, given, strict=strict)
    except Unusable as why:
        raise ConfigError(f"simulate: {why}") from None
    if command is not None or replay:
        if command is not None and command >= len(sagas.examples):
            raise ConfigError(f"simulate: --command is 0 to {len(sagas.examples) - 1}: there are no more")
        run = (
            sagas.world(seed, journal=True)
            if command is None
            else sagas.calm(command, _crash(crash), declining, journal=True)
        )
        click.echo("\n".join(run.report.journal))
        sys.exit(_told([run], sagas, _again(app, type_, definition, payload, examples, strict)))
    sys.exit(_search(sagas, seed, seeds, minutes, _again(app, type_, definition, payload, examples, strict)))


# ---------------------------------------------------------------- what is given


def _application(app: str | None) -> App:
    from coordinator.cli.serve import load_app
    from coordinator.saga import App

    return load_app(app) if app else App()


def _given(
    application: App,
    app: str | None,
    file: Path | None,
    type_: str | None,
    definition: Path | None,
    payload: str | None,
) -> Examples:
    """The examples of the file, else of the module's own ``simulate``; then what the flags say of commands."""
    import msgspec

    from coordinator.testing.simulator.examples import CannotMakeUp, made_up
    from coordinator.testing.simulator.plan import Example, stream
    from coordinator.testing.simulator.sagas import Examples

    source, told = _hook(app), f"simulate of {app}"
    if file is not None:
        told = str(file)
        source = _json(file)
    try:
        examples = msgspec.convert(source or {}, Examples)
    except msgspec.ValidationError as fault:
        raise ConfigError(f"{told}: {fault}") from None
    if definition is not None:
        content = _json(definition)
        value = {} if payload is None else _payload(payload)
        return msgspec.structs.replace(examples, commands=(Example(None, value, content),))
    if type_ is None:
        return examples
    known = [type for (name, _), type in application.commands.items() if name == type_]
    if not known:
        names = ", ".join(sorted({name for name, _ in application.commands})) or "none"
        raise ConfigError(f"simulate: there is no type {type_!r}; there are {names}")
    if payload is not None:
        commands: tuple[Example, ...] = (Example(type_, _payload(payload)),)
    elif not (commands := tuple(each for each in examples.commands if each.type == type_)):
        try:
            commands = tuple(Example(type_, made_up(known[-1].payload, stream(number))) for number in range(3))
        except CannotMakeUp as why:
            raise ConfigError(f"simulate: a payload of {type_} cannot be made up: {why}") from None
    return msgspec.structs.replace(examples, commands=commands)


def _hook(app: str | None) -> Any:
    """``simulate`` beside the application in its module: the examples, or a function that returns them."""
    if app is None:
        return None
    found = getattr(sys.modules[app.partition(":")[0]], "simulate", None)
    return found() if callable(found) else found


def _json(path: Path) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: {error}") from None


def _payload(text: str) -> Any:
    import msgspec

    if text.startswith("@"):
        return _json(Path(text[1:]))
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigError(f"--payload: {error}") from None


def _crash(text: str | None) -> Crash | None:
    from coordinator.testing.simulator.plan import Crash

    if text is None:
        return None
    kind, _, rest = text.partition(":")
    number, _, when = rest.partition(":")
    if kind not in ("append", "call") or not number.isdigit() or when not in ("before", "after"):
        raise ConfigError(f"simulate: --crash is for example append:3:after or call:1:before, not {text!r}")
    return Crash(kind, int(number), when == "after")


def _again(
    app: str | None,
    type_: str | None,
    definition: Path | None,
    payload: str | None,
    examples: Path | None,
    strict: bool,
) -> str:
    """The command line that runs the same sagas; what to run is still to be added."""
    import shlex

    words = ["coordinator", "simulate"]
    for flag, value in (
        ("--app", app),
        ("--type", type_),
        ("--definition", definition),
        ("--payload", payload),
        ("--examples", examples),
    ):
        words += [flag, shlex.quote(str(value))] if value is not None else []
    return " ".join(words + ["--strict"] * strict)


# ---------------------------------------------------------------- running and telling


def _search(sagas: Sagas, first: int, seeds: int, minutes: float | None, again: str) -> int:
    runs: list[Run] = []
    for number in range(len(sagas.examples)):
        for run in sagas.crashes(number):
            runs.append(run)
            if run.report.violations:
                break
    crashes = len(runs)
    click.echo(f"{len(sagas.examples)} commands, crashed at every append and call: {crashes} runs")
    if not any(run.report.violations for run in runs):
        until = None if minutes is None else time.monotonic() + minutes * 60
        seed = first
        while time.monotonic() < until if until is not None else seed < first + seeds:
            runs.append(sagas.world(seed))
            seed += 1
        total = sum((Counter(run.report.faults) for run in runs), Counter[str]())
        click.echo(f"{len(runs) - crashes} worlds, in which {sum(total.values())} things went wrong")
    return _told(runs, sagas, again)


def _told(runs: list[Run], sagas: Sagas, again: str) -> int:
    mistakes: dict[str, Run] = {}
    for run in runs:
        for violation in run.report.violations[:1]:
            mistakes.setdefault(_NUMBERS.sub("", violation), run)
    for run in list(mistakes.values())[:TOLD_MAX]:
        violation = run.report.violations[0]
        click.echo(f"MISTAKE: {violation}\n  again: {again} {run.again}")
        if run.peaceful:
            click.echo("  This is without any fault: perhaps an answer of a service lacks something; give --examples.")
    if len(mistakes) > TOLD_MAX:
        click.echo(f"and {len(mistakes) - TOLD_MAX} more")
    if not sagas.strict:
        for type, step in sorted({each for run in runs for each in run.left}):
            click.echo(f"note: {type} may end without having completed while step {step} stays done: it has no undo")
    ends = sum((Counter(run.report.ends) for run in runs), Counter[str]())
    click.echo("ends: " + (", ".join(f"{count} {state}" for state, count in sorted(ends.items())) or "none"))
    click.echo("no mistake found" if not mistakes else f"{len(mistakes)} mistakes found")
    return 1 if mistakes else 0
