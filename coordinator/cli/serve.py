"""``coordinator serve``: the daemon."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from coordinator.errors import ConfigError

if TYPE_CHECKING:
    from coordinator.saga import App


@click.command()
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The configuration file; ./coordinator.toml if it is there.",
)
@click.option("--app", metavar="MODULE:ATTRIBUTE", help="The application with the commands in code.")
@click.option("--data-dir", metavar="DIR", help="Where the embedded log lives.")
@click.option("--log", metavar="sqlite | kafka://HOST:PORT[,HOST:PORT]/TOPIC", help="The log.")
@click.option("--http", metavar="HOST:PORT", help="Where to listen for HTTP; off: nowhere.")
@click.option("--grpc", metavar="HOST:PORT", help="Where to listen for gRPC; off: nowhere.")
@click.option("--tcp", metavar="HOST:PORT", help="Where to listen for the TCP protocol; off: nowhere.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")
@click.option("--log-format", metavar="FORMAT", help="json, console, or auto: console on a terminal.")
@click.option(
    "--print-config", is_flag=True, help="Print the effective configuration, with what set each value, and exit."
)
def serve(
    config: Path | None, app: str | None, data_dir: str | None, log: str | None, http: str | None, grpc: str | None,
    tcp: str | None, log_level: str | None, log_format: str | None, print_config: bool,
) -> None:  # fmt: skip
    """Run the coordinator until SIGTERM or Ctrl-C.

    Flags beat the environment (COORDINATOR_SECTION__KEY), which beats the file, which beats the defaults.
    """
    from coordinator.server.config_sources import load

    flags = {
        "--data-dir": data_dir, "--log": log, "--http": http, "--grpc": grpc, "--tcp": tcp,
        "--log-level": log_level, "--log-format": log_format,
    }  # fmt: skip
    loaded = load(config, flags=flags)
    if print_config:
        click.echo(loaded.to_toml(), nl=False)
        return
    application = load_app(app) if app else None
    from coordinator.server.app import run

    sys.exit(run(loaded.config, application))


def load_app(name: str) -> App:
    """The application ``module:attribute``, looked for in the working directory first.

    Raises ConfigError with what was looked for; an exception inside the module keeps its own traceback's last line.
    """
    from coordinator.saga import App

    module_name, colon, attribute = name.partition(":")
    if not module_name or not colon or not attribute:
        raise ConfigError(f"--app: allowed is module:attribute, for example orders:app, not {name!r}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    found: object = _module(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = (
                [key for key, value in vars(found).items() if isinstance(value, App)]
                if hasattr(found, "__dict__")
                else []
            )
            hint = f"; it has {', '.join(known)}" if known else ""
            raise ConfigError(f"--app: {module_name} has no {attribute!r}{hint}")
        found = getattr(found, part)
    if not isinstance(found, App):
        raise ConfigError(f"--app: {name} is not a coordinator.App but of type {type(found).__name__}")
    return found


def _module(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name or name.startswith(f"{error.name}."):
            raise ConfigError(f"--app: there is no module {name!r} in {Path.cwd()} or on Python's path") from error
        raise ConfigError(f"--app: {name} imports {error.name!r}, which is not installed") from error
    except Exception as error:
        raise ConfigError(f"--app: {name} cannot be imported: {_where(error)}") from error


def _where(error: BaseException) -> str:
    """The exception in a line, with the file and line of the application that raised it."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    place = ""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if "importlib" not in code.co_filename and code.co_filename != __file__:
            place = f" ({code.co_filename}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}{place}"
