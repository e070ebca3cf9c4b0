"""gRPC services over TLS."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
import pytest
import trustme

from coordinator.errors import ConfigError
from coordinator.gateway.gateway import Gateway
from coordinator.gateway.grpc import GrpcCaller
from coordinator.model.call import Request
from coordinator.model.settings import ServiceSettings
from tests.gateway_kit import ask, on_both_loops, outcome, unknown


class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers each call with its own payload."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        async def answer(body: bytes, context: grpc.aio.ServicerContext) -> bytes:
            return body

        return grpc.unary_unary_rpc_method_handler(answer)


@on_both_loops
async def test_a_ca_of_ones_own(tmp_path: Path) -> None:
    """The service's certificate is verified against the CA in the settings, and against nothing else."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
    port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    request = Request(service="stock", method="shop.Stock/Reserve", path="", body={"sku": 1})
    for name, fits in (("ca.pem", True), ("other.pem", False)):
        settings = ServiceSettings(name="stock", url=f"grpcs://localhost:{port}", tls_ca=str(tmp_path / name))
        gateway = Gateway({"stock": settings}, {}, asyncio.get_running_loop())
        answer = await ask(gateway, request)
        if fits:
            assert outcome(answer) == {"sku": 1}
        else:
            assert unknown(answer) == "grpc_unavailable"
        await gateway.close()
    await server.stop(None)


def test_settings_that_grpc_cannot_keep(tmp_path: Path) -> None:
    """The start stops with the key that is wrong."""
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(ConfigError, match=r"services\.stock\.tls_verify"):
            GrpcCaller(ServiceSettings(name="stock", url="grpcs://stock:1", tls_verify=False), loop)
        with pytest.raises(ConfigError, match=r"services\.stock\.tls_ca"):
            GrpcCaller(ServiceSettings(name="stock", url="grpcs://stock:1", tls_ca=str(tmp_path / "none")), loop)
    finally:
        loop.close()
