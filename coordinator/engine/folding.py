"""What the log says of all partitions that are replayed or owned: the fold, and who is in it.

    apply(record) ─▶ the command's fold changes; of a partition that is owned, the command is `touched`
    find / look_at ─▶ a command, from its records if it sleeps

Live running and replay are the same `apply`.  Commands that only wait are kept as bytes (`asleep`), in the place where
they were: a partition's commands stand in the order in which they began.

The engine is a Fold that acts: it says what becomes of a command that has joined, was touched, or was put aside.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Final

from coordinator.engine import asleep, faults, quarantine
from coordinator.engine.kinds import HANDLERS, beginning, fold, refold
from coordinator.engine.quarantine import Entry, Quarantine
from coordinator.engine.registry import Registry
from coordinator.engine.schedules import Schedules
from coordinator.engine.state import Command
from coordinator.model.damaged import REOPENED, SUBMITTED, Damaged
from coordinator.model.ids import CommandId, partition_of
from coordinator.model.records import (
    SCHEMA,
    CommandRecord,
    Control,
    Record,
    Registered,
    Reopened,
    Schedule,
    Submitted,
)
from coordinator.wire.codec import encode

STASH_MIN: Final = 2_000  # commands awake on replay, above which they are put aside

_BEGIN: Final = (SUBMITTED, REOPENED)


class Shard:
    """One owned partition: the token and epoch that its records and calls carry."""

    __slots__ = ("calls_ended", "commands", "epoch", "token")

    def __init__(self, token: bytes, epoch: int) -> None:
        self.token = token
        self.epoch = epoch
        self.calls_ended = 0  # the most calls that a command had made when it ended, for those that are opened again
        self.commands: dict[CommandId, Command | bytes] = {}  # those that wait are put to sleep (`asleep`)

    def awake(self) -> list[Command]:
        return [command for command in self.commands.values() if isinstance(command, Command)]


class _Stash:
    """Of a partition that is being replayed: which commands have been awake since some were last put aside, and all
    that were."""

    __slots__ = ("awake", "ids")

    def __init__(self) -> None:
        self.awake: dict[CommandId, None] = {}
        self.ids: set[CommandId] = set()


class Fold:
    """All uncompleted commands of this instance, as the log tells of them.  ``dirty`` are those to be decided on."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.commands: dict[CommandId, Command] = {}  # those that are awake
        self.shards: dict[int, Shard] = {}
        self.replaying: dict[int, dict[CommandId, Command | bytes]] = {}
        self.quarantined: defaultdict[int, Quarantine] = defaultdict(Quarantine)
        self.partitions: int | None = None  # of the whole log, where that is known
        self.definitions: dict[int, dict[tuple[str, int], tuple[int, Registered]]] = {}  # first in each partition's log
        self.schedules = Schedules()
        self.dirty: OrderedDict[CommandId, Command] = OrderedDict()  # from a plain dict's head, taking is linear
        self._clocks: dict[int, int] = {}  # by partition: the time of the last record
        self._listed: list[tuple[int, Entry]] = []
        self._replayed: list[Command] = []
        self.stash_min = STASH_MIN
        self._stashes: dict[int, _Stash] = {}
        self.backlog: deque[tuple[int, CommandId]] = deque()  # stashed on replay, not decided on since

    # ------------------------------------------------------------ what whoever acts makes of it

    def joined(self, command: Command) -> None:
        """A command of an owned partition has begun."""

    def left(self, command: Command) -> None:
        """A command of an owned partition has ended, and makes room for its next life."""

    def touched(self, command: Command, record: Record | Damaged) -> None:
        """A record of a command of an owned partition was folded."""

    def slept(self, partition: int, id: CommandId, sleeper: asleep.Sleeper) -> None:
        """A command of a partition that is being replayed sleeps on, and has times to be woken at."""

    def retraced(self, command: Command) -> None:
        """Runs exec over the command's record, so that it can be looked at."""

    # ------------------------------------------------------------ ownership

    def owned(self, partition: int, token: bytes, epoch: int) -> Shard:
        """The partition is replayed and owned from now on."""
        shard = self.shards[partition] = Shard(token, epoch)
        shard.commands = self.replaying.pop(partition, {})
        for command in shard.awake():
            self.commands[command.id] = self.dirty[command.id] = command
        stashed = self._stashes.pop(partition, _Stash()).ids
        asleep_now = (id for id, each in shard.commands.items() if isinstance(each, bytes))
        self.backlog.extend((partition, id) for id in asleep_now if id in stashed)
        self.schedules.opened(partition)
        return shard

    def forgotten(self, partition: int) -> tuple[list[Command], list[CommandId]]:
        """The partition is not owned any more; returns its commands that were awake, and the ids of all."""
        shard = self.shards.pop(partition, None)
        self.replaying.pop(partition, None)
        self._stashes.pop(partition, None)
        self.backlog = deque(each for each in self.backlog if each[0] != partition)
        self.quarantined.pop(partition, None)
        self._clocks.pop(partition, None)
        self._listed = [(at, entry) for at, entry in self._listed if at != partition]
        self.definitions.pop(partition, None)
        self.schedules.drop(partition)
        if shard is None:
            return [], []
        awake = shard.awake()
        for command in awake:
            self.commands.pop(command.id, None)
            self.dirty.pop(command.id, None)
        return awake, list(shard.commands)

    # ------------------------------------------------------------ the fold

    def apply(self, partition: int, offset: int, record: Record | Damaged) -> Command | None:
        """Folds one durable, valid record, or what stands in its place; returns the command it belongs to.

        The record joins the command's history.  The same function live and on replay.  Raises CorruptLog for a
        definition that cannot be applied: any command may rest on it.
        """
        shard = self.shards.get(partition)
        commands = self.replaying.setdefault(partition, {}) if shard is None else shard.commands
        if type(record) in HANDLERS:
            found = self._found(partition, commands, record.id)  # type: ignore[union-attr, arg-type]  # each that has one has an id
            if found is None or found.finished is not None:
                return None  # the command has ended: nothing after its end counts
            try:
                if not fold(found, record) and isinstance(record, Control):  # type: ignore[arg-type]
                    found.senseless = record
            except Exception as error:
                record = self._unapplied(found, offset, record, error)  # type: ignore[arg-type]  # it has a handler
            command = found
        elif isinstance(record, (Submitted, Reopened)):
            begun = self._begun(partition, offset, record, commands)
            if begun is None:
                return None
            command = begun
        elif isinstance(record, Damaged):
            damaged = self._damaged(record, commands)
            if damaged is None:
                return None
            command = damaged
        else:
            if isinstance(record, Registered):
                self._register(partition, offset, record)
                self.definitions.setdefault(partition, {}).setdefault((record.name, record.version), (offset, record))
            elif isinstance(record, Schedule):
                self.schedules.apply(partition, offset, record)
            return None
        command.touched = max(command.touched, record.at)
        self._clocks[partition] = record.at or self._clocks.get(partition, 0)
        command.history.append((offset, record))  # type: ignore[arg-type]
        if shard is not None:
            self.dirty[command.id] = command
            self.touched(command, record)
        elif command.finished is not None:
            del commands[command.id]
            self._replayed.append(command)
        elif len(command.history) == 1:
            self._woke(partition, commands, command.id)
        return command

    def recall(self, partition: int, records: list[tuple[int, CommandRecord | Damaged]]) -> Command:
        """A command as it was when these records of it were all there were; for looking at, not for going on."""
        command = self._refolded(partition, records)
        self.retraced(command)
        return command

    def _refolded(self, partition: int, records: list[tuple[int, CommandRecord | Damaged]]) -> Command:
        offset, first = records[0]
        if isinstance(first, Damaged):
            first = quarantine.placeholder(first)
        assert isinstance(first, (Submitted, Reopened))
        command = Command(partition, offset, beginning(partition, first))
        command.history = records
        command.touched = max(record.at for _, record in records)
        refold(command)
        return command

    def _begun(
        self, partition: int, offset: int, record: Submitted | Reopened, into: dict[CommandId, Command | bytes]
    ) -> Command | None:
        """A command begins, or goes on after its end; one that is under way already is what it is."""
        known = self._found(partition, into, record.id)
        if known is not None:
            if isinstance(record, Submitted) or known.finished is None:
                return known if isinstance(record, Submitted) else None
            self.left(known)
        try:
            command = Command(partition, offset, beginning(partition, record))
            if isinstance(record, Reopened):
                command.history = [(offset, record)]
                refold(command)
                command.history = []
        except MemoryError:
            raise  # says nothing about the record
        except Exception as error:  # nobody of ours has written it
            told = f"it cannot be applied: {faults.described(error)}"
            self._list(Damaged(partition, offset, encode(record), told, REOPENED, SCHEMA), parks=False)
            return None
        into[record.id] = command
        if partition in self.shards:
            if isinstance(record, Reopened):  # its fences only grow
                made = 0 if known is None else known.calls_made
                command.calls_made = max(made, self.shards[partition].calls_ended)
            self.commands[record.id] = command
            self.joined(command)
        return command

    # ------------------------------------------------------------ what cannot be read or applied

    def _damaged(self, damaged: Damaged, commands: dict[CommandId, Command | bytes]) -> Command | None:
        """Lists it; returns the command that it parks, if there is one.

        Where no command of this id is under way, an intact record would have changed nothing either; except one that
        begins a life, of which at least the id counts.
        """
        partition = damaged.partition
        command = None if damaged.id is None else self._found(damaged.partition, commands, damaged.id)
        if command is None and damaged.kind in _BEGIN and damaged.id is not None and self._belongs(damaged):
            submitted = quarantine.placeholder(damaged)
            command = self._begun(partition, damaged.offset, submitted, commands)
        self._list(damaged, parks=command is not None)
        if command is not None:
            quarantine.park(command, damaged)
        return command

    def _belongs(self, damaged: Damaged) -> bool:
        """Whether its id is one of this partition's: in another's it would get in the way of the rightful command."""
        if self.partitions is None or damaged.id is None:
            return True
        return partition_of(damaged.id, self.partitions) == damaged.partition

    def _unapplied(self, command: Command, offset: int, record: CommandRecord, error: Exception) -> Damaged:
        """A handler has raised: the command stands where it stood before, and is parked."""
        if isinstance(error, MemoryError):
            raise error  # says nothing about the record: the next replay would differ
        damaged = quarantine.unapplied(command.partition, offset, record, encode(record), faults.described(error))
        refold(command)
        self._list(damaged, parks=True)
        quarantine.park(command, damaged)
        return damaged

    def _register(self, partition: int, offset: int, record: Registered) -> None:
        try:
            self.registry.add(record.name, record.version, record.content)
        except Exception as error:
            told = f"the definition {record.name!r} of version {record.version} cannot be applied"
            damaged = Damaged(partition, offset, encode(record), f"{told}: {faults.described(error)}", 10, SCHEMA)
            raise damaged.error(
                "commands rest on it, and its first content in the log is the one that counts"
            ) from error

    def _list(self, damaged: Damaged, *, parks: bool) -> None:
        at = damaged.at or self._clocks.get(damaged.partition, 0)
        entry = quarantine.entry(damaged, at, parks=parks)
        if self.quarantined[damaged.partition].add(entry):
            self._listed.append((damaged.partition, entry))

    def take_listed(self) -> list[tuple[int, Entry]]:
        """What has come to the quarantine lists since the last time, with its partition."""
        listed, self._listed = self._listed, []
        return listed

    # ------------------------------------------------------------ asleep and awake

    def has(self, id: CommandId) -> bool:
        """Whether a command of this id is under way, asleep or not."""
        return id in self.commands or any(id in shard.commands for shard in self.shards.values())

    def find(self, id: CommandId) -> Command | None:
        """The command, if it is under way; one that sleeps is woken."""
        command = self.commands.get(id)
        if command is not None:
            return command
        for partition, shard in self.shards.items():
            if id in shard.commands:
                return self._found(partition, shard.commands, id)
        return None

    def look_at(self, partition: int, id: CommandId) -> Command | None:
        """The command as it is, for showing only: one that sleeps goes on sleeping."""
        shard = self.shards.get(partition)
        found = None if shard is None else shard.commands.get(id)
        return self._awoken(partition, asleep.unpacked(found)) if isinstance(found, bytes) else found

    def entries(self) -> Iterator[tuple[int, CommandId, Command | bytes]]:
        """Every command that is under way, with its partition; those that sleep as `asleep.unpacked` takes them.

        In each partition about the newest first.  They may change, come and go between two of them: who looks at a
        million does so in slices.  (To copy what there is first would take 20 ms for a hundred thousand.)
        """
        for partition, shard in list(self.shards.items()):
            for id in reversed(list(shard.commands)):
                entry = shard.commands.get(id)
                if entry is not None and self.shards.get(partition) is shard:
                    yield partition, id, entry

    @property
    def under_way(self) -> int:
        """How many commands are, on this instance."""
        return sum(len(shard.commands) for shard in self.shards.values())

    def _found(self, partition: int, commands: dict[CommandId, Command | bytes], id: CommandId) -> Command | None:
        found = commands.get(id)
        if not isinstance(found, bytes):
            return found
        sleeper = asleep.unpacked(found)
        if partition not in self.shards:  # on replay: what it waits for is found out when that is over
            command = commands[id] = self._refolded(partition, sleeper.history(partition))
            command.calls_made = sleeper.calls_made
            self._woke(partition, commands, id)
            return command
        command = self._awoken(partition, sleeper)
        commands[id] = self.commands[id] = self.dirty[id] = command  # dirty: it sleeps on unless something happens
        return command

    def _woke(self, partition: int, commands: dict[CommandId, Command | bytes], id: CommandId) -> None:
        """Keeps what a replay holds in memory small: of very many commands most only wait, though nobody knows before
        exec has been run over them, and that is for later (`backlog`).  This one is about to be folded, so it stays."""
        stash = self._stashes.setdefault(partition, _Stash())
        if len(stash.awake) >= self.stash_min:
            for each in stash.awake:
                command = commands.get(each)
                if isinstance(command, Command) and command.quarantined is None and each != id:
                    commands[each] = asleep.packed(command)
                    stash.ids.add(each)
            stash.awake = {}
        stash.awake[id] = None

    def sleeps(self, partition: int, id: CommandId, sleeping: bytes) -> None:
        """On replay: a command of a Snapshot, which slept when that was cut, sleeps on."""
        self.replaying.setdefault(partition, {})[id] = sleeping
        self.slept(partition, id, asleep.unpacked(sleeping))

    def _awoken(self, partition: int, sleeping: asleep.Sleeper) -> Command:
        """By the fold, as after a restart: there is no second way to come to a state."""
        command = self.recall(partition, sleeping.history(partition))
        command.calls_made, command.wake_at, command.waits = sleeping.calls_made, sleeping.wake_at, sleeping.waits
        return command

    def put_to_sleep(self, command: Command) -> None:
        """Nothing is to be done for it but wait, perhaps for months: its records are all that is kept."""
        self.shards[command.partition].commands[command.id] = asleep.packed(command)
        del self.commands[command.id]

    def oldest(self, partition: int, otherwise: int) -> int:
        """The offset at which the earliest command that is open began; ``otherwise`` if none is.

        They are kept in the order in which they began, live, on replay and from a snapshot.
        """
        shard = self.shards.get(partition)
        commands = self.replaying.get(partition, {}) if shard is None else shard.commands
        first = next(iter(commands.values()), None)
        return (
            otherwise
            if first is None
            else first.offset
            if isinstance(first, Command)
            else asleep.unpacked(first).offset
        )

    def first_submitted(self) -> list[int]:
        """When the earliest command under way was submitted (ms), in each partition that has one."""
        firsts = (next(iter(shard.commands.values()), None) for shard in self.shards.values())
        return [
            each.submitted.at if isinstance(each, Command) else asleep.unpacked(each).at
            for each in firsts
            if each is not None
        ]

    def take_replayed(self) -> list[Command]:
        """The commands whose end has been replayed since the last time."""
        finished, self._replayed = self._replayed, []
        return finished
