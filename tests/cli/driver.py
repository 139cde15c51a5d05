"""A small `aima up` for the supervisor's tests: python driver.py <data folder> <drain seconds> name=behaviour ...

What happens is written, a JSON object a line, to facts.jsonl (by the children) and states.jsonl (by the parent).
"""

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2] / "libs"), str(Path(__file__).parents[2])]

import nats  # noqa: E402

from aima_core.bus.nats_server import NatsServer, free_port, start  # noqa: E402
from aima_core.errors import AimaError  # noqa: E402
from services.cli.supervisor.folder_lock import claim  # noqa: E402
from services.cli.supervisor.restarts import ProcessState  # noqa: E402
from services.cli.supervisor.supervisor import Supervisor  # noqa: E402


def write(file: Path, **fact: object) -> None:
    with file.open("a") as out:
        out.write(json.dumps(fact) + "\n")


def child(behaviour: str, name: str, data: Path, server: NatsServer | str, ready: int, lifeline: int) -> None:
    tell = partial(write, data / "facts.jsonl", name=name, pid=os.getpid())
    tell(
        did="began",
        group=os.getpgid(0),
        wakeup=signal.set_wakeup_fd(-1),
        sigint_ignored=signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        descriptors=sorted(os.path.realpath(fd) for fd in list(Path("/proc/self/fd").iterdir()) if os.path.lexists(fd)),
    )
    sys.stdout.write(f"{name} says hello\n")
    if behaviour.startswith("exit"):
        sys.stderr.write(f"{name} cannot go on\n")
        sys.exit(int(behaviour.removeprefix("exit")))
    if behaviour == "loop":
        assert isinstance(server, NatsServer)
        asyncio.run(serve_in_a_loop(server.url, ready, lifeline, tell))
        return
    wake, wake_in = os.pipe()
    os.set_blocking(wake_in, False)
    signal.signal(
        signal.SIGTERM,
        signal.SIG_IGN if behaviour in ("stubborn", "helped", "lifeline only") else lambda *_: os.write(wake_in, b"t"),
    )
    if behaviour == "helped":
        tell(did="helped", helper=subprocess.Popen(["sleep", "60"]).pid)
    os.write(ready, b"1")
    if behaviour == "fails":
        raise RuntimeError("broken on purpose")
    if behaviour in ("stubborn", "helped"):
        time.sleep(60)
    if behaviour == "signal only":
        os.read(wake, 1)
    else:
        heard, _, _ = select.select([wake, lifeline], [], [], 60)
        tell(did="told", by="SIGTERM" if wake in heard else "lifeline")
    tell(did="drained", bus=isinstance(server, str) or answers(server.port))


async def serve_in_a_loop(url: str, ready: int, lifeline: int, tell: Callable[..., None]) -> None:
    """What a domain process does: a loop, a connection, a thread."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    loop.add_reader(lifeline, told.set)
    client = await nats.connect(url)
    await asyncio.to_thread(os.write, ready, b"1")
    await told.wait()
    loop.remove_reader(lifeline)
    tell(did="drained", bus=client.is_connected)
    await client.drain()


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            return connection.recv(5) == b"INFO "
    except OSError:
        return False


def main(data: Path, drain: float, *children: str) -> int:
    def on_change(states: Sequence[ProcessState]) -> None:
        for state in states:
            name, pid, restarts = state.name, state.pid, state.restarts
            write(data / "states.jsonl", name=name, state=str(state), pid=pid, restarts=restarts, why=state.why)
        if os.environ.get("BROKEN_VIEW") and all(state.state == "ready" for state in states):
            raise BrokenPipeError("nobody looks")

    url = os.environ.get("FOREIGN_NATS")
    with claim(data, float(os.environ.get("GRACE", "10"))) as claimed:
        server = url or start(data / "nats", free_port(), data / "nats.log", die_with_parent=True)
        runs = {
            name: partial(child, behaviour, name, data, server)
            for name, _, behaviour in (item.partition("=") for item in children)
        }
        return Supervisor(claimed, server, runs, on_change, drain).run()


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:]))
    except AimaError as error:
        sys.exit(json.dumps(error.body()))
