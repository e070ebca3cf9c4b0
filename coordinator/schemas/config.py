"""JSON Schema of coordinator.toml, derived from the structs of `server.config`.

The structs say what keys there are, their types and defaults, so a key that is added there is in the schema at once.
What they cannot say is here: a sentence for each key (`WORDS`) and the checks that are code, as patterns (`CHECKS`);
both are looked up while the schema is made, so that none can be forgotten.  Two rules relate fields to each other and
are beyond a schema: listeners on different addresses, and ``payload_bytes`` at most ``body_bytes``.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import NODEFAULT, inspect, structs

from coordinator.model.durations import DURATION_RULE, format_duration
from coordinator.schemas import patterns
from coordinator.server.config import OFF, OWN_HEADERS, Config, Duration, Section, Service

Schema = dict[str, Any]

_NAME: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_OWN: Final = patterns.any_case(patterns.one_of(sorted(OWN_HEADERS)))


def _text(pattern: str, allowed: str) -> Schema:
    """A string of this pattern; editors that know ``patternErrorMessage`` say what is allowed."""
    return {"type": "string", "pattern": patterns.whole(pattern), "patternErrorMessage": f"allowed is {allowed}"}


DEFINITIONS: Final[dict[str, Schema]] = {
    "duration": _text(patterns.durations(0), DURATION_RULE.removeprefix("a duration is ")),
    "interval": {
        "allOf": [{"$ref": "#/$defs/duration"}],
        "not": {"pattern": patterns.whole(patterns.durations(0, 0))},
        "errorMessage": "allowed is a duration longer than 0",
    },
    "session": _text(patterns.durations(1_000, 300_000), "a duration from 1s to 5m"),
    "address": _text(f"|{'|'.join(filter(None, OFF))}|{patterns.address()}", "host:port, or off"),
}

CHECKS: Final[dict[str, Schema]] = {
    # by the name of the function that checks it in `server.config`
    "positive": {"allOf": [{"$ref": "#/$defs/interval"}]},
    "session": {"allOf": [{"$ref": "#/$defs/session"}]},
    "listener": {"allOf": [{"$ref": "#/$defs/address"}]},
    "advertised": _text(f"|{patterns.host()}|{patterns.address(1)}|{patterns.ipv6()}", "host or host:port"),
    "brokers": _text(patterns.brokers(), "host:port, several with commas between"),
    "name": _text(_NAME, "1 to 100 of the characters A-Z a-z 0-9 . _ -, a letter or digit first"),
    "topic": {
        **_text("[A-Za-z0-9._-]{0,249}", "at most 249 of the characters A-Z a-z 0-9 . _ -"),
        "not": {"enum": [".", ".."]},
    },
    "url": _text(
        f"|{patterns.service_url()}", "http://host[:port][/path], https://…, grpc://host:port or grpcs://host:port"
    ),
    "callback_url": _text(f"|{patterns.http_url()}", "http://host[:port][/path] or https://…"),
    "headers": {
        "propertyNames": {
            "pattern": patterns.whole("[!#$%&'*+.^_`|~0-9A-Za-z-]+"),
            "not": {"pattern": patterns.whole(_OWN)},
        },
        "additionalProperties": {"type": "string", "not": {"pattern": "[\\x00-\\x08\\x0a-\\x1f\\x7f]"}},
    },
    "not_empty": {"type": "string", "pattern": "\\S"},
}

WORDS: Final[dict[str, str]] = {
    "coordinator": "What this instance is, and how much it takes on.",
    "coordinator.name": "The group of instances that share one log.",
    "coordinator.max_commands": "Slots of an instance: commands that run or are delayed. Above it submissions are "
    "refused with a delay.",
    "coordinator.slow_retry_interval": "Within which the delayed calls of a service are all retried about once.",
    "coordinator.fast_retry_interval": "The same after an outage, from the first success on until the backlog is done.",
    "coordinator.retry_jitter": "By which both intervals are scattered.",
    "coordinator.suspend": "What an open breaker suspends: commands that need the service, or all of the coordinator.",
    "coordinator.drain_timeout": "How long a stop takes at most.",
    "coordinator.dedupe_horizon": "For how long after its end a command's id is surely known.",
    "coordinator.recovery_target": "How long the replay of a partition may take: snapshots follow it.",
    "log": "Where the records are.",
    "log.kind": "sqlite, embedded, for one instance; or kafka.",
    "log.data_dir": "The embedded log; with Kafka the view of finished commands, which may be lost.",
    "log.bootstrap": "Kafka's brokers, with commas between.",
    "log.topic": "One topic a group; empty: <name>.log.",
    "log.partitions": "Of a topic that is created; fixed from then on. At most so many instances act.",
    "log.replication": "Of a topic that is created; 0: three copies, or one where there are fewer than three brokers.",
    "log.append_timeout": "After which a client is told log_unavailable.",
    "log.session_timeout": "After which Kafka's group gives up an instance that hangs or is cut off; from 1s to 5m.",
    "log.retain": "Records that are older are deleted, up to where a confirmed snapshot allows; 0: all are kept.",
    "listen": "Where clients reach this instance; at least one of http, grpc and tcp is on.",
    "listen.http": "host:port of HTTP; off for none, port 0 for any free one.",
    "listen.grpc": "host:port of gRPC; off for none, port 0 for any free one.",
    "listen.tcp": "host:port of the TCP protocol, which the instances of a group also speak to each other.",
    "listen.advertise": "host or host:port at which the other instances reach the TCP listener.",
    "listen.callback_url": "Where services reach the coordinator to answer later, for example "
    "https://coordinator.example; empty: the HTTP listener.",
    "limits": "What one client may take, so that the others never notice.",
    "limits.body_bytes": "An HTTP body, a gRPC message, a TCP frame.",
    "limits.payload_bytes": "A command's payload, any JSON that a client hands in; at most body_bytes.",
    "limits.header_bytes": "Request line and headers of HTTP.",
    "limits.write_buffer_bytes": "Unsent answers of a slow reader before its connection is paused, then closed.",
    "limits.connections": "Open connections of a transport.",
    "limits.in_flight": "Requests of a connection that are not answered yet.",
    "limits.read_timeout": "From a request's first byte to its last.",
    "limits.idle_timeout": "A connection without a request.",
    "logging": "What the daemon tells of itself.",
    "logging.format": "auto: console on a terminal, JSON elsewhere.",
    "logging.level": "The least that is told.",
    "services": "The services that commands may call, by name; there are no other addresses.",
    "services.*": "One service that commands may call.",
    "services.*.url": "http://, https://, grpc:// or grpcs://; empty where the application plugs in a client.",
    "services.*.timeout": "Of a call; what is not answered by then is unknown, and asked again.",
    "services.*.connect_timeout": "Of a new connection.",
    "services.*.max_in_flight": "Calls at once, of each instance.",
    "services.*.response_bytes_max": "An answer that is longer cannot be read: it counts as unknown.",
    "services.*.breaker": "What keeps a service that is down from being asked all the time.",
    "services.*.breaker.failures": "So many unknown answers in a row open it.",
    "services.*.breaker.reset": "Then one call may probe after each such time.",
    "services.*.headers": "Sent with every call.",
    "services.*.tls_ca": "A PEM file; empty: the system's roots.",
    "services.*.tls_verify": "Whether the service's certificate is checked.",
}


def config() -> Schema:
    """The schema of the file, as a new document."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "coordinator.toml",
        "description": "Configuration of the coordinator: docs/configuration.md.",
        **_table(Config, ""),
        "$defs": DEFINITIONS,
    }


def _table(kind: type[Section], path: str) -> Schema:
    table = {
        "type": "object",
        "additionalProperties": False,
        "properties": {field.name: _key(field, f"{path}{field.name}") for field in structs.fields(kind)},
    }
    if path == "listen.":
        off = {"enum": list(OFF)}
        transports = ("http", "grpc", "tcp")
        table["not"] = {"required": list(transports), "properties": dict.fromkeys(transports, off)}
    return table


def _key(field: structs.FieldInfo, path: str) -> Schema:
    if field.type == dict[str, Service]:
        service = {"description": WORDS[f"{path}.*"], **_table(Service, f"{path}.*.")}
        names = {"pattern": patterns.whole(_NAME)}
        content: Schema = {"type": "object", "propertyNames": names, "additionalProperties": service}
    elif isinstance(field.type, type) and issubclass(field.type, Section):
        content = _table(field.type, f"{path}.")
    else:
        content = {**_value(field.type), "default": _written(field)}
    return {"description": WORDS[path], **content}


def _value(kind: Any) -> Schema:
    """What one value may be."""
    info, check = inspect.type_info(kind), None
    if isinstance(info, inspect.Metadata):
        check, info = (info.extra or {}).get("check"), info.type
    rule = CHECKS[check.__name__.lstrip("_")] if check is not None else None
    match info:
        case inspect.IntType():
            return {"type": "integer", "minimum": info.ge, "maximum": info.le}
        case inspect.LiteralType():
            return {"enum": sorted(map(str, info.values))}
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.CustomType() if info.cls is Duration:
            return rule or {"allOf": [{"$ref": "#/$defs/duration"}]}
        case inspect.DictType():
            return {"type": "object", **(rule or {"additionalProperties": {"type": "string"}})}
        case inspect.StrType():
            return rule or {"type": "string"}
        case _:
            raise TypeError(f"no schema for {info}")


def _written(field: structs.FieldInfo) -> Any:
    """A default as it would stand in the file; every key has one."""
    default = field.default if field.default is not NODEFAULT else field.default_factory()
    return format_duration(default) if isinstance(default, Duration) else default
