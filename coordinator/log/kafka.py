"""The log on Apache Kafka: one topic, the partitions of which are the log's.  (The group of instances is the affair of
`cluster.kafka`.)

*A session* (`KafkaWriter`) is one idempotent producer with acks=all, made for one epoch of one partition and never used
for another.  *An append* is one batch built here (one batch of Kafka is atomic), so aiokafka's own batching, whose
waiting is quadratic, is not used.

*The lock at the broker.*  A session takes its producer id and epoch from ``InitProducerId(transactional.id)`` but
writes ordinary, non-transactional batches.  Once the next session has written (its Epoch record), the broker refuses
the former one's batches.  That only keeps a zombie's bytes out of the log; what makes them harmless is the epochs in
it (`ownership`), so where the lock cannot be had a warning is logged and the session goes on without.

*What may hang* has a deadline here or in `log.owned`: an idempotent append never expires by itself, nor does stopping
its producer.  A session that failed once in any way is broken for good, since its sequence numbers may have run on.

*Reading* uses getmany and never ``auto_offset_reset``: a start below the log's head is an error, not a jump.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any, Final, NoReturn

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType  # type: ignore[import-untyped]
from aiokafka.admin.records_to_delete import RecordsToDelete  # type: ignore[import-untyped]
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType  # type: ignore[import-untyped]
from aiokafka.errors import (  # type: ignore[import-untyped]
    ConcurrentTransactions,
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    CorruptRecordException,
    KafkaError,
    MessageSizeTooLargeError,
    NodeNotReadyError,
    NoError,
    NotCoordinatorError,
    OffsetOutOfRangeError,
    RecordListTooLargeError,
    RequestTimedOutError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.transaction import InitProducerIdRequest  # type: ignore[import-untyped]
from aiokafka.structs import OffsetAndMetadata  # type: ignore[import-untyped]

from coordinator.errors import CorruptLog, StartupError
from coordinator.log.base import RECORD_BYTES_MAX, LogError, Pointer, Rejected, Unknown
from coordinator.wire.codec import key_of

BATCH_BYTES: Final = 1 << 20
_OVERHEAD_BYTES: Final = 1024  # of a batch with one record, key included, above the record's bytes; generous
_PAGE_ROWS: Final = 2048
_LOCK_TIMEOUT_S: Final = 5.0
_CLOSE_TIMEOUT_S: Final = 6.0
_TRANSACTION_TIMEOUT_MS: Final = 60_000  # required by InitProducerId; no transaction is ever begun

# The broker is on its way: asking again soon helps.
_TRANSIENT: Final = (
    ConcurrentTransactions,
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    NotCoordinatorError,
    NodeNotReadyError,
    RequestTimedOutError,
)

logger = logging.getLogger(__name__)


class _Sparingly(logging.Filter):
    """Passes each message of a logger once in 30 s: in an outage aiokafka logs every failed reconnect, ten a second."""

    def __init__(self) -> None:
        super().__init__()
        self._next: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now = monotonic()
        if now < self._next.get(str(record.msg), 0.0):
            return False
        self._next[str(record.msg)] = now + 30
        return True


def _tame_client_logs() -> None:
    for name in list(logging.root.manager.loggerDict):
        if name == "aiokafka" or name.startswith("aiokafka."):
            talker = logging.getLogger(name)
            if not any(isinstance(each, _Sparingly) for each in talker.filters):
                talker.addFilter(_Sparingly())


def _raise(code: int, sentence: str) -> NoReturn:
    """A broker that has not heard of the new topic yet, or looks for its leader, is asked again; the rest is final."""
    error = for_code(code)
    if error.retriable or error is UnknownTopicOrPartitionError:
        raise error(sentence)
    raise StartupError(sentence)


class KafkaLog:
    """The `Log` port over one topic.

    ``bootstrap`` is ``host:port[,host:port]``.  ``name`` is the group of instances that share the log: it names the
    consumer group under which the pointers are committed and the lock at the broker.  That group must have no members,
    for Kafka takes commits of a group with members from these only: the instances' own membership needs another name.
    ``replication`` is the topic's replication factor if it has to be created (default: 3, or as many as there are
    brokers).  ``client_options`` go to every client as they are (``security_protocol``, ``ssl_context``, ``sasl_…``).
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        partitions: int,
        *,
        name: str = "coordinator",
        replication: int | None = None,
        open_timeout_ms: int = 10_000,
        request_timeout_ms: int = 4_000,
        client_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.partitions = partitions
        self.record_bytes_max = RECORD_BYTES_MAX
        self.bootstrap = bootstrap
        self.topic = topic
        self.name = name
        self.batch_bytes_max = BATCH_BYTES
        self._replication = replication
        self._open_timeout_s = open_timeout_ms / 1000
        self._request_timeout_s = request_timeout_ms / 1000
        self._options: dict[str, Any] = {
            "bootstrap_servers": bootstrap,
            "request_timeout_ms": request_timeout_ms,
            "retry_backoff_ms": 50,
            **(client_options or {}),
        }
        self._client: AIOKafkaClient | None = None  # for the lock
        self._opening_client = asyncio.Lock()
        self._pointers: AIOKafkaConsumer | None = None
        self._opening_pointers = asyncio.Lock()
        self._idle: dict[int, list[AIOKafkaConsumer]] = {partition: [] for partition in range(partitions)}
        self._closing: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------ opening

    async def open(self) -> None:
        """Creates the topic, or checks it; raises StartupError with everything that is wrong."""
        _tame_client_logs()
        deadline = monotonic() + self._open_timeout_s
        fault = "no answer"
        while (left := deadline - monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    await self._open()
                return
            except (KafkaError, OSError, TimeoutError) as error:
                fault = str(error) or fault
                await asyncio.sleep(min(0.25, max(0.0, deadline - monotonic())))
        raise StartupError(f"Kafka at {self.bootstrap} could not be used within {self._open_timeout_s:g} s: {fault}")

    async def _open(self) -> None:
        admin = AIOKafkaAdminClient(**self._options)
        try:
            await admin.start()
            await self._create_or_check(admin)
        finally:
            await admin.close()

    async def _create_or_check(self, admin: AIOKafkaAdminClient) -> None:
        brokers = len((await admin.describe_cluster())["brokers"])
        copies = min(3, brokers)
        [topic] = await admin.describe_topics([self.topic])
        if for_code(topic["error_code"]) is UnknownTopicOrPartitionError:
            await self._create(admin, self._replication or copies, brokers)
            topic = await self._created(admin)
        elif topic["error_code"]:
            _raise(topic["error_code"], f"topic {self.topic!r}: {for_code(topic['error_code']).__name__}")
        settings = await self._settings(admin)
        if wrong := self._faults(topic, settings, copies):
            raise StartupError(
                f"topic {self.topic!r} at {self.bootstrap} cannot hold this log:\n"
                + "\n".join(f"  - {fault}" for fault in wrong)
            )
        limit = int(settings.get("max.message.bytes", BATCH_BYTES))
        self.batch_bytes_max = min(BATCH_BYTES, limit - _OVERHEAD_BYTES)
        self.record_bytes_max = min(RECORD_BYTES_MAX, limit - _OVERHEAD_BYTES)

    async def _create(self, admin: AIOKafkaAdminClient, replication: int, brokers: int) -> None:
        settings = {
            "cleanup.policy": "delete",
            "retention.ms": "-1",
            "retention.bytes": "-1",
            "unclean.leader.election.enable": "false",
            "min.insync.replicas": str(2 if replication >= 3 else 1),
            "max.message.bytes": str(RECORD_BYTES_MAX + _OVERHEAD_BYTES),
        }
        new = NewTopic(self.topic, self.partitions, replication, topic_configs=settings)
        answer = await admin.create_topics([new])
        code, message = answer.topic_errors[0][1:3]
        error = for_code(code)
        if error not in (NoError, TopicAlreadyExistsError):  # another instance may have been quicker
            raise StartupError(
                f"topic {self.topic!r} cannot be created at {self.bootstrap} ({brokers} brokers, replication factor "
                f"{replication}): {message or error.__name__}"
            )

    async def _created(self, admin: AIOKafkaAdminClient) -> dict[str, Any]:
        """Waits until every partition of the new topic has a leader (`open` has the deadline)."""
        while True:
            topic: dict[str, Any] = (await admin.describe_topics([self.topic]))[0]
            parts = topic["partitions"]
            if not topic["error_code"] and parts and all(part["leader"] >= 0 for part in parts):
                return topic
            await asyncio.sleep(0.05)

    async def _settings(self, admin: AIOKafkaAdminClient) -> dict[str, str]:
        [answer] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, self.topic)])
        code, message, _, _, entries = answer.resources[0][:5]
        if code:
            _raise(code, f"the settings of topic {self.topic!r} cannot be read: {message or for_code(code).__name__}")
        return {entry[0]: entry[1] for entry in entries}

    def _faults(self, topic: dict[str, Any], settings: dict[str, str], copies: int) -> list[str]:
        """Everything about an existing topic that would lose records or void the rules of ownership."""
        found = []
        count = len(topic["partitions"])
        if count != self.partitions:
            found.append(f"it has {count} partitions, the configuration says {self.partitions} (log.partitions)")
        replicas = min((len(part["replicas"]) for part in topic["partitions"]), default=0)
        if replicas < copies:
            found.append(f"its replication factor is {replicas}, it must be at least {copies} with these brokers")
        wanted = {
            "cleanup.policy": ("delete", "compaction removes records that count"),
            "retention.ms": ("-1", "the broker must delete nothing by age"),
            "retention.bytes": ("-1", "the broker must delete nothing by size"),
            "unclean.leader.election.enable": ("false", "an unclean leader loses confirmed records"),
        }
        for key, (value, reason) in wanted.items():
            if settings.get(key, value) != value:
                found.append(f"{key} is {settings[key]}, it must be {value}: {reason}")
        in_sync = int(settings.get("min.insync.replicas", "1"))
        if copies >= 3 and in_sync < 2:
            found.append(f"min.insync.replicas is {in_sync}, it must be at least 2: one lost broker would lose records")
        if replicas and in_sync > replicas:
            found.append(f"min.insync.replicas is {in_sync} with {replicas} replicas: no append could ever succeed")
        if (limit := int(settings.get("max.message.bytes", BATCH_BYTES))) < BATCH_BYTES:
            found.append(f"max.message.bytes is {limit}, it must be at least {BATCH_BYTES}")
        return found

    # ------------------------------------------------------------ appending

    async def writer(self, partition: int) -> KafkaWriter:
        """A new session; the broker refuses the former ones as soon as this one has appended."""
        producer = AIOKafkaProducer(
            **self._options, enable_idempotence=True, acks="all", linger_ms=0, max_batch_size=self.batch_bytes_max
        )
        try:
            if identity := await self._lock(partition):
                # A private call.  With an identity set, start() asks for none of its own.
                producer._txn_manager.set_pid_and_epoch(*identity)
            await producer.start()
        except BaseException as error:
            self._in_background(_abandon(producer))
            if isinstance(error, KafkaError | OSError):
                raise LogError(f"no session with Kafka at {self.bootstrap}: {error}") from error
            raise
        return KafkaWriter(self, partition, producer)

    async def _lock(self, partition: int) -> tuple[int, int] | None:
        """Producer id and epoch under this partition's transactional id, or None (and a warning) if they cannot be
        had."""
        name = f"{self.name}/{self.topic}/{partition}"
        try:
            async with asyncio.timeout(_LOCK_TIMEOUT_S):
                return await self._init_producer_id(name)
        except (KafkaError, OSError, TimeoutError, AttributeError, TypeError) as error:
            logger.warning(
                "no lock at the broker for %s (%s); epochs in the log still keep two owners apart",
                name,
                str(error) or "no answer",
            )
            return None

    async def _init_producer_id(self, transactional_id: str) -> tuple[int, int]:
        client = await self._lock_client()
        while True:
            try:
                node = await client.coordinator_lookup(CoordinationType.TRANSACTION, transactional_id)
                request = InitProducerIdRequest(transactional_id, _TRANSACTION_TIMEOUT_MS)
                answer = await client.send(node, request, group=ConnectionGroup.COORDINATION)
                error = for_code(answer.error_code)
                if error is NoError:
                    return answer.producer_id, answer.producer_epoch
                raise error()
            except _TRANSIENT:
                await client.force_metadata_update()
                await asyncio.sleep(0.05)

    async def _lock_client(self) -> AIOKafkaClient:
        """One for all partitions, which are acquired side by side."""
        async with self._opening_client:
            if self._client is None:
                client = AIOKafkaClient(**self._options)
                try:
                    await client.bootstrap()
                except BaseException:
                    await client.close()
                    raise
                self._client = client
            return self._client

    # ------------------------------------------------------------ reading

    async def read(self, partition: int, start: int) -> AsyncGenerator[list[tuple[int, bytes]], None]:
        place = TopicPartition(self.topic, partition)
        consumer = await self._reader(partition)
        try:
            with self._told(partition):
                end = (await consumer.end_offsets([place]))[place]
            if start < end:
                consumer.seek(place, start)
                consumer.resume(place)
            patience = monotonic() + 2 * self._request_timeout_s
            while start < end:
                with self._told(partition, start):
                    got = await consumer.getmany(place, timeout_ms=200, max_records=_PAGE_ROWS)
                    reached = await consumer.position(place)
                page = [(each.offset, each.value or b"") for each in got.get(place, ()) if each.offset < end]
                if page:
                    yield page
                elif monotonic() > patience:
                    raise LogError(
                        f"Kafka gave nothing from offset {start} of partition {partition}, which ends at {end}"
                    )
                if reached > start:
                    start = reached
                    patience = monotonic() + 2 * self._request_timeout_s
        except (LogError, CorruptLog):
            self._in_background(consumer.stop())
            raise
        except BaseException:
            self._put_back(partition, consumer)
            raise
        else:
            self._put_back(partition, consumer)

    async def _reader(self, partition: int) -> AIOKafkaConsumer:
        """A consumer of this partition that nobody uses; a paused one if there is, since a new one costs a few round
        trips."""
        if self._idle[partition]:
            return self._idle[partition].pop()
        place = TopicPartition(self.topic, partition)
        consumer = AIOKafkaConsumer(
            **self._options, auto_offset_reset="none", enable_auto_commit=False, max_partition_fetch_bytes=4 << 20
        )
        consumer.assign([place])
        consumer.pause(place)
        try:
            with self._told(partition):
                await consumer.start()
        except BaseException:
            self._in_background(consumer.stop())
            raise
        return consumer

    def _put_back(self, partition: int, consumer: AIOKafkaConsumer) -> None:
        if len(self._idle[partition]) < 2:
            consumer.pause(TopicPartition(self.topic, partition))
            self._idle[partition].append(consumer)
        else:
            self._in_background(consumer.stop())

    @contextlib.contextmanager
    def _told(self, partition: int, offset: int | None = None) -> Iterator[None]:
        """Translates aiokafka's errors of reading."""
        at = f"partition {partition}" if offset is None else f"partition {partition}, offset {offset}"
        try:
            yield
        except OffsetOutOfRangeError as error:
            raise LogError(f"{at} of topic {self.topic!r} is below the log's start, or beyond its end") from error
        except CorruptRecordException as error:
            raise CorruptLog(f"{at} of topic {self.topic!r}: the batch's checksum is wrong, kind unknown") from error
        except (KafkaError, OSError) as error:  # a TimeoutError is an OSError
            raise LogError(f"{at} of topic {self.topic!r} cannot be used: {str(error) or 'no answer'}") from error

    async def bounds(self, partition: int) -> tuple[int, int]:
        place = TopicPartition(self.topic, partition)
        consumer = await self._reader(partition)
        try:
            with self._told(partition):
                first = (await consumer.beginning_offsets([place]))[place]
                return first, (await consumer.end_offsets([place]))[place]
        finally:
            self._put_back(partition, consumer)

    async def end(self, partition: int) -> int:
        place = TopicPartition(self.topic, partition)
        consumer = await self._reader(partition)
        try:
            with self._told(partition):
                end: int = (await consumer.end_offsets([place]))[place]
                return end
        finally:
            self._put_back(partition, consumer)

    async def offset_at(self, partition: int, at_ms: int) -> int:
        place = TopicPartition(self.topic, partition)
        consumer = await self._reader(partition)
        try:
            with self._told(partition):
                found = (await consumer.offsets_for_times({place: max(0, at_ms)}))[place]
                if found is not None:
                    return int(found.offset)
                end: int = (await consumer.end_offsets([place]))[place]
                return end
        finally:
            self._put_back(partition, consumer)

    # ------------------------------------------------------------ pointers

    async def save_pointer(self, partition: int, pointer: Pointer) -> None:
        """As the group's committed offset, so that ordinary tools show the lag: what a recovery would have to read."""
        where = {TopicPartition(self.topic, partition): OffsetAndMetadata(pointer.covered, str(pointer.position))}
        with self._told(partition):
            async with asyncio.timeout(2 * self._request_timeout_s):
                consumer = await self._pointer_consumer()
                await consumer.commit(where)

    async def load_pointer(self, partition: int) -> Pointer | None:
        place = TopicPartition(self.topic, partition)
        with self._told(partition):
            async with asyncio.timeout(2 * self._request_timeout_s):
                consumer = await self._pointer_consumer()
                # A private call: the public one tells the offset but not the metadata.
                found = (await consumer._coordinator.fetch_committed_offsets([place])).get(place)
        if found is None or found.offset < 0 or not re.fullmatch(r"\d{1,18}", found.metadata or "", re.ASCII):
            return None
        return Pointer(position=int(found.metadata), covered=found.offset)

    async def _pointer_consumer(self) -> AIOKafkaConsumer:
        async with self._opening_pointers:
            if self._pointers is None:
                consumer = AIOKafkaConsumer(
                    **self._options, group_id=self.name, auto_offset_reset="none", enable_auto_commit=False
                )
                places = [TopicPartition(self.topic, each) for each in range(self.partitions)]
                consumer.assign(places)
                consumer.pause(*places)
                try:
                    await consumer.start()
                except BaseException:
                    self._in_background(consumer.stop())
                    raise
                self._pointers = consumer
            return self._pointers

    # ------------------------------------------------------------ trimming

    async def trim(self, partition: int, before: int) -> int:
        """By DeleteRecords; a broker that is on its way, or a replica that has not followed yet, is asked again."""
        first, end = await self.bounds(partition)
        before = min(before, end)
        if before <= first:
            return first
        give_up_at = monotonic() + 3 * self._request_timeout_s
        with self._told(partition):
            admin = AIOKafkaAdminClient(**self._options)
            try:
                await admin.start()
                while True:
                    try:
                        return await self._delete_below(admin, partition, before)
                    except KafkaError as error:
                        if not error.retriable or monotonic() > give_up_at:
                            raise
                    await asyncio.sleep(0.2)
            finally:
                await admin.close()

    async def _delete_below(self, admin: AIOKafkaAdminClient, partition: int, before: int) -> int:
        place = TopicPartition(self.topic, partition)
        try:  # raises what the reply's code means
            async with asyncio.timeout(2 * self._request_timeout_s):
                first: int = (await admin.delete_records({place: RecordsToDelete(before)}))[place]
        except TimeoutError as error:
            raise RequestTimedOutError("no answer to DeleteRecords") from error
        return first

    # ------------------------------------------------------------ closing

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Stopping a client may take as long as its last request; `close` waits for it, nobody else."""
        task = asyncio.create_task(_quietly(work))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    async def close(self) -> None:
        """Stops every client; what does not stop within some seconds is left."""
        for idle in self._idle.values():
            while idle:
                self._in_background(idle.pop().stop())
        if self._pointers is not None:
            self._in_background(self._pointers.stop())
            self._pointers = None
        if self._client is not None:
            self._in_background(self._client.close())
            self._client = None
        if self._closing:
            _, late = await asyncio.wait(self._closing, timeout=_CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()
            if late:
                logger.warning("%d clients of Kafka did not stop in time", len(late))


class KafkaWriter:
    """A session of a `KafkaLog`: one producer for one epoch."""

    def __init__(self, log: KafkaLog, partition: int, producer: AIOKafkaProducer) -> None:
        self._log = log
        self._partition = partition
        self._producer: AIOKafkaProducer | None = producer
        self._order = asyncio.Lock()  # several batches waiting inside aiokafka could overtake each other
        self._broken = ""

    async def append(self, records: Sequence[bytes]) -> int:
        """One batch; more than a batch can hold goes as several, and is confirmed only if they lie side by side."""
        producer = self._producer
        if self._broken or producer is None:
            raise Rejected(f"the session with Kafka is over: {self._broken or 'closed'}")
        batches = self._batches(producer, records)
        try:
            base = await self._send(producer, batches[0])
            expected = base + batches[0].record_count()
            for batch in batches[1:]:
                if base < 0 or await self._send(producer, batch) != expected:
                    raise Unknown("the parts of a large append do not lie side by side")
                expected += batch.record_count()
        except Unknown as error:
            self._broken = str(error)
            raise
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            self._broken = f"the batch is too large: {error}"
            raise (Rejected if len(batches) == 1 else Unknown)(self._broken) from error
        except Exception as error:  # whatever went wrong in there: in doubt is the one safe answer
            self._broken = repr(error)
            raise Unknown(f"Kafka did not confirm: {error!r}") from error
        except BaseException:
            self._broken = "an append was given up"
            raise
        return base

    def _batches(self, producer: AIOKafkaProducer, records: Sequence[bytes]) -> list[Any]:
        batch = producer.create_batch()
        batches = [batch]
        for data in records:
            key = key_of(data)
            if batch.append(timestamp=None, key=key, value=data) is None:
                batch = producer.create_batch()
                batches.append(batch)
                batch.append(timestamp=None, key=key, value=data)
        return batches

    async def _send(self, producer: AIOKafkaProducer, batch: Any) -> int:
        async with self._order:
            confirmed = await producer.send_batch(batch, self._log.topic, partition=self._partition)
        offset: int = (await confirmed).offset
        return offset

    async def close(self) -> None:
        """Ends the session; what is in doubt is left to the broker.  The clean-up goes on in the background."""
        producer, self._producer = self._producer, None
        if producer is not None:
            stopping = self._log._in_background(_abandon(producer))
            await asyncio.wait([stopping], timeout=1.0)


async def _abandon(producer: AIOKafkaProducer) -> None:
    """Stops a producer without waiting for what it has not delivered, which its own stop() does, for ever if need be.

    In this order: no more sending; connections closed, so that what is under way fails now; what was never answered is
    forgotten (whoever waited has been told "unknown"); then there is nothing left for stop() to wait for.
    """
    sender = producer._sender.sender_task
    if sender is not None:
        sender.cancel()
        await producer.client.close()
        while not sender.done():  # one cancel ends its loop, each further one a request that waits for metadata
            await asyncio.wait([sender], timeout=0.1)
            sender.cancel()
    accumulator = producer._message_accumulator
    pending = accumulator._pending_batches
    pending.update(batch for queue in accumulator._batches.values() for batch in queue)
    for batch in list(pending):
        batch.future.cancel()
    await producer.stop()


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception as error:
        logger.debug("stopping a client of Kafka: %r", error)
