"""The table of what TCP's requests ask of the Front."""

from __future__ import annotations

from coordinator.transport.tcp_requests import HANDLERS
from coordinator.wire.frames import PARAMS, PEER_PARAMS


def test_every_operation_that_has_one_answer_has_a_handler() -> None:
    """No operation can be read from a frame and then not be done; what answers with many is served elsewhere."""
    streams = {"watch", "outcomes", "follow"}
    of_the_cluster = {"take"}
    assert set(HANDLERS) == (set(PARAMS) | set(PEER_PARAMS)) - streams - of_the_cluster
