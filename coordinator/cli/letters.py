"""Dead letters: what waits for an operator, and which of it a filter means."""

from __future__ import annotations

from typing import NamedTuple

import click

from coordinator.cli.api import Api
from coordinator.cli.bulk import Target
from coordinator.cli.options import F
from coordinator.cli.output import Row
from coordinator.cli.selection import warn_of_missing


class Letters(NamedTuple):
    """What `letter_options` were given; all that are given must match."""

    type: str | None
    step: str | None
    service: str | None

    def __bool__(self) -> bool:
        return any(value is not None for value in self)

    def rows(self, api: Api) -> list[Row]:
        """The dead letters that match, as the server lists them."""
        rows, missing = api.gathered("/v1/dead-letters")
        warn_of_missing(missing, "dead letters")
        return [row for row in rows if self._match(row)]

    def targets(self, api: Api) -> list[Target]:
        return [Target(row["command_id"], row["type"], row["state"], row.get("step") or "") for row in self.rows(api)]

    def _match(self, row: Row) -> bool:
        given = self._asdict().items()
        return all(value is None or value in (row.get(field), _stem(row, field)) for field, value in given)


def _stem(row: Row, field: str) -> str | None:
    """A step's name where it waits for an operator as ``failed:charge#2``, or a block as ``failed:gift/in``."""
    held = str(row.get(field)) if field == "step" else ""
    return held[len("failed:") :].partition("#")[0].partition("/")[0] if held.startswith("failed:") else None


def letter_options(verb: F) -> F:
    """``--type``, ``--step`` and ``--service``: the parts of `Letters`."""
    for option in (
        click.option("--service", help="Only steps of this service."),
        click.option("--step", "of_step", help="Only steps of this name."),
        click.option("--type", help="Only of commands of this type."),
    ):
        verb = option(verb)
    return verb
