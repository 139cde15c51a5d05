"""One boot of the machine or the container is told from another."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aima_core.system.boot import identity

ROOT = Path(__file__).parents[3]
BOOT = "2b1c0c5c-8a0e-4d0f-9b59-4f1f3a9a2f10"


def root(folder: Path, boot: str | None, stat: str | None) -> Path:
    """Return a root whose /proc says so."""
    for name, text in (("sys/kernel/random/boot_id", boot), ("1/stat", stat)):
        if text is not None:
            file = folder / "proc" / name
            file.parent.mkdir(parents=True)
            file.write_text(text)
    return folder


def stat(name: str, started: int) -> str:
    return f"1 ({name}) S 0 1 1 0 -1 4194560 84 0 0 0 0 0 0 0 20 0 1 0 {started} 2654208 388 1844674407\n"


@pytest.mark.parametrize(
    ("boot", "first", "expected"),
    [
        (f"{BOOT}\n", stat("systemd", 77), f"{BOOT}/77"),
        (f"{BOOT}\n", stat("a ) S 1 (b", 78), f"{BOOT}/78"),
        (f"{BOOT}\n", None, f"{BOOT}/"),
        (f"{BOOT}\n", "1 (cut", f"{BOOT}/"),
        (None, stat("sh", 79), "/79"),
        (None, None, ""),
    ],
)
def test_a_boot_is_the_kernels_id_and_when_process_1_began(
    tmp_path: Path, boot: str | None, first: str | None, expected: str
) -> None:
    assert identity(root(tmp_path, boot, first)) == expected


def test_this_boot_is_always_the_same() -> None:
    assert identity() == identity() != ""


def test_a_container_that_is_started_again_on_the_same_kernel_is_another_boot() -> None:
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no unshare here")
    # `exec`: in the namespace this very interpreter is process 1
    script = "import sys; sys.path[:0] = sys.argv[1:]; from aima_core.system.boot import identity; print(identity())"
    own = [unshare, "-pf", "--mount-proc", sys.executable, "-c", script, str(ROOT), str(ROOT / "libs")]
    boots = []
    for _ in range(2):
        done = subprocess.run(own, capture_output=True, text=True, timeout=60)
        if done.returncode and "unshare" in done.stderr:
            pytest.skip(f"no namespaces here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        boots.append(done.stdout.strip().split("/"))
    assert boots[0][0] == boots[1][0] == identity().split("/")[0]
    assert boots[0][1] != boots[1][1] != identity().split("/")[1]
