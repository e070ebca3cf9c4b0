"""Reads the configuration: flag > environment > file > default; every fault at once, each with where it comes from.

Each source is turned into the same thing, a list of `Given`: a path such as ``("log", "kind")``, a value, and the
words for its source (``coordinator.toml``, ``environment variable COORDINATOR_LOG__KIND``, ``--log``).  Each one is
checked on its own against the structs of `config`, a wrong one even where a stronger source overrides it; the strongest
wins; the result is checked as a whole.  So an operator fixes a file in one round, not one fault a start.

Environment: ``COORDINATOR_SECTION__KEY``, deeper keys likewise (``COORDINATOR_SERVICES__PAYMENTS__BREAKER__RESET``), in
any case.  A variable without ``__`` is left alone: container platforms set ``COORDINATOR_PORT`` and
``COORDINATOR_SERVICE_HOST`` for a service that is called coordinator.  A name cannot hold a ``-`` or ``.`` there, so
``CARD_PAYMENTS`` means the service ``card-payments`` if the file has that.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Struct, inspect, structs

from coordinator.errors import ConfigError
from coordinator.model.durations import DURATION_RULE, format_duration
from coordinator.server.config import Check, Config, Duration, Section, Service, decode_hook

PREFIX = "COORDINATOR_"
DEFAULT_FILE = Path("coordinator.toml")
KeyPath = tuple[str, ...]

FLAGS: dict[str, KeyPath] = {
    "--data-dir": ("log", "data_dir"),
    "--http": ("listen", "http"),
    "--grpc": ("listen", "grpc"),
    "--tcp": ("listen", "tcp"),
    "--log-level": ("logging", "level"),
    "--log-format": ("logging", "format"),
}
LOG_RULE = "sqlite, or kafka://host:port[,host:port]/topic"


class Given(NamedTuple):
    """One value from one source; ``text`` tells that the source knows only text, so that ``"5"`` may be a number."""

    path: KeyPath
    value: Any
    source: str
    text: bool


class Fault(NamedTuple):
    source: str
    path: KeyPath
    says: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, ".".join(self.path), self.says) if part)


class Loaded(NamedTuple):
    """A configuration, and the source of each value that is not a default."""

    config: Config
    sources: dict[KeyPath, str]

    def to_toml(self) -> str:
        """The effective configuration as a file that means the same when it is read again."""
        return "\n".join(_toml_lines(self)) + "\n"


def load(
    file: Path | None = None, environ: Mapping[str, str] | None = None, flags: Mapping[str, str | None] | None = None
) -> Loaded:
    """Reads all sources; raises ConfigError that lists every fault.

    ``file``: None reads ``$COORDINATOR_CONFIG``, or ``coordinator.toml`` of the working directory if there is one.
    ``flags``: values by flag (`FLAGS` and ``--log``), as typed; None where a flag was not given.
    """
    environ = os.environ if environ is None else environ
    faults: list[Fault] = []
    from_file = list(_from_file(_file_to_read(file, environ), faults))
    services = [given.path[1] for given in from_file if given.path[0] == "services" and len(given.path) > 1]
    from_environment = list(_from_environment(environ, services, faults))
    given = [*from_file, *from_environment, *_from_flags(flags or {}, faults)]

    values: dict[KeyPath, Any] = {}
    sources: dict[KeyPath, str] = {}
    for one in given:
        if (fault := _check(one, values)) is not None:
            faults.append(fault)
        sources[one.path] = one.source
    if not faults:
        config: Config = _built(Config, _tree(values)).resolved()
        faults = [Fault(_source(sources, path), path, f"allowed is {says}") for path, says in config.faults()]
        if not faults:
            return Loaded(config, sources)
    raise ConfigError(_report(faults))


def _source(sources: dict[KeyPath, str], path: KeyPath) -> str:
    """The last source of a value at or below ``path``; empty if all of it is default."""
    return next((source for at, source in reversed(sources.items()) if at[: len(path)] == path), "")


def _report(faults: list[Fault]) -> str:
    if len(faults) == 1:
        return f"configuration: {faults[0]}"
    return f"the configuration has {len(faults)} faults:\n" + "\n".join(f"  {fault}" for fault in faults)


# ---------------------------------------------------------------- the sources


def _file_to_read(file: Path | None, environ: Mapping[str, str]) -> Path | None:
    if file is not None:
        return file
    if named := environ.get("COORDINATOR_CONFIG"):
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.is_file() else None


def _from_file(file: Path | None, faults: list[Fault]) -> Iterator[Given]:
    if file is None:
        return
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        faults.append(Fault(str(file), (), f"the configuration file cannot be read: {error.strerror or error}"))
    except UnicodeDecodeError as error:
        faults.append(Fault(str(file), (), f"not UTF-8 at byte {error.start}"))
    except tomllib.TOMLDecodeError as error:
        faults.append(Fault(str(file), (), f"not valid TOML: {error}"))
    else:
        yield from _leaves(table, (), str(file), faults)


def _from_environment(environ: Mapping[str, str], services: list[str], faults: list[Fault]) -> Iterator[Given]:
    # TOML's tables are case-sensitive, variables often upper case: fold the names, and find the file's spelling.
    spelled = {_fold(name): name for name in services}
    for variable, text in sorted(environ.items()):
        if not variable.upper().startswith(PREFIX) or "__" not in variable:
            continue
        path = tuple(part.lower() for part in variable[len(PREFIX) :].split("__"))
        if path[0] == "services" and len(path) > 1:
            path = ("services", spelled.get(_fold(path[1]), path[1]), *path[2:])
        source = f"environment variable {variable}"
        value, as_text = _structured(text) if _is_table(path) else (text, True)
        if isinstance(value, dict):
            yield from _leaves(value, path, source, faults)
        else:
            yield from _resolve(path, value, source, as_text, faults)


def _fold(name: str) -> str:
    return re.sub(r"[-.]", "_", name).lower()


def _structured(text: str) -> tuple[Any, bool]:
    """A whole table as JSON or as an inline table of TOML; else the text."""
    try:
        return json.loads(text), False
    except ValueError:
        pass
    try:
        return tomllib.loads(f"value = {text}")["value"], False
    except tomllib.TOMLDecodeError:
        return text, True


def _from_flags(flags: Mapping[str, str | None], faults: list[Fault]) -> Iterator[Given]:
    for flag, text in flags.items():
        if text is None:
            continue
        if flag == "--log":
            yield from _from_log_flag(text, faults)
        else:
            yield Given(FLAGS[flag], text, flag, True)


def _from_log_flag(text: str, faults: list[Fault]) -> Iterator[Given]:
    match = re.fullmatch(r"kafka://([^/\s]+)(?:/([^/\s]+)/?)?/?", text)
    if text == "sqlite":
        yield Given(("log", "kind"), "sqlite", "--log", True)
    elif match is None:
        faults.append(Fault("--log", ("log",), f"allowed is {LOG_RULE}, not {text!r}"))
    else:
        yield Given(("log", "kind"), "kafka", "--log", True)
        yield Given(("log", "bootstrap"), match[1], "--log", True)
        if match[2]:
            yield Given(("log", "topic"), match[2], "--log", True)


def _leaves(table: dict[str, Any], path: KeyPath, source: str, faults: list[Fault]) -> Iterator[Given]:
    """The values of a table, down to what the structs hold as one value."""
    for key, value in table.items():
        yield from _resolve((*path, key), value, source, False, faults)
    if path and not table and _is_table(path) and path[0] == "services" and len(path) == 2:
        yield Given((*path, "url"), "", source, False)  # an empty [services.x] declares it all the same


def _resolve(path: KeyPath, value: Any, source: str, text: bool, faults: list[Fault]) -> Iterator[Given]:
    kind = _type_at(path)
    if isinstance(kind, str):
        faults.append(Fault(source, path, kind))
    elif _is_table(path):
        if isinstance(value, dict):
            yield from _leaves(value, path, source, faults)
        else:
            faults.append(Fault(source, path, f"allowed is a table, not {value!r}"))
    else:
        yield Given(path, value, source, text)


# ---------------------------------------------------------------- the structs as a schema


def _type_at(path: KeyPath) -> Any:
    """The type of the value at a path, or (a str) what is wrong with the path."""
    kind: Any = Config
    for depth, key in enumerate(path):
        if _is_section(kind):
            fields = {field.name: field for field in structs.fields(kind)}
            if key not in fields:
                return _unknown_key(key, list(fields), "section" if depth == 0 else "key")
            kind = fields[key].type
        elif kind == dict[str, Service]:
            kind = Service
        elif _bare(kind) == dict[str, str]:
            kind = _entry_type(kind, key)
        else:
            return f"{'.'.join(path[:depth])} is a single value and has no keys"
    return kind


def _unknown_key(key: str, known: list[str], noun: str) -> str:
    close = difflib.get_close_matches(key.lower(), known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"there is no such {noun}{hint}; allowed are {', '.join(known)}"


def _entry_type(kind: Any, key: str) -> Any:
    """The type of one value of a table of strings: the table's check, asked about this entry alone."""
    check = _check_of(kind)
    return Annotated[str, msgspec.Meta(extra={"check": lambda value: check({key: value}) if check else None})]


def _check_of(kind: Any) -> Check | None:
    info = inspect.type_info(kind)
    return (info.extra or {}).get("check") if isinstance(info, inspect.Metadata) else None


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _bare(kind: Any) -> Any:
    return getattr(kind, "__origin__", kind) if hasattr(kind, "__metadata__") else kind


def _is_table(path: KeyPath) -> bool:
    kind = _type_at(path)
    return _is_section(kind) or kind == dict[str, Service] or _bare(kind) == dict[str, str]


def _check(given: Given, values: dict[KeyPath, Any]) -> Fault | None:
    """Converts one value into ``values``, or says what is allowed."""
    kind = _type_at(given.path)
    if isinstance(kind, str):
        return Fault(given.source, given.path, kind)
    try:
        value = msgspec.convert(given.value, kind, strict=not given.text, dec_hook=decode_hook)
    except msgspec.ValidationError:
        return Fault(given.source, given.path, f"allowed is {describe(kind)}, not {_shown(given.value)}")
    check = _check_of(kind)
    if check is not None and (allowed := check(value)) is not None:
        return Fault(given.source, given.path, f"allowed is {allowed}, not {_shown(given.value)}")
    values[given.path] = value
    return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:99] + "…"


def describe(kind: Any) -> str:
    """What a type allows, as the end of "allowed is …"."""
    info = inspect.type_info(kind)
    if isinstance(info, inspect.Metadata):
        info = info.type
    match info:
        case inspect.IntType():
            return f"a whole number from {info.ge} to {info.le}"
        case inspect.LiteralType():
            return " or ".join(f'"{value}"' for value in sorted(map(str, info.values)))
        case inspect.BoolType():
            return "true or false"
        case inspect.CustomType() if info.cls is Duration:
            return f"a string with a duration ({DURATION_RULE.removeprefix('a duration is ')})"
        case inspect.DictType():
            return "a table of strings"
        case _:
            return "a string"


def _tree(values: dict[KeyPath, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        at = tree
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = value
    return tree


def _built(kind: type[Struct], tree: dict[str, Any]) -> Any:
    """Structs of values that are converted and checked already."""
    made = {}
    for field in structs.fields(kind):
        if field.name not in tree:
            continue
        value = tree[field.name]
        if _is_section(field.type):
            value = _built(field.type, value)
        elif field.type == dict[str, Service]:
            value = {name: _built(Service, table) for name, table in value.items()}
        made[field.name] = value
    return kind(**made)


# ---------------------------------------------------------------- writing TOML


def _toml_lines(loaded: Loaded) -> Iterable[str]:
    for section in structs.fields(Config):
        value = getattr(loaded.config, section.name)
        if isinstance(value, Section):
            yield from _table((section.name,), value, loaded.sources)
        else:
            for name, service in value.items():
                yield from _table((section.name, name), service, loaded.sources)


def _table(path: KeyPath, section: Section, sources: dict[KeyPath, str]) -> Iterable[str]:
    yield f"[{'.'.join(map(_toml_key, path))}]"
    for field in structs.fields(type(section)):
        here = (*path, field.name)
        origin = " ".join(_source(sources, here).split())
        comment = f"  # {origin}" if origin else ""
        yield f"{_toml_key(field.name)} = {_toml_value(getattr(section, field.name))}{comment}"
    yield ""


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case Duration():
            return f'"{format_duration(value)}"'
        case int():
            return str(value)
        case Section():
            return _toml_value({field.name: getattr(value, field.name) for field in structs.fields(type(value))})
        case dict():
            return (
                "{ " + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items()) + " }"
                if value
                else "{}"
            )
        case _:
            # JSON's escapes are TOML's, but for DEL, which TOML wants escaped too.
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
