"""What the read tables hold after each event, and what is made of them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import psutil
import pytest

from aima_core.process.writer import Writer
from aima_core.store.log import Log
from aima_core.store.records import Codec, Meta, Recorded
from aima_core.testing import NOON, call
from aima_core.units import Event
from services.resource import internal as i
from services.resource import units as u
from services.resource.domain import RESOURCE
from services.resource.outside.machine import read, reserve
from services.resource.rules import views
from services.resource.rules.capacity import Facts, Machine, Need, Slot

GB = 10**9
AT_NOON = "2026-01-01T12:00:00.000000Z"
CAPACITY = u.CapacityChanged(node="n", memory=11 * GB, system_reserve=GB, storage=100 * GB, accelerators=2)
ALLOCATED = u.Allocated(
    slot_id="slot-a",
    name="a",
    type="inference_native",
    memory=4 * GB,
    gpu_fraction=0.5,
    priority=7,
    owner="ann",
    at=NOON,
)
MACHINE = ("n", 11 * GB, GB, 100 * GB, 2, "low")
SLOT = ("slot-a", "a", "inference_native", 4 * GB, 0.5, 7, "active", "ann", AT_NOON)

AFTER: dict[type[Event], list[tuple[list[Event], list[tuple[Any, ...]], list[tuple[Any, ...]]]]] = {
    u.CapacityChanged: [
        ([CAPACITY], [MACHINE], []),
        (
            [
                CAPACITY,
                u.PressureWarning(node="n", pressure="high", threshold=85),
                u.CapacityChanged(node="n", memory=1, system_reserve=2, storage=3, accelerators=4),
            ],
            [("n", 1, 2, 3, 4, "high")],
            [],
        ),
    ],
    u.PressureWarning: [
        (
            [CAPACITY, u.PressureWarning(node="n", pressure="medium", threshold=70)],
            [("n", 11 * GB, GB, 100 * GB, 2, "medium")],
            [],
        )
    ],
    u.Allocated: [([ALLOCATED], [], [SLOT]), ([ALLOCATED, ALLOCATED], [], [SLOT])],
    u.SlotUpdated: [
        (
            [ALLOCATED, u.SlotUpdated(slot_id="slot-a", memory_limit=3, status="idle")],
            [],
            [("slot-a", "a", "inference_native", 3, 0.5, 7, "idle", "ann", AT_NOON)],
        )
    ],
    u.Preempted: [
        (
            [ALLOCATED, u.Preempted(slot_id="slot-a", reason="r", by_slot_id="slot-b")],
            [],
            [("slot-a", "a", "inference_native", 4 * GB, 0.5, 7, "preempted", "ann", AT_NOON)],
        )
    ],
    u.Released: [([ALLOCATED, u.Released(slot_id="slot-a")], [], [])],
}


def tables(events: list[Event]) -> tuple[list[Any], list[Any]]:
    connection = sqlite3.connect(":memory:")
    for statement in views.TABLES.values():
        connection.execute(statement)
    for position, event in enumerate(events, 1):
        recorded = Recorded(position, event.stream, position, NOON, Meta(), event, f"log-{position}")
        for sql, values in views.project(recorded):
            connection.execute(sql, values)
    found = (
        connection.execute("SELECT * FROM machines").fetchall(),
        connection.execute("SELECT * FROM slots").fetchall(),
    )
    connection.close()
    return found


def test_every_event_type_has_its_case() -> None:
    assert set(AFTER) == set(u.EVENTS) == set(RESOURCE.events)


@pytest.mark.parametrize(
    ("events", "machines", "slots"),
    [pytest.param(*case, id=f"{event.unit} {n}") for event, cases in AFTER.items() for n, case in enumerate(cases)],
)
def test_after_these_events_the_tables_hold(events: list[Event], machines: list[Any], slots: list[Any]) -> None:
    assert tables(events) == (machines, slots)


async def test_rebuilt_tables_and_states_are_those_that_were_live(tmp_path: Path) -> None:
    log = await Log.open(tmp_path, "resource", Codec(RESOURCE.events))
    runner = Writer(RESOURCE, log, "test")
    await runner.open()

    async def everything() -> tuple[Any, Any, Any]:
        machines = await log.file.read(lambda c: c.execute("SELECT * FROM machines").fetchall())
        slots = await log.file.read(lambda c: c.execute("SELECT * FROM slots").fetchall())
        return machines, slots, dict(runner.states.committed)

    wide: dict[str, Any] = {"type": "docker_container", "gpu_fraction": 0.5, "available": 20 * GB}
    for command in (
        i.RecordCapacity(memory=11 * GB, system_reserve=GB, storage=100 * GB),
        i.RecordAccelerator(node="test", device_id="test-gpu-0", present=True),
        i.DecideAllocation(name="a", memory_bytes=6 * GB, priority=1, **wide),
        i.DecideAllocation(name="b", memory_bytes=5 * GB, priority=9, **wide),
        i.DecideAllocation(name="c", memory_bytes=1 * GB, priority=9, **wide),
        u.UpdateSlot(slot_id="slot-b", memory_limit=2 * GB, status="idle"),
        i.RecordPressure(used_percent=90),
        u.Release(slot_id="slot-c"),
    ):
        await runner.run(command, call())
    live = await everything()
    assert [row[6] for row in live[1]] == ["preempted", "idle"]
    assert {record.event.unit for record in await log.events()} == {event.unit for event in u.EVENTS}
    await runner.rebuild()
    assert await everything() == live
    await runner.close()
    await log.close()


FACTS = Facts(memory=11 * GB, available=2 * GB, storage=100 * GB, storage_available=30 * GB)
MACHINE_ROW = {"memory": 11 * GB, "system_reserve": GB, "accelerators": 2, "pressure": "low"}


def row(name: str, memory: int, gpu: float = 0, status: str = "active") -> dict[str, Any]:
    return {
        "slot_id": f"slot-{name}",
        "name": name,
        "type": "system_service",
        "memory": memory,
        "gpu_fraction": gpu,
        "priority": 5,
        "status": status,
        "owner": "local",
        "since": AT_NOON,
    }


def test_the_status_shows_the_machine_and_what_is_held() -> None:
    slots = [row("a", 4 * GB), row("b", 3 * GB, status="preempted"), row("c", GB, status="idle")]
    status = views.status(MACHINE_ROW, slots, FACTS)
    assert status.memory == u.MemoryView(total=11 * GB, used=9 * GB, available=2 * GB, reserved=5 * GB, budget=10 * GB)
    assert status.storage == u.StorageView(total=100 * GB, used=70 * GB, available=30 * GB)
    assert status.pressure == "medium"
    assert [slot.slot_id for slot in status.slots] == ["slot-a", "slot-b", "slot-c"]


def test_the_budget_has_a_pool_of_accelerators_only_where_there_is_one() -> None:
    slots = [row("a", 4 * GB, 0.1), row("b", 3 * GB, 0.2), row("c", GB, 1, "preempted")]
    memory = u.Pool(total=10 * GB, reserved=7 * GB, available=3 * GB)
    assert views.budget(MACHINE_ROW, slots) == u.Budget(
        total=10 * GB,
        reserved=7 * GB,
        pools={"memory": memory, "accelerator": u.Pool(total=2, reserved=0.3, available=1.7)},
    )
    assert views.budget({**MACHINE_ROW, "accelerators": 0}, slots).pools == {"memory": memory}


# --- whether there is room ----------------------------------------------------------------------------------------

HOME = Machine(node="n", memory=11 * GB, system_reserve=GB, gpus=("n-gpu-0",))


def slot(name: str, memory: int, priority: int, gpu: float = 0.0) -> Slot:
    return Slot(
        slot_id=f"slot-{name}",
        name=name,
        asked=memory,
        memory=memory,
        gpu_fraction=gpu,
        priority=priority,
        since=NOON,
        status="idle" if name == "idle" else "active",
    )


HELD = [slot("a", 3 * GB, 5, 0.5), slot("idle", 4 * GB, 1)]
ROOM: list[tuple[Need, tuple[int, int | None, u.Lack | None, list[str]]]] = [
    # memory, gpu, priority, available        available, missing, lacking, would_preempt
    (Need(3 * GB, 0, 5, 20 * GB), (3 * GB, None, None, [])),
    (Need(3 * GB, 0, 5, None), (3 * GB, None, None, [])),
    (Need(2 * GB, 0, 5, 2 * GB), (2 * GB, None, None, [])),
    (Need(4 * GB, 0, 5, 20 * GB), (3 * GB, None, None, ["slot-idle"])),
    (Need(4 * GB, 0, 1, 20 * GB), (3 * GB, GB, "memory", [])),
    (Need(8 * GB, 0, 5, 20 * GB), (3 * GB, 5 * GB, "memory", [])),
    (Need(9 * GB, 0, 6, 20 * GB), (3 * GB, None, None, ["slot-idle", "slot-a"])),
    (Need(3 * GB, 0, 1, 2 * GB), (2 * GB, GB, "system", [])),
    (Need(0, 0.5, 1, 0), (0, None, None, [])),
    (Need(0, 0.75, 5, 5 * GB), (3 * GB, None, "accelerator", [])),
    (Need(0, 0.75, 6, 5 * GB), (3 * GB, None, None, ["slot-a"])),
]


@pytest.mark.parametrize(("need", "expected"), ROOM)
def test_whether_there_is_room_says_what_is_missing_or_who_would_make_it(
    need: Need, expected: tuple[int, int | None, u.Lack | None, list[str]]
) -> None:
    available, missing, lacking, would_preempt = expected
    told = views.can_allocate(need, HOME, HELD)
    assert (told.reason is None) is told.can_allocate is (lacking is None)
    assert told.model_dump(exclude={"can_allocate", "reason"}) == {
        "requested": need.memory,
        "available": available,
        "missing": missing,
        "lacking": lacking,
        "holders": [
            {"slot_id": "slot-idle", "name": "idle", "memory": 4 * GB, "priority": 1, "status": "idle"},
            {"slot_id": "slot-a", "name": "a", "memory": 3 * GB, "priority": 5, "status": "active"},
        ],
        "would_preempt": would_preempt,
    }


def test_all_reservations_are_asked_for_at_once_and_what_leaves_is_available_again() -> None:
    query = u.AskCanAllocate(memory_bytes=GB, gpu_fraction=0.25, count=3, priority=7)
    assert views.need_of(query, FACTS, []) == Need(3 * GB, 0.75, 7, 2 * GB)
    assert views.need_of(query, FACTS, HELD) == Need(3 * GB, 0.75, 7, 9 * GB)
    assert views.need_of(query, FACTS, [*HELD, slot("b", 9 * GB, 5)]).available == FACTS.memory


# --- the machine --------------------------------------------------------------------------------------------------


def test_the_reserve_is_a_fraction_and_never_less_than_the_least() -> None:
    assert reserve(100 * GB, 0.1, 5 * GB) == 10 * GB
    assert reserve(20 * GB, 0.1, 5 * GB) == 5 * GB
    assert reserve(3 * GB, 0.1, 5 * GB) == 3 * GB


def group(root: Path, version: int, limit: str, used: int, cache: int) -> Path:
    mount = root / ("sys/fs/cgroup" if version == 2 else "sys/fs/cgroup/memory")
    mount.mkdir(parents=True)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/\n" if version == 2 else "9:cpu:/x\n4:memory:/docker/abc\n")
    (mount / ("memory.max" if version == 2 else "memory.limit_in_bytes")).write_text(f"{limit}\n")
    (mount / ("memory.current" if version == 2 else "memory.usage_in_bytes")).write_text(f"{used}\n")
    name = "inactive_file" if version == 2 else "total_inactive_file"
    (mount / "memory.stat").write_text(f"anon 7\n{name} {cache}\n")
    return root


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_is_all_the_memory_there_is(tmp_path: Path, version: int) -> None:
    facts = read(tmp_path / "not" / "yet", group(tmp_path, version, "50000000", 30_000_000, 10_000_000))
    assert facts.memory == 50_000_000
    assert facts.available == 30_000_000
    assert facts.used_percent == 40
    assert facts.storage >= facts.storage_available > 0


@pytest.mark.parametrize(("version", "limit"), [(2, "max"), (1, str(2**63 - 4096))])
def test_without_a_limit_it_is_the_machines(tmp_path: Path, version: int, limit: str) -> None:
    assert read(tmp_path, group(tmp_path, version, limit, 1, 0)).memory == psutil.virtual_memory().total


def test_where_there_are_no_control_groups_it_is_the_machines(tmp_path: Path) -> None:
    assert read(tmp_path, tmp_path).memory == psutil.virtual_memory().total
