"""What the gRPC listener allows."""

from __future__ import annotations

from msgspec import Struct


class GrpcSettings(Struct, frozen=True, kw_only=True):
    """Limits of the gRPC listener.  Sizes are bytes, times are milliseconds."""

    message_bytes_max: int = 1 << 20
    """A received message; more is RESOURCE_EXHAUSTED, answered by gRPC itself."""

    metadata_bytes_max: int = 16 << 10
    """A call's metadata."""

    calls_max: int = 2000
    """Calls of all clients under way, streams included; more is RESOURCE_EXHAUSTED."""

    connection_calls_max: int = 512
    """Calls under way on one connection; HTTP/2 makes the client wait for a free one."""

    streams_max: int = 400
    """Open watches, sessions and outcome streams."""

    stream_events_max: int = 1000
    """Events that wait for a slow reader of a watch; then it ends with an error event, and the client goes on later."""

    session_in_flight_max: int = 1024
    """Unfinished submissions of a session; one more is refused with limit_reached."""

    session_events_max: int = 4096
    """Events that wait for a slow reader of a session; at half of it no more is read, at all of it the session ends."""

    ping_interval_ms_min: int = 10_000
    """Clients that ping oftener are cut off."""

    keepalive_ms: int = 30_000
    """After so much silence a connection is asked for a sign of life."""

    keepalive_timeout_ms: int = 20_000
    """How long that may take."""

    idle_ms: int = 300_000
    """A connection without a call."""

    wait_ms_max: int = 600_000
    """The longest ``wait_ms``; a longer one is cut to this."""
