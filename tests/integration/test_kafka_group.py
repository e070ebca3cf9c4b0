"""The group on a real Kafka: instances come, go, die and are cut off, and those who are there agree.

Sessions are 2 s here (the test clusters allow it; a Kafka given by ``KAFKA_BOOTSTRAP`` must too, by its
``group.min.session.timeout.ms``), so everything that waits for one is three times as quick as in production.

Run as a program, this file is a member in a process of its own: it prints each generation that it is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import monotonic

import msgspec
import pytest
import structlog
from aiokafka import AIOKafkaConsumer  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor  # type: ignore[import-untyped]
from aiokafka.coordinator.protocol import ConsumerProtocol  # type: ignore[import-untyped]

from coordinator.cluster.base import Assignment, Member
from coordinator.cluster.kafka import ASSIGNOR, Claim, KafkaGroup, Table, agreement, table
from coordinator.log.kafka import KafkaLog
from coordinator.testing.kafka import Cluster

PARTITIONS = 8
TOPIC = "a-log"  # never asked for: nothing but the group is used
SESSION_S = 2.0


class Instance:
    """A member that acts for what it is assigned, with the generation for an epoch, and remembers what it was told."""

    def __init__(self, bootstrap: str, group: str, name: str) -> None:
        self.name = name
        self.held: dict[int, int] = {}
        self.stubborn = False  # goes on acting for what it holds, whatever the group says
        self.told: list[Assignment] = []
        self.news = asyncio.Event()
        self.group = KafkaGroup(
            bootstrap,
            TOPIC,
            PARTITIONS,
            group=group,
            me=Member(name, f"{name}:1"),
            held=lambda: self.held,
            session_timeout_ms=int(SESSION_S * 1000),
            heartbeat_ms=200,
        )
        self.task = asyncio.create_task(self.group.run(self._hear))

    def _hear(self, assignment: Assignment) -> None:
        self.told.append(assignment)
        if assignment.generation >= 0 and not self.stubborn:
            self.held = {each: self.held.get(each, assignment.generation) for each in self.owned(assignment)}
        self.news.set()

    def owned(self, assignment: Assignment) -> set[int]:
        return {partition for partition, owner in assignment.owners.items() if owner == self.name}

    @property
    def now(self) -> Assignment:
        return self.told[-1] if self.told else Assignment(-1, {}, {})

    async def until(self, holds: Callable[[Assignment], bool], within_s: float = 10.0) -> Assignment:
        """Waits for news that makes it true; the assignment that did."""
        async with asyncio.timeout(within_s):
            while not holds(self.now):
                self.news.clear()
                await self.news.wait()
        return self.now

    async def die(self) -> None:
        """Without a word to anybody."""
        self.task.cancel()
        await asyncio.wait([self.task])


async def agreed(*instances: Instance, within_s: float = 10.0, also: str = "") -> Assignment:
    """Until these (and ``also``, a name) are the members in the eyes of each; their common agreement."""
    names = {instance.name for instance in instances} | ({also} if also else set())
    tables = [await each.until(lambda now: now.members.keys() == names, within_s) for each in instances]
    assert all(each == tables[0] for each in tables)
    return tables[0]


@pytest.fixture
def group() -> str:
    return f"{uuid.uuid4().hex}.members"


class Stage:
    """Makes instances, and ends them after the test."""

    def __init__(self, bootstrap: str, group: str) -> None:
        self.bootstrap = bootstrap
        self.group = group
        self.made: list[Instance] = []

    def enter(self, name: str, group: str = "") -> Instance:
        self.made.append(Instance(self.bootstrap, group or self.group, name))
        return self.made[-1]

    async def close(self) -> None:
        for each in self.made:
            await each.die()
        for each in self.made:
            if not each.task.cancelled() and (error := each.task.exception()):
                raise error


@pytest.fixture
async def stage(kafka_bootstrap: str, group: str) -> AsyncIterator[Stage]:
    stage = Stage(kafka_bootstrap, group)
    yield stage
    await stage.close()


@contextlib.asynccontextmanager
async def process(stage: Stage, name: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A member in a process of its own, up to its first agreement; it is killed in the end."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.test_kafka_group", stage.bootstrap, stage.group, name,
        stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        assert int(await heard(child)) >= 0
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def heard(child: asyncio.subprocess.Process) -> str:
    assert child.stdout is not None
    async with asyncio.timeout(15):
        return (await child.stdout.readline()).decode()


# ---------------------------------------------------------------- coming and going


async def test_three_members_agree_on_members_addresses_and_owners(stage: Stage) -> None:
    """Each knows all of it after one round, and nobody carries two more than another."""
    all_three = [stage.enter(name) for name in "abc"]
    agreement = await agreed(*all_three)
    assert agreement.members == {name: Member(name, f"{name}:1") for name in "abc"}
    assert agreement.owners.keys() == set(range(PARTITIONS))
    assert sorted(Counter(agreement.owners.values()).values()) == [2, 3, 3]


async def test_what_need_not_move_stays(stage: Stage) -> None:
    """A newcomer takes its share from those who have most; between the others nothing changes hands.  When it goes,
    those get its share, within moments."""
    a, b = stage.enter("a"), stage.enter("b")
    two = await agreed(a, b)
    c = stage.enter("c")
    three = await agreed(a, b, c)
    assert {three.owners[each] for each in two.owners if three.owners[each] != two.owners[each]} == {"c"}
    assert three.generation > two.generation
    began = monotonic()
    await c.group.leave()
    assert c.task.done()
    again = await agreed(a, b)
    assert monotonic() - began < 1.0
    assert all(again.owners[each] == three.owners[each] for each in again.owners if three.owners[each] != "c")
    assert c.now == three  # whoever leaves is told nothing more


async def test_who_holds_a_partition_by_the_newest_epoch_keeps_it(stage: Stage) -> None:
    """What a member acts for is asked as it joins, so one that comes back goes on where it was."""
    a = stage.enter("a")
    await agreed(a)
    a.held = dict.fromkeys(range(PARTITIONS), 5)
    b = stage.enter("b")
    b.held = dict.fromkeys((0, 2, 4, 6), 9)
    both = await agreed(a, b)
    assert b.owned(both) == {0, 2, 4, 6}


async def test_one_that_dies_is_replaced_within_the_session_timeout(stage: Stage) -> None:
    """A killed process tells nobody; the group finds out, and only what it had moves."""
    a, b = stage.enter("a"), stage.enter("b")
    async with process(stage, "c") as child:
        three = await agreed(a, b, also="c")
        child.kill()
        began = monotonic()
        two = await agreed(a, b)
        assert monotonic() - began < SESSION_S + 1.0
    assert all(two.owners[each] == three.owners[each] for each in two.owners if three.owners[each] != "c")


async def test_a_process_that_was_stopped_knows_first_of_all_that_it_is_no_member(stage: Stage) -> None:
    """It wakes up to find its session over before it hears anything from anybody, then it joins anew."""
    a = stage.enter("a")
    async with process(stage, "b") as child:
        both = await agreed(a, also="b")
        child.send_signal(signal.SIGSTOP)
        await agreed(a)
        child.send_signal(signal.SIGCONT)
        while int(told := await heard(child)) in range(both.generation + 1):
            pass
        assert int(told) == -1
        assert int(await heard(child)) > both.generation
        await agreed(a, also="b")


async def test_a_leave_does_not_wait_for_the_dead(stage: Stage) -> None:
    """While the group waits for a member that will never come, another can still go at once."""
    a, b, c = (stage.enter(name) for name in "abc")
    await agreed(a, b, c)
    await c.die()
    d = stage.enter("d")  # its coming makes the broker call on everybody, c too
    with pytest.raises(TimeoutError):
        await agreed(a, b, d, within_s=0.5)
    began = monotonic()
    await b.group.leave()
    assert monotonic() - began < 0.5
    await agreed(a, d)
    assert monotonic() - began < SESSION_S + 1.0


# ---------------------------------------------------------------- others on the same cluster


async def test_groups_do_not_see_each_other(stage: Stage, group: str) -> None:
    """Two groups, even on one topic and with instances of the same names, have nothing to do with each other."""
    a, b = stage.enter("a"), stage.enter("b")
    before = await agreed(a, b)
    other = stage.enter("a", f"other-{group}")
    alone = await agreed(other)
    assert other.owned(alone) == set(range(PARTITIONS))
    await other.group.leave()
    assert a.now is before  # the same object: nothing was told


async def test_only_the_group_is_used(
    stage: Stage,
    kafka_bootstrap: str,
    group: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is fetched and no offset is committed; ordinary tools see an ordinary consumer group."""
    caplog.set_level(logging.DEBUG, "aiokafka.conn")
    monkeypatch.setattr(logging.getLogger("aiokafka.conn"), "filters", [])  # the log's, against chatter
    a, b = stage.enter("a"), stage.enter("b")
    both = await agreed(a, b)
    await b.group.leave()
    await agreed(a)
    sent = [record.args for record in caplog.records if record.msg.startswith("Request to")]
    requests = {type(args[-1]).__name__.partition("Request")[0] for args in sent if isinstance(args, tuple)}
    assert requests == {"ApiVersion", "FindCoordinator", "JoinGroup", "SyncGroup", "Heartbeat", "LeaveGroup"}
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await admin.start()
    try:
        assert await admin.list_consumer_group_offsets(group) == {}
        [answer] = await admin.describe_consumer_groups([group])
        [described] = answer.groups
    finally:
        await admin.close()
    assert described[2:5] == ("Stable", "consumer", ASSIGNOR)
    [member] = described[5]
    assigned = ConsumerProtocol.ASSIGNMENT.decode(member[-1]).partitions()
    assert {each.partition for each in assigned} == a.owned(a.now) == set(range(PARTITIONS))
    assert both.generation < a.now.generation


def consumer(stage: Stage, assignor: type) -> AIOKafkaConsumer:
    """An ordinary consumer that got into our group."""
    return AIOKafkaConsumer(
        TOPIC, bootstrap_servers=stage.bootstrap, group_id=stage.group, enable_auto_commit=False,
        partition_assignment_strategy=[assignor], session_timeout_ms=2000, heartbeat_interval_ms=200,
    )  # fmt: skip


class Stranger(RoundRobinPartitionAssignor):  # type: ignore[misc]
    """Passes for one of us, and tells what nobody understands."""

    name = ASSIGNOR
    user_data = b"\xff garbage"

    @classmethod
    def metadata(cls, topics: set[str]) -> object:
        return ConsumerProtocol.METADATA(0, list(topics), cls.user_data)


class Successor(Stranger):
    """A later version of ourselves, with more to tell."""

    user_data = msgspec.msgpack.encode(
        {"member": {"instance": "z", "address": "z:1", "zone": "north"}, "held": {3: 7}, "load": 0.5}
    )


@pytest.mark.parametrize(("assignor", "members"), [(Stranger, {"a"}), (Successor, {"a", "z"})])
async def test_what_others_tell_breaks_nothing(stage: Stage, assignor: type[Stranger], members: set[str]) -> None:
    """Garbage is passed over and gets nothing; of a later version's words those that are known are understood."""
    a = stage.enter("a")
    await agreed(a)
    await create_topic(stage.bootstrap)
    async with consumer(stage, assignor) as other:
        now = await a.until(lambda now: now.generation > 1)
        assert now.members.keys() == members
        assert set(now.owners.values()) == members
        assert now.owners.keys() == set(range(PARTITIONS))
        assert {each.partition for each in other.assignment()} == {p for p, who in now.owners.items() if who == "z"}
    await agreed(a)


async def test_a_leader_that_nobody_understands_is_passed_over(stage: Stage) -> None:
    """What a stranger hands out is no agreement; as soon as it has gone there is one."""
    await create_topic(stage.bootstrap)
    async with consumer(stage, Stranger):
        a = stage.enter("a")
        with pytest.raises(TimeoutError):
            await a.until(lambda _: bool(a.told), within_s=0.5)
    await agreed(a)


async def test_a_group_of_other_people_is_not_entered(stage: Stage) -> None:
    """Where consumers of another kind sit under our group's name we keep out, and come in when they have gone."""
    await create_topic(stage.bootstrap)
    async with consumer(stage, RoundRobinPartitionAssignor) as other:
        a = stage.enter("a")
        with pytest.raises(TimeoutError):
            await a.until(lambda _: bool(a.told), within_s=0.5)
        assert len(other.assignment()) == PARTITIONS
    await agreed(a)


async def create_topic(bootstrap: str) -> None:
    """Consumers insist on it."""
    log = KafkaLog(bootstrap, TOPIC, PARTITIONS)
    await log.open()
    await log.close()


def test_a_life_that_the_group_has_not_missed_yet_counts_once() -> None:
    """An instance that lost its connection while joining may be in the group twice."""
    claims = [Claim(Member("a", "a:1"), {0: 1}), Claim(Member("b", "b:1")), Claim(Member("a", "a:1"), {0: 1})]
    made = table(2, claims)
    assert made == Table([Member("a", "a:1"), Member("b", "b:1")], [0, 1])
    assert agreement(4, made) == Assignment(4, {each.instance: each for each in made.members}, {0: "a", 1: "b"})


@pytest.mark.parametrize("owner", [-1, 2])
def test_a_table_that_names_nobody_is_refused(owner: int) -> None:
    """Numbers of members that are not there do not pass for a member."""
    with pytest.raises(ValueError, match="no member"):
        agreement(1, Table([Member("a", ""), Member("b", "")], [0, owner]))


# ---------------------------------------------------------------- brokers


async def test_a_broker_that_is_silent_or_dies_is_noticed_and_waited_for(tmp_path: Path, group: str) -> None:
    """Cut off, every member learns in a session's time that it counts for nothing, leaving takes 2 s at most, and when
    the broker is back the group forms by itself, with all that its members held."""
    with Cluster(tmp_path) as cluster:
        stage = Stage(cluster.bootstrap, group)
        try:
            a, b, c = (stage.enter(name) for name in "abc")
            await agreed(a, b, c, within_s=30)

            cluster.pause(1)
            began = monotonic()
            leaving = asyncio.create_task(c.group.leave())
            for each in (a, b):
                await each.until(lambda now: now == Assignment(-1, {}, {}))
            assert SESSION_S - 0.5 < monotonic() - began < SESSION_S + 0.5
            await leaving
            assert monotonic() - began < 2.5
            cluster.resume(1)
            before = await agreed(a, b)
            a.stubborn = b.stubborn = True  # the log goes on although the group does not

            await asyncio.to_thread(cluster.kill, 1)
            reviving = asyncio.to_thread(cluster.revive, 1)
            unheard = (each.until(lambda now: now.generation == -1) for each in (a, b))
            await asyncio.gather(reviving, *unheard)
            assert (await agreed(a, b, within_s=30)).owners == before.owners
        finally:
            await stage.close()


async def main(bootstrap: str, group: str, name: str) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    instance = Instance(bootstrap, group, name)
    while True:
        await instance.news.wait()
        instance.news.clear()
        while instance.told:
            print(instance.told.pop(0).generation, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
