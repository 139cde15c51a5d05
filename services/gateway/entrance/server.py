"""Listening: TCP or a Unix socket, TLS, and an end in order. HTTP itself is uvicorn's."""

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

_TRIED = 20  # ports from the default one on, when the user has named none
_BACKLOG = 2048
_KEEP_ALIVE = 75  # seconds that a connection may be idle between requests
_GRACE = 20  # seconds that requests under way get when the gateway ends
_LAST_WORDS = 2  # of them, the seconds in which those that have not ended are told why they have to


@dataclass(frozen=True)
class Listening:
    """What is listened on. `url` is the first of it, for people and programs; `host` decides who can reach it."""

    sockets: tuple[socket.socket, ...]
    url: str
    host: str

    @property
    def local(self) -> bool:
        """Whether only this machine can connect."""
        return local(self.host)


def listen(settings: GatewaySettings) -> Listening:
    """Take the addresses that the settings name. Raises Unavailable with PORT_IN_USE or NOT_WRITABLE."""
    extra = (_unix(settings.socket),) if settings.socket else ()
    if settings.addr.startswith("unix:"):
        path = settings.addr.removeprefix("unix:")
        return Listening((_unix(path), *extra), f"unix:{path}", "")
    host, _, port = settings.addr.rpartition(":")
    host = host.strip("[]")
    ports = range(int(port), int(port) + 1) if settings.addr else range(DEFAULT_PORT, DEFAULT_PORT + _TRIED)
    sock = _tcp(host or ("0.0.0.0" if settings.addr else "127.0.0.1"), ports)  # noqa: S104 (`:9090` asks for it)
    name, number = sock.getsockname()[:2]
    scheme = "https" if settings.tls_cert else "http"
    shown = f"[{name}]" if ":" in name else name
    return Listening((sock, *extra), f"{scheme}://{shown}:{number}", name)


class Server(uvicorn.Server):
    """uvicorn, inside a process that has its own way with signals."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say when requests are taken."""
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the process."""
        yield


class Http:
    """The server as it runs."""

    def __init__(self, app: ASGIApp, listening: Listening, settings: GatewaySettings, cut: Callable[[], None]) -> None:
        """`cut` lets requests that are under way come to an end at once."""
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
        """Begin to serve."""
        self._task = asyncio.create_task(self._server.serve(sockets=self._sockets))
        ready = asyncio.create_task(self._server.ready.wait())
        await asyncio.wait((ready, self._task), return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()

    async def close(self) -> None:
        """Take no more requests; those under way end, or are cut after a while."""
        if self._task:
            self._server.should_exit = True
            _, late = await asyncio.wait((self._task,), timeout=_GRACE - _LAST_WORDS)
            if late:
                self._cut()
                await asyncio.wait(late, timeout=_LAST_WORDS + 5)


def _tcp(host: str, ports: range) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in ports:
        # asyncio turns Nagle's algorithm off, at 40 ms a request, only where a socket says that it is TCP's
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
    which = f"port {ports[0]}" if len(ports) == 1 else f"none of the ports {ports[0]} to {ports[-1]}"
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
    """Remove a socket that an earlier life has left; one that somebody listens on stays, and binding fails."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
