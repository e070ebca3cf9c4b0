"""Options and values that several verbs share."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from coordinator.model.durations import parse_duration

DEFAULT_SERVER = "http://127.0.0.1:8080"
F = TypeVar("F", bound=Callable[..., Any])


class Url(click.ParamType[str]):
    """An http or https URL."""

    name = "url"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            parts = urlsplit(value)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good:
            self.fail(f"{value!r} is no URL such as {DEFAULT_SERVER}", param, ctx)
        return value


class Duration(click.ParamType[int]):
    """A duration such as ``30s``, as milliseconds."""

    name = "duration"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_duration(value)
        except ValueError as fault:
            self.fail(str(fault), param, ctx)


class Json(click.ParamType[Any]):
    """JSON as it is, ``@FILE`` for a file's, ``-`` for that of standard input.

    NaN and Infinity are no JSON, though Python would read them.
    """

    name = "JSON|@FILE|-"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return json.loads(_text(value), parse_constant=_no_constant)
        except OSError as fault:
            self.fail(f"cannot read {value.removeprefix('@')}: {fault.strerror}", param, ctx)
        except UnicodeDecodeError:
            self.fail(f"{value} is not UTF-8", param, ctx)
        except RecursionError:
            self.fail("nested too deep", param, ctx)
        except ValueError as fault:
            self.fail(f"not valid JSON: {fault}", param, ctx)


class JsonFile(Json):
    """A file of JSON, or ``-`` for standard input."""

    name = "FILE|-"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(value if value == "-" else f"@{value}", param, ctx)


class DefinitionFile(JsonFile):
    """A file with a definition.  A ``$schema`` in it is for the author's editor, and not sent."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        content = super().convert(value, param, ctx)
        if isinstance(content, dict):
            content.pop("$schema", None)
        return content


def _text(value: str) -> str:
    if value == "-":
        return sys.stdin.buffer.read().decode()
    if value.startswith("@"):
        return Path(value[1:]).read_bytes().decode()
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class Pair(click.ParamType[tuple[str, Any]]):
    """``NAME=VALUE``."""

    name = "NAME=VALUE"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        name, equals, text = value.partition("=")
        if not name or not equals:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, text


def server_option(verb: F) -> F:
    """``--server``."""
    option = click.option(
        "--server",
        type=Url(),
        envvar="COORDINATOR_SERVER",
        default=DEFAULT_SERVER,
        show_default=True,
        help="The coordinator's HTTP address (or COORDINATOR_SERVER).",
    )
    return option(verb)


def client_options(verb: F) -> F:
    """``--server`` and ``--json``: what every verb that talks to a server takes."""
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
    return server_option(as_json(verb))


def _user() -> str:
    """Who asks, for the record: the account of this machine, for want of a login."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return ""


def by_option(verb: F) -> F:
    """``--by``."""
    return click.option("--by", default=_user, help="Who asks; it is recorded. Your user name if absent.")(verb)
