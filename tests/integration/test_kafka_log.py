"""The Kafka log against real brokers: topics, the lock at the broker, outages, a lost leader."""

from __future__ import annotations

import asyncio
import logging
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from time import monotonic
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from coordinator.errors import StartupError
from coordinator.log.base import LogError
from coordinator.log.kafka import KafkaLog
from coordinator.log.owned import OwnedPartition, SteppedDown
from coordinator.model.ids import CommandId
from coordinator.model.records import Record, Timer
from coordinator.testing.kafka import Cluster
from coordinator.wire.codec import encode


class Unlocked(KafkaLog):
    """A log at a broker whose lock cannot be had."""

    async def _init_producer_id(self, transactional_id: str) -> tuple[int, int]:
        raise KafkaError("no transactions here")


@pytest.fixture
def topic() -> str:
    return f"log-{uuid.uuid4().hex}"


@pytest.fixture
async def log(kafka_bootstrap: str, topic: str) -> AsyncIterator[KafkaLog]:
    log = KafkaLog(kafka_bootstrap, topic, 1)
    await log.open()
    yield log
    await log.close()


@pytest.fixture
async def admin(kafka_bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await client.start()
    yield client
    await client.close()


def owned(log: KafkaLog, name: str = "a", timeout_ms: int = 5_000) -> OwnedPartition:
    return OwnedPartition(
        log,
        0,
        instance=name,
        address=f"{name}:1",
        clock=lambda: 1,
        append_timeout_ms=timeout_ms,
        acquire_timeout_ms=4 * timeout_ms,
    )


def timer(owner: OwnedPartition, id: str) -> bytes:
    return encode(Timer(1, owner.token, 0, CommandId(id), "deadline"))


async def everything(log: KafkaLog) -> list[bytes]:
    return [data async for batch in log.read(0, 0) for _, data in batch]


async def learned(owner: OwnedPartition) -> list[str]:
    """Acquires; the ids of what counts."""
    ids: list[str] = []

    def learn(records: list[tuple[int, Record]]) -> None:
        ids.extend(record.id for _, record in records if isinstance(record, Timer))

    await owner.acquire(learn)
    return ids


# ---------------------------------------------------------------- the topic


async def test_a_new_topic_keeps_everything(log: KafkaLog, admin: AIOKafkaAdminClient) -> None:
    """The broker deletes and compacts nothing by itself, and elects no leader that lacks records."""
    settings = await settings_of(admin, log.topic)
    assert {key: settings[key] for key in ("cleanup.policy", "retention.ms", "retention.bytes")} == {
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "retention.bytes": "-1",
    }
    assert settings["unclean.leader.election.enable"] == "false"
    await KafkaLog(log.bootstrap, log.topic, 1).open()  # what was created also passes the check


async def settings_of(admin: AIOKafkaAdminClient, topic: str) -> dict[str, Any]:
    [answer] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    return {entry[0]: entry[1] for entry in answer.resources[0][4]}


async def test_an_unfit_topic_is_refused_with_everything_that_is_wrong(
    kafka_bootstrap: str, topic: str, admin: AIOKafkaAdminClient
) -> None:
    """One look at the error is enough to put the topic right."""
    wrong = {
        "cleanup.policy": "compact,delete",
        "retention.ms": "604800000",
        "retention.bytes": "1000000000",
        "unclean.leader.election.enable": "true",
        "max.message.bytes": "1000",
    }
    await admin.create_topics([NewTopic(topic, 3, 1, topic_configs=wrong)])
    with pytest.raises(StartupError) as refused:
        await KafkaLog(kafka_bootstrap, topic, 6).open()
    text = str(refused.value)
    assert topic in text
    for fault in ["3 partitions", "says 6", "compact,delete", "604800000", "1000000000", "is true", "is 1000,"]:
        assert fault in text


async def test_a_replication_that_the_brokers_cannot_give_is_refused(kafka_bootstrap: str, topic: str) -> None:
    """The broker's own words, and what was asked for."""
    with pytest.raises(StartupError, match=r"(?s)cannot be created.*replication factor 99"):
        await KafkaLog(kafka_bootstrap, topic, 1, replication=99).open()


async def test_a_broker_that_does_not_answer_is_named() -> None:
    """Refused or silent: a sentence with the address, in bounded time."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for address in (f"127.0.0.1:{silent.getsockname()[1]}", "127.0.0.1:1"):
            began = monotonic()
            with pytest.raises(StartupError, match=f"Kafka at {address} could not be used within 0.7 s"):
                await KafkaLog(address, "t", 1, open_timeout_ms=700).open()
            assert monotonic() - began < 5


async def test_records_carry_their_commands_id_as_key(log: KafkaLog) -> None:
    """Ordinary tools can follow one command."""
    owner = owned(log)
    await owner.acquire(lambda _: None)
    await owner.append([timer(owner, "order-1"), timer(owner, "order-2")])
    await owner.close()
    consumer = AIOKafkaConsumer(log.topic, bootstrap_servers=log.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    keys = [(await consumer.getone()).key for _ in range(3)]
    await consumer.stop()
    assert keys == [b"a", b"order-1", b"order-2"]


# ---------------------------------------------------------------- the lock at the broker


async def test_the_broker_refuses_a_former_session(log: KafkaLog) -> None:
    """Once the new session has written, not a byte of the old one comes in."""
    older = await log.writer(0)
    await older.append([b"older"])
    younger = await log.writer(0)
    assert await older.append([b"still"]) == 1  # the lock begins with the younger one's first append
    await younger.append([b"younger"])
    with pytest.raises(LogError, match="ProducerFenced"):
        await older.append([b"zombie"])
    with pytest.raises(LogError, match="the session with Kafka is over"):
        await older.append([b"zombie, again"])
    await younger.append([b"goes on"])
    await older.close()
    await younger.close()
    assert await everything(log) == [b"older", b"still", b"younger", b"goes on"]


async def test_sessions_that_open_side_by_side_share_a_client(kafka_bootstrap: str, topic: str) -> None:
    """As all lanes do at start: each client that was made beside it would be left open, with its tasks, for ever."""
    log = KafkaLog(kafka_bootstrap, topic, 4)
    await log.open()
    writers = await asyncio.gather(*(log.writer(partition) for partition in range(4)))
    for writer in writers:
        await writer.close()
    await log.close()
    left = [task for task in asyncio.all_tasks() if "AIOKafka" in repr(task.get_coro())]
    assert not left


async def test_without_the_lock_the_epochs_decide(
    kafka_bootstrap: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The zombie's bytes come in, count for nobody, and it steps down; a warning says that the lock is missing."""
    log = Unlocked(kafka_bootstrap, topic, 1)
    await log.open()
    older, younger = owned(log, "older"), owned(log, "younger")
    with caplog.at_level(logging.WARNING, "coordinator.log.kafka"):
        await older.acquire(lambda _: None)
    assert "no lock at the broker" in caplog.text
    await older.append([timer(older, "kept")])
    await younger.acquire(lambda _: None)
    with pytest.raises(SteppedDown, match="younger"):
        await older.append([timer(older, "void")])
    assert await younger.append([timer(younger, "next")]) == 4  # 3 is the zombie's
    await older.close()
    await younger.close()
    third = owned(log, "third")
    assert await learned(third) == ["kept", "next"]
    await third.close()
    await log.close()


# ---------------------------------------------------------------- outages


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A broker of our own, to be mistreated."""
    with Cluster(tmp_path_factory.mktemp("kafka-outage")) as cluster:
        yield cluster


async def test_a_paused_broker_steps_the_owner_down_in_time(one_node: Cluster, topic: str) -> None:
    """No answer is neither success nor failure; what was under way counts only if it lands before the next Epoch."""
    log = KafkaLog(one_node.bootstrap, topic, 1, request_timeout_ms=1000, open_timeout_ms=20_000)
    await log.open()
    owner = owned(log, timeout_ms=500)
    await owner.acquire(lambda _: None)
    await owner.append([timer(owner, "kept")])
    one_node.pause(1)
    try:
        began = monotonic()
        with pytest.raises(SteppedDown):
            await owner.append([timer(owner, "in doubt")])
        assert monotonic() - began < 4
        await owner.close()
        with pytest.raises(LogError):
            await owned(log, timeout_ms=300).acquire(lambda _: None)
    finally:
        one_node.resume(1)
    await log.close()
    again = KafkaLog(one_node.bootstrap, topic, 1)
    await again.open()
    successor = owned(again, "successor")
    ids = await learned(successor)
    assert ids in (["kept"], ["kept", "in doubt"])
    await successor.append([timer(successor, "next")])
    await successor.close()
    third = owned(again, "third")
    assert await learned(third) == [*ids, "next"]
    await third.close()
    await again.close()


async def test_a_killed_broker_comes_back_with_the_log(one_node: Cluster, topic: str) -> None:
    """The owner steps down in time, closing hangs nowhere, and the same log object acquires again."""
    log = KafkaLog(one_node.bootstrap, topic, 1, request_timeout_ms=1000, open_timeout_ms=20_000)
    await log.open()
    owner = owned(log, timeout_ms=500)
    await owner.acquire(lambda _: None)
    await owner.append([timer(owner, "kept")])
    await asyncio.to_thread(one_node.kill, 1)
    with pytest.raises(SteppedDown):
        await owner.append([timer(owner, "lost")])
    await asyncio.wait_for(owner.close(), 5)
    await asyncio.to_thread(one_node.revive, 1)
    successor = await eventually_acquired(log)
    await successor.append([timer(successor, "next")])
    await successor.close()
    await log.close()


async def eventually_acquired(log: KafkaLog) -> OwnedPartition:
    """As the pipeline does: another attempt after each that fails."""
    while True:
        attempt = owned(log, "successor", timeout_ms=3000)
        try:
            await attempt.acquire(lambda _: None)
        except LogError:
            await asyncio.sleep(0.1)
        else:
            return attempt


async def test_a_lost_leader_costs_time_but_no_record(tmp_path_factory: pytest.TempPathFactory, topic: str) -> None:
    """Three brokers: the topic has three copies, and each confirmed record survives its leader, once, in order."""
    cluster = Cluster(tmp_path_factory.mktemp("kafka-three"), nodes=3)
    await asyncio.to_thread(cluster.start)
    try:
        admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic("thin", 1, 1)])
        with pytest.raises(StartupError, match=r"(?s)replication factor is 1.*at least 3"):
            await KafkaLog(cluster.bootstrap, "thin", 1).open()
        log = KafkaLog(cluster.bootstrap, topic, 1, open_timeout_ms=20_000)
        await log.open()
        assert (await settings_of(admin, topic))["min.insync.replicas"] == "2"
        [described] = await admin.describe_topics([topic])
        leader = described["partitions"][0]["leader"]
        assert len(described["partitions"][0]["replicas"]) == 3
        await admin.close()

        owner = owned(log, timeout_ms=30_000)
        await owner.acquire(lambda _: None)
        for n in range(50):
            await owner.append([timer(owner, f"before-{n}")])
        await asyncio.to_thread(cluster.kill, leader)
        for n in range(50):
            await owner.append([timer(owner, f"after-{n}")])
        await owner.close()
        successor = await eventually_learned(log)
        assert successor == [f"{when}-{n}" for when in ("before", "after") for n in range(50)]
        await log.close()
    finally:
        await asyncio.to_thread(cluster.stop)


async def eventually_learned(log: KafkaLog) -> list[str]:
    while True:
        owner = owned(log, "successor", timeout_ms=10_000)
        try:
            return await learned(owner)
        except LogError:
            await asyncio.sleep(0.1)
        finally:
            await owner.close()


def test_the_clients_own_log_is_kept_short(caplog: pytest.LogCaptureFixture) -> None:
    """In an outage each message of aiokafka is logged once in half a minute, not ten times a second."""
    from coordinator.log.kafka import _tame_client_logs

    _tame_client_logs()
    talker = logging.getLogger("aiokafka.conn")
    for n in range(100):
        talker.error("reconnect %d failed, as this test says", n)
    assert len([record for record in caplog.records if "as this test says" in record.message]) == 1
