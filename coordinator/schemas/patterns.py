"""Regular expressions for what the program checks with arithmetic: numbers in a range, durations, addresses.

JSON Schema can bound a number, but a duration (``1.5s``) or a port within ``host:port`` is text, for which it has
patterns only.  So the bounds are made into patterns, by the same functions that the daemon checks with: a schema that
is right but for an edge would mark good files as wrong.

Everything here stays within what ECMA-262, Rust's regex and Python's ``re`` mean alike: no look-around, no ``\\d``
(Unicode in Python), no ``\\w``.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from functools import cache

from coordinator.model.durations import DURATION_MAX, UNITS, parse_duration

_WHOLE_DIGITS, _PART_DIGITS = 9, 6  # of the number in a duration
_MICRO = 10**_PART_DIGITS
_HOST = r"[^\s\[\]:/@]+"
_BRACKETED = r"\[[0-9A-Fa-f:.%a-z]+\]"


def whole(pattern: str) -> str:
    """The pattern of a text that is ``pattern`` from its beginning to its end."""
    return f"^(?:{pattern})$"


def one_of(patterns: Iterable[str]) -> str:
    given = list(patterns)
    return given[0] if len(given) == 1 else f"(?:{'|'.join(given)})"


def any_case(text: str) -> str:
    """``text`` in upper and lower case, which patterns have no flag for."""
    return "".join(f"[{each.upper()}{each.lower()}]" if each.isalpha() else each for each in text)


# ---------------------------------------------------------------- numbers


def numbers(low: int, high: int, digits: int) -> str:
    """Whole numbers from ``low`` to ``high`` in at most so many digits, zeros in front among them."""
    return one_of(_numbers(low, high, digits))


def _numbers(low: int, high: int, digits: int) -> Iterator[str]:
    for length in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (length - 1) if length > 1 else 0)
        last = min(high, 10**length - 1)
        if first <= last:
            zeros = f"0{{0,{digits - length}}}" if digits > length else ""
            yield zeros + _span(str(first), str(last))


def _span(low: str, high: str) -> str:
    """Digits from ``low`` to ``high``, which have the same length."""
    rest = len(low) - 1
    if not low:
        return ""
    if low.strip("0") == "" and high.strip("9") == "":
        return "[0-9]" + (f"{{{rest + 1}}}" if rest else "")
    if low[0] == high[0]:
        return low[0] + _span(low[1:], high[1:])
    first, last, ways = int(low[0]), int(high[0]), []
    if low[1:].strip("0"):
        ways.append(low[0] + _span(low[1:], "9" * rest))
        first += 1
    if high[1:].strip("9"):
        ways.append(high[0] + _span("0" * rest, high[1:]))
        last -= 1
    if first <= last:
        lead = str(first) if first == last else f"[{first}-{last}]"
        ways.append(lead + (f"[0-9]{{{rest}}}" if rest else ""))
    return one_of(ways)


# ---------------------------------------------------------------- durations


@cache
def durations(low: int, high: int = DURATION_MAX) -> str:
    """Durations that are read as ``low`` to ``high`` milliseconds, in any unit and any spelling."""
    return one_of(f"{number}{unit}" for unit in UNITS for number in _in_unit(unit, low, high))


def _in_unit(unit: str, low: int, high: int) -> Iterator[str]:
    """The numbers that are right with one unit.

    A duration is rounded to milliseconds, so the bounds are not simply divided: the least and the greatest number that
    pass are looked for among all that can be written, as so many millionths.
    """

    def millis(millionths: int) -> int:
        try:
            return parse_duration(f"{millionths // _MICRO}.{millionths % _MICRO:0{_PART_DIGITS}d}{unit}")
        except ValueError:  # longer than any duration
            return DURATION_MAX + 1

    written = range(10**_WHOLE_DIGITS * _MICRO)
    first = bisect_left(written, low, key=millis)
    last = bisect_right(written, high, key=millis) - 1
    if first <= last:
        yield one_of(_decimals(*divmod(first, _MICRO), *divmod(last, _MICRO)))


def _decimals(low: int, low_part: int, high: int, high_part: int) -> Iterator[str]:
    """Decimal numbers from ``low.low_part`` to ``high.high_part``, the parts as millionths."""
    if low == high:
        yield numbers(low, high, _WHOLE_DIGITS) + _parts(low_part, high_part)
        return
    if low_part:
        yield numbers(low, low, _WHOLE_DIGITS) + _parts(low_part, _MICRO - 1)
        low += 1
    if high_part < _MICRO - 1:
        yield numbers(high, high, _WHOLE_DIGITS) + _parts(0, high_part)
        high -= 1
    if (low, high) == (0, 10**_WHOLE_DIGITS - 1):
        yield f"[0-9]{{1,{_WHOLE_DIGITS}}}" + _parts(0, _MICRO - 1)
    elif low <= high:
        yield numbers(low, high, _WHOLE_DIGITS) + _parts(0, _MICRO - 1)


def _parts(low: int, high: int) -> str:
    """What may follow the whole number: a point and up to six digits, which are ``low`` to ``high`` millionths."""
    if (low, high) == (0, _MICRO - 1):
        return rf"(?:\.[0-9]{{1,{_PART_DIGITS}}})?"
    ways = []
    for length in range(1, _PART_DIGITS + 1):
        unit = 10 ** (_PART_DIGITS - length)
        first, last = -(-low // unit), high // unit
        if first <= last:
            ways.append(_span(str(first).zfill(length), str(last).zfill(length)))
    part = rf"\.{one_of(ways)}"
    return f"(?:{part})?" if low == 0 else part


# ---------------------------------------------------------------- addresses


def address(first_port: int = 0, host: str = _HOST) -> str:
    """``host:port``, an IPv6 host in brackets."""
    return f"(?:{_BRACKETED}|{host}):{numbers(first_port, 65_535, 5)}"


def host() -> str:
    """A host without a port."""
    return f"(?:{_BRACKETED}|{_HOST})"


def brokers() -> str:
    one = address(1, r"[^\s\[\]:/@,]+")
    return f"{one}(?:,{one})*"


def ipv6() -> str:
    """An IPv6 address without brackets, with its zone if it has one."""
    group = "[0-9A-Fa-f]{1,4}"
    octet = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    dotted = rf"{octet}(?:\.{octet}){{3}}"  # stands for the last two groups
    ways = [f"(?:{group}:){{7}}{group}", f"(?:{group}:){{6}}{dotted}"]
    for before in range(8):  # groups in front of the ::, which stands for one group at least
        front = f"{group}(?::{group}){{{before - 1}}}" if before else ""
        after = 7 - before
        ends = [f"{group}(?::{group}){{0,{after - 1}}}"] if after else []
        if after >= 2:
            ends.append(f"(?:{group}:){{0,{after - 2}}}{dotted}")
        ways.append(f"{front}::" + (f"{one_of(ends)}?" if len(ends) > 1 else f"(?:{ends[0]})?" if ends else ""))
    return f"{one_of(ways)}(?:%[^%]+)?"


def http_url(scheme: str = "https?") -> str:
    """A URL with a path perhaps, without user, password, query and fragment."""
    return rf"{scheme}://{_AUTHORITY}(?::(?:{_PORT})?)?(?:/[^\s?#]*)?"


def service_url() -> str:
    """The URL of a service: HTTP, or gRPC with its port and without a path; schemes are in any case."""
    return f"{http_url(any_case('http') + '[sS]?')}|{any_case('grpc')}[sS]?://{_AUTHORITY}:{_PORT}/?"


_AUTHORITY = rf"(?:[^\s/?#@:\[\]]+|{_BRACKETED})"
_PORT = numbers(0, 65_535, 9)
