"""JSON Schema of definitions: what `model.reading` reads, for editors.

A step is of the kind of the one field that says so, so the schema asks for that field first (``if``) and then allows
just what that kind has: an editor completes, and complains about, the right fields.  A field that may be left out may
be null as well, where the reader takes it so.

What a schema cannot say, the registration does: names that must be known, cycles, expressions, the longest of ``first``
and ``max``, the number of steps in all blocks together.
"""

from __future__ import annotations

from typing import Any, Final

from coordinator.model.command import DEADLINE_STATES
from coordinator.model.definition import ATTEMPTS_MAX, STEPS_MAX, VERSION_MAX
from coordinator.model.durations import DURATION_RULE
from coordinator.model.reading.document import ERRORS_MAX
from coordinator.model.reading.fields import NAME_RULE
from coordinator.model.reading.requests import METHODS, OUR_HEADERS
from coordinator.schemas import patterns

Schema = dict[str, Any]

_NULL: Final[Schema] = {"type": "null"}
_NAME: Final[Schema] = {"pattern": patterns.whole("[A-Za-z_][A-Za-z0-9_-]{0,63}"), "patternErrorMessage": NAME_RULE}
_NAME_OR_NULL: Final[Schema] = {"type": ["string", "null"], **_NAME}
_NOT_FALSE: Final[Schema] = {"not": {"const": False}}
_STEPS: Final[Schema] = {"type": "array", "minItems": 1, "maxItems": STEPS_MAX, "items": {"$ref": "#/$defs/step"}}
_SURELY: Final[Schema] = {"type": "string", "$ref": "#/$defs/time"}  # a time that may not be left out
_ANSWERS: Final = ("outcome", "failure", "delayed")


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _object(properties: Schema, *types: str, **more: Any) -> Schema:
    """An object of these fields; or of one of the ``types``, which the keywords for objects leave alone."""
    kind: Any = ["object", *types] if types else "object"
    return {"type": kind, "additionalProperties": False, "properties": properties, **more}


def _choice(*choices: str) -> Schema:
    """One of these, the first by default."""
    return {"enum": [*choices, None], "default": choices[0]}


def _count(most: int) -> Schema:
    return {"type": ["integer", "null"], "minimum": 1, "maximum": most, "default": 1}


def _told(words: str, schema: Schema) -> Schema:
    return {"description": words, **schema}


def _given(field: str, schema: Schema) -> Schema:
    """That the field is there, and as ``schema`` says."""
    return {"required": [field], "properties": {field: schema}}


def _absent(*fields: str) -> Schema:
    """That the fields are not there, or null."""
    return {"properties": dict.fromkeys(fields, _NULL)}


def definition() -> Schema:
    """The schema of a definition, as a new document."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Definition",
        "description": "A command without code: steps, what they send, in which order, and how to undo them.",
        **_object(
            {
                "$schema": _told(
                    "Where the editor finds this schema; the command line leaves it out.", {"type": "string"}
                ),
                "name": _told("Under which it is registered.", _ref("name")),
                "version": _told(
                    "A registered version never changes.", {"type": "integer", "minimum": 1, "maximum": VERSION_MAX}
                ),
                "on_failure": _told(
                    "When a step fails: undo what was done, or wait for an operator with nothing undone.",
                    _choice("undo", "dead_letter"),
                ),
                "deadlines": _told("How long the command may be in a state before it fails.", _ref("deadlines")),
                "pause_after": _told("Pauses the command by itself after so many errors.", _ref("pause")),
                "steps": _told("What is done.", _ref("steps")),
                "result": _told("The command's result: any JSON, a string with ${…} in it is a template.", {}),
            },
            required=["steps"],
        ),
        "$defs": {
            **_values(),
            **_request_parts(),
            **_steps(),
            "deadlines": _object({state.value: _SURELY for state in sorted(DEADLINE_STATES)}, "null"),
            "pause": _object(
                {
                    "errors": _told(
                        "Answers that were negative or unknown, whatever they say.",
                        {"type": "integer", "minimum": 1, "maximum": ERRORS_MAX},
                    ),
                    "resume_after": _told("Goes on by itself after so long; never unless given.", _ref("time")),
                },
                "null",
                required=["errors"],
            ),
        },
    }


def _values() -> Schema:
    duration = {
        "type": ["string", "null"],
        "pattern": patterns.whole(patterns.durations(0)),
        "patternErrorMessage": DURATION_RULE,
        "examples": ["200ms", "5s", "2m", "24h", "30d"],
    }
    return {
        "name": {"type": "string", **_NAME},
        "duration": duration,
        "time": {
            "allOf": [_ref("duration")],
            "not": {"type": "string", "pattern": patterns.whole(patterns.durations(0, 0))},
            "errorMessage": "a duration longer than 0 is needed",
        },
        "condition": {"type": ["string", "null"], "pattern": "\\S", "examples": ["payload.amount > 1000"]},
    }


# ---------------------------------------------------------------- requests


def _request_parts() -> Schema:
    own = patterns.any_case(patterns.one_of(sorted(OUR_HEADERS)))
    return {
        "path": {
            "type": ["string", "null"],
            "pattern": "^/(?:[^/]|$)",
            "patternErrorMessage": "a path starts with one /",
            "default": "/",
        },
        "method": {
            "anyOf": [
                {"enum": list(METHODS)},
                {"type": "string", "pattern": patterns.whole("[A-Za-z_][A-Za-z0-9_.]*/[A-Za-z_][A-Za-z0-9_]*")},
            ],
            "default": "POST",
        },
        "headers": {
            "type": ["object", "null"],
            "propertyNames": {
                "pattern": patterns.whole("[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}"),
                "not": {"pattern": patterns.whole(own)},
            },
            "additionalProperties": {"type": "string"},
        },
        "answers": {
            "type": ["object", "null"],
            "propertyNames": {"pattern": patterns.whole("[1-5](?:[0-9]{2}|xx)|[A-Z][A-Z_]{1,40}")},
            "additionalProperties": {"enum": list(_ANSWERS)},
        },
        "retry": _object(
            {
                "attempts": _told(
                    "Calls that were answered in the negative.",
                    {"type": "integer", "minimum": 1, "maximum": ATTEMPTS_MAX, "default": 1},
                ),
                "backoff": {"enum": ["fixed", "exponential"], "default": "fixed"},
                "first": _told("The first pause.", _ref("duration")),
                "max": _told("The longest pause.", _ref("duration")),
                "jitter": _told(
                    "The part of a pause that chance decides.", {"type": "number", "minimum": 0, "maximum": 1}
                ),
            },
            "null",
        ),
        "undo": _object(
            {"service": _told("The step's own unless given.", {"type": "string"}), **_request()}, "null", allOf=[_GRPC]
        ),
    }


_GRPC: Final[Schema] = {
    # the full name of a gRPC method goes without a path
    "if": _given("method", {"type": "string", "pattern": "/"}),
    "then": _absent("path"),
}


def _request() -> Schema:
    return {
        "method": _told("Of HTTP, or the full name of a gRPC method (shop.Stock/Reserve).", _ref("method")),
        "path": _told("A path template; what is inserted stays inside its segment. None for gRPC.", _ref("path")),
        "body": _told("Any JSON; a string with ${…} in it is a template. Absent or null sends no body.", {}),
        "headers": _told("Text templates by name.", _ref("headers")),
        "answers": _told("What an answer means: by status, class (5xx) or gRPC name (NOT_FOUND).", _ref("answers")),
        "retry": _told("How often a negative answer is asked again.", _ref("retry")),
        "timeout": _told("Of one call; the service's own otherwise.", _ref("time")),
    }


# ---------------------------------------------------------------- steps

_KINDS: Final = {
    "service": ("request", "Calls a configured service."),
    "decision": ("decisionStep", "Waits for a person to approve or reject."),
    "data": ("dataStep", "Waits for data that somebody provides."),
    "sleep": ("sleepStep", "Waits for a time."),
    "steps": ("block", "A block of steps that counts as one."),
}


def _steps() -> Schema:
    chosen: Schema = {"required": ["service"], "errorMessage": "a step needs a service, decision, data, sleep or steps"}
    for field, (kind, _) in reversed(_KINDS.items()):
        chosen = {"if": {"required": [field]}, "then": _ref(kind), "else": chosen}
    name = _told("What it is called; once only.", _ref("name"))
    return {
        "steps": _STEPS,
        "step": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": name, **{field: _told(words, {}) for field, (_, words) in _KINDS.items()}},
            **chosen,
        },
        "request": _kind(
            {
                "service": _told("A configured service.", {"type": "string"}),
                **_request(),
                "undo": _told("How to take it back: a request of its own.", _ref("undo")),
                "give_up_after": _told("How long an unknown answer is retried; else for ever.", _ref("time")),
                "deadline": _told("From its beginning to its end, retries and all.", _ref("time")),
            },
            _GRPC,
        ),
        "decisionStep": _kind({"decision": _told("What a person is asked.", _decision())}),
        "dataStep": _kind(
            {
                "data": _told(
                    "The data: its name, the step's own (true), or more.",
                    _data(),
                )
            }
        ),
        "sleepStep": _kind({"sleep": _told("How long.", _sleep())}),
        "block": _kind(
            {"steps": _told("The steps in it; the first come after what the block comes after.", _ref("steps"))}
        ),
        "savepoint": _savepoint(),
    }


def _kind(own: Schema, *rules: Schema) -> Schema:
    """A step of one kind: what every step has, and its own."""
    every = {
        "name": _ref("name"),
        "after": _told(
            "The steps it waits for. Absent: the one listed before; []: starts at once; several: a join.",
            {"type": ["array", "null"], "items": _ref("name"), "uniqueItems": True},
        ),
        "join": _told("Of several: after all have ended, or any has succeeded.", _choice("all", "any")),
        "losers": _told("Of a join of any: what becomes of what others have done.", _choice("undo", "keep")),
        "when": _told("A condition (CEL); false: it is skipped.", _ref("condition")),
        "else": _told("Steps that run when the condition is false.", {**_STEPS, "type": ["array", "null"]}),
        "savepoint": _told("A later failure undoes only what came after it.", _ref("savepoint")),
    }
    has_else = {"if": _given("else", {"type": "array"}), "then": _given("when", {"type": "string"})}
    has_losers = {"if": _given("losers", {"type": "string"}), "then": _given("join", {"const": "any"})}
    return _object({**every, **own}, allOf=[has_else, has_losers, *rules])


def _savepoint() -> Schema:
    return _object(
        {
            "then": _told(
                "What then: run again from here, undo the rest, or stop here.", _choice("retry", "undo", "dead_letter")
            ),
            "attempts": _told("How often it runs again.", _count(ATTEMPTS_MAX)),
            "exhausted": _told("What after the last attempt.", _choice("undo", "dead_letter")),
        },
        "boolean",
        "null",
        **{"if": _given("then", {"enum": ["undo", "dead_letter"]}), "then": _absent("attempts", "exhausted")},
    )


def _decision() -> Schema:
    roles = {"type": ["array", "null"], "items": {"type": "string", "pattern": "\\S"}}
    return _object(
        {
            "input": _told("What they are shown: any JSON, a string with ${…} in it is a template.", {}),
            "roles": _told("Who may decide; anybody unless given.", roles),
            "timeout": _told("How long it waits.", _ref("time")),
            "on_timeout": _told("What it counts as then.", _choice("reject", "approve", "fail")),
            "on_reject": _told("Whether a rejection fails the command, or is an outcome.", _choice("undo", "continue")),
        },
        "boolean",
        **_NOT_FALSE,
    )


def _data() -> Schema:
    flag: Schema = {"type": ["boolean", "null"], "default": False}
    yes: Schema = {"const": True}
    reopens = _given("reopens", yes)
    unawaited = {"type": "object", "anyOf": [_given("optional", yes), reopens]}
    return _object(
        {
            "name": _told("Under which it is provided; the step's own unless given.", _NAME_OR_NULL),
            "timeout": _told("How long it waits.", _ref("time")),
            "on_timeout": _told("What then: it fails, or its outcome is null.", _choice("fail", "null")),
            "optional": _told("Nobody waits for it.", flag),
            "reruns": _told("When it arrives, what comes after it runs again.", flag),
            "reopens": _told("The same even when the command has completed.", flag),
        },
        "boolean",
        "string",
        **_NAME,
        **_NOT_FALSE,
        allOf=[
            {"if": unawaited, "then": _absent("timeout", "on_timeout")},
            {"if": {"type": "object", **_given("reruns", yes)}, "then": unawaited},
            {
                "if": {"type": "object", **reopens},
                "then": {"properties": {"optional": _NOT_FALSE, "reruns": _NOT_FALSE}},
            },
        ],
    )


def _sleep() -> Schema:
    return _object(
        {"for": _SURELY}, "string", required=["for"], allOf=[{"if": {"type": "string"}, "then": _ref("time")}]
    )
