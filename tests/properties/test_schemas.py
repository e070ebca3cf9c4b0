"""The schemas against the readers that they describe, over files of any content."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings
from jsonschema import Draft202012Validator

from coordinator import schemas
from coordinator.errors import ConfigError
from coordinator.model.reading import parse
from coordinator.server.config_sources import load

DEFINITION = Draft202012Validator(schemas.definition())
CONFIG = Draft202012Validator(schemas.config())
SERVICES = {"stock": "http", "ledger": "grpc"}

BEYOND = re.compile(
    # what a schema cannot know: other steps, the configuration, sums and comparisons
    r"unknown step|duplicate name|a cycle|unknown service|is longer than max|given the data|cannot be the first"
    r"|nothing is saved when it arrives|a gRPC request has no path|a method is one of|a gRPC method is its full name"
)

# ---------------------------------------------------------------- definitions

DURATIONS = ["5s", "0ms", "1.5h", "0.4ms", "0.0009s", "36500d", "36501d", "5", "5 s", "", None, 5, True]
NAMES = ["a", "b", "c", "d-1", "_e", "1f", "g h", "", None, 7]
ANYTHING = [None, True, False, 0, 1, 3, -1, 0.5, 2.5, "", "a", "x y", [], ["a"], {}, {"a": 1}, "5s", "undo"]
values = st.sampled_from(ANYTHING)


def now_and_then(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what belongs there, sometimes what does not."""
    return st.integers(0, 9).flatmap(lambda dice: values if dice == 0 else good)


def fields(**known: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the fields."""
    return st.fixed_dictionaries({}, optional={name: now_and_then(value) for name, value in known.items()})


durations = st.sampled_from(DURATIONS)
names = st.sampled_from(NAMES)
flags = st.sampled_from([True, False, None])
retries = fields(
    attempts=st.sampled_from([1, 3, 1000, 1001, 0, None]),
    backoff=st.sampled_from(["fixed", "exponential", "linear", None]),
    first=durations,
    max=durations,
    jitter=st.sampled_from([0, 0.5, 1, 1.1, None]),
)
REQUEST: dict[str, st.SearchStrategy[Any]] = {
    "service": st.sampled_from(["stock", "ledger"]),
    "method": st.sampled_from(["GET", "POST", "get", "shop.Ledger/Book", "a/b/c", "", None]),
    "path": st.sampled_from(["/", "/x/${payload.a}", "/$", None]),
    "body": values,
    "headers": st.dictionaries(
        st.sampled_from(["x-a", "Host", "EXPECT", "a b", "tEst"]), st.sampled_from(["b", 1, None])
    ),
    "answers": st.dictionaries(
        st.sampled_from(["404", "5xx", "NOT_FOUND", "6xx", "4x", "a"]),
        st.sampled_from(["outcome", "failure", "delayed", "fine", None]),
    ),
    "retry": retries,
    "timeout": durations,
}
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "decision": st.just(True)
    | fields(
        input=values,
        roles=st.lists(st.sampled_from(["boss", " ", "", 1, "boss"]), max_size=3),
        timeout=durations,
        on_timeout=st.sampled_from(["reject", "approve", "fail", "undo", None]),
        on_reject=st.sampled_from(["undo", "continue", "retry", None]),
    ),
    "data": names
    | st.just(True)
    | fields(
        name=names,
        timeout=durations,
        on_timeout=st.sampled_from(["fail", "null", None, "reject"]),
        optional=flags,
        reruns=flags,
        reopens=flags,
    ),
    "sleep": durations | fields(**{"for": durations}),
}
EVERY: dict[str, st.SearchStrategy[Any]] = {
    "after": st.lists(st.sampled_from(["s0", "s1", "s2", 3]), max_size=3) | st.none(),
    "join": st.sampled_from(["all", "any", "any", "first", None]),
    "losers": st.sampled_from(["undo", "keep", None]),
    "when": st.sampled_from(["payload.a", "true", None, 1]),
    "savepoint": flags
    | fields(
        then=st.sampled_from(["retry", "undo", "dead_letter", "stop", None]),
        attempts=st.sampled_from([1, 1000, 1001, 0, None]),
        exhausted=st.sampled_from(["undo", "dead_letter", "retry", None]),
    ),
}


@st.composite
def steps(draw: st.DrawFn, number: list[int], depth: int = 2) -> list[Any]:
    """A list of steps of all kinds, nested in blocks and branches; ``number`` counts their names."""
    listed: list[Any] = []
    for _ in range(draw(st.integers(1, 3))):
        step: dict[str, Any] = {"name": draw(names) if draw(st.integers(0, 19)) == 0 else f"s{number[0]}"}
        number[0] += 1
        step.update({name: draw(value) for name, value in EVERY.items() if draw(st.integers(0, 4)) == 0})
        kind = draw(st.sampled_from(["service", "service", *KINDS, "steps"] if depth else ["service", *KINDS]))
        if kind == "service":
            step["service"] = draw(now_and_then(REQUEST["service"]))
            own = {"undo": fields(**REQUEST), "give_up_after": durations, "deadline": durations, **REQUEST}
            step.update({n: draw(now_and_then(v)) for n, v in own.items() if draw(st.integers(0, 5)) == 0})
        elif kind == "steps":
            step["steps"] = draw(steps(number, depth - 1))
        else:
            step[kind] = draw(now_and_then(KINDS[kind]))
        if depth and draw(st.integers(0, 5)) == 0:
            step["else"] = draw(steps(number, depth - 1))
        if draw(st.integers(0, 19)) == 0:
            step[draw(st.sampled_from(["timeout", "decision", "sleep", "steps", "timeot", "undo"]))] = draw(values)
        listed.append(step)
    return listed


@st.composite
def definitions(draw: st.DrawFn) -> Any:
    """Definitions that are right, or nearly."""
    content: dict[str, Any] = {"steps": draw(now_and_then(steps([0])) if draw(st.integers(0, 9)) == 0 else steps([0]))}
    others = {
        "name": names,
        "version": st.sampled_from([1, 2**31 - 1, 2**31, 0, True, None]),
        "on_failure": st.sampled_from(["undo", "dead_letter", "retry", None]),
        "deadlines": st.dictionaries(st.sampled_from(["waiting", "paused", "running", "completed"]), durations),
        "pause_after": fields(errors=st.sampled_from([1, 1_000_000, 0, None]), resume_after=durations),
        "result": values,
        "extra": values,
    }
    chosen = {name: draw(now_and_then(value)) for name, value in others.items() if draw(st.integers(0, 7)) == 0}
    return {**content, **chosen}


@settings(max_examples=400, deadline=None)
@given(definitions())
def test_the_schema_takes_what_the_reader_takes(content: Any) -> None:
    """Right is right for both; and what only the reader refuses is what no schema could know."""
    faults: list[str] = []
    parse(content, SERVICES, lambda path, fault: faults.append(f"{path}: {fault}"))
    marked = [f"{fault.json_path}: {fault.message[:200]}" for fault in DEFINITION.iter_errors(content)]
    if not faults:
        assert marked == []
    if not marked:
        assert [fault for fault in faults if not BEYOND.search(fault)] == []


# ---------------------------------------------------------------- coordinator.toml

texts = st.text(st.sampled_from("ab1._-:/@ ?#[]%,\n\t"), max_size=8)
hosts = st.sampled_from(["h", "127.0.0.1", "[::1]", "a_b", "", "::1", "h,i"])
ports = st.sampled_from(["0", "1", "65535", "65536", "080", "", "x"])
KEYS: dict[str, st.SearchStrategy[Any]] = {
    "coordinator.name": texts | st.sampled_from(["orders", "a" * 100, "a" * 101]),
    "coordinator.max_commands": st.sampled_from([0, 1, 1_000_000, 1_000_001]),
    "coordinator.slow_retry_interval": durations,
    "coordinator.fast_retry_interval": durations,
    "coordinator.suspend": st.sampled_from(["service", "coordinator", "x"]),
    "log.kind": st.sampled_from(["sqlite", "kafka", ""]),
    "log.data_dir": texts,
    "log.bootstrap": texts | st.lists(st.builds("{}:{}".format, hosts, ports), min_size=1, max_size=3).map(",".join),
    "log.topic": texts | st.sampled_from([".", "..", "..."]),
    "log.session_timeout": durations | st.sampled_from(["999.5ms", "300000.5ms", "301s", "0.0002h"]),
    "listen.http": texts | st.builds("{}:{}".format, hosts, ports) | st.sampled_from(["off", "OFF"]),
    "listen.advertise": texts | hosts | st.builds("{}:{}".format, hosts, ports),
    "listen.callback_url": st.builds(
        "{}://{}:{}{}".format, st.sampled_from(["http", "HTTP", "grpc"]), hosts, ports, texts
    ),
    "limits.body_bytes": st.sampled_from([1023, 1 << 20, 1 << 30, (1 << 30) + 1]),
    "logging.level": st.sampled_from(["info", "trace"]),
    "services.s.url": st.builds(
        "{}://{}:{}{}".format, st.sampled_from(["http", "HTTPS", "grpc", "grpcs", "ftp", ""]), hosts, ports, texts
    )
    | texts,
    "services.s.timeout": durations,
    "services.s.headers": st.dictionaries(st.sampled_from(["x", "HOST", "a b", ""]), texts | st.just(5), max_size=2),
    "services.s.breaker": fields(failures=st.sampled_from([0, 1]), reset=durations),
    "services.s.tls_verify": flags,
}
odd = st.sampled_from([True, 0, 3, "", "a", [], [1], {"a": 1}, 2.5])


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(KEYS)).flatmap(lambda key: st.tuples(st.just(key), KEYS[key] | odd)))
def test_the_schema_takes_what_the_daemon_takes(tmp_path_factory: Any, given_: tuple[str, Any]) -> None:
    """One key with any value: both say the same."""
    key, value = given_
    if value is None or (isinstance(value, dict) and None in value.values()):
        return  # TOML has no null
    section, _, name = key.rpartition(".")
    text = f"[{section}]\n{name} = {_toml(value)}\n"
    directory: Path = tmp_path_factory.getbasetemp()
    file = directory / "schema-property.toml"
    file.write_text(text, encoding="utf-8")
    try:
        load(file, environ={})
        taken = True
    except ConfigError as error:
        if "limits.payload_bytes" in str(error) or "an address of its own" in str(error):
            return  # fields that are compared with each other
        taken = False
    assert CONFIG.is_valid(tomllib.loads(text)) == taken, text


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)
