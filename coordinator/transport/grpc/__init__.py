"""gRPC: proto/coordinator.proto on grpc.aio, with the standard health and reflection services."""

from coordinator.transport.grpc.server import GrpcServer
from coordinator.transport.grpc.settings import GrpcSettings

__all__ = ["GrpcServer", "GrpcSettings"]
