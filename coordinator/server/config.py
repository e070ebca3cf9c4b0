"""What an operator may set, with its defaults and limits; `config_sources` reads it from file, environment and flags.

The structs below are the whole truth about the configuration: a field's name is its key, its type says what is
allowed (and the error message is made from it), its default is the default.  What one field alone cannot tell, such as
two listeners on one port, is in `Config.faults`.

A value that is a duration is a string in the file (``"200ms"``) and a `Duration` here: an int of whole milliseconds.
Everything that can grow in the daemon is bounded by a field of this module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct, structs

from coordinator.model.durations import parse_duration
from coordinator.model.settings import BreakerSettings, EngineSettings, ServiceSettings

MIB = 1 << 20
OFF = ("", "off")


class Duration(int):
    """Whole milliseconds; written ``"200ms"``, ``"5s"``, ``"24h"`` wherever a person sees it."""

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Raises ValueError with a sentence that says what is allowed."""
        return cls(parse_duration(text))


def decode_hook(type: type[Any], value: Any) -> Any:
    """Lets msgspec read a `Duration`."""
    if type is Duration:
        return Duration.parse(value)
    raise NotImplementedError(f"no decoding for {type}")


# ---------------------------------------------------------------- checks of one value; each says what is allowed

Check = Callable[[Any], str | None]
"""Tells what is allowed when the value is not, else None."""

_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%a-z]+\]|[^\s\[\]:/@]+):(\d{1,5})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
OWN_HEADERS = frozenset(
    {
        "connection",
        "content-length",
        "content-type",
        "coordinator-fence",
        "host",
        "idempotency-key",
        "transfer-encoding",
    }
)


def split_address(text: str) -> tuple[str, int]:
    """``("127.0.0.1", 8080)`` of ``127.0.0.1:8080``; an IPv6 host stands in brackets.  Raises ValueError."""
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match[2]) > 65_535:
        raise ValueError("an address is host:port, for example 127.0.0.1:8080 or [::1]:8080")
    return match[1].strip("[]"), int(match[2])


def _positive(value: int) -> str | None:
    return None if value > 0 else "a duration longer than 0"


def _session(value: int) -> str | None:
    return None if 1_000 <= value <= 300_000 else "a duration from 1s to 5m"


def _listener(value: str) -> str | None:
    if value in OFF:
        return None
    try:
        split_address(value)
    except ValueError as fault:
        return f"{str(fault).removeprefix('an address is ')}; port 0 picks a free one, off disables it"
    return None


def advertised(given: str, port: int) -> str:
    """``host:port`` of what ``listen.advertise`` says; it may lack the port, and a bare IPv6 address has no brackets
    (Kubernetes' status.podIP is one)."""
    if _is_ipv6(given):
        return f"[{given}]:{port}"
    return given if re.search(r":\d+$", given) else f"{given}:{port}"


def _is_ipv6(text: str) -> bool:
    try:
        return ip_address(text).version == 6
    except ValueError:
        return False


def _advertised(value: str) -> str | None:
    if value == "" or _is_ipv6(value) or re.fullmatch(r"[^\s\[\]:/@]+|\[[0-9A-Fa-f:.%a-z]+\]", value):
        return None
    try:
        if split_address(value)[1] > 0:
            return None
    except ValueError:
        pass
    return "host or host:port, for example 10.0.0.7 or coordinator-0.coordinator:7070"


def _brokers(value: str) -> str | None:
    try:
        if all(split_address(broker)[1] > 0 for broker in value.split(",")):
            return None
    except ValueError:
        pass
    return "brokers as host:port, several with commas between, for example 127.0.0.1:9092"


def _name(value: str) -> str | None:
    return None if _NAME.fullmatch(value) else "1 to 100 of the characters A-Z a-z 0-9 . _ -, a letter or digit first"


def _topic(value: str) -> str | None:
    if value == "" or (_TOPIC.fullmatch(value) and value not in (".", "..")):
        return None
    return "a topic name of at most 249 of the characters A-Z a-z 0-9 . _ -"


def _url(value: str) -> str | None:
    allowed = "http://host[:port][/path], https://…, grpc://host:port or grpcs://host:port"
    if value == "":
        return None
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        return allowed
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or not parts.hostname or re.search(r"\s", value):
        return allowed
    if parts.username is not None or parts.password is not None:
        return "a URL without user and password: put credentials into headers"
    if parts.query or parts.fragment or "?" in value or "#" in value:
        return "a URL without query and fragment"
    if parts.scheme in ("grpc", "grpcs") and (port is None or parts.path not in ("", "/")):
        return allowed
    return None


def _callback_url(value: str) -> str | None:
    if value == "" or (value.startswith(("http://", "https://")) and _url(value) is None):
        return None
    return "http://host[:port][/path] or https://…, without user, password, query and fragment"


def _headers(value: dict[str, str]) -> str | None:
    for name, text in value.items():
        if not _TOKEN.fullmatch(name):
            return f"header names of HTTP ({name!r} is none)"
        if name.lower() in OWN_HEADERS:
            return f"headers other than {', '.join(sorted(OWN_HEADERS))}: the coordinator sets these itself"
        if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", text):
            return f"header values without control characters (see {name})"
    return None


def _not_empty(value: str) -> str | None:
    return None if value.strip() else "a path that is not empty"


def _checked(check: Check) -> Meta:
    return Meta(extra={"check": check})


Interval = Annotated[Duration, _checked(_positive)]
Address = Annotated[str, _checked(_listener)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Bytes = Annotated[int, Meta(ge=1024, le=1 << 30)]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


class Coordinator(Section, frozen=True, kw_only=True):
    """``[coordinator]``"""

    name: Annotated[str, _checked(_name)] = "coordinator"  # the group of instances that share one log
    max_commands: Count = 1000  # slots
    slow_retry_interval: Interval = Duration(200)
    fast_retry_interval: Duration = Duration(0)
    retry_jitter: Duration = Duration(100)
    suspend: Literal["service", "coordinator"] = "service"
    drain_timeout: Duration = Duration(25_000)
    dedupe_horizon: Interval = Duration(3_600_000)  # for how long after its end a command's id is surely known
    recovery_target: Interval = Duration(5_000)  # how long the replay of a partition may take: Snapshots follow it


class LogSection(Section, frozen=True, kw_only=True):
    """``[log]``; an empty ``topic`` is ``<name>.log``."""

    kind: Literal["sqlite", "kafka"] = "sqlite"
    data_dir: Annotated[str, _checked(_not_empty)] = "coordinator-data"
    bootstrap: Annotated[str, _checked(_brokers)] = "127.0.0.1:9092"
    topic: Annotated[str, _checked(_topic)] = ""
    partitions: Annotated[int, Meta(ge=1, le=1024)] = 6  # of Kafka; fixed once the log exists; few: batches shrink
    replication: Annotated[int, Meta(ge=0, le=15)] = 0  # of a topic that is created; 0: 3, or 1 on fewer than 3 brokers
    append_timeout: Interval = Duration(10_000)  # then the client is told log_unavailable
    session_timeout: Annotated[Duration, _checked(_session)] = Duration(6_000)  # of Kafka's group: a hung instance
    retain: Duration = Duration(0)  # what is older, and not needed any more, is deleted; 0: everything is kept


class Listen(Section, frozen=True, kw_only=True):
    """``[listen]``: ``host:port`` each; ``off`` or nothing disables one; port 0 picks a free one."""

    http: Address = "127.0.0.1:8080"
    grpc: Address = "127.0.0.1:9090"
    tcp: Address = "127.0.0.1:7070"
    advertise: Annotated[str, _checked(_advertised)] = ""  # host[:port] at which the others reach the TCP listener
    callback_url: Annotated[str, _checked(_callback_url)] = ""  # where services reach HTTP: callbacks begin with it

    def addresses(self) -> dict[str, tuple[str, int]]:
        """Host and port by transport, of those that are on."""
        texts = {"http": self.http, "grpc": self.grpc, "tcp": self.tcp}
        return {transport: split_address(text) for transport, text in texts.items() if text not in OFF}


class Limits(Section, frozen=True, kw_only=True):
    """``[limits]``: what one client may take, so that the others never notice."""

    body_bytes: Bytes = MIB  # an HTTP body, a gRPC message, a TCP frame
    payload_bytes: Bytes = MIB  # a command's payload, any JSON that a client hands in
    header_bytes: Bytes = 64 * 1024  # request line and headers of HTTP
    write_buffer_bytes: Bytes = MIB  # unsent answers of a slow reader before its connection is paused, then closed
    connections: Count = 1000  # a transport
    in_flight: Count = 1024  # requests a connection that are not answered yet
    read_timeout: Interval = Duration(30_000)  # from a request's first byte to its last
    idle_timeout: Interval = Duration(300_000)  # a connection without a request


class Logging(Section, frozen=True, kw_only=True):
    """``[logging]``; ``auto`` is console on a terminal, JSON elsewhere."""

    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Breaker(Section, frozen=True, kw_only=True):
    """``breaker = { failures = 5, reset = "5s" }``"""

    failures: Count = 5  # unknown answers in a row that open it
    reset: Interval = Duration(5_000)  # then one call may probe


class Service(Section, frozen=True, kw_only=True):
    """``[services.NAME]``; without a ``url`` the application must plug in a client for it."""

    url: Annotated[str, _checked(_url)] = ""
    timeout: Interval = Duration(5_000)
    connect_timeout: Interval = Duration(2_000)
    max_in_flight: Annotated[int, Meta(ge=1, le=10_000)] = 64
    response_bytes_max: Bytes = MIB
    breaker: Breaker = Breaker()
    headers: Annotated[dict[str, str], _checked(_headers)] = {}
    tls_ca: str = ""  # PEM file; the system's roots otherwise
    tls_verify: bool = True


class Config(Section, frozen=True, kw_only=True):
    """The whole configuration of one instance."""

    coordinator: Coordinator = Coordinator()
    log: LogSection = LogSection()
    listen: Listen = Listen()
    limits: Limits = Limits()
    logging: Logging = Logging()
    services: dict[str, Service] = {}

    def resolved(self) -> Config:
        """With the defaults filled in that depend on other fields."""
        topic = self.log.topic or f"{self.coordinator.name}.log"
        return structs.replace(self, log=structs.replace(self.log, topic=topic))

    def faults(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """What is wrong between fields: the path of the field to change, and what is allowed."""
        addresses = self.listen.addresses()
        if not addresses:
            yield ("listen",), "at least one of http, grpc and tcp that is on"
        taken: dict[tuple[str, int], str] = {}
        for transport, address in addresses.items():
            other = taken.setdefault(address, transport)
            if other != transport and address[1]:
                yield ("listen", transport), f"an address of its own, not that of listen.{other}"
        if self.limits.payload_bytes > self.limits.body_bytes:
            yield ("limits", "payload_bytes"), f"at most limits.body_bytes ({self.limits.body_bytes})"
        for name in self.services:
            if (fault := _name(name)) is not None:
                yield ("services", name), f"a name of {fault}"

    def engine_settings(self) -> EngineSettings:
        own = self.coordinator
        return EngineSettings(
            max_commands=own.max_commands,
            slow_retry_interval_ms=int(own.slow_retry_interval),
            fast_retry_interval_ms=int(own.fast_retry_interval),
            retry_jitter_ms=int(own.retry_jitter),
            suspend=own.suspend,
            callback_url=self.listen.callback_url.rstrip("/"),
        )

    def service_settings(self) -> dict[str, ServiceSettings]:
        return {name: _service_settings(name, service) for name, service in self.services.items()}


def _service_settings(name: str, service: Service) -> ServiceSettings:
    return ServiceSettings(
        name=name,
        url=service.url,
        timeout_ms=int(service.timeout),
        connect_timeout_ms=min(int(service.connect_timeout), int(service.timeout)),
        max_in_flight=service.max_in_flight,
        response_bytes_max=service.response_bytes_max,
        breaker=BreakerSettings(failures=service.breaker.failures, reset_ms=int(service.breaker.reset)),
        headers=dict(service.headers),
        tls_ca=service.tls_ca or None,
        tls_verify=service.tls_verify,
    )
