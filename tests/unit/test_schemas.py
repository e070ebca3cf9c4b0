"""The schemas that editors get, asked of an ordinary validator: what is right passes, what is wrong is marked."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from msgspec import structs

from coordinator import schemas
from coordinator.engine.plan import compile_definition
from coordinator.errors import ConfigError, InvalidPayload
from coordinator.model.durations import UNITS, parse_duration
from coordinator.model.reading import document, requests, steps
from coordinator.schemas import patterns
from coordinator.schemas.config import CHECKS, WORDS
from coordinator.server.config import Config, Section
from coordinator.server.config_sources import load

ROOT = Path(__file__).parents[2]
SERVICES = {"stock": "http", "payments": "http", "ledger": "grpc"}
DEFINITION = Draft202012Validator(schemas.definition())
CONFIG = Draft202012Validator(schemas.config())

Content = dict[str, Any]


@pytest.mark.parametrize("schema", [schemas.definition(), schemas.config()], ids=["definition", "config"])
def test_a_schema_is_a_schema(schema: Content) -> None:
    """Of draft 2020-12; every reference leads somewhere, and every part is used."""
    Draft202012Validator.check_schema(schema)
    used = set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema)))
    assert used == set(schema["$defs"])


@pytest.mark.parametrize("schema", [schemas.definition(), schemas.config()], ids=["definition", "config"])
def test_patterns_mean_the_same_everywhere(schema: Content) -> None:
    """Nothing that ECMA-262, Rust and Go read otherwise than Python: no look-around, no ``\\d`` and ``\\w``."""
    for pattern in _patterns(schema):
        assert not re.search(r"\(\?[^:]|\\[dDwWbBAZz]", pattern), pattern
        re.compile(pattern)


def _patterns(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (each for key, each in value.items() if key == "pattern" and isinstance(each, str))
    for below in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _patterns(below)


def _undescribed(schema: Any, path: str) -> Iterator[str]:
    for name, value in schema.get("properties", {}).items():
        if "description" not in value:
            yield f"{path}.{name}"
        yield from _undescribed(value, f"{path}.{name}")


def test_every_field_is_described() -> None:
    """What an editor shows beside a word that it offers."""
    assert list(_undescribed(schemas.config(), "")) == []
    definition = schemas.definition()
    parts = [definition, *(definition["$defs"][part] for part in ("request", "decisionStep", "dataStep", "block"))]
    known = {"name"}  # described where the step begins
    assert {each.rpartition(".")[2] for part in parts for each in _undescribed(part, "")} <= known


# ---------------------------------------------------------------- definitions


def both(content: Any) -> tuple[bool, bool]:
    """Whether the reader takes it, and whether the schema does."""
    try:
        compile_definition(content, services=SERVICES)
    except InvalidPayload:
        return False, DEFINITION.is_valid(content)
    return True, DEFINITION.is_valid(content)


def step(**fields: Any) -> Content:
    """A definition of a step `a` that is a request, and of `b`, which has these fields."""
    first = {"name": "a", "service": "stock"}
    return {"steps": [first, {"name": "b", **({} if KINDS & fields.keys() else {"service": "stock"}), **fields}]}


KINDS = {"service", "decision", "data", "sleep", "steps"}
BLOCK = [{"name": "c", "service": "stock"}]

RIGHT: list[Content] = [
    {"name": "order", "version": 3, "on_failure": "dead_letter", "result": None, "steps": [*BLOCK]},
    {"on_failure": None, "deadlines": None, "pause_after": None, "steps": [*BLOCK]},
    {"deadlines": {"waiting": "24h", "paused": "30d"}, "pause_after": {"errors": 3}, "steps": [*BLOCK]},
    {"pause_after": {"errors": 1, "resume_after": "5m"}, "steps": [*BLOCK]},
    step(method="GET", path="/x/${payload.id}?q=${payload.q}", body={"a": ["${payload.a}", 1]}),
    step(service="ledger", method="shop.Ledger/Book", body={"x": 1}),
    step(path=None, body=None, headers=None, answers=None, retry=None, timeout=None, after=None, when=None, undo=None),
    step(headers={"x-a": "${payload.a}"}, answers={"404": "outcome", "5xx": "failure", "NOT_FOUND": "delayed"}),
    step(retry={"attempts": 3, "backoff": "exponential", "first": "0ms", "max": "5s", "jitter": 0.5}),
    step(timeout="1.5s", give_up_after="1h", deadline="2m", undo={"path": "/u"}),
    step(undo={"service": "payments", "method": "DELETE", "retry": {"attempts": 1000}}),
    step(after=[], when="payload.a > 1"),
    step(after=["a"], join="any", losers="keep"),
    step(when="true", **{"else": [{"name": "d", "sleep": "1s"}]}),
    step(savepoint=True),
    step(savepoint=False),
    step(savepoint={"then": "retry", "attempts": 3, "exhausted": "dead_letter"}),
    step(savepoint={"then": "undo", "attempts": None}),
    step(savepoint={}),
    step(decision=True),
    step(decision={"input": "${steps.a}", "roles": ["boss"], "timeout": "24h", "on_timeout": "approve"}),
    step(decision={"on_reject": "continue", "roles": None}),
    step(data=True),
    step(data="otp"),
    step(data={"name": "otp", "timeout": "5m", "on_timeout": "null"}),
    step(data={"optional": True, "reruns": True}),
    step(data={"reopens": True}),
    step(data={"reopens": True, "optional": True, "timeout": None}),
    step(sleep="10s"),
    step(sleep={"for": "10s"}),
    step(steps=BLOCK),
    step(steps=[{"name": "c", "steps": [{"name": "d", "decision": True}], "savepoint": True}], after=[]),
]

WRONG: list[Any] = [
    None,
    [],
    {},
    {"steps": None},
    {"steps": []},
    {"steps": "a"},
    {"steps": [None]},
    {"steps": [{"service": "stock"}]},
    {"name": None, "steps": BLOCK},
    {"name": "1a", "steps": BLOCK},
    {"name": "a b", "steps": BLOCK},
    {"name": "a" * 65, "steps": BLOCK},
    {"version": 0, "steps": BLOCK},
    {"version": "1", "steps": BLOCK},
    {"version": True, "steps": BLOCK},
    {"version": 2**31, "steps": BLOCK},
    {"on_failure": "retry", "steps": BLOCK},
    {"onfailure": "undo", "steps": BLOCK},
    {"deadlines": {"completed": "1s"}, "steps": BLOCK},
    {"deadlines": {"waiting": None}, "steps": BLOCK},
    {"deadlines": {"waiting": "soon"}, "steps": BLOCK},
    {"deadlines": "1h", "steps": BLOCK},
    {"pause_after": 3, "steps": BLOCK},
    {"pause_after": {}, "steps": BLOCK},
    {"pause_after": {"errors": None}, "steps": BLOCK},
    {"pause_after": {"errors": 0}, "steps": BLOCK},
    {"pause_after": {"errors": 1, "resume_after": "0s"}, "steps": BLOCK},
    {"steps": BLOCK * 1 + [{"name": f"s{n}", "service": "stock"} for n in range(200)]},
    step(name="b c"),
    step(service=None),
    step(service=1),
    step(service="stock", decision=True),
    step(decision=None),
    step(decision=False),
    step(decision={"timeout": "1"}),
    step(decision={"roles": "boss"}),
    step(decision={"roles": [""]}),
    step(decision={"on_timeout": "undo"}),
    step(decision=True, timeout="5s"),
    step(decision=True, undo={"path": "/u"}),
    step(data=False),
    step(data=""),
    step(data="a b"),
    step(data={"name": "a b"}),
    step(data={"reruns": True}),
    step(data={"reopens": True, "optional": False}),
    step(data={"reopens": True, "timeout": "1s"}),
    step(data={"optional": True, "on_timeout": "null"}),
    step(data={"optional": "yes"}),
    step(data=True, retry={}),
    step(sleep="0s"),
    step(sleep="0.4ms"),
    step(sleep=10),
    step(sleep="10"),
    step(sleep={}),
    step(sleep={"for": None}),
    step(sleep={"for": "1s", "then": "2s"}),
    step(sleep="101y"),
    step(sleep="40000d"),
    step(steps=[]),
    step(steps=BLOCK, service="stock"),
    step(steps=BLOCK, timeout="1s"),
    step(method="get"),
    step(method=None),
    step(method="shop.Ledger/Book/x"),
    step(service="ledger", method="shop.Ledger/Book", path="/x"),
    step(path=""),
    step(path=1),
    step(path="x"),
    step(path="//host/x"),
    step(path="${payload.path}"),
    step(headers=[]),
    step(headers={"a b": "c"}),
    step(headers={"x": 1}),
    step(headers={"Idempotency-Key": "x"}),
    step(answers={"40": "outcome"}),
    step(answers={"404": "fine"}),
    step(answers={"404": None}),
    step(retry=3),
    step(retry={"attempts": 0}),
    step(retry={"attempts": None}),
    step(retry={"attempts": 1001}),
    step(retry={"backoff": "linear"}),
    step(retry={"jitter": 2}),
    step(retry={"jitter": True}),
    step(retry={"first": "-1s"}),
    step(retry={"tries": 3}),
    step(timeout="0ms"),
    step(timeout="5 s"),
    step(timeout=5),
    step(timeout="5S"),
    step(timeot="5s"),
    step(give_up_after="never"),
    step(deadline=""),
    step(undo="/u"),
    step(undo={"when": "true"}),
    step(undo={"undo": {}}),
    step(after="a"),
    step(after=[1]),
    step(after=["a", "a"]),
    step(when=True),
    step(when=" "),
    step(join="first"),
    step(losers="keep"),
    step(join="all", losers="undo"),
    step(**{"else": BLOCK}),
    step(when="true", **{"else": []}),
    step(when="true", **{"else": [{"name": "c"}]}),
    step(savepoint="retry"),
    step(savepoint={"then": "stop"}),
    step(savepoint={"attempts": 0}),
    step(savepoint={"then": "undo", "attempts": 3}),
    step(savepoint={"then": "dead_letter", "exhausted": "undo"}),
]


def test_the_schema_has_the_readers_fields() -> None:
    """A field that the reader learns is offered by editors, too, and one that it forgets is not."""
    parts = schemas.definition()["$defs"]
    kinds = {
        "service": "request",
        "decision": "decisionStep",
        "data": "dataStep",
        "sleep": "sleepStep",
        "steps": "block",
    }
    assert {kind: set(parts[part]["properties"]) for kind, part in kinds.items()} == {
        kind: set(fields) for kind, (_, fields) in steps._KINDS.items()
    }
    for kind, fields in steps._INNER.items():
        assert set(parts[kinds[kind]]["properties"][kind]["properties"]) == set(fields)
    assert set(parts["undo"]["properties"]) == set(requests.REQUEST_FIELDS)
    assert set(parts["retry"]["properties"]) == set(requests._RETRY_FIELDS)
    assert set(schemas.definition()["properties"]) == {"$schema", *document._FIELDS}


@pytest.mark.parametrize("content", RIGHT, ids=json.dumps)
def test_right_definitions_pass_both(content: Content) -> None:
    """The reader and the schema."""
    assert both(content) == (True, True)


@pytest.mark.parametrize("content", WRONG, ids=lambda content: json.dumps(content)[:120])
def test_wrong_definitions_pass_neither(content: Any) -> None:
    """What the registration would refuse is marked while it is written."""
    assert both(content) == (False, False)


def test_a_fault_is_marked_where_it_is() -> None:
    """Not the whole step, but the field that is wrong in it."""
    marked = {
        "$.steps[1].retry.attempts": step(retry={"attempts": 0}),
        "$.steps[1].decision.roles[0]": step(decision={"roles": [""]}),
        "$.steps[1].sleep": step(sleep="soon"),
        "$.steps[1].savepoint.then": step(savepoint={"then": "stop"}),
        "$.steps[1].undo.timeout": step(undo={"timeout": "0s"}),
    }
    for path, content in marked.items():
        assert [fault.json_path for fault in DEFINITION.iter_errors(content)] == [path]


def test_an_editors_reference_is_allowed() -> None:
    """``$schema`` tells the editor; the command line does not send it."""
    assert DEFINITION.is_valid({"$schema": "definition.schema.json", "steps": BLOCK})


def _examples() -> list[Any]:
    """Every definition that the documentation and the examples show."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in re.findall(r"```json\n(.*?)```", page.read_text(), re.DOTALL):
            try:
                content = json.loads(block)
            except ValueError:
                continue  # a part of one
            if isinstance(content, dict) and "steps" in content and content.get("state") is None:
                found.append(pytest.param(content, id=f"{page.name}:{content.get('name')}"))
    for file in sorted((ROOT / "examples").rglob("*.json")):
        content = json.loads(file.read_text())
        if isinstance(content, dict) and "steps" in content:
            found.append(pytest.param(content, id=str(file.relative_to(ROOT))))
    return found


@pytest.mark.parametrize("content", _examples())
def test_every_shown_definition_passes(content: Content) -> None:
    """What readers copy does not turn red in their editor."""
    sent = {name: value for name, value in content.items() if name != "$schema"}
    compile_definition(sent, services=None)
    assert [f"{fault.json_path}: {fault.message}" for fault in DEFINITION.iter_errors(content)] == []


# ---------------------------------------------------------------- coordinator.toml


def loads(text: str, directory: Path) -> tuple[bool, bool]:
    """Whether the daemon takes the file, and whether the schema does."""
    file = directory / "coordinator.toml"
    file.write_text(text)
    try:
        load(file, environ={})
        taken = True
    except ConfigError:
        taken = False
    return taken, CONFIG.is_valid(tomllib.loads(text))


def one(section: str, key: str, value: str) -> str:
    return f"[{section}]\n{key} = {value}\n"


TAKEN = [
    "",
    "[coordinator]\n",
    one("coordinator", "name", '"orders-2"'),
    one("coordinator", "max_commands", "1000000"),
    one("coordinator", "slow_retry_interval", '"1.5s"'),
    one("coordinator", "fast_retry_interval", '"0ms"'),
    one("coordinator", "suspend", '"coordinator"'),
    one("log", "kind", '"kafka"'),
    one("log", "topic", '"orders.log"'),
    one("log", "topic", '""'),
    one("log", "bootstrap", '"kafka-1:9092,[::1]:9093"'),
    one("log", "session_timeout", '"1s"'),
    one("log", "session_timeout", '"5m"'),
    one("log", "session_timeout", '"0.002h"'),
    one("log", "retain", '"36500d"'),
    one("listen", "http", '"off"'),
    one("listen", "http", '""'),
    one("listen", "grpc", '"[::]:0"'),
    one("listen", "tcp", '"0.0.0.0:65535"'),
    one("listen", "advertise", '"10.0.0.7"'),
    one("listen", "advertise", '"pod-0.coordinator:7070"'),
    one("listen", "advertise", '"fe80::1%eth0"'),
    one("listen", "advertise", '"[fd00::7]:7070"'),
    one("listen", "callback_url", '"https://coordinator.example/in"'),
    one("limits", "body_bytes", "2097152"),
    one("logging", "level", '"debug"'),
    one("services.payments", "url", '"http://127.0.0.1:9001/base"'),
    one("services.payments", "url", '"grpcs://ledger:443"'),
    one("services.payments", "url", '""'),
    one("services.card-payments", "breaker", '{ failures = 1, reset = "1s" }'),
    one("services.payments", "headers", '{ authorization = "Bearer x", x-tenant = "a\\tb" }'),
    one("services.payments", "tls_verify", "false"),
    "[services.payments]\n",
]

REFUSED = [
    "surplus = 1\n",
    "coordinator = 5\n",
    one("cordinator", "name", '"x"'),
    one("coordinator", "nme", '"x"'),
    one("coordinator", "name", '""'),
    one("coordinator", "name", '"a b"'),
    one("coordinator", "name", "5"),
    one("coordinator", "max_commands", "0"),
    one("coordinator", "max_commands", "1000001"),
    one("coordinator", "max_commands", '"5"'),
    one("coordinator", "max_commands", "true"),
    one("coordinator", "slow_retry_interval", '"0ms"'),
    one("coordinator", "slow_retry_interval", '"0.5ms"'),
    one("coordinator", "slow_retry_interval", "200"),
    one("coordinator", "slow_retry_interval", '"200"'),
    one("coordinator", "slow_retry_interval", '"36501d"'),
    one("coordinator", "suspend", '"all"'),
    one("log", "kind", '"redis"'),
    one("log", "data_dir", '" "'),
    one("log", "topic", '".."'),
    one("log", "topic", '"a/b"'),
    one("log", "bootstrap", '""'),
    one("log", "bootstrap", '"kafka"'),
    one("log", "bootstrap", '"kafka:0"'),
    one("log", "bootstrap", '"kafka:1,"'),
    one("log", "partitions", "1025"),
    one("log", "replication", "-1"),
    one("log", "session_timeout", '"900ms"'),
    one("log", "session_timeout", '"301s"'),
    one("listen", "http", '"8080"'),
    one("listen", "http", '"127.0.0.1:65536"'),
    one("listen", "http", '"::1:8080"'),
    one("listen", "advertise", '"1:2:3"'),
    one("listen", "advertise", '"host:0"'),
    one("listen", "callback_url", '"grpc://h:1"'),
    one("listen", "callback_url", '"https://h/?a=b"'),
    '[listen]\nhttp = "off"\ngrpc = ""\ntcp = "off"\n',
    one("limits", "body_bytes", "1023"),
    one("logging", "level", '"trace"'),
    one("services.payments", "url", '"payments:9001"'),
    one("services.payments", "url", '"http://u:p@h"'),
    one("services.payments", "url", '"http://h/?a"'),
    one("services.payments", "url", '"grpc://h"'),
    one("services.payments", "url", '"grpc://h:1/x"'),
    one("services.payments", "url", '"http://h:99999"'),
    one("services.payments", "timeout", '"0s"'),
    one("services.payments", "retries", "3"),
    one("services.payments", "breaker", "{ failures = 0 }"),
    one("services.payments", "breaker", "5"),
    one("services.payments", "headers", '{ Host = "x" }'),
    one("services.payments", "headers", '{ "a b" = "x" }'),
    one("services.payments", "headers", '{ a = "x\\n" }'),
    one("services.payments", "headers", "{ a = 5 }"),
    one("services.payments", "tls_verify", '"no"'),
    one('services."a b"', "url", '""'),
]


@pytest.mark.parametrize("text", TAKEN)
def test_right_configurations_pass_both(text: str, tmp_path: Path) -> None:
    """The daemon and the schema."""
    assert loads(text, tmp_path) == (True, True)


@pytest.mark.parametrize("text", REFUSED)
def test_wrong_configurations_pass_neither(text: str, tmp_path: Path) -> None:
    """What would stop the start is marked while it is written."""
    assert loads(text, tmp_path) == (False, False)


def test_what_the_daemon_prints_passes(tmp_path: Path) -> None:
    """``serve --print-config``: all keys, with their defaults in force."""
    file = tmp_path / "coordinator.toml"
    file.write_text("[services.stock]\nurl = 'http://h:1'\n[services.ledger]\n")
    text = load(file, environ={}).to_toml()
    assert [fault.json_path for fault in CONFIG.iter_errors(tomllib.loads(text))] == []


def test_defaults_are_those_of_the_daemon(tmp_path: Path) -> None:
    """A file of nothing but the schema's defaults is the default configuration."""

    def defaults(schema: Content) -> Content:
        return {
            name: value["default"] if "default" in value else defaults(value)
            for name, value in schema["properties"].items()
            if name != "services"
        }

    lines = [
        f"[{section}]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in keys.items())
        for section, keys in defaults(schemas.config()).items()
    ]
    file = tmp_path / "coordinator.toml"
    file.write_text("\n".join(lines))
    (tmp_path / "empty.toml").touch()
    assert load(file, environ={}).config == load(tmp_path / "empty.toml", environ={}).config


def test_every_shown_configuration_passes() -> None:
    """Those of README, docs, examples and deploy."""
    texts = [
        block
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
        for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    texts += [file.read_text() for file in sorted((ROOT / "examples").rglob("coordinator.toml"))]
    assert texts
    for text in texts:
        assert [f"{fault.json_path}: {fault.message}" for fault in CONFIG.iter_errors(tomllib.loads(text))] == [], text


def test_words_and_checks_are_all_used() -> None:
    """A key or a check that is gone from the configuration is gone from here too."""

    def paths(kind: type[Section], path: str) -> Iterator[str]:
        for field in structs.fields(kind):
            here = f"{path}{field.name}"
            yield here
            if isinstance(field.type, type) and issubclass(field.type, Section):
                yield from paths(field.type, f"{here}.")
            elif here == "services":
                yield f"{here}.*"
                yield from paths(field.type.__args__[1], f"{here}.*.")

    assert set(WORDS) == set(paths(Config, ""))
    source = (ROOT / "coordinator" / "server" / "config.py").read_text()
    assert set(CHECKS) == set(re.findall(r"_checked\(_(\w+)\)", source))


# ---------------------------------------------------------------- patterns


@pytest.mark.parametrize(("low", "high"), [(0, None), (1, None), (0, 0), (1_000, 300_000), (7, 7), (999, 60_001)])
def test_durations_are_bounded_as_they_are_read(low: int, high: int | None) -> None:
    """Around every bound, in every unit, with up to six digits behind the point: the pattern agrees with the reader."""
    pattern = re.compile(patterns.whole(patterns.durations(low, *([] if high is None else [high]))))
    longest = 100 * 365 * 86_400_000
    last = longest if high is None else high
    for unit, size in UNITS.items():
        for bound in (low, last):
            exact = bound * 1_000_000 // size
            for step in (0, 1, 10, 1_000, 100_000, 500_000 // size + 1, 1_000_000):
                for millionths in range(max(0, exact - 3 * step), exact + 3 * step + 1, max(1, step)):
                    whole, part = divmod(millionths, 1_000_000)
                    spellings = {f"{whole}.{part:06}", f"0{whole}.{part:06}"} | ({str(whole)} if not part else set())
                    for text in (f"{spelling}{unit}" for spelling in spellings):
                        assert bool(pattern.search(text)) == _within(text, low, last), text


def _within(text: str, low: int, high: int) -> bool:
    try:
        return low <= parse_duration(text) <= high
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("low", "high", "digits"), [(0, 65_535, 5), (1, 65_535, 5), (0, 0, 3), (7, 123, 4), (99, 100, 3)]
)
def test_numbers_are_bounded(low: int, high: int, digits: int) -> None:
    """Zeros in front count as digits, and change nothing else."""
    pattern = re.compile(patterns.whole(patterns.numbers(low, high, digits)))
    for number in {*range(300), *range(65_400, 65_700), *range(9_990, 10_010)}:
        for width in range(1, 7):
            text = f"{number:0{width}}"
            assert bool(pattern.search(text)) == (low <= number <= high and len(text) <= digits), text


@pytest.mark.parametrize(
    "text",
    [
        "::", "::1", "1::", "1::8", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8:9",
        "1::2::3", ":1", "1:", ":::", "::ffff:1.2.3.4", "1:2:3:4:5:6:1.2.3.4", "1:2:3:4:5:6:7:1.2.3.4", "::1.2.3.256",
        "::01.2.3.4", "12345::", "g::", "fe80::1%eth0", "fe80::1%", "1::3:4:5:6:7:8", "1::2:3:4:5:6:7:8", "1.2.3.4", "",
        "1:2:3:4:5::1.2.3.4", "::1:2:3:4:5:1.2.3.4", "::1:2:3:4:5:6:1.2.3.4",
    ],
)  # fmt: skip
def test_ipv6_addresses_are_those_of_the_library(text: str) -> None:
    """Every way to leave out groups, and every wrong one."""
    try:
        right = ip_address(text).version == 6
    except ValueError:
        right = False
    assert bool(re.search(patterns.whole(patterns.ipv6()), text)) == right
