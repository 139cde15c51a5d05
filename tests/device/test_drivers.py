"""The real machine; where the outcome depends on it, a small /proc and /sys of our own."""

import mmap
import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from aima_core.errors import Conflict, NotFound
from aima_core.system import cgroup
from services.device.drivers import bandwidth
from services.device.drivers.host import HostProbe


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_cpu_is_this_machines(tmp_path: Path) -> None:
    cpu = HostProbe("n", tmp_path).detect()[0]
    assert cpu.id == "n-cpu-0"
    assert cpu.type == "cpu"
    assert cpu.architecture == platform.machine()
    assert cpu.name
    assert cpu.cores == len(os.sched_getaffinity(0))
    assert 0 < cpu.memory <= psutil.virtual_memory().total
    flags = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith(("flags", "Features"))), "")
    assert ("avx2" in cpu.capabilities) == (" avx2 " in f"{flags} ")


def test_the_memory_is_measured_once(tmp_path: Path) -> None:
    probe = HostProbe("n", tmp_path)
    cpu, disk = probe.detect()
    assert cpu.memory_bandwidth is not None
    assert 10**8 < cpu.memory_bandwidth < 10**13
    assert disk.memory_bandwidth is None
    assert probe.detect() == [cpu, disk]


@pytest.mark.parametrize("cores", [1, 2, 40])
def test_a_bandwidth_is_measured_in_an_eighth_of_what_is_available_or_not_at_all(cores: int) -> None:
    enough = bandwidth.SHARE * (bandwidth.LEAST + bandwidth.THREADS * mmap.PAGESIZE)  # each thread takes whole pages
    measured = bandwidth.measure(cores, enough)
    assert measured is not None
    assert measured > 0
    assert bandwidth.measure(cores, bandwidth.SHARE * bandwidth.LEAST - 1) is None


ROOT = Path(__file__).parents[2]
IN_LITTLE_ROOM = """
import resource, sys, threading
from pathlib import Path
from services.device.drivers import bandwidth
stack, room = (int(mib) * 2**20 for mib in sys.argv[1:])
threading.stack_size(stack)
used = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line)
resource.setrlimit(resource.RLIMIT_AS, (used * 1024 + room, resource.RLIM_INFINITY))
print(bandwidth.measure(4, 2**40))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only there does the system keep to the limit")
@pytest.mark.parametrize(
    ("stack", "room"),
    [
        pytest.param(1, 2 * 128 + 64, id="memory for two of four"),
        pytest.param(1, 64, id="memory for none"),
        pytest.param(256, 256 + 128 + 128, id="a stack for the first thread only"),
    ],
)
def test_a_system_that_has_no_memory_or_no_thread_after_all_is_not_measured(stack: int, room: int) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "libs")]), "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", IN_LITTLE_ROOM, str(stack), str(room)]
    began = time.monotonic()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")
    assert time.monotonic() - began < bandwidth.PATIENCE  # nobody has waited for what does not come


def test_the_disk_is_the_one_of_the_data_folder_even_before_it_is_there(tmp_path: Path) -> None:
    disk = HostProbe("n", tmp_path / "not" / "yet").detect()[1]
    assert (disk.id, disk.type) == ("n-disk-0", "disk")
    assert disk.memory == shutil.disk_usage(tmp_path).total


def test_samples_are_within_bounds(tmp_path: Path) -> None:
    probe = HostProbe("n", tmp_path)
    for device in probe.detect():
        sample = probe.sample(device.id)
        assert abs(sample.at - time.time()) < 5
        assert sample.utilization is not None
        assert 0 <= sample.utilization <= 100
        assert sample.memory_used is not None
        assert 0 < sample.memory_used < sample.memory_total == device.memory
        assert sample.power is None
        assert not sample.lost


def test_a_busy_cpu_reads_as_busy_from_any_thread(tmp_path: Path) -> None:
    probe = HostProbe("n", tmp_path)
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        pass
    with ThreadPoolExecutor(1) as pool:  # a thread that has never sampled before
        load = pool.submit(probe.sample, "n-cpu-0").result().utilization
    assert load is not None
    assert load > 50 / (psutil.cpu_count() or 1)


def test_an_unknown_device_is_not_found(tmp_path: Path) -> None:
    probe = HostProbe("n", tmp_path)
    for call in (lambda: probe.sample("n-cpu-1"), lambda: probe.set_power_limit("n-cpu-1", 10)):
        with pytest.raises(NotFound, match="n-cpu-1"):
            call()


def test_a_cpu_has_no_power_limit(tmp_path: Path) -> None:
    with pytest.raises(Conflict) as refusal:
        HostProbe("n", tmp_path).set_power_limit("n-cpu-0", 100)
    assert refusal.value.reason == "POWER_LIMIT_NOT_SUPPORTED"


@pytest.mark.parametrize(
    ("cpuinfo", "name", "vendor", "capabilities"),
    [
        (
            "processor: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon: Gold\nflags\t\t: sse4_2 avx avx2 fma\n\n"
            "processor: 1\nvendor_id\t: GenuineIntel\nmodel name\t: other\nflags\t\t: none\n",
            *("Xeon: Gold", "Intel", ["sse4_2", "fma", "avx", "avx2"]),
        ),
        (
            "processor: 0\nFeatures\t: fp asimd i8mm bf16 sve2\nCPU implementer\t: 0x41\n\nModel\t\t: Board 5\n",
            *("Board 5", "ARM", ["asimd", "i8mm", "bf16", "sve2"]),
        ),
        ("vendor_id: NewMaker\nmodel name: New\n", "New", "NewMaker", []),
    ],
)
def test_the_kernels_description_of_a_cpu_is_understood(
    tmp_path: Path, cpuinfo: str, name: str, vendor: str, capabilities: list[str]
) -> None:
    cpu = HostProbe("n", tmp_path, tree(tmp_path, {"proc/cpuinfo": cpuinfo})).detect()[0]
    assert (cpu.name, cpu.vendor, cpu.capabilities) == (name, vendor, capabilities)


def test_without_proc_the_cpu_still_has_a_name_and_all_memory(tmp_path: Path) -> None:
    cpu = HostProbe("n", tmp_path, root=tmp_path).detect()[0]
    assert cpu.name in (platform.processor(), platform.machine())
    assert cpu.vendor == "unknown"
    assert cpu.memory == psutil.virtual_memory().total


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("files", "bound"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/\n",
                f"{V2}/memory.max": "1000\n",
                f"{V2}/memory.current": "600\n",
                f"{V2}/memory.stat": "anon 1\ninactive_file 100\n",
            },
            (1000, 500),
        ),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                f"{V2}/a/b/memory.max": "max\n",
                f"{V2}/a/b/memory.current": "1\n",
                f"{V2}/a/b/memory.stat": "",
                f"{V2}/a/memory.max": "2000\n",
                f"{V2}/a/memory.current": "7\n",
                f"{V2}/a/memory.stat": "",
            },
            (2000, 7),
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/1f\n0::/\n",  # the host's path, not there in here
                f"{V1}/memory.limit_in_bytes": "3000\n",
                f"{V1}/memory.usage_in_bytes": "900\n",
                f"{V1}/memory.stat": "total_inactive_file 1000\n",
            },
            (3000, 0),
        ),
        ({"proc/self/cgroup": "0::/../other\n"}, None),
    ],
)
def test_the_tightest_group_bounds_the_memory(
    tmp_path: Path, files: dict[str, str], bound: tuple[int, int] | None
) -> None:
    assert cgroup.memory(tree(tmp_path, files)) == bound


@pytest.mark.parametrize(("limit", "bounds"), [(2**20, True), (2**63 - 4096, False)])
def test_a_containers_limit_counts_only_when_it_is_below_the_machine(tmp_path: Path, limit: int, bounds: bool) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\n",
            f"{V1}/memory.limit_in_bytes": str(limit),
            f"{V1}/memory.usage_in_bytes": "4096",
            f"{V1}/memory.stat": "",
        },
    )
    probe = HostProbe("n", tmp_path, root)
    sample = probe.sample("n-cpu-0")
    assert probe.detect()[0].memory == sample.memory_total == (limit if bounds else psutil.virtual_memory().total)
    assert (sample.memory_used == 4096) == bounds
