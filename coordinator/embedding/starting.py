"""How an embedded coordinator is asked for, and what is checked before it begins."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from coordinator.embedding.clock import FakeClock
from coordinator.embedding.handle import Embedded
from coordinator.embedding.life import MortalLog
from coordinator.embedding.scripted import Scripted
from coordinator.errors import ConfigError
from coordinator.log.base import Log
from coordinator.log.memory import MemoryStorage
from coordinator.log.sqlite import SqliteLog
from coordinator.model.durations import parse_duration
from coordinator.model.settings import EngineSettings, ServiceSettings
from coordinator.saga import App

Services = Mapping[str, Any] | Collection[str]

NAME: Final = "embedded"
CALLBACK_URL: Final = "http://embedded.invalid"  # nobody can reach it: a test hands it to `Embedded.callback`


def embedded(
    app: App | None = None,
    *,
    data_dir: str | Path | None = None,
    services: Services = (),
    clock: FakeClock | None = None,
    max_commands: int = 1000,
    slow_retry_interval: str = "200ms",
    callback_url: str = CALLBACK_URL,
    name: str = NAME,
    drain_timeout: str = "5s",
) -> Embedded:
    """A coordinator inside this process: ``async with coordinator.embedded(app) as c: await c.run(…)``.

    The same engine as the daemon's, without ports, signal handlers or anything else that is the process's.  The log is
    in memory, or in ``data_dir`` (SQLite, one coordinator at a time), where the next one goes on with what is
    uncompleted.

    ``services``: by name a url, a `ServiceSettings`, a `Scripted`, or a client as for `App.client` (an
    httpx.AsyncClient, an async callable); or just names, of services to be scripted.  ``callback_url`` is where this
    process receives what services send to a `Saga.callback_url`, to hand it to `Embedded.callback`.  ``drain_timeout``
    is how long leaving the ``async with`` waits for calls under way.

    ``clock``: time stands still but for what the test says, without jitter, and services that the application declares
    are scripted unless given.

    Raises ConfigError here for what makes no sense, StartupError on entering where the log cannot be used.
    """
    return make(
        app,
        data_dir=None if data_dir is None else Path(data_dir),
        services=services,
        clock=clock,
        max_commands=max_commands,
        slow_retry_interval=slow_retry_interval,
        callback_url=callback_url,
        name=name,
        drain_timeout=drain_timeout,
    )


def make(
    app: App | None,
    *,
    services: Services,
    clock: FakeClock | None,
    max_commands: int,
    slow_retry_interval: str,
    data_dir: Path | None = None,
    callback_url: str = CALLBACK_URL,
    name: str = NAME,
    drain_timeout: str = "0s",
    open_log: Callable[[], Log] | None = None,
) -> Embedded:
    """As `embedded`; ``open_log`` in place of a log of its own."""
    if max_commands < 1:
        raise ConfigError(f"coordinator.embedded: max_commands is a whole number from 1, not {max_commands!r}")
    try:
        settings = EngineSettings(
            max_commands=max_commands,
            slow_retry_interval_ms=parse_duration(slow_retry_interval),
            callback_url=callback_url,
        )
        drain_ms = parse_duration(drain_timeout)
    except ValueError as error:
        raise ConfigError(f"coordinator.embedded: {error}") from None
    return Embedded(
        app,
        services=resolved(app, services, scripted=clock is not None),
        settings=settings,
        clock=clock,
        open_log=open_log or log_of(data_dir),
        data_dir=data_dir,
        name=name,
        drain_ms=drain_ms,
    )


def log_of(data_dir: Path | None) -> Callable[[], Log]:
    """How each life opens the log; a memory log's storage outlives them."""
    if data_dir is not None:
        return partial(SqliteLog, data_dir)
    return partial(MortalLog, storage=MemoryStorage())


def resolved(app: App | None, given: Services, *, scripted: bool) -> dict[str, Any]:
    """By name: settings, a script or a client; raises ConfigError."""
    if isinstance(given, str):
        raise ConfigError("coordinator.embedded: services is a mapping or a list of names, not text")
    named: Mapping[str, Any] = given if isinstance(given, Mapping) else {name: Scripted() for name in given}
    found: dict[str, Any] = dict(app.clients) if app is not None else {}
    for name, each in named.items():
        if isinstance(each, str):
            found[name] = ServiceSettings(name=name, url=each)
        elif isinstance(each, ServiceSettings):
            found[name] = replace(each, name=name)
        elif callable(each) or isinstance(each, Scripted) or hasattr(each, "build_request"):
            found[name] = each
        else:
            raise ConfigError(
                f"coordinator.embedded: services[{name!r}] is a url, ServiceSettings, Scripted, an httpx.AsyncClient "
                f"or an async callable, not a {type(each).__name__}"
            )
    if scripted and app is not None:
        declared = {service for each in app.commands.values() for service in each.services}
        found.update({name: Scripted() for name in sorted(declared - found.keys())})
    return found
