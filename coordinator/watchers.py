"""Who waits for what: watchers by command id, and the events that they are told.

A watcher is a plain callable; it is called on the event loop, after the record it is told of is durable.  One that
raises is dropped and logged: a broken connection never hurts a neighbour.
"""

from __future__ import annotations

from coordinator.logs import get_logger
from coordinator.transport.base import Event, Unwatch, Want, Watcher

log = get_logger(__name__)


class Watchers:
    """Watchers with what they want (see `Front.submit`)."""

    def __init__(self) -> None:
        self._by_id: dict[str, list[tuple[Watcher, Want]]] = {}
        self.detailed = 0  # how many want every event: none of them, and nobody looks for changes of state
        self.shown: dict[str, str] = {}  # the last state told, where somebody wants states

    def __contains__(self, id: str) -> bool:
        return id in self._by_id

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, id: str, watcher: Watcher, want: Want) -> Unwatch:
        entry = (watcher, want)
        self._by_id.setdefault(id, []).append(entry)
        self.detailed += want == "events"
        return lambda: self._remove(id, entry)

    def _remove(self, id: str, entry: tuple[Watcher, Want]) -> None:
        entries = self._by_id.get(id)
        if entries is not None and entry in entries:
            entries.remove(entry)
            self.detailed -= entry[1] == "events"
            if not entries:
                self._forget(id)

    def _forget(self, id: str) -> None:
        self._by_id.pop(id, None)
        self.shown.pop(id, None)

    def wanted(self, id: str, want: Want) -> bool:
        """Whether anybody who watches this command wants that."""
        for _, each in self._by_id.get(id, ()):  # noqa: SIM110 - asked for each record: a generator costs more than this
            if each == want:
                return True
        return False

    def tell(self, id: str, event: Event) -> None:
        """Tells those who want such events: ``step`` and ``state`` only go to who wants events."""
        detail = event.kind in ("step", "state")
        for entry in list(self._by_id.get(id, ())):
            if entry[1] == "events" or not detail:
                self._call(id, entry, event)

    def end(self, id: str, event: Event) -> None:
        """The last event: nobody watches this command any more."""
        entries = self._by_id.get(id, [])
        self._forget(id)
        for entry in entries:
            self.detailed -= entry[1] == "events"
            self._call(id, entry, event)

    def ids(self) -> list[str]:
        return list(self._by_id)

    def _call(self, id: str, entry: tuple[Watcher, Want], event: Event) -> None:
        try:
            entry[0](event)
        except Exception:
            log.exception("a watcher failed and is dropped", command=id)
            self._remove(id, entry)
