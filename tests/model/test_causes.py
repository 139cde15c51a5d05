"""The cause of a failed pull is the one at that moment: a name, a port, a certificate, a proxy, a status."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from aima_core.bus.nats_server import free_port
from aima_core.errors import AimaError, ExecutionFailed, Forbidden, Unavailable
from services.model.sources import Source
from services.model.sources.hub_http import Policy
from services.model.sources.huggingface import HuggingFace
from services.model.sources.modelscope import ModelScope
from services.model.sources.ollama import Ollama
from tests.stand_ins.hub import REPO

BRISK = Policy(connect=5, read=0.5, attempts=2, backoff=0.001)
HUBS = pytest.mark.parametrize("hub", [HuggingFace, ModelScope, Ollama])


class Refusing(BaseHTTPRequestHandler):
    """Answers every request with one status, also a request for a tunnel."""

    status = 403

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_CONNECT = do_GET  # noqa: N815 (as the base class expects)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def server(handler: type[BaseHTTPRequestHandler], certificate: tuple[Path, Path] | None = None) -> Iterator[int]:
    """Serve on a free port; give the port."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        http.socket = context.wrap_socket(http.socket, server_side=True)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield http.server_port
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate that nobody trusts."""
    made, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*request, "-keyout", str(key), "-out", str(made), *subject], check=True, capture_output=True)
    return made, key


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


async def _steps(done: int, total: int | None) -> None:
    pass


async def _refusal(source: Source, into: Path, mirror: str | None = None) -> AimaError:
    with pytest.raises(AimaError) as refusal:
        await source.pull(REPO, None, into, _steps, mirror)
    return refusal.value


@HUBS
async def test_an_untrusted_certificate_is_named(
    hub: type[HuggingFace], tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    with server(Refusing, certificate) as port:
        error = await _refusal(hub(f"https://127.0.0.1:{port}", BRISK), tmp_path)
    assert isinstance(error, ExecutionFailed)
    assert (error.reason, error.details["cause"]) == ("HUB_UNREACHABLE", "TLS_UNTRUSTED")
    assert error.message.startswith("127.0.0.1 cannot be reached: its certificate is not trusted (self-signed")


@HUBS
async def test_a_proxy_that_refuses_is_named_without_its_password(
    hub: type[HuggingFace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(Refusing) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{port}")
        error = await _refusal(hub("https://hub.example", BRISK), tmp_path)
    assert isinstance(error, ExecutionFailed)
    assert error.details["cause"] == "PROXY"
    assert error.message == (
        f"hub.example cannot be reached through the proxy 127.0.0.1:{port}: the proxy refuses the connection "
        "(403 Forbidden); check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
    )


@HUBS
@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("http://no-such-host.invalid", "DNS"),
        ("http://127.0.0.1:{free}", "REFUSED"),
        ("https://127.0.0.1:{plain}", "TLS"),
    ],
)
async def test_a_hub_that_cannot_be_reached_has_its_cause_and_is_the_one_that_was_asked(
    hub: type[HuggingFace], url: str, cause: str, tmp_path: Path
) -> None:
    with server(Refusing) as plain:
        mirror = url.format(free=free_port(), plain=plain)
        error = await _refusal(hub(None, BRISK), tmp_path, mirror)
    assert (error.reason, error.details["cause"]) == ("HUB_UNREACHABLE", cause)
    assert isinstance(error, ExecutionFailed if cause == "TLS" else Unavailable)
    assert error.details["host"] in mirror


@HUBS
async def test_a_mirror_that_denies_access_is_not_answered_with_the_token_of_another_hub(
    hub: type[HuggingFace], tmp_path: Path
) -> None:
    with server(Refusing) as port:
        error = await _refusal(hub(None, BRISK), tmp_path, f"http://127.0.0.1:{port}")
    assert isinstance(error, Forbidden)
    assert "HF_TOKEN" not in error.message
    assert "AIMA sends no token to this server" in error.message
