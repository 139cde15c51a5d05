"""Listening: TLS, a Unix socket, an address that is taken, an end in order."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from aima_core.bus.nats_server import NatsServer
from aima_core.errors import Unavailable, ValidationFailed
from aima_core.testing import settings_for, until
from services.gateway.domain import GATEWAY
from services.gateway.entrance.server import listen
from services.gateway.settings import GatewaySettings
from tests.gateway.conftest import gateway


def _certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 that signs itself; return its file and its key's."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "aima-test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, private = folder / "cert.pem", folder / "key.pem"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, private


async def test_a_certificate_makes_it_https(tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]) -> None:
    chain, private = _certificate(tmp_path)
    context = ssl.create_default_context(cafile=str(chain))
    environ = {"AIMA_GATEWAY_TLS_CERT": str(chain), "AIMA_GATEWAY_TLS_KEY": str(private)}
    async with gateway(tmp_path / "data", nats, free_port(), verify=context, **environ) as site:
        assert site.url.startswith("https://127.0.0.1:")
        assert (await site.get("/api/v2/parcels/p/echo")).status_code == 200
        with pytest.raises(httpx2.TransportError):
            await site.http.get(site.url.replace("https", "http") + "/health")


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    with pytest.raises(ValidationFailed, match="set both tls_cert and tls_key"):
        settings_for(tmp_path, "nats://x", GATEWAY, environ={"AIMA_GATEWAY_TLS_CERT": "cert.pem"})


async def test_a_unix_socket_serves_beside_the_port(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]
) -> None:
    path = tmp_path / "aima.sock"
    with socket.socket(socket.AF_UNIX) as stale:  # what an earlier life has left is no hindrance
        stale.bind(str(path))
    async with gateway(tmp_path / "data", nats, free_port(), AIMA_GATEWAY_SOCKET=str(path)) as site:
        assert path.stat().st_mode & 0o777 == 0o600
        transport = httpx2.AsyncHTTPTransport(uds=str(path))
        async with httpx2.AsyncClient(base_url="http://localhost", transport=transport) as http:
            assert (await http.get("/api/v2/parcels/p/echo")).status_code == 200
            assert (await http.post("/api/v2/counters/c1/add", json={})).status_code == 200
        assert (await site.get("/health")).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_the_address_is_what_the_settings_name(host: str, free_port: Callable[[], int]) -> None:
    port = free_port()
    try:
        listening = listen(GatewaySettings(addr=f"{host}:{port}"))
    except Unavailable:
        pytest.skip(f"there is no {host} here")
    for each in listening.sockets:
        each.close()
    assert listening.url.rpartition(":")[2] == str(port)
    assert listening.local


def test_beyond_this_machine_is_not_local(free_port: Callable[[], int]) -> None:
    listening = listen(GatewaySettings(addr=f"0.0.0.0:{free_port()}"))
    for each in listening.sockets:
        each.close()
    assert not listening.local


@pytest.mark.parametrize("addr", ["here", "127.0.0.1", ":port", "unix:", "127.0.0.1:123456"])
def test_an_address_that_is_none_is_refused(addr: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationFailed):
        settings_for(tmp_path, "nats://x", GATEWAY, environ={"AIMA_GATEWAY_ADDR": addr})


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable) as refused:
            listen(GatewaySettings(addr=f"127.0.0.1:{port}"))
    assert refused.value.details == {"reason": "PORT_IN_USE", "port": port, "host": "127.0.0.1"}
    assert f"port {port} of 127.0.0.1" in refused.value.message


def test_a_socket_that_somebody_listens_on_is_left_to_them(tmp_path: Path) -> None:
    path = tmp_path / "taken.sock"
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        with pytest.raises(Unavailable, match="cannot listen"):
            listen(GatewaySettings(addr=f"unix:{path}"))
        assert path.is_socket()


async def test_requests_under_way_end_before_the_gateway_does(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]
) -> None:
    async with httpx2.AsyncClient(timeout=30) as http:
        async with gateway(tmp_path / "data", nats, free_port()) as site:
            asked = asyncio.create_task(http.post(f"{site.url}/api/v2/parcels/p/carry", json={}))
            await until(lambda: site.world() == ["carries p"])
            (site.folder / "parcel" / "there").write_text("")
        response = await asked
    assert response.status_code == 200
    assert not (tmp_path / "data" / "gateway.url").exists()
