"""The settings of the gateway."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from aima_core.settings import Section

DEFAULT_PORT = 9090
_ADDRESS = re.compile(r"unix:.+|(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]*):[0-9]{1,5}")


def _words(value: object) -> object:
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def _address(text: str) -> str:
    if text and not _ADDRESS.fullmatch(text):
        raise ValueError("expected host:port, such as 127.0.0.1:9090 or [::1]:9090, or unix:/path")
    return text


Address = Annotated[str, AfterValidator(_address)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]


def host_of(addr: str) -> str:
    """Return the host of an address; empty for a Unix socket."""
    return "" if addr.startswith("unix:") else addr.rpartition(":")[0].strip("[]") or "0.0.0.0"  # noqa: S104 (`:9090`)


def local(host: str) -> bool:
    """Whether only this machine can connect to a host; an empty one is a Unix socket."""
    return not host or host in ("localhost", "::1") or host.startswith("127.")


class GatewaySettings(Section):
    """Where the doors are, and who may come in."""

    addr: Address = Field(
        "", description="host:port, or unix:/path; empty: 127.0.0.1:9090, or the next port that is free."
    )
    socket: str = Field("", description="Path of a Unix socket to serve on as well.")
    grpc_addr: Address = Field(
        "", description="host:port for gRPC, or unix:/path, which needs the extra `grpc`; empty: none."
    )
    tls_cert: str = Field("", description="File with the certificate chain (PEM); needs tls_key.")
    tls_key: str = Field("", description="File with the private key (PEM).")
    auth: Literal["auto", "required", "off"] = Field(
        "auto", description="Whether commands need a key. auto: unless only this machine can connect."
    )
    open_queries: bool = Field(True, description="Whether queries are answered without a key where keys are required.")
    api_keys: Annotated[tuple[SecretStr, ...], BeforeValidator(_words)] = Field(
        (), description="Keys that may do everything, each name:secret; AIMA_API_KEYS is the same."
    )
    hosts: Words = Field((), description="Names in the Host header that are answered beside those of addr.")
    cors_origins: Words = Field((), description="Origins whose pages may read answers; * for all.")
    body_limit: int = Field(8 * 2**20, ge=1024, le=2**30, description="Bytes of a request's body.")
    upload_limit: int = Field(100 * 2**20, ge=1024, le=2**32, description="Bytes of a body with audio or images.")
    requests_per_minute: int = Field(
        0, ge=0, le=1_000_000, description="Of each address that shows no key; 0: no limit."
    )
    connections: int = Field(16_384, ge=16, le=1_000_000, description="Connections at once; more are refused.")

    @model_validator(mode="after")
    def _both(self) -> GatewaySettings:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key need each other")
        return self
