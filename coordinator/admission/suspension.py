"""Suspension of intake while a service is down: by service, or of the whole coordinator."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.errors import Suspended


def check(needs: frozenset[str], suspended: Mapping[str, int], policy: str) -> None:
    """Raises Suspended if a service that the command needs is suspended.

    ``suspended`` maps services to the delay after which asking again makes sense (ms).  A command that declares no
    services may need any; under the policy ``coordinator`` one suspended service suspends all intake.
    """
    if not suspended:
        return
    everything = policy == "coordinator" or not needs
    down = sorted(suspended if everything else needs & suspended.keys())
    if down:
        raise Suspended(
            f"intake is suspended until {', '.join(down)} answers again",
            retry_after_ms=max(suspended[name] for name in down),
            services=down,
        )
