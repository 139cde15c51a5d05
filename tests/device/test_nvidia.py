"""A stand-in library that speaks NVML's binary interface (tests/stand_ins/nvml.c), loaded by the real pynvml."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from aima_core.errors import NotFound
from services.device.drivers import Probe
from services.device.drivers.nvidia import NvidiaProbe

ROOT = Path(__file__).parents[2]
GIB = 2**30


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the stand-in and return its folder."""
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    source = str(ROOT / "tests" / "stand_ins" / "nvml.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", str(library), source], check=True)
    return folder


def ask(folder: Path, script: str, **environment: str) -> Any:
    """Run the script where pynvml finds the stand-in, and return what it leaves in `answer`."""
    before = """
        import json, os, msgspec
        from aima_core.errors import AimaError
        from services.device.drivers.nvidia import NvidiaProbe
        probe = NvidiaProbe("n")

        def refused(call, *arguments):
            try:
                call(*arguments)
            except AimaError as error:
                return [error.code, error.reason]

    """
    after = "\nprint(json.dumps(msgspec.to_builtins(answer)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(before) + textwrap.dedent(script) + after],
        env=os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": f"{ROOT}/libs:{ROOT}"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_machine_without_a_driver_has_no_gpu() -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has a driver")
    probe: Probe = NvidiaProbe("n")
    assert probe.detect() == []
    with pytest.raises(NotFound):
        probe.sample("n-gpu-0")


def test_a_driver_that_is_installed_but_not_loaded_has_no_gpu_until_it_is(nvml: Path) -> None:
    script = """
        first = probe.detect()
        del os.environ["NVML_NO_DRIVER"]
        answer = [len(first), len(probe.detect())]
    """
    assert ask(nvml, script, NVML_NO_DRIVER="1") == [0, 1]


def test_a_gpu_is_described(nvml: Path) -> None:
    assert ask(nvml, "answer = probe.detect()", NVML_GPUS="2")[1] == {
        "id": "n-gpu-1",
        "name": "NVIDIA Stand-in 9000",
        "vendor": "NVIDIA",
        "type": "gpu",
        "architecture": "hopper",
        "memory": 80 * GIB,
        "capabilities": ["cuda", "compute_9.0"],
        "cores": 16896,
        "uuid": "GPU-00000000-0000-0000-0000-000000000001",
        "memory_bandwidth": 6144 // 8 * 3_201_000_000 * 2,
    }


@pytest.mark.parametrize("silent", ["NVML_BUS", "NVML_CLOCK", "NVML_MUTE"])
def test_a_gpu_that_tells_no_width_or_no_clock_has_no_bandwidth(nvml: Path, silent: str) -> None:
    value = "1" if silent == "NVML_MUTE" else "0"
    assert ask(nvml, "answer = probe.detect()[0].memory_bandwidth", **{silent: value}) is None


def test_a_gpu_is_read(nvml: Path) -> None:
    sample = ask(nvml, "probe.detect(); answer = probe.sample('n-gpu-0')", NVML_TEMPERATURE="83")
    assert abs(sample.pop("at") - time.time()) < 10
    assert sample == {
        "utilization": 37.0,
        "temperature": 83.0,
        "power": 123.456,
        "memory_used": 20 * GIB,
        "memory_total": 80 * GIB,
        "lost": False,
    }


def test_no_gpus_is_an_answer(nvml: Path) -> None:
    assert ask(nvml, "answer = probe.detect()", NVML_GPUS="0") == []


@pytest.mark.parametrize("memory", ["not-supported", "not-available", "zero"])
def test_a_part_that_shares_the_machines_memory_says_so(nvml: Path, memory: str) -> None:
    found, sample = ask(nvml, "answer = [probe.detect()[0], probe.sample('n-gpu-0')]", NVML_MEMORY=memory)
    total = psutil.virtual_memory().total
    assert "unified-memory" in found["capabilities"]
    assert found["memory"] == sample["memory_total"] == total
    assert 0 < sample["memory_used"] < total


def test_a_memory_query_that_fails_is_not_taken_for_shared_memory(nvml: Path) -> None:
    found, sample = ask(nvml, "answer = [probe.detect()[0], probe.sample('n-gpu-0')]", NVML_MEMORY="broken")
    assert found["capabilities"] == ["cuda", "compute_9.0"]
    assert (found["memory"], sample["memory_used"], sample["memory_total"]) == (0, None, 0)


def test_a_reading_that_fails_is_missing_and_no_error(nvml: Path) -> None:
    script = "probe.detect(); os.environ['NVML_MUTE'] = '1'; answer = probe.sample('n-gpu-0')"
    sample = ask(nvml, script)
    del sample["at"]
    assert sample == {
        "utilization": None,
        "temperature": None,
        "power": None,
        "memory_used": None,
        "memory_total": 80 * GIB,
        "lost": False,
    }


def test_a_gpu_that_falls_off_the_bus_is_lost_and_the_others_are_not(nvml: Path) -> None:
    script = """
        before = probe.detect()
        os.environ["NVML_LOST"] = "1"
        answer = [probe.sample("n-gpu-0").lost, probe.sample("n-gpu-1").lost, probe.detect() == before,
                  refused(probe.set_power_limit, "n-gpu-1", 400)]
    """
    assert ask(nvml, script, NVML_GPUS="2") == [False, True, True, ["EXECUTION_FAILED", "DEVICE_LOST"]]


def test_a_gpu_that_was_lost_from_the_start_is_still_listed(nvml: Path) -> None:
    found, lost = ask(nvml, "answer = [probe.detect(), probe.sample('n-gpu-0').lost]", NVML_LOST="0")
    assert [(gpu["id"], gpu["name"], gpu["memory"]) for gpu in found] == [("n-gpu-0", "NVIDIA GPU", 0)]
    assert lost is True


@pytest.mark.parametrize("how", ["NVML_GONE NVML_NO_DRIVER", "NVML_GONE", "NVML_GPUS"])
def test_gpus_that_go_away_are_lost_until_they_are_back(nvml: Path, how: str) -> None:
    script = f"""
        before = probe.detect()
        for name in {how!r}.split():
            os.environ[name] = "0"
        answer = [probe.detect() == before, probe.sample("n-gpu-0").lost, probe.detect() == before]
        for name in {how!r}.split():
            del os.environ[name]
        answer += [probe.detect() == before, probe.sample("n-gpu-0").lost]
    """
    assert ask(nvml, script) == [True, True, True, True, False]


def test_a_gpu_that_is_silent_for_a_moment_keeps_its_description(nvml: Path) -> None:
    script = "before = probe.detect(); os.environ['NVML_MUTE'] = '1'; answer = probe.detect() == before"
    assert ask(nvml, script) is True


def test_another_gpu_in_the_place_of_one_is_described_anew(nvml: Path) -> None:
    script = "probe.detect(); os.environ['NVML_SERIAL'] = '1'; answer = probe.detect()[0].uuid"
    assert ask(nvml, script) == "GPU-00000001-0000-0000-0000-000000000000"


def test_a_power_limit_is_set_and_the_one_before_returned(nvml: Path) -> None:
    script = """
        probe.detect()
        answer = [probe.set_power_limit("n-gpu-0", 350.5), probe.set_power_limit("n-gpu-0", 350.5)]
    """
    assert ask(nvml, script) == [700.0, 350.5]


@pytest.mark.parametrize(
    ("watts", "environment", "refusal"),
    [
        (200, {}, None),
        (199.9, {}, ["VALIDATION_ERROR", "POWER_LIMIT_OUT_OF_RANGE"]),
        (700, {}, None),
        (700.1, {}, ["VALIDATION_ERROR", "POWER_LIMIT_OUT_OF_RANGE"]),
        (400, {"NVML_USER": "1"}, ["FORBIDDEN", "NEEDS_ROOT"]),
        (400, {"NVML_NO_LIMIT": "1"}, ["CONFLICT", "POWER_LIMIT_NOT_SUPPORTED"]),
        (400, {"NVML_MUTE": "1"}, ["EXECUTION_FAILED", "DRIVER_REFUSED"]),
    ],
)
def test_a_power_limit_is_refused_with_its_reason(
    nvml: Path, watts: float, environment: dict[str, str], refusal: list[str] | None
) -> None:
    script = f"probe.detect(); answer = refused(probe.set_power_limit, 'n-gpu-0', {watts})"
    assert ask(nvml, script, **environment) == refusal


def test_an_unknown_gpu_is_not_found(nvml: Path) -> None:
    assert ask(nvml, "probe.detect(); answer = refused(probe.sample, 'n-gpu-1')") == ["NOT_FOUND", "NOT_FOUND"]
