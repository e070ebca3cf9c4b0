"""Same id, same request: attach to the command that is there.  Same id, other request: a conflict, never a silent
hit."""

from __future__ import annotations

from coordinator.errors import IdConflict


def attaches(id: str, fingerprint: bytes, known: bytes | None) -> bool:
    """Whether the id is known with the same request; raises IdConflict where it is known with another."""
    if known is None:
        return False
    if not known:
        raise IdConflict(
            f"command {id} exists, but its Submitted record is in quarantine: with which request is unknown"
        )
    if known != fingerprint:
        raise IdConflict(f"command {id} exists with another type, version, payload or definition")
    return True
