"""``coordinator schema``: what editors need to complete and check definitions and coordinator.toml."""

from __future__ import annotations

from pathlib import Path

import click

from coordinator.errors import ConfigError


@click.command()
@click.argument("what", type=click.Choice(["definition", "config"]))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write it there.")
def schema(what: str, output: Path | None) -> None:
    """Print the JSON Schema (draft 2020-12) of definitions, or of coordinator.toml.

    Editors complete and check these files with it: docs/editors.md says how to tell them.
    """
    import json

    from coordinator import schemas

    text = json.dumps(schemas.config() if what == "config" else schemas.definition(), indent=2, ensure_ascii=False)
    if output is None:
        click.echo(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output: {output} cannot be written: {error.strerror}") from None
