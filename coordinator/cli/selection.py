"""Which commands a verb is about: filters, and what they find, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import click

from coordinator.cli.api import Api
from coordinator.cli.options import F, Pair
from coordinator.model.command import State

PAGE_MAX = 100


class Filter(NamedTuple):
    """What `filter_options` were given; a filter that is empty finds everything."""

    type: str | None
    state: str | None
    attributes: tuple[tuple[str, str], ...]

    @property
    def query(self) -> dict[str, Any]:
        return {
            "type": self.type,
            "state": self.state,
            **{f"attribute.{name}": value for name, value in self.attributes},
        }

    def __bool__(self) -> bool:
        return any(value is not None for value in self.query.values())


def filter_options(verb: F) -> F:
    """``--type``, ``--state`` and ``--attribute``: the parts of a `Filter`."""
    states = click.Choice([state.value for state in State])
    for option in (
        click.option("--attribute", "attributes", type=Pair(), multiple=True, help="Only those with it; repeatable."),
        click.option("--state", type=states, help="Only those in this state."),
        click.option("--type", help="Only those of this type."),
    ):
        verb = option(verb)
    return verb


def pages(api: Api, wanted: Filter, limit: int | None = None, cursor: str | None = None) -> Iterator[dict[str, Any]]:
    """Pages of commands, newest first, until ``limit`` commands (None: all) have been seen.

    A page goes on below the last command of the one before, so commands that are submitted meanwhile shift nothing.
    """
    seen = 0
    while True:
        size = PAGE_MAX if limit is None else min(PAGE_MAX, limit - seen)
        page = api.get("/v1/commands", limit=size, cursor=cursor, **wanted.query)
        yield page
        seen += len(page["commands"])
        cursor = page.get("next_cursor")
        if not cursor or (limit is not None and seen >= limit):
            return


def warn_of_missing(partitions: set[int], what: str = "commands") -> None:
    """Tells people that an answer lacks what is in partitions that nobody spoke for."""
    if partitions:
        listed = ", ".join(map(str, sorted(partitions)))
        click.echo(f"{what} of partitions {listed} may be missing: ask again in a moment", err=True)
