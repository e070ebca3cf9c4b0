"""Reads what a step or an undo sends, and what its answers mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from coordinator.model.definition import ATTEMPTS_MAX, RequestSource, RetryRule
from coordinator.model.durations import parse_duration
from coordinator.model.reading.fields import Fields, Report, Services, did_you_mean, is_whole, shown

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
REQUEST_FIELDS: Final = ("service", "method", "path", "body", "headers", "answers", "retry", "timeout")

_RETRY_FIELDS: Final = ("attempts", "backoff", "first", "max", "jitter")
_GRPC_METHOD = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*/[A-Za-z_][A-Za-z0-9_]*")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")
_STATUS = re.compile(r"[1-5](?:\d\d|xx)|[A-Z][A-Z_]{1,40}")
OUR_HEADERS: Final = frozenset(
    {
        "connection",
        "content-length",
        "coordinator-fence",
        "expect",
        "host",
        "idempotency-key",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class Requests(Fields):
    """Reads requests; ``services`` as in `parse`."""

    def __init__(self, services: Services, report: Report) -> None:
        super().__init__(report)
        self.services = services

    def request(self, value: dict[str, Any], at: str, inherited: str | None = None) -> RequestSource:
        """``inherited`` is the service of one that names none."""
        service = self.service(value, at, inherited)
        kind = self.services.get(service) if isinstance(self.services, Mapping) else None
        method, path = self.target(value, at, kind)
        return RequestSource(
            at=at,
            service=service,
            method=method,
            path=path,
            body=value.get("body"),
            headers=self.headers(value.get("headers"), f"{at}.headers"),
            answers=self.answers(value.get("answers"), f"{at}.answers"),
            retry=self.retry(value.get("retry"), f"{at}.retry"),
            timeout=self.duration(value, at, "timeout"),
        )

    def undo(self, value: Any, at: str, service: str) -> RequestSource | None:
        if value is None or not self.is_object(value, at, REQUEST_FIELDS):
            return None
        return self.request(value, at, service)

    def service(self, value: dict[str, Any], at: str, inherited: str | None) -> str:
        if "service" not in value:
            return inherited or ""
        service = value["service"]
        if not isinstance(service, str):
            self.report(f"{at}.service", f"a service is named by a string, not {shown(service)}")
            return ""
        if self.services is not None and service not in self.services:
            known = ", ".join(sorted(self.services)) or "none"
            hint = did_you_mean(service, self.services) or f" (configured: {known})"
            self.report(f"{at}.service", f'unknown service "{service}"{hint}')
        return service

    def target(self, value: dict[str, Any], at: str, kind: str | None) -> tuple[str, str]:
        """Method and path: a method of HTTP with a path, or the full name of a gRPC method without one."""
        method, path = value.get("method", "POST"), value.get("path")
        if not isinstance(method, str):
            self.report(f"{at}.method", f"a method is a string, not {shown(method)}")
            method = "POST"
        elif kind == "grpc" or (kind is None and "/" in method):
            if not _GRPC_METHOD.fullmatch(method):
                self.report(
                    f"{at}.method", f"a gRPC method is its full name, as shop.Stock/Reserve, not {shown(method)}"
                )
            if path is not None:
                self.report(f"{at}.path", "a gRPC request has no path")
            return method, ""
        elif method not in METHODS:
            self.report(f"{at}.method", f"a method is one of {', '.join(METHODS)}, not {shown(method)}")
        if path is not None and (not isinstance(path, str) or not path):
            self.report(f"{at}.path", f"a path is a string that starts with /, not {shown(path)}")
            path = None
        return method, "/" if path is None else path

    def headers(self, value: Any, at: str) -> dict[str, str]:
        if value is None or not self.is_object(value, at, None):
            return {}
        for name, text in value.items():
            if not _HEADER.fullmatch(name):
                self.report(at, f"{name!r} is no name of a header")
            elif name.lower() in OUR_HEADERS:
                self.report(f"{at}.{name}", "this header is the coordinator's own")
            if not isinstance(text, str):
                self.report(f"{at}.{name}", f"a header is a string, not {shown(text)}")
        return {name: text for name, text in value.items() if isinstance(text, str)}

    def answers(self, value: Any, at: str) -> dict[str, str]:
        if value is None or not self.is_object(value, at, None):
            return {}
        for status, meaning in value.items():
            if not _STATUS.fullmatch(status):
                self.report(at, f'{status!r} is no status: "404", "5xx" or a gRPC name as "NOT_FOUND"')
            if meaning not in ("outcome", "failure", "delayed"):
                self.report(
                    f"{at}.{status}", f'an answer means "outcome", "failure" or "delayed", not {shown(meaning)}'
                )
        return dict(value)

    def retry(self, value: Any, at: str) -> RetryRule | None:
        if value is None or not self.is_object(value, at, _RETRY_FIELDS):
            return None
        if "attempts" in value and not is_whole(value["attempts"], 1, ATTEMPTS_MAX):
            self.report(
                f"{at}.attempts",
                f"attempts is a whole number from 1 to {ATTEMPTS_MAX}, not {shown(value['attempts'])}",
            )
        if value.get("backoff", "fixed") not in ("fixed", "exponential"):
            self.report(f"{at}.backoff", f'backoff is "fixed" or "exponential", not {shown(value["backoff"])}')
        jitter = value.get("jitter", 0)
        if isinstance(jitter, bool) or not isinstance(jitter, int | float) or not 0 <= jitter <= 1:
            self.report(f"{at}.jitter", f"jitter is a number from 0 to 1, not {shown(jitter)}")
        first = self.duration(value, at, "first", least=0)
        longest = self.duration(value, at, "max", least=0)
        if first is not None and longest is not None and parse_duration(first) > parse_duration(longest):
            self.report(f"{at}.first", f"first ({first}) is longer than max ({longest})")
        return RetryRule(**{field: value[field] for field in _RETRY_FIELDS if field in value})
