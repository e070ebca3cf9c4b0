"""Submissions: checked, admitted or refused, and watched to their end.

`Intake.submit` is the straight line's second station.  It makes no task and awaits nothing: TCP calls it once a frame.
"""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec
from msgspec import Raw

from coordinator.admission.dedupe import attaches
from coordinator.admission.gate import Decision, Request
from coordinator.engine.registry import Resolved, fingerprint
from coordinator.errors import (
    CoordinatorError,
    IdConflict,
    InvalidPayload,
    LimitReached,
    Suspended,
    UnknownCommand,
    UnknownType,
)
from coordinator.front.base import Base, acting, duration, nothing
from coordinator.front.patience import Patient
from coordinator.front.watching import Join, Later, Waiter, second
from coordinator.lane import Lane
from coordinator.model.command import FINAL, CommandView, Submission
from coordinator.model.ids import CommandId, command_id, new_command_id, partition_of
from coordinator.model.records import NIL, SCHEMA, Submitted
from coordinator.transport.base import Event, Unwatch, Want, Watcher

ATTRIBUTES_MAX = 32
ATTRIBUTE_NAME_MAX = 100
ATTRIBUTE_TEXT_MAX = 1000
PRIORITY_MAX = 1_000_000

Faults = list[tuple[str, str]]


class Intake(Base):
    """The part of the Front that takes new work."""

    def submit(self, submission: Submission, watcher: Watcher | None, want: Want = "events") -> tuple[str, Unwatch]:
        """Admits or raises; see Front.  With ``admit_within`` a watcher is told later what would be raised now."""
        id = new_command_id() if submission.id is None else command_id(submission.id)
        lane = self.pipeline.lanes[partition_of(id, len(self.pipeline.lanes))]
        return id, self.submit_as(id, lane, submission, watcher, want)

    def submit_as(
        self, id: CommandId, lane: Lane, submission: Submission, watcher: Watcher | None, want: Want
    ) -> Unwatch:
        """`submit` for who has made the id, or checked it, and knows its lane (`front.journey`)."""
        if submission.admit_within is None:
            return self._submit(id, lane, submission, watcher, want)
        within = duration(submission.admit_within, "$.admit_within")
        try:
            return self._submit(id, lane, submission, watcher, want)
        except (LimitReached, Suspended) as error:
            if not within or watcher is None:
                raise
            loop = self.pipeline.loop
            patient = Patient(loop, id, watcher, partial(self._submit, id, lane, submission, watcher, want))
            patient.refused(error, loop.time() + within / 1000)
            return patient

    def _submit(
        self, id: CommandId, lane: Lane, submission: Submission, watcher: Watcher | None, want: Want
    ) -> Unwatch:
        try:
            decision = self._admit(id, lane, submission)
        except CoordinatorError as error:
            self.pipeline.metrics.refused(error.code)
            raise
        unwatch = nothing if watcher is None else self._watched(id, decision, watcher, want)
        if decision is Decision.ADMIT:
            self.pipeline.metrics.submitted(submission.type or "definition")
            self.pipeline.schedule()
        return unwatch

    def _watched(self, id: CommandId, decision: Decision, watcher: Watcher, want: Want) -> Unwatch:
        """Registers the submitter; who attaches is told at once what those before have been told already."""
        if decision is Decision.ADMIT:
            return self.pipeline.watchers.add(id, watcher, want)
        if id in self.engine.reserved:
            return self.pipeline.watchers.add(id, second(watcher), want)
        if not self.known(id):
            return Later(id, watcher, lambda: self.surely(id), lambda: self._attach(id, watcher, want))
        return Join(self.pipeline.loop, id, watcher, lambda: self._attach(id, watcher, want))

    def _attach(self, id: CommandId, watcher: Watcher, want: Want) -> Unwatch:
        try:
            view = self.view_of(id)
        except UnknownCommand:
            text = f"command {id} has ended, and its records are deleted ([log] retain): it is not run again"
            raise IdConflict(text) from None
        ended = view.state in FINAL
        shown = view if ended or want == "accepted" else None
        watcher(Event("accepted", id, view.position, view.state.value, view=shown, attached=True))
        if ended:
            watcher(Event("final", id, view.position, view.state.value, view=view))
            return nothing
        return self.pipeline.watchers.add(id, watcher, want)

    def _admit(self, id: CommandId, lane: Lane, submission: Submission) -> Decision:
        self.check_running()
        acting(lane)
        record, services = self._record(submission, id)
        if submission.id is not None and not self.engine.has(id) and id not in self.engine.reserved:
            known = self._known(id, lane)
            if known is not None and attaches(id, record.fingerprint, known):
                return Decision.ATTACH
        request = Request(id, record.fingerprint, services)
        return self.engine.submit(request, record, lane.partition, self.pipeline.now())

    def _known(self, id: CommandId, lane: Lane) -> bytes | None:
        """The fingerprint of a finished command of this id: from the view, or from a former owner's receipt."""
        known = self.view.fingerprint(id)
        if known is not None:
            return known
        receipt = lane.snapshots.receipts.find(id)
        return None if receipt is None else receipt.fingerprint

    # ------------------------------------------------------------ checking

    def _record(self, submission: Submission, id: CommandId) -> tuple[Submitted, frozenset[str]]:
        """The Submitted record of a checked submission, and the services that it needs."""
        resolved = self._resolved(submission)
        faults: Faults = []
        timeout = _duration(submission.timeout, "$.timeout", faults)
        delay = _duration(submission.delay, "$.delay", faults)
        _check_attributes(submission, faults)
        if not -PRIORITY_MAX <= submission.priority <= PRIORITY_MAX:
            faults.append(("$.priority", f"a whole number from -{PRIORITY_MAX} to {PRIORITY_MAX}"))
        if faults:
            raise InvalidPayload.all(faults)
        resolved.check_payload(submission.payload)
        try:
            payload = Raw(msgspec.msgpack.encode(submission.payload))
            definition = NIL if submission.definition is None else Raw(msgspec.msgpack.encode(submission.definition))
            print_ = fingerprint(submission.type, submission.version, submission.payload, submission.definition)
        except (OverflowError, TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise InvalidPayload.at("$.payload", f"cannot be recorded: {error}") from error
        self.check_size("payload", len(bytes(payload)))
        self.check_size("definition", len(bytes(definition)))
        now = self.pipeline.now()
        record = Submitted(
            SCHEMA,
            b"",
            now,
            id,
            resolved.name,
            resolved.version,
            payload,
            print_,
            definition=definition,
            timeout=timeout,
            attributes=dict(submission.attributes),
            priority=submission.priority,
            start_at=now + delay if delay else 0,
        )
        return record, resolved.services

    def _resolved(self, submission: Submission) -> Resolved:
        """The type that is submitted; raises InvalidPayload or UnknownType, with the path."""
        if (submission.type is None) == (submission.definition is None):
            raise InvalidPayload.at("$", "either type or definition is needed, and not both")
        version = submission.version
        if version is not None and version < 1:
            raise InvalidPayload.at("$.version", f"a version is a whole number from 1, not {version}")
        if submission.definition is not None:
            resolved = self.registry.resolve_inline(submission.definition)
            if version is not None and version != resolved.version:
                raise InvalidPayload.at("$.version", f"differs from the definition's, which is {resolved.version}")
            return resolved
        assert submission.type is not None
        try:
            return self.registry.resolve(submission.type, version)
        except UnknownType as error:
            error.extra["faults"] = [{"path": "$.type", "fault": error.detail}]
            raise

    # ------------------------------------------------------------ waiting

    async def submit_and_wait(self, submission: Submission, wait_ms: int) -> tuple[CommandView, bool]:
        """See Front."""
        waiter = Waiter()
        id, unwatch = self.submit(submission, waiter, "final")
        try:
            return await self._waited(waiter, id, wait_ms)
        finally:
            unwatch()

    async def _waited(self, waiter: Waiter, id: str, wait_ms: int) -> tuple[CommandView, bool]:
        await waiter.accepted
        if wait_ms:
            try:
                async with asyncio.timeout(wait_ms / 1000):
                    return await waiter.final, waiter.attached
            except TimeoutError:
                pass
        return self.view_of(id), waiter.attached


def _duration(text: str | None, path: str, faults: Faults) -> int | None:
    try:
        return duration(text, path)
    except InvalidPayload as error:
        faults += [(fault["path"], fault["fault"]) for fault in error.extra["faults"]]
        return None


def _check_attributes(submission: Submission, faults: Faults) -> None:
    """Attributes are labels to find a command by, not a second payload: every list reads them."""
    if len(submission.attributes) > ATTRIBUTES_MAX:
        faults.append(("$.attributes", f"at most {ATTRIBUTES_MAX} attributes"))
        return
    for name, value in submission.attributes.items():
        path = f"$.attributes.{name[:ATTRIBUTE_NAME_MAX]}"
        if not 1 <= len(name) <= ATTRIBUTE_NAME_MAX:
            faults.append((path, f"a name has 1 to {ATTRIBUTE_NAME_MAX} characters"))
        elif isinstance(value, str) and len(value) > ATTRIBUTE_TEXT_MAX:
            faults.append((path, f"a text has at most {ATTRIBUTE_TEXT_MAX} characters"))
