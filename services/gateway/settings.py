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
    """Return the host of an address. Empty for a Unix socket."""
    return "" if addr.startswith("unix:") else addr.rpartition(":")[0].strip("[]") or "0.0.0.0"  # noqa: S104 (`:9090`)


def local(host: str) -> bool:
    """Whether only this machine can connect to a host. An empty host is a Unix socket."""
    return not host or host in ("localhost", "::1") or host.startswith("127.")


class GatewaySettings(Section):
    """Addresses of the doors, access and limits."""

    addr: Address = Field(
        "", description="Address to listen on: host:port or unix:/path. Empty: 127.0.0.1:9090 or the next free port."
    )
    socket: str = Field("", description="Path of an additional Unix socket to listen on.")
    grpc_addr: Address = Field(
        "", description="Address of the gRPC door: host:port or unix:/path. Needs the extra `grpc`. Empty: no gRPC."
    )
    tls_cert: str = Field("", description="File with the certificate chain (PEM). Requires tls_key.")
    tls_key: str = Field("", description="File with the private key (PEM). Requires tls_cert.")
    auth: Literal["auto", "required", "off"] = Field(
        "auto", description="Whether commands need a key. auto: yes if other machines can connect."
    )
    open_queries: bool = Field(
        True, description="Applies if commands need a key. true: queries need no key; false: queries need a key, too."
    )
    api_keys: Annotated[tuple[SecretStr, ...], BeforeValidator(_words)] = Field(
        (), description="Keys with all rights, each written as name:secret. The variable AIMA_API_KEYS also sets them."
    )
    hosts: Words = Field(
        (),
        description="Names that the gateway accepts in the Host header, in addition to localhost and the host of addr.",
    )
    cors_origins: Words = Field(
        (), description="Origins whose web pages may send requests and read answers; * means all."
    )
    body_limit: int = Field(8 * 2**20, ge=1024, le=2**30, description="Maximum bytes of a request's body.")
    upload_limit: int = Field(
        100 * 2**20, ge=1024, le=2**32, description="Maximum bytes of a body with audio or images."
    )
    requests_per_minute: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Maximum requests per minute that an address may send without a key; 0: no limit.",
    )
    wait: float = Field(
        600,
        ge=0,
        le=86_400,
        description="Seconds that a request to a model waits while its service starts, wakes, is busy or gets a new"
        " replica. A client can set its own time with the header Prefer: wait=60; with wait=0, it does not wait.",
    )
    connections: int = Field(
        16_384, ge=16, le=1_000_000, description="Maximum open connections. The gateway refuses further connections."
    )

    @model_validator(mode="after")
    def _both(self) -> GatewaySettings:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("set both tls_cert and tls_key, or neither")
        return self
