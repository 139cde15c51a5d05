"""Runs the HTTP server: listens on TCP and Unix sockets, serves with uvicorn, and shuts down in order."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from aima_core.errors import Unavailable
from services.gateway.settings import DEFAULT_PORT, GatewaySettings, local

_PORTS = 20  # ports to try, starting with the default port, if the settings name no port
_BACKLOG = 2048
_KEEP_ALIVE = 75  # seconds that a connection may be idle between requests
_GRACE = 20  # seconds that requests under way get to finish when the gateway stops
_LAST_WORDS = 2  # the last seconds of _GRACE, in which requests still under way get an error with the reason


@dataclass(frozen=True)
class Listening:
    """The sockets that the gateway listens on.

    `url` and `host` describe the first socket. `host` is empty for a Unix socket.
    """

    sockets: tuple[socket.socket, ...]
    url: str
    host: str

    @property
    def local(self) -> bool:
        """Whether only this machine can connect."""
        return local(self.host)


def listen(settings: GatewaySettings) -> Listening:
    """Listen on the addresses in the settings. Raises Unavailable (PORT_IN_USE or NOT_WRITABLE) if that fails."""
    extra = (_unix(settings.socket),) if settings.socket else ()
    if settings.addr.startswith("unix:"):
        path = settings.addr.removeprefix("unix:")
        return Listening((_unix(path), *extra), f"unix:{path}", "")
    host, _, port = settings.addr.rpartition(":")
    host = host.strip("[]")
    ports = range(int(port), int(port) + 1) if settings.addr else range(DEFAULT_PORT, DEFAULT_PORT + _PORTS)
    sock = _tcp(host or ("0.0.0.0" if settings.addr else "127.0.0.1"), ports)  # noqa: S104 (`:9090` means every address)
    name, number = sock.getsockname()[:2]
    scheme = "https" if settings.tls_cert else "http"
    url_host = f"[{name}]" if ":" in name else name
    return Listening((sock, *extra), f"{scheme}://{url_host}:{number}", name)


class Server(uvicorn.Server):
    """A uvicorn server that does not handle signals. `ready` is set when the server accepts requests."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Http:
    """The running server. `cut()` must end all requests under way at once."""

    def __init__(self, app: ASGIApp, listening: Listening, settings: GatewaySettings, cut: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            limit_concurrency=settings.connections,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_GRACE,
            ssl_certfile=settings.tls_cert or None,
            ssl_keyfile=settings.tls_key or None,
        )
        self._server = Server(config)
        self._sockets = list(listening.sockets)
        self._cut = cut
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start the server. Returns when the server accepts requests or has failed to start."""
        self._task = asyncio.create_task(self._server.serve(sockets=self._sockets))
        ready = asyncio.create_task(self._server.ready.wait())
        await asyncio.wait((ready, self._task), return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()

    async def close(self) -> None:
        """Stop accepting requests. Waits for the requests under way, and cuts them after 18 s."""
        if self._task:
            self._server.should_exit = True
            _, late = await asyncio.wait((self._task,), timeout=_GRACE - _LAST_WORDS)
            if late:
                self._cut()
                await asyncio.wait(late, timeout=_LAST_WORDS + 5)


def _tcp(host: str, ports: range) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in ports:
        # without the protocol TCP, asyncio would not turn off Nagle's algorithm, which costs 40 ms per request
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen(_BACKLOG)
        except OSError as error:
            sock.close()
            reason = error.strerror
            continue
        return sock
    which = f"port {ports[0]}" if len(ports) == 1 else f"any of the ports {ports[0]} to {ports[-1]}"
    raise Unavailable(
        f"the gateway cannot listen on {which} of {host}: {reason}", reason="PORT_IN_USE", port=ports[0], host=host
    )


def _unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(Path(path))
        sock.bind(path)
        Path(path).chmod(0o600)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise Unavailable(
            f"the gateway cannot listen on {path}: {error.strerror or error}", reason="NOT_WRITABLE", file=path
        ) from error
    return sock


def _remove_stale(path: Path) -> None:
    """Remove a socket file that an earlier run has left. Keeps the file if a process still listens on the socket."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
