"""The format of the log: golden bytes, tolerance where it is promised, clear refusal everywhere else."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from coordinator.errors import CorruptLog
from coordinator.model.damaged import Damaged
from coordinator.model.ids import CommandId
from coordinator.model.records import KINDS, SCHEMA, Control, Epoch, Failure, Outcome, Submitted, raw, unraw
from coordinator.wire.codec import AT_MAX, EPOCH, decode, encode, header, key_of, read, stored

# Written before a field was appended within the same schema version.
APPENDED_TO = {"epoch.v1", "submitted.v1", "signal.v1", "control.v1", "timer.v1", "snapshot.v1", "finished.v1"}
GOLDEN = sorted((Path(__file__).parents[2] / "golden" / "records").glob("*.json"))
TOKEN = bytes(range(8))


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def plain(value: object) -> object:
    """A field as the golden files spell it."""
    match value:
        case Raw():
            return plain(unraw(value))
        case bytes():
            return {"hex": value.hex()}
        case list() | tuple():
            return [plain(element) for element in value]
        case Failure():
            return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
        case _:
            return value


def array(data: bytes) -> list[Any]:
    elements: list[Any] = msgspec.msgpack.decode(data)
    return elements


def test_every_kind_has_a_golden_file() -> None:
    """No kind can be added, and none dropped, without its bytes being written down."""
    assert {(load(path)["kind"], load(path)["schema"]) for path in GOLDEN} >= {
        (kind.__name__, SCHEMA) for kind in KINDS.values()
    }


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_bytes_keep_their_meaning(path: Path) -> None:
    """What was written once decodes to the same fields, whatever version reads it."""
    golden = load(path)
    record = decode(bytes.fromhex(golden["bytes"]), partition=0, offset=0)
    assert type(record).__name__ == golden["kind"]
    assert {name: plain(getattr(record, name)) for name in golden["fields"]} == golden["fields"]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_records_encode_to_the_same_bytes(path: Path) -> None:
    """The current schema version has one spelling; a record from before a field was appended gets that field's
    default behind it."""
    golden = load(path)
    if golden["schema"] == SCHEMA:
        data = bytes.fromhex(golden["bytes"])
        again = encode(decode(data, partition=0, offset=0))
        assert array(again)[: len(array(data))] == array(data)
        assert again == data or path.stem in APPENDED_TO


def test_only_records_with_an_appended_field_are_spelt_anew() -> None:
    """The list of exceptions does not grow by itself."""
    shorter = {path.stem for path in GOLDEN if len(array(bytes.fromhex(load(path)["bytes"]))) < _elements(load(path))}
    assert shorter == APPENDED_TO


def _elements(golden: dict[str, Any]) -> int:
    kinds = {kind.__name__: kind for kind in KINDS.values()}
    return 1 + len(kinds[golden["kind"]].__struct_fields__)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_elements_behind_the_known_ones_are_tolerated(path: Path) -> None:
    """A later build of the same schema version may append fields; an older reader passes over them."""
    data = encode(decode(bytes.fromhex(load(path)["bytes"]), partition=0, offset=0))
    longer = msgspec.msgpack.encode([*array(data), "appended", {"later": True}])
    assert decode(longer, partition=0, offset=0) == decode(data, partition=0, offset=0)


def test_short_arrays_get_defaults() -> None:
    """A record from before a field was appended has that field's default."""
    short = msgspec.msgpack.encode([1, 1, TOKEN, 7, "c1", "PlaceOrder", 2, {"n": 1}, b"print"])
    record = decode(short, partition=0, offset=0)
    assert isinstance(record, Submitted)
    assert (record.timeout, record.attributes, record.priority, record.meta) == (None, {}, 0, {})
    assert unraw(record.definition) is None
    assert unraw(record.payload) == {"n": 1}


def outcome() -> bytes:
    return encode(Outcome(1, TOKEN, 7, "c1", "charge", "payments", 1, raw({"id": "ch-1"})))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param(b"", "kind unknown, 0 bytes", id="nothing"),
        pytest.param(b"\xc1", "kind unknown", id="no msgpack"),
        pytest.param(b"\xa3abc", "kind unknown", id="no array"),
        pytest.param(b"\x90", "kind unknown", id="an empty array"),
        pytest.param(b"\x93\xc0\xc0\xc0", "kind unknown", id="null for a kind"),
        pytest.param(msgspec.msgpack.encode([99, 1, TOKEN, 7]), "kind 99 is unknown", id="an unknown kind"),
        pytest.param(msgspec.msgpack.encode([8, 1, TOKEN, 7]), r"8 \(Snapshot\) is damaged", id="half a snapshot"),
        pytest.param(msgspec.msgpack.encode([-1, 1, TOKEN, 7]), "kind -1 is unknown", id="a negative kind"),
        pytest.param(msgspec.msgpack.encode([2, 2, *array(outcome())[2:]]), "schema version 2", id="a newer schema"),
        pytest.param(msgspec.msgpack.encode([2, 7, {"quite": "other"}]), "schema version 7", id="a newer layout"),
        pytest.param(msgspec.msgpack.encode([2, 0, *array(outcome())[2:]]), r"2 \(Outcome\)", id="schema zero"),
        pytest.param(outcome()[:-1], r"2 \(Outcome\) is damaged", id="cut short"),
        pytest.param(outcome() + b"\0", r"2 \(Outcome\) is damaged", id="too long"),
        pytest.param(msgspec.msgpack.encode(array(outcome())[:5]), r"2 \(Outcome\) is damaged", id="fields missing"),
        pytest.param(b"\x99\x02\x01\xc4\x08" + TOKEN + b"\x01\xa1\xff", r"2 \(Outcome\) is damaged", id="bad UTF-8"),
        pytest.param(outcome()[:-1] + b"\x91" * 100_000, r"2 \(Outcome\) is damaged", id="nested without end"),
        pytest.param(b"\xdd\xff\xff\xff\xff\x02\x01", "kind unknown", id="an array of four billion"),
    ],
)
def test_what_is_no_record_is_refused_with_its_place(data: bytes, says: str) -> None:
    """The error names partition, offset and, where it can be made out, the kind."""
    with pytest.raises(CorruptLog, match=rf"partition 3, offset 1841.*{says}"):
        decode(data, partition=3, offset=1841)


def test_a_header_is_read_alone() -> None:
    """Kind and token are enough to judge a stretch of the log, for kinds of later versions too."""
    assert header(outcome(), partition=0, offset=0).token == TOKEN
    epoch = encode(Epoch(1, TOKEN, 7, "a", "a:1"))
    assert header(epoch, partition=0, offset=0).kind == EPOCH
    assert header(msgspec.msgpack.encode([99, 5, TOKEN]), partition=0, offset=0).kind == 99
    with pytest.raises(CorruptLog, match="partition 0, offset 5"):
        header(b"\x91\x02", partition=0, offset=5)


def test_keys_are_command_ids() -> None:
    """Logs with keys get the id of the command; foreign bytes get none."""
    assert key_of(outcome()) == b"c1"
    assert key_of(encode(Epoch(1, TOKEN, 7, "orders-1", "a:1"))) == b"orders-1"
    assert key_of(b"noise") is None


def test_a_requeue_with_an_input_is_readable() -> None:
    """An operator's replacement for a request's body survives the log."""
    control = Control(1, TOKEN, 7, CommandId("c1"), "requeue", "", "dave", "ship", raw({"street": "Long Road 1"}), True)
    assert decode(encode(control), partition=0, offset=0) == control


# ---------------------------------------------------------------- what can be made out of damage


def made_out(data: bytes) -> tuple[int | None, int | None, bytes | None, int, str | None]:
    found = read(data, partition=0, offset=0)
    assert isinstance(found, Damaged)
    assert stored(found) == data
    return found.kind, found.schema, found.token, found.at, found.id


def test_a_beginning_is_read_as_far_as_it_is_whole() -> None:
    """Each cut leaves what stands before it: a record that was cut short still tells whose it is."""
    data = outcome()
    whole = (2, 1, TOKEN, 7, "c1")
    seen = [made_out(data[:size]) for size in range(len(data))]
    assert seen[0] == (None, None, None, 0, None)
    assert seen[-1] == whole
    for before, after in pairwise(seen):
        assert all(new == old for old, new in zip(before, after, strict=True) if old)


@pytest.mark.parametrize(
    "array",
    [
        pytest.param([2, 1, TOKEN, 7, "c1", 0], id="small"),
        pytest.param([2, 1, b"t" * 300, 70_000, "c" * 200, *[0] * 20], id="large, sixteen fields and more"),
        pytest.param([300, 70_000, b"t" * 70_000, 1 << 40, "c" * 50], id="numbers of every size"),
        pytest.param([-1, -200, b"", 5, "c"], id="negative"),
        pytest.param([-70_000, -(1 << 40), b"", 5, "c"], id="very negative"),
    ],
)
def test_a_beginning_is_what_msgpack_says(array: list[Any]) -> None:
    """The reader of beginnings and msgspec agree on every spelling of numbers, bytes and texts."""
    kind, schema, token, at, _ = made_out(msgspec.msgpack.encode(array))
    assert [kind, schema, token, at] == array[:4]


@pytest.mark.parametrize("id", ["", "a b", "a/b", "..", "c" * 201, 5, None])
def test_an_id_that_no_client_can_have_chosen_is_none(id: Any) -> None:
    """Whatever stood there is not what was written."""
    assert made_out(msgspec.msgpack.encode([2, 1, TOKEN, 7, id]))[4] is None


def test_only_kinds_of_commands_have_an_id() -> None:
    """What stands at its place in an Epoch or a Registered is a name."""
    assert made_out(msgspec.msgpack.encode([10, 1, TOKEN, 7, "order"]))[4] is None


@pytest.mark.parametrize("at", [-1, AT_MAX + 1, 1 << 63])
def test_a_time_without_a_date_is_damage(at: int) -> None:
    """It would have to be shown, sorted by and stored."""
    assert made_out(encode(msgspec.structs.replace(decode(outcome(), partition=0, offset=0), at=at)))[3] == 0


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_reading_never_raises(data: bytes) -> None:
    """Nor does asking what is the matter."""
    found = read(data, partition=0, offset=0)
    assert stored(found) == data or not isinstance(found, Damaged)
    if isinstance(found, Damaged):
        assert "partition 0, offset 0" in str(found.error("it is so"))
