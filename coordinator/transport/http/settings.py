"""What the HTTP listener allows."""

from __future__ import annotations

from msgspec import Struct


class HttpSettings(Struct, frozen=True, kw_only=True):
    """Limits of the HTTP listener; each bounds something that a stranger could otherwise make grow.

    Sizes are bytes, times are milliseconds.
    """

    body_bytes_max: int = 1 << 20
    """A request's body, however it is framed; more is 413."""

    bodies_bytes_max: int = 64 << 20
    """Bodies of all connections together while they arrive in pieces; the one that passes this is told 429."""

    discard_bytes_max: int = 16 << 20
    """How much of a refused body is read and dropped so that the connection can go on; beyond it it ends."""

    head_bytes_max: int = 32 << 10
    """Request line and headers together; more is 431."""

    connections_max: int = 1000
    """Open connections.  When full, the connection that has been idle longest gives way; if all are busy, 503."""

    streams_max: int = 200
    """Open event and outcome streams; more is 429, so that watchers never keep submitters out."""

    pipelined_max: int = 256
    """Requests that a connection may send ahead of its answers."""

    stream_events_max: int = 1000
    """Events that wait for a slow reader of one stream; beyond it that stream ends and the client resumes."""

    head_timeout_ms: int = 10_000
    """From a connection's opening, or a request's first byte, to the end of its headers."""

    body_timeout_ms: int = 30_000
    """From the end of the headers to the end of the body."""

    idle_timeout_ms: int = 75_000
    """A kept-alive connection without a request."""

    write_timeout_ms: int = 60_000
    """An answer that its reader does not take."""

    stream_write_timeout_ms: int = 600_000
    """The same for streams, whose readers may be slow on purpose (``coordinator replay --rate``)."""

    wait_ms_max: int = 600_000
    """The longest ``?wait=``; a longer one is cut to this."""

    heartbeat_ms: int = 10_000
    """Between comments on a silent event stream."""
