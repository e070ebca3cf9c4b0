"""The membership of an instance in its group: Kafka's consumer group, of which only the group is used.

    find the coordinator ─▶ join (what I hold) ─▶ sync (the leader's table) ─▶ heartbeat ─▶ heartbeat ─▶ …
                              ▲                                                    │ the group is changing
                              └────────────────────────────────────────────────────┘

Every member tells, as it joins, who it is, where it listens and which partitions it acts for (`Claim`).  One of them,
chosen by the broker, assigns the partitions and gives everybody the whole table (`Table`): so one round tells each
member all the members, their addresses and all the owners.

*Why no AIOKafkaConsumer.*  A consumer is made to fetch; here nothing is fetched, committed or sought, and what remains
of it are four requests.  Spoken directly they give what a consumer cannot: the time at which the group last heard us;
a leave that works while a rebalance waits for a dead member (a consumer's stop() waits along with it, for seconds); and
no hidden state that could be stuck, since whatever goes wrong with a connection is cured by a new one.  The format is
that of ordinary consumers, so ordinary tools show the group, its members and who has which partition.

*A new connection is no new membership.*  Member id and generation outlive it: when the broker answers the next
heartbeat, nothing has happened.  A rebalance stops nothing either: what was agreed last holds until there is a new
agreement, and even that is only a hint (`base.Assignment`).

*Silence.*  The broker gives a member up when it has not heard it for the session timeout.  We count from the moment
when the last request that it answered was *sent*, so we never believe in our membership for longer than the group does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import structlog
from aiokafka.client import CoordinationType  # type: ignore[import-untyped]
from aiokafka.conn import AIOKafkaConnection, collect_hosts, create_conn  # type: ignore[import-untyped]
from aiokafka.coordinator.protocol import ConsumerProtocol  # type: ignore[import-untyped]
from aiokafka.errors import (  # type: ignore[import-untyped]
    IllegalGenerationError,
    MemberIdRequired,
    NoError,
    RebalanceInProgressError,
    UnknownMemberIdError,
    for_code,
)
from aiokafka.protocol.coordination import FindCoordinatorRequest  # type: ignore[import-untyped]
from aiokafka.protocol.group import (  # type: ignore[import-untyped]
    HeartbeatRequest,
    JoinGroupRequest,
    LeaveGroupRequest,
    SyncGroupRequest,
)
from msgspec import Struct

from coordinator.cluster.assignment import assign
from coordinator.cluster.base import Assignment, Held, Member

ASSIGNOR: Final = "coordinator.1"  # members with another one are no group; what may differ is fields of the structs
NO_AGREEMENT: Final = Assignment(-1, {}, {})
_VERSION: Final = 0  # of the consumer protocol's own envelopes
_RETRY_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)  # from one attempt to the next, the last one for ever
_COMPLAIN_S: Final = 30.0  # between two warnings of one outage
_LEAVE_S: Final = 2.0

# Of the options that clients of Kafka take, those that concern one connection.
_CONNECTION_OPTIONS: Final = frozenset(
    {
        *("client_id", "security_protocol", "ssl_context"),
        *("sasl_mechanism", "sasl_plain_username", "sasl_plain_password"),
        *("sasl_kerberos_service_name", "sasl_kerberos_domain_name", "sasl_oauth_token_provider"),
    }
)

log = structlog.get_logger(__name__)


# ---------------------------------------------------------------- what members and their leader say to each other


class Claim(Struct, frozen=True):
    """From each member to the leader.  Encoded as a map: fields that a later version adds are passed over."""

    member: Member
    held: dict[int, int] = {}


class Table(Struct, frozen=True):
    """From the leader to each member: by partition, the index of its owner in ``members``.  Small, since the broker
    keeps a copy for every member, all in one record."""

    members: list[Member]
    owners: list[int]


_claims: Final = msgspec.msgpack.Decoder(Claim)
_tables: Final = msgspec.msgpack.Decoder(Table)


def table(partitions: int, claims: Iterable[Claim]) -> Table:
    """The leader's part.  An instance that is there twice (the group has not yet missed its former life on another
    connection) counts once."""
    by_instance = {claim.member.instance: claim for claim in claims}
    members = [by_instance[instance].member for instance in sorted(by_instance)]
    owners = assign(partitions, {instance: claim.held for instance, claim in by_instance.items()})
    index = {member.instance: number for number, member in enumerate(members)}
    return Table(members, [index[owners[partition]] for partition in sorted(owners)])


def agreement(generation: int, table: Table) -> Assignment:
    """Raises ValueError where the table names an owner that is not there."""
    if not all(0 <= owner < len(table.members) for owner in table.owners):
        raise ValueError("an owner is no member")
    return Assignment(
        generation,
        {member.instance: member for member in table.members},
        {partition: table.members[owner].instance for partition, owner in enumerate(table.owners)},
    )


def _claim(member_id: str, metadata: bytes) -> Claim | None:
    """What a member told; None for a stranger in the group, who gets no partitions."""
    try:
        return _claims.decode(ConsumerProtocol.METADATA.decode(metadata).user_data)
    except Exception as error:  # a stranger's bytes: any of two decoders' errors
        log.warning("a stranger is in the group: it is given nothing", member_id=member_id, reason=str(error))
        return None


# ---------------------------------------------------------------- one connection


class _Trouble(Exception):
    """This connection, or what the broker says on it, is of no use now: try again with a new one."""


class _Broker:
    """One connection; every request on it has a deadline, and whatever aiokafka raises becomes `_Trouble`."""

    def __init__(self, connection: AIOKafkaConnection) -> None:
        self._connection = connection

    async def ask(self, request: Any, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._connection.send(request)
        except TimeoutError:
            raise _Trouble(f"{type(request).__name__} was not answered within {timeout_s:g} s") from None
        except Exception as error:
            raise _Trouble(f"{type(request).__name__} failed: {error!r}") from error


def _check(answer: Any) -> None:
    error = for_code(answer.error_code)
    if error is not NoError:
        raise _Trouble(f"the broker answered {error.__name__}: {error.description or error.message}")


# ---------------------------------------------------------------- the member


class KafkaGroup:
    """The `Membership` port over the consumer group named ``group``.

    ``bootstrap`` is ``host:port[,host:port]``; ``topic`` and ``partitions`` are the log's.  ``held`` is asked whenever
    this instance (re)joins.  A member that is not heard for ``session_timeout_ms`` is given up by the others (brokers
    refuse less than 6 s unless told otherwise); ``heartbeat_ms`` is how soon a member learns that the group changes.
    ``client_options`` are those of aiokafka's clients (``security_protocol``, ``ssl_context``, ``sasl_…``).
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        partitions: int,
        *,
        group: str,
        me: Member,
        held: Callable[[], Held],
        session_timeout_ms: int = 6_000,
        heartbeat_ms: int = 500,
        client_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._hosts = [(host, port) for host, port, _ in collect_hosts(bootstrap, randomize=False)]
        self._topic = topic
        self._partitions = partitions
        self._group = group
        self._me = me
        self._held = held
        self._session_s = session_timeout_ms / 1000
        self._heartbeat_s = heartbeat_ms / 1000
        # A rebalance waits this long for members that do not come back.  Below the session timeout, since those who
        # wait along cannot be heard meanwhile; well above a heartbeat, at which members learn of it.
        self._rebalance_s = max(self._session_s - 2 * self._heartbeat_s, self._session_s / 2)
        self._request_s = self._session_s / 4  # for what is answered at once: leaves time for further attempts
        self._options = {
            "sasl_mechanism": "PLAIN",
            **{key: value for key, value in (client_options or {}).items() if key in _CONNECTION_OPTIONS},
        }
        # What the group knows us by.
        self._member_id = ""
        self._generation = -1
        self._joined = False  # False: to join, or to join again
        self._coordinator: tuple[str, int] | None = None
        # What the teller knows.
        self._tell: Callable[[Assignment], None] = lambda _: None
        self._agreed = NO_AGREEMENT
        self._told = NO_AGREEMENT
        self._silence: asyncio.TimerHandle | None = None
        self._complain_at = 0.0
        self._leaving = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()

    async def run(self, on_change: Callable[[Assignment], None]) -> None:
        """See `Membership`.  Ends by `leave`; a cancel leaves the group to notice it by the session timeout."""
        self._tell = on_change
        self._ended.clear()
        try:
            async with asyncio.TaskGroup() as tasks:
                member = tasks.create_task(self._take_part())
                await self._leaving.wait()
                member.cancel()
            await self._say_goodbye()
        finally:
            if self._silence is not None:
                self._silence.cancel()
            self._ended.set()

    async def leave(self) -> None:
        """See `Membership`.  The group is told at once, also in the middle of a rebalance; a broker that does not
        answer within 2 s finds out by itself.  Nothing more is told to the teller of `run`."""
        self._leaving.set()
        await self._ended.wait()

    # ------------------------------------------------------------ connections

    async def _take_part(self) -> None:
        """Connections, one after the other; each that was of use makes the next one come quickly."""
        failures = 0
        while True:
            try:
                async with self._at_coordinator(failures) as broker:
                    while True:
                        await self._stay(broker)
                        failures = 0
            except _Trouble as trouble:
                self._complain(str(trouble), failures)
            await asyncio.sleep(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
            failures += 1

    @asynccontextmanager
    async def _at_coordinator(self, attempt: int) -> AsyncIterator[_Broker]:
        """A connection to the broker that looks after our group, by way of any other."""
        async with self._connected(*self._hosts[attempt % len(self._hosts)]) as broker:
            found = await broker.ask(FindCoordinatorRequest(self._group, CoordinationType.GROUP), self._request_s)
        _check(found)
        self._coordinator = (found.host, found.port)
        async with self._connected(*self._coordinator) as broker:
            yield broker

    @asynccontextmanager
    async def _connected(self, host: str, port: int) -> AsyncIterator[_Broker]:
        try:
            async with asyncio.timeout(self._request_s):
                # Each request has its own deadline (`_Broker.ask`), above which this one must lie.
                connection = await create_conn(
                    host, port, request_timeout_ms=round(2000 * self._session_s), **self._options
                )
        except Exception as error:
            raise _Trouble(f"no connection to Kafka at {host}:{port}: {str(error) or 'no answer'}") from error
        try:
            yield _Broker(connection)
        finally:
            connection.close()

    def _complain(self, reason: str, failures: int) -> None:
        """A hiccup is no news; what lasts is said when that is clear, and again now and then."""
        now = asyncio.get_running_loop().time()
        if failures >= 2 and now >= self._complain_at:
            self._complain_at = now + _COMPLAIN_S
            log.warning("trouble with the group, which is tried again", group=self._group, reason=reason)
        else:
            log.debug("trouble with the group", group=self._group, reason=reason)

    # ------------------------------------------------------------ the protocol

    async def _stay(self, broker: _Broker) -> None:
        """One agreement, or one heartbeat and the pause after it."""
        if not self._joined:
            await self._join(broker)
        sent = asyncio.get_running_loop().time()
        await self._beat(broker, sent)
        if self._joined:
            await asyncio.sleep(sent + self._heartbeat_s - asyncio.get_running_loop().time())

    async def _join(self, broker: _Broker) -> None:
        """Waits until all members have come (or had time to), then until the leader has made its table."""
        user_data = msgspec.msgpack.encode(Claim(self._me, dict(self._held())))
        metadata = ConsumerProtocol.METADATA(_VERSION, [self._topic], user_data).encode()
        request = JoinGroupRequest(
            self._group,
            round(self._session_s * 1000),
            round(self._rebalance_s * 1000),
            self._member_id,
            None,
            ConsumerProtocol.PROTOCOL_TYPE,
            [(ASSIGNOR, metadata)],
        )
        answer = await broker.ask(request, self._session_s)
        error = for_code(answer.error_code)
        if error is MemberIdRequired:  # a first visit: come again with the id that you are given
            self._member_id = answer.member_id
        elif error is UnknownMemberIdError:
            self._expelled()
        else:
            _check(answer)
            self._member_id, self._generation = answer.member_id, answer.generation_id
            members = answer.members if answer.leader_id == answer.member_id else []
            await self._sync(broker, self._assignments(members))

    def _assignments(self, members: Iterable[Any]) -> list[tuple[str, bytes]]:
        """What the leader gives to each member; nothing if we are not the leader.

        The partitions are there for ordinary tools to show; members go by the table.
        """
        claims = {member[0]: _claim(member[0], member[-1]) for member in members}
        made = table(self._partitions, filter(None, claims.values()))
        user_data = msgspec.msgpack.encode(made)
        shares: dict[str, list[int]] = {}
        for partition, owner in enumerate(made.owners):
            shares.setdefault(made.members[owner].instance, []).append(partition)
        return [
            (
                member_id,
                ConsumerProtocol.ASSIGNMENT(
                    _VERSION, [(self._topic, shares.get(claim.member.instance, []) if claim else [])], user_data
                ).encode(),
            )
            for member_id, claim in claims.items()
        ]

    async def _sync(self, broker: _Broker, assignments: list[tuple[str, bytes]]) -> None:
        sent = asyncio.get_running_loop().time()
        request = SyncGroupRequest(self._group, self._generation, self._member_id, None, assignments)
        answer = await broker.ask(request, self._session_s)
        error = for_code(answer.error_code)
        if error is UnknownMemberIdError:
            self._expelled()
        elif error not in (
            RebalanceInProgressError,
            IllegalGenerationError,
        ):  # those: somebody came or went, join again
            _check(answer)
            self._joined = True
            self._learn(answer.member_assignment)
            self._heard(sent)

    def _learn(self, assignment: bytes) -> None:
        try:
            user_data = ConsumerProtocol.ASSIGNMENT.decode(assignment).user_data
            self._agreed = agreement(self._generation, _tables.decode(user_data))
        except Exception as error:  # a stranger's bytes: any of two decoders' errors
            log.warning(
                "the group's leader is a stranger: what it says is ignored", group=self._group, reason=str(error)
            )

    async def _beat(self, broker: _Broker, sent: float) -> None:
        if not self._joined:
            return
        answer = await broker.ask(HeartbeatRequest(self._group, self._generation, self._member_id), self._request_s)
        error = for_code(answer.error_code)
        if error is UnknownMemberIdError:
            self._expelled()
        elif error is IllegalGenerationError:  # the group has gone on without us, but would have us back
            self._joined = False
        elif error is RebalanceInProgressError:
            self._joined = False
            self._heard(sent)
        else:
            _check(answer)
            self._heard(sent)

    async def _say_goodbye(self) -> None:
        """On a connection of its own: the broker answers nothing on one where a join waits."""
        if self._coordinator is None or not self._member_id:
            return
        try:
            async with asyncio.timeout(_LEAVE_S), self._connected(*self._coordinator) as broker:
                _check(await broker.ask(LeaveGroupRequest(self._group, self._member_id), _LEAVE_S))
        except (_Trouble, TimeoutError) as error:
            log.warning("the group could not be told that this instance leaves", group=self._group, reason=str(error))

    # ------------------------------------------------------------ what the teller is told

    def _heard(self, sent: float) -> None:
        """The group counted us among its members at that time or later."""
        if self._silence is not None:
            self._silence.cancel()
        self._silence = asyncio.get_running_loop().call_at(sent + self._session_s, self._unheard)
        self._complain_at = 0.0
        self._say(self._agreed)

    def _unheard(self) -> None:
        """The group may have given us up by now.  If it has not (its broker was away), the next answer says so."""
        self._say(NO_AGREEMENT)

    def _expelled(self) -> None:
        """The group does not know us (any more): next we join as a new member."""
        self._member_id, self._joined, self._agreed = "", False, NO_AGREEMENT
        self._say(NO_AGREEMENT)

    def _say(self, assignment: Assignment) -> None:
        if assignment is not self._told:
            self._told = assignment
            self._tell(assignment)
