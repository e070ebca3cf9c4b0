"""``coordinator definitions put|get|list|diagram``."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from coordinator.cli.api import Api
from coordinator.cli.errors import Refused
from coordinator.cli.options import DefinitionFile, client_options, server_option
from coordinator.cli.output import print_json, print_rows, rows_of


@click.group()
def definitions() -> None:
    """Register, read and draw definitions; a registered version is immutable."""


def _path(name: str, version: int, rest: str = "") -> str:
    return f"/v1/definitions/{quote(name, safe='')}/{version}{rest}"


@definitions.command()
@click.argument("definition", metavar="FILE|-", type=DefinitionFile())
@click.option("--name", help="In place of the file's name.")
@click.option("--version", type=click.IntRange(min=1), help="In place of the file's version.")
@client_options
def put(definition: Any, name: str | None, version: int | None, server: str, as_json: bool) -> None:
    """Register the definition in FILE under its name and version."""
    if not isinstance(definition, dict):
        raise click.UsageError("a definition is a JSON object")
    content = {**definition, **({"name": name} if name else {}), **({"version": version} if version else {})}
    if not isinstance(content.get("name"), str) or type(content.get("version")) is not int:
        raise click.UsageError("the definition lacks name (a string) or version (a number): see --name and --version")
    with Api(server) as api:
        answer = api.call("PUT", _path(content["name"], content["version"]), body=content)
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{content['name']} version {content['version']} is registered")


@definitions.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1), required=False)
@server_option
@click.option("--json", "as_json", is_flag=True, help="On one line.")
def get(name: str, version: int | None, server: str, as_json: bool) -> None:
    """Print the definition NAME, its newest VERSION if none is given."""
    import json

    with Api(server) as api:
        answer = api.get(_path(name, version or _newest(api, name)))
    if as_json:
        print_json(answer)
    else:
        click.echo(json.dumps(answer, indent=2))


def _newest(api: Api, name: str) -> int:
    versions: list[int] = [row["version"] for row in rows_of(api.get("/v1/definitions")) if row.get("name") == name]
    if not versions:
        raise Refused(404, {"code": "unknown_definition", "detail": f"no definition is called {name!r}"})
    return max(versions)


@definitions.command("list")
@client_options
def list_definitions(server: str, as_json: bool) -> None:
    """List what is registered."""
    with Api(server) as api:
        answer = api.get("/v1/definitions")
    print_json(answer) if as_json else print_rows(rows_of(answer), nothing="no definitions")


@definitions.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1), required=False)
@server_option
def diagram(name: str, version: int | None, server: str) -> None:
    """Draw the definition NAME as Mermaid."""
    with Api(server) as api:
        click.echo(api.text(_path(name, version or _newest(api, name), "/diagram")))
