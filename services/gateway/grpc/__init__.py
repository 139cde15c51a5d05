"""The units over gRPC."""
