"""The coordinator inside a user's own process, and the kit for testing sagas that stands on it (docs/testing.md).

embedded    the handle that users hold
life        one life beneath it, from a log to its end
clock       time that stands still until it is moved
scripted    services that a test writes down
crashing    a scenario once for every place at which the coordinator can die
"""

from coordinator.embedding.clock import FakeClock
from coordinator.embedding.crashing import crash_everywhere
from coordinator.embedding.handle import Embedded, Standstill
from coordinator.embedding.scripted import Route, Scripted, ServiceCall, Unscripted
from coordinator.embedding.starting import embedded

__all__ = [
    "Embedded",
    "FakeClock",
    "Route",
    "Scripted",
    "ServiceCall",
    "Standstill",
    "Unscripted",
    "crash_everywhere",
    "embedded",
]
