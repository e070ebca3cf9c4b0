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
from coordinator.engine.plan import compile_definition
from coordinator.errors import ConfigError, InvalidPayload
from coordinator.server.config_sources import load

DEFINITION = Draft202012Validator(schemas.definition())
CONFIG = Draft202012Validator(schemas.config())
SERVICES = {"stock": "http", "ledger": "grpc"}

BEYOND = re.compile(
    # what a schema cannot know: other steps, the configuration, sums and comparisons
    r"unknown step|duplicate name|a cycle|unknown service|is longer than max|given the data|cannot be the first"
    r"|nothing is saved when it arrives|bad expression|unknown input"
    r"|a gRPC request has no path|a method is one of|a gRPC method is its full name"
)

# ---------------------------------------------------------------- definitions

ANYTHING = [None, True, False, 0, 1, 3, -1, 0.5, 2.5, "", "a", "x y", [], ["a"], {}, {"a": 1}, "5s", "undo"]
values = st.sampled_from(ANYTHING)

Values = st.SearchStrategy[Any]


def mostly(good: Values, bad: Values = values) -> Values:
    """What belongs there; once in a while what does not, so that about every other definition is right."""
    return st.integers(0, 79).flatmap(lambda dice: bad if dice == 0 else good)


def among(*good: Any, bad: tuple[Any, ...] = ()) -> Values:
    return mostly(st.sampled_from(good), st.sampled_from([*bad, *ANYTHING]))


def fields(**known: Values) -> Values:
    """Some of the fields."""
    return st.fixed_dictionaries({}, optional={name: mostly(value) for name, value in known.items()})


DURATIONS = ["5s", "1.5h", "36500d", "2ms", "0.0006s", "012m"]
NO_DURATIONS = ["0ms", "0.4ms", "0.0005s", "36501d", "5", "5 s", "5S", "-5s"]
durations = among(*DURATIONS, None, bad=(*NO_DURATIONS,))
needed = among(*DURATIONS, bad=(*NO_DURATIONS,))
names = among("a", "b", "c", "d-1", "_e", bad=("1f", "g h", "é", "a" * 65))
flags = among(True, False, None)
counts = among(1, 3, 1000, bad=(1001, 0))
retries = fields(
    attempts=counts,
    backoff=among("fixed", "exponential", bad=("linear",)),
    first=among("0ms", "5s", None, bad=("x",)),
    max=among("1h", None),
    jitter=among(0, 0.5, 1, bad=(1.1, -0.1)),
)
REQUEST: dict[str, Values] = {
    "path": among("/", "/x/${payload.a}", "/$", None, bad=("",)),
    "body": values,
    "headers": st.dictionaries(
        among("x-a", "tEst", bad=("Host", "EXPECT", "a b")).filter(lambda name: isinstance(name, str)),
        among("b", "${payload.a}"),
        max_size=2,
    ),
    "answers": st.dictionaries(
        among("404", "5xx", "NOT_FOUND", bad=("6xx", "4x", "40")).filter(lambda name: isinstance(name, str)),
        among("outcome", "failure", "delayed", bad=("fine",)),
        max_size=2,
    ),
    "retry": retries,
    "timeout": durations,
}
HTTP = {**REQUEST, "service": st.just("stock"), "method": among("GET", "POST", bad=("get", "shop.Ledger/Book"))}
GRPC = {
    **REQUEST,
    "path": among(None),
    "service": st.just("ledger"),
    "method": among("shop.Ledger/Book", bad=("a/b/c", "POST")),
}
KINDS: dict[str, Values] = {
    "decision": st.just(True)
    | fields(
        input=values,
        roles=st.lists(among("boss", "cfo", bad=(" ",)), max_size=3),
        timeout=durations,
        on_timeout=among("reject", "approve", "fail", None, bad=("continue",)),
        on_reject=among("undo", "continue", None, bad=("retry",)),
    ),
    "data": among("a", "b", True)
    | fields(name=names, timeout=durations, on_timeout=among("fail", "null", None, bad=("reject",)))
    | fields(optional=st.just(True), reruns=flags, timeout=among(None, bad=("5s",)), name=names)
    | fields(reopens=st.just(True), reruns=among(True, None), on_timeout=among(None, bad=("fail",)))
    | fields(optional=flags, reruns=flags, reopens=flags, timeout=durations),
    "sleep": needed | st.fixed_dictionaries({"for": needed}),
}
savepoints = (
    flags
    | fields(then=among("retry", None), attempts=counts, exhausted=among("undo", "dead_letter", bad=("retry",)))
    | fields(then=among("undo", "dead_letter", bad=("stop",)), attempts=among(None, bad=(1,)))
)


@st.composite
def steps(draw: st.DrawFn, number: list[int], depth: int = 2) -> list[Any]:
    """A list of steps of all kinds, nested in blocks and branches; ``number`` counts their names."""
    listed: list[Any] = []
    for _ in range(draw(st.integers(1, 3))):
        step: dict[str, Any] = {"name": draw(mostly(st.just(f"s{number[0]}"), names))}
        number[0] += 1
        kind = draw(st.sampled_from(["http", "grpc", *KINDS, "steps"] if depth else ["http", "grpc", *KINDS]))
        if kind in ("http", "grpc"):
            request = HTTP if kind == "http" else GRPC
            step["service"] = draw(mostly(request["service"]))
            if kind == "grpc":
                step["method"] = draw(request["method"])
            own = {"undo": fields(**HTTP), "give_up_after": durations, "deadline": durations, **request}
            step.update({n: draw(mostly(v)) for n, v in own.items() if n not in step and draw(st.integers(0, 5)) == 0})
        elif kind == "steps":
            step["steps"] = draw(steps(number, depth - 1))
        else:
            step[kind] = draw(mostly(KINDS[kind]))
        earlier = [each["name"] for each in listed if isinstance(each["name"], str)]
        every = {
            "after": st.lists(mostly(st.sampled_from(earlier)), max_size=2, unique_by=str) if earlier else st.just([]),
            "join": among("all", None, bad=("first",)),
            "savepoint": savepoints,
            "when": among("payload.a", "true", None),
        }
        step.update({name: draw(mostly(value)) for name, value in every.items() if draw(st.integers(0, 4)) == 0})
        if draw(st.integers(0, 9)) == 0:
            step |= {"join": draw(among("any", bad=("all",))), "losers": draw(among("undo", "keep", None))}
        if depth and draw(st.integers(0, 5)) == 0:
            step |= {"when": draw(among("payload.a")), "else": draw(steps(number, depth - 1))}
        if draw(st.integers(0, 59)) == 0:
            step[draw(st.sampled_from(["timeout", "decision", "sleep", "steps", "timeot", "undo"]))] = draw(values)
        listed.append(step)
    return listed


OTHERS: dict[str, Values] = {
    "name": names,
    "version": among(1, 2**31 - 1, bad=(2**31,)),
    "on_failure": among("undo", "dead_letter", None, bad=("retry",)),
    "deadlines": st.dictionaries(
        among("waiting", "paused", bad=("running", "completed")).filter(lambda name: isinstance(name, str)), needed
    ),
    "pause_after": st.fixed_dictionaries({"errors": among(1, 1_000_000)}, optional={"resume_after": durations}),
    "result": values,
}


@st.composite
def definitions(draw: st.DrawFn) -> Any:
    """Definitions that are right, or nearly."""
    chosen = {name: draw(mostly(value)) for name, value in OTHERS.items() if draw(st.integers(0, 5)) == 0}
    extra = {"extra": 1} if draw(st.integers(0, 79)) == 0 else {}
    return {**chosen, **extra, "steps": draw(mostly(steps([0])))}


def _faults(content: Any) -> list[str]:
    try:
        compile_definition(content, services=SERVICES)
    except InvalidPayload as error:
        return [f"{fault['path']}: {fault['fault']}" for fault in error.extra["faults"]]
    return []


@settings(max_examples=300, deadline=None)
@given(definitions())
def test_the_schema_takes_what_the_reader_takes(content: Any) -> None:
    """Right is right for both; and what only the reader refuses is what no schema could know."""
    faults = _faults(content)
    marked = [f"{fault.json_path}: {fault.message[:200]}" for fault in DEFINITION.iter_errors(content)]
    if not faults:
        assert marked == []
    if not marked:
        assert [fault for fault in faults if not BEYOND.search(fault)] == []


# ---------------------------------------------------------------- coordinator.toml

# No line breaks: at the end of a text Python's `$` matches before one, ECMA-262's does not.
texts = st.text(st.sampled_from("ab1._-:/@ ?#[]%,\t"), max_size=8)
intervals = st.sampled_from([*DURATIONS, *NO_DURATIONS])
hosts = st.sampled_from(["h", "127.0.0.1", "[::1]", "a_b", "", "::1", "h,i"])
ports = st.sampled_from(["0", "1", "65535", "65536", "080", "", "x"])
KEYS: dict[str, st.SearchStrategy[Any]] = {
    "coordinator.name": texts | st.sampled_from(["orders", "a" * 100, "a" * 101]),
    "coordinator.max_commands": st.sampled_from([0, 1, 1_000_000, 1_000_001]),
    "coordinator.slow_retry_interval": intervals,
    "coordinator.fast_retry_interval": intervals,
    "coordinator.suspend": st.sampled_from(["service", "coordinator", "x"]),
    "log.kind": st.sampled_from(["sqlite", "kafka", ""]),
    "log.data_dir": texts,
    "log.bootstrap": texts | st.lists(st.builds("{}:{}".format, hosts, ports), min_size=1, max_size=3).map(",".join),
    "log.topic": texts | st.sampled_from([".", "..", "..."]),
    "log.session_timeout": intervals | st.sampled_from(["999.5ms", "300000.5ms", "301s", "0.0002h"]),
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
    "services.s.timeout": intervals,
    "services.s.headers": st.dictionaries(st.sampled_from(["x", "HOST", "a b", ""]), texts | st.just(5), max_size=2),
    "services.s.breaker": st.fixed_dictionaries(
        {}, optional={"failures": st.sampled_from([0, 1]), "reset": intervals, "x": intervals}
    ),
    "services.s.tls_verify": st.booleans(),
}
odd = st.sampled_from([True, 0, 3, "", "a", [], [1], {"a": 1}, 2.5])


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(KEYS)).flatmap(lambda key: st.tuples(st.just(key), KEYS[key] | odd)))
def test_the_schema_takes_what_the_daemon_takes(tmp_path_factory: Any, given_: tuple[str, Any]) -> None:
    """One key with any value: both say the same."""
    key, value = given_
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
