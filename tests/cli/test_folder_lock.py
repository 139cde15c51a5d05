import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from aima_core.errors import Conflict
from services.cli.supervisor.folder_lock import claim, runs


def test_a_claim_publishes_and_withdraws(tmp_path: Path) -> None:
    with claim(tmp_path / "new" / "data") as claimed:
        claimed.publish("nats://u:secret@h:1", {"a": 7})
        up = json.loads((claimed.data / "up.json").read_bytes())
        assert up.pop("started_at").endswith("+00:00")
        assert up == {"pid": os.getpid(), "url": "nats://u:secret@h:1", "children": {"a": 7}}
        assert (claimed.data / "nats.url").read_text() == "nats://u:secret@h:1\n"
        assert {stat.S_IMODE(path.stat().st_mode) for path in claimed.data.iterdir()} == {0o600}
        claimed.withdraw()
        claimed.withdraw()
        assert [path.name for path in claimed.data.iterdir()] == ["up.lock"]


def test_a_folder_is_free_again_after_the_claim(tmp_path: Path) -> None:
    with claim(tmp_path), pytest.raises(Conflict, match=f"pid {os.getpid()}, since"), claim(tmp_path):
        pass
    with claim(tmp_path):
        pass


def test_whether_somebody_runs_there_can_be_seen_from_outside(tmp_path: Path) -> None:
    assert not runs(tmp_path)
    with claim(tmp_path):
        assert runs(tmp_path)
    assert not runs(tmp_path)


def test_who_only_looks_stops_nobody_from_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.cli.supervisor.folder_lock._PROBED", 20.0)
    (tmp_path / "up.lock").write_text(json.dumps({"pid": os.getpid()}))  # an earlier holder's number can be another's
    looking = os.open(tmp_path / "up.lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    done = threading.Timer(0.05, os.close, [looking])
    done.start()
    with claim(tmp_path):
        assert runs(tmp_path)
    done.join()


def test_what_a_killed_supervisor_has_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "nats.url").write_text("nats://gone")
    (tmp_path / "up.json").write_text("{}")
    with claim(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["up.lock"]


def test_children_of_a_supervisor_that_is_gone_are_given_time_to_end(tmp_path: Path) -> None:
    script = """
import os, sys, time; from pathlib import Path; from services.cli.supervisor.folder_lock import claim
with claim(Path(sys.argv[1])):
    if os.fork():
        os._exit(0)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as parent:
        assert parent.wait(20) == 0  # its child has inherited the lock
        with pytest.raises(Conflict, match=f"ended aima up .pid {parent.pid}.*unknown"), claim(tmp_path, grace=0.1):
            pass
        assert parent.stdin is not None
        parent.stdin.close()
    begin = time.monotonic()
    with claim(tmp_path, grace=20):
        assert time.monotonic() - begin < 20
