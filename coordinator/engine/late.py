"""What optional and late data mean for the order of a definition.

Nobody waits for optional data: what comes after it waits for what it comes after itself.  Where it ``reruns``, all that
comes after it runs again when it arrives, which goes from one to the next as each has a new outcome.  A step that is
skipped again has none, so whoever comes after it looks *behind* it as well.
"""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.model.definition import Definition, Joint, Step


class Late:
    """The optional data of one definition, and what it renews."""

    def __init__(self, definition: Definition) -> None:
        self._places: dict[str, Step | Joint] = {place.name: place for place in definition.joints + definition.steps}
        self._optional = frozenset(step.name for step in definition.steps if step.optional)
        self._renewing = frozenset(name for name, rule in definition.data.items() if rule.reruns)
        rerun = {name for name, place in self._places.items() if self.reruns(place)}
        self._renewable = self._renewing | (rerun - self._optional)

    def reruns(self, place: Step | Joint) -> bool:
        """Whether it comes after data that runs it again, however far behind."""
        return not self._renewing.isdisjoint(place.ancestors)

    def before(self, place: Step | Joint) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What the place waits for, and the optional data that it comes after."""
        after: dict[str, None] = {}
        optional: dict[str, None] = {}
        ahead = list(reversed(place.after))
        while ahead:
            name = ahead.pop()
            if name not in self._optional:
                after[name] = None
            elif name not in optional:
                optional[name] = None
                ahead += reversed(self._places[name].after)
        return tuple(after), tuple(optional)

    def renewed(self, place: Step | Joint) -> tuple[str, ...]:
        """What can have a new outcome and is not waited for: data, and what is behind what may be skipped."""
        after, optional = self.before(place)
        names = [*optional, *(self._behind(place) if place.join == "all" else ())]
        return tuple(dict.fromkeys(name for name in names if name in self._renewable and name not in after))

    def _behind(self, place: Step | Joint) -> Iterator[str]:
        """Not through a join of any: what has lost there leads nowhere."""
        found: set[str] = set()
        ahead = list(place.after)
        while ahead:
            before = self._places.get(ahead.pop())
            if before is not None and before.join == "all" and _may_be_skipped(before) and before.name not in found:
                found.add(before.name)
                ahead += before.after
                yield from before.after


def _may_be_skipped(place: Step | Joint) -> bool:
    if isinstance(place, Joint):
        return not place.entry or place.guard is not None
    return place.guard is not None or place.when is not None
