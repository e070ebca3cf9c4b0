"""HTTP: JSON in and out, Server-Sent Events, NDJSON, problem details, OpenAPI (API.md, HTTP)."""

from coordinator.transport.http.server import HttpServer
from coordinator.transport.http.settings import HttpSettings

__all__ = ["HttpServer", "HttpSettings"]
