"""The settings that the pure core and the gateway are given; `server.config` reads them from file, environment and
flags."""

from __future__ import annotations

from msgspec import Struct


class BreakerSettings(Struct, frozen=True, kw_only=True):
    """``failures`` unknown answers in a row open the breaker; after ``reset_ms`` one call may probe."""

    failures: int = 5
    reset_ms: int = 5_000


class ServiceSettings(Struct, frozen=True, kw_only=True):
    """One downstream service.

    ``url``: ``http://``, ``https://``, or ``grpc://`` / ``grpcs://`` host:port; empty for a client plugged in by the
    application.  ``timeout_ms`` bounds a whole call, ``connect_timeout_ms`` its connection.  ``max_in_flight`` bounds
    calls and connections.
    """

    name: str
    url: str = ""
    timeout_ms: int = 5_000
    connect_timeout_ms: int = 2_000
    max_in_flight: int = 64
    response_bytes_max: int = 1 << 20
    breaker: BreakerSettings = BreakerSettings()
    headers: dict[str, str] = {}
    tls_ca: str | None = None  # PEM file; the system's roots otherwise
    tls_verify: bool = True


class EngineSettings(Struct, frozen=True, kw_only=True):
    """The engine's limits and intervals (API.md, Configuration).

    ``callback_url`` is where services reach the coordinator (``https://coordinator.example``), for
    `Saga.callback_url`.
    """

    max_commands: int = 1000
    slow_retry_interval_ms: int = 200
    fast_retry_interval_ms: int = 0
    retry_jitter_ms: int = 100
    suspend: str = "service"  # or "coordinator"
    callback_url: str = ""
