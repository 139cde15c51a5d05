"""The rules of the device domain, its short memory of readings, and its table."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aima_core.errors import AimaError, NotFound
from aima_core.process.writer import Writer
from aima_core.store.log import Log
from aima_core.store.records import Codec, Meta, Recorded
from aima_core.testing import NOON, Given, call
from aima_core.units import Command, Event
from services.device import internal as i
from services.device import units as u
from services.device.domain import DEVICE
from services.device.drivers import ProbedDevice, Sample
from services.device.rules import views
from services.device.rules.decider import DeviceState, device_or_default, in_order
from services.device.rules.readings import Watch

CPU = i.DetectedDevice(
    id="test-cpu-0",
    name="Ryzen",
    vendor="AMD",
    type="cpu",
    architecture="x86_64",
    memory=64,
    capabilities=("avx2",),
    cores=8,
    memory_bandwidth=40_000,
)
GPU = i.DetectedDevice(
    id="test-gpu-0", name="H200", vendor="NVIDIA", type="gpu", architecture="hopper", memory=141, uuid="GPU-1"
)
DISK = i.DetectedDevice(
    id="test-disk-0", name="/dev/vda", vendor="unknown", type="disk", architecture="ext4", memory=1000
)


def device(found: i.DetectedDevice, **changed: Any) -> u.Device:
    return u.Device(**{**found.model_dump(), "node": "test", **changed})


def detected(found: i.DetectedDevice, **changed: Any) -> u.DeviceDetected:
    return u.DeviceDetected(device_id=found.id, device=device(found, **changed))


def health(old: u.Status, new: u.Status, *issues: str) -> u.HealthChanged:
    return u.HealthChanged(device_id="test-gpu-0", old_status=old, new_status=new, issues=issues)


def limit(watts: float, before: float | None) -> u.PowerLimitSet:
    return u.PowerLimitSet(device_id="test-gpu-0", limit_watts=watts, previous_watts=before)


def decided(given: Given[DeviceState], command: Command[Any]) -> list[Event] | type[AimaError]:
    try:
        return given.when(command)
    except AimaError as error:
        return type(error)


# --- one GPU, in every state --------------------------------------------------------------------------------------

STATES: dict[str, list[Event]] = {
    "absent": [],
    "new": [detected(GPU)],
    "healthy": [detected(GPU), health("unknown", "healthy")],
    "hot": [detected(GPU), health("unknown", "critical", "hot")],
    "limited": [detected(GPU), limit(300, 700)],
    "removed": [detected(GPU), limit(300, 700), u.DeviceRemoved(device_id="test-gpu-0")],
}
REMOVED = [u.DeviceRemoved(device_id="test-gpu-0")]
LARGER = GPU.model_copy(update={"memory": 192})
ALERT = i.RecordAlert(device_id="test-gpu-0", metric="temperature", value=91, threshold=90)
ALERTED = [u.MetricsAlert(device_id="test-gpu-0", metric="temperature", value=91, threshold=90)]
__: list[Event] = []
NO = NotFound
DECIDED: dict[str, tuple[Command[Any], tuple[Any, ...]]] = {
    # command, and what it comes to when the GPU is: absent, new, healthy, hot, limited, removed
    "found": (i.RecordDevices(found=(GPU,)), ([detected(GPU)], __, __, __, __, [detected(GPU)])),
    "found twice": (i.RecordDevices(found=(GPU, GPU)), ([detected(GPU)], __, __, __, __, [detected(GPU)])),
    "found larger": (i.RecordDevices(found=(LARGER,)), ([detected(LARGER)],) * 6),
    "nothing found": (i.RecordDevices(found=()), (__, REMOVED, REMOVED, REMOVED, REMOVED, __)),
    "healthy": (
        i.RecordHealth(device_id="test-gpu-0", status="healthy"),
        (
            NO,
            [health("unknown", "healthy")],
            __,
            [health("critical", "healthy")],
            [health("unknown", "healthy")],
            NO,
        ),
    ),
    "warm": (
        i.RecordHealth(device_id="test-gpu-0", status="warning", issues=("warm",)),
        (
            NO,
            [health("unknown", "warning", "warm")],
            [health("healthy", "warning", "warm")],
            [health("critical", "warning", "warm")],
            [health("unknown", "warning", "warm")],
            NO,
        ),
    ),
    "alert": (ALERT, (NO, ALERTED, ALERTED, ALERTED, ALERTED, NO)),
    "limit was 700, is 300": (
        i.RecordPowerLimit(device_id="test-gpu-0", limit_watts=300, previous_watts=700),
        (NO, [limit(300, 700)], [limit(300, 700)], [limit(300, 700)], [limit(300, 700)], NO),
    ),
    "limit was 300 already": (
        i.RecordPowerLimit(device_id="test-gpu-0", limit_watts=300, previous_watts=300.0004),
        (NO, [limit(300, 300.0004)], [limit(300, 300.0004)], [limit(300, 300.0004)], __, NO),
    ),
    "plan of 300": (
        u.SetPowerLimit(device_id="test-gpu-0", limit_watts=300),
        (NO, [limit(300, None)], [limit(300, None)], [limit(300, None)], __, NO),
    ),
    "plan of 400": (
        u.SetPowerLimit(device_id="test-gpu-0", limit_watts=400),
        (NO, [limit(400, None)], [limit(400, None)], [limit(400, None)], [limit(400, 300)], NO),
    ),
}


@pytest.mark.parametrize(
    ("command", "events", "expected"),
    [
        pytest.param(command, STATES[state], outcome, id=f"{name}, {state}")
        for name, (command, outcomes) in DECIDED.items()
        for state, outcome in zip(STATES, outcomes, strict=True)
    ],
)
def test_a_command_in_a_state_comes_to(command: Command[Any], events: list[Event], expected: Any) -> None:
    assert decided(Given(DEVICE, events), command) == expected


def test_a_device_that_changed_keeps_its_health_and_its_limit() -> None:
    given = Given(DEVICE, [*STATES["hot"], limit(300, 700), detected(LARGER)])
    assert given.world == {"device/test-gpu-0": DeviceState(device=device(LARGER), status="critical", power_limit=300)}


@pytest.mark.parametrize(
    ("known", "measured", "recorded"),
    [
        (None, None, None),
        (None, 1000, 1000),
        (1000, None, 1000),  # what cannot be measured now takes nothing away
        (1000, 1299, 1000),
        (1000, 1300, 1300),
        (1000, 500, 1000),  # something else was running
    ],
)
def test_a_bandwidth_that_is_measured_a_little_differently_is_the_same(
    known: int | None, measured: int | None, recorded: int | None
) -> None:
    given = Given(DEVICE, [detected(CPU, memory_bandwidth=known)])
    events = given.when(i.RecordDevices(found=(CPU.model_copy(update={"memory_bandwidth": measured}),)))
    assert events == ([] if recorded == known else [detected(CPU, memory_bandwidth=recorded)])


def test_what_else_has_changed_is_recorded_with_the_bandwidth_that_was_known() -> None:
    given = Given(DEVICE, [detected(CPU)])
    found = CPU.model_copy(update={"memory_bandwidth": 41_000, "cores": 16})
    assert given.when(i.RecordDevices(found=(found,))) == [detected(CPU, cores=16)]


def test_detecting_lists_what_is_there_gpus_first() -> None:
    ninth, tenth = (GPU.model_copy(update={"id": f"test-gpu-{n}"}) for n in (9, 10))
    command = i.RecordDevices(found=(CPU, DISK, tenth, ninth))
    given = Given(DEVICE)
    assert [event.stream for event in given.then(command)] == [
        "device/test-cpu-0",
        "device/test-disk-0",
        "device/test-gpu-10",
        "device/test-gpu-9",
    ]
    answer = DEVICE.reply(given.world, command, [])
    assert isinstance(answer, u.Devices)
    assert [one.id for one in answer.devices] == ["test-gpu-9", "test-gpu-10", "test-cpu-0", "test-disk-0"]
    assert answer.devices[0] == u.DeviceView(id="test-gpu-9", name="H200", vendor="NVIDIA", type="gpu", memory=141)


def test_the_device_that_is_meant_is_the_one_named_else_the_first_gpu_else_the_cpu() -> None:
    everything = Given(DEVICE, [detected(DISK), detected(CPU), detected(GPU)]).world
    assert device_or_default(everything, None).device.id == "test-gpu-0"
    assert device_or_default(everything, "test-disk-0").device.id == "test-disk-0"
    assert device_or_default(Given(DEVICE, [detected(DISK), detected(CPU)]).world, None).device.id == "test-cpu-0"
    with pytest.raises(NotFound, match="no device has been detected"):
        device_or_default({}, None)
    with pytest.raises(NotFound) as refusal:
        device_or_default(everything, "test-gpu-7")
    assert refusal.value.message == ("there is no device test-gpu-7; known: test-gpu-0, test-cpu-0, test-disk-0")
    assert refusal.value.details == {
        "reason": "DEVICE_NOT_FOUND",
        "device_id": "test-gpu-7",
        "known": ["test-gpu-0", "test-cpu-0", "test-disk-0"],
    }


# --- what holds of anything ---------------------------------------------------------------------------------------

ids = st.sampled_from([CPU.id, GPU.id, DISK.id])
watts = st.sampled_from([200.0, 300.0])
# alerts are not among them: each is the news of another moment, and readings.py sees to it that a crossing is one
found = st.lists(st.sampled_from([CPU, GPU, LARGER, DISK]), max_size=4, unique_by=lambda device: device.id)
commands = st.one_of(
    st.builds(i.RecordDevices, found=found.map(tuple)),
    st.builds(i.RecordHealth, device_id=ids, status=st.sampled_from(["healthy", "warning", "critical", "unknown"])),
    st.builds(lambda ident, w: i.RecordPowerLimit(device_id=ident, limit_watts=w, previous_watts=w), ids, watts),
    st.builds(u.SetPowerLimit, device_id=ids, limit_watts=watts),
)


@given(st.lists(commands, max_size=30), st.integers(0, 40))
def test_any_commands_are_decided_or_refused_asking_again_changes_nothing_and_folds_agree(
    asked: list[Command[Any]], cut: int
) -> None:
    given = Given(DEVICE)
    events: list[Event] = []
    for command in asked:
        outcome = decided(given, command)
        if isinstance(outcome, type):
            assert outcome is NotFound
            continue
        events += given.then(command)
        assert given.when(command) == []
    half = Given(DEVICE, events[:cut])
    for event in events[cut:]:
        half.fold(event)
    assert half.world == given.world
    assert {f"device/{one.id}" for one in in_order(given.world)} == set(given.world)


# --- readings -----------------------------------------------------------------------------------------------------

FOUND = ProbedDevice("test-gpu-0", "H200", "NVIDIA", "gpu", "hopper", 100)


def sample(temperature: float | None, at: float = NOON, used: int | None = 10) -> Sample:
    return Sample(at, 5.0, temperature, 70.5, used, 100)


def seen(watch: Watch, *temperatures: float) -> list[tuple[str, list[float]]]:
    readings = [watch.add(FOUND, sample(temperature)) for temperature in temperatures]
    return [(reading.status, [alert.threshold for alert in reading.alerts]) for reading in readings]


def test_a_crossing_alerts_once_and_again_only_after_it_was_left() -> None:
    assert seen(Watch(10, "unknown"), 79, 81, 82, 79, 77, 81, 91, 92) == [
        ("healthy", []),
        ("warning", [80]),
        ("warning", []),
        ("warning", []),
        ("healthy", []),
        ("warning", [80]),
        ("critical", [90]),
        ("critical", []),
    ]


def test_a_restart_is_no_crossing() -> None:
    assert seen(Watch(10, "critical"), 92, 85, 91) == [("critical", []), ("warning", []), ("critical", [90])]
    assert seen(Watch(10, "warning"), 92) == [("critical", [90])]
    assert seen(Watch(10, "healthy"), 92) == [("critical", [80, 90])]


def test_only_the_newest_samples_are_kept() -> None:
    watch = Watch(3, "unknown")
    seen(watch, 1, 2, 3, 4)
    assert [kept.temperature for kept in watch.samples] == [2, 3, 4]


@pytest.mark.parametrize(
    ("read", "free"),
    [(None, None), (sample(50, used=None), None), (sample(50), 90), (sample(50, used=101), 0)],
)
def test_an_item_of_a_list_says_what_is_free_by_its_sample(read: Sample | None, free: int | None) -> None:
    assert views.item(device(CPU), read).model_dump() == {
        "id": "test-cpu-0",
        "name": "Ryzen",
        "vendor": "AMD",
        "type": "cpu",
        "node": "test",
        "memory": 64,
        "memory_free": free,
        "cores": 8,
        "capabilities": ["avx2"],
        "memory_bandwidth": 40_000,
        "stream_version": None,
    }


def test_metrics_are_the_newest_sample_and_the_history_when_asked_for() -> None:
    samples = [sample(50, NOON), sample(None, NOON + 1, None)]
    newest = {
        "at": "2026-01-01T12:00:01.000000Z",
        "utilization": 5.0,
        "temperature": None,
        "power": 70.5,
        "memory_used": None,
        "memory_total": 100,
    }
    shown = views.metrics("test-gpu-0", samples, history=False)
    assert shown.model_dump() == {"device_id": "test-gpu-0", **newest, "history": None, "stream_version": None}
    first = {**newest, "at": "2026-01-01T12:00:00.000000Z", "temperature": 50, "memory_used": 10}
    shown = views.metrics("test-gpu-0", samples, history=True)
    assert shown.model_dump() == {
        "device_id": "test-gpu-0",
        **newest,
        "history": [first, newest],
        "stream_version": None,
    }


# --- the table ----------------------------------------------------------------------------------------------------

CPU_ROW = ("test-cpu-0", "Ryzen", "AMD", "cpu", "x86_64", 64, "test", '["avx2"]', 8, None, 40_000)
GPU_ROW = ("test-gpu-0", "H200", "NVIDIA", "gpu", "hopper", 141, "test", "[]", None, "GPU-1", None)
LARGER_ROW = ("test-gpu-0", "H200", "NVIDIA", "gpu", "hopper", 192, "test", "[]", None, "GPU-1", None)
AFTER: dict[type[Event], list[tuple[list[Event], list[tuple[Any, ...]]]]] = {
    u.DeviceDetected: [
        ([detected(CPU)], [(*CPU_ROW, "unknown", "[]", None)]),
        (
            [detected(CPU), detected(CPU, memory_bandwidth=None)],
            [(*CPU_ROW[:-1], None, "unknown", "[]", None)],
        ),
        ([*STATES["hot"], limit(300, 700), detected(LARGER)], [(*LARGER_ROW, "critical", '["hot"]', 300.0)]),
    ],
    u.DeviceRemoved: [([detected(CPU), *STATES["removed"]], [(*CPU_ROW, "unknown", "[]", None)])],
    u.HealthChanged: [(STATES["hot"], [(*GPU_ROW, "critical", '["hot"]', None)])],
    u.MetricsAlert: [([detected(GPU), *ALERTED], [(*GPU_ROW, "unknown", "[]", None)])],
    u.PowerLimitSet: [(STATES["limited"], [(*GPU_ROW, "unknown", "[]", 300.0)])],
}


def test_every_event_type_has_its_case() -> None:
    assert set(AFTER) == set(u.EVENTS) == set(DEVICE.events)


@pytest.mark.parametrize(
    ("events", "rows"),
    [pytest.param(*case, id=f"{event.unit} {n}") for event, cases in AFTER.items() for n, case in enumerate(cases)],
)
def test_after_these_events_the_table_holds(events: list[Event], rows: list[Any]) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute(views.TABLES["devices"])
    for position, event in enumerate(events, 1):
        recorded = Recorded(position, event.stream, position, NOON, Meta(), event, f"log-{position}")
        for sql, values in views.project(recorded):
            connection.execute(sql, values)
    found = connection.execute("SELECT * FROM devices").fetchall()
    connection.close()
    assert found == rows


async def test_a_rebuilt_table_and_states_are_those_that_were_live(tmp_path: Path) -> None:
    log = await Log.open(tmp_path, "device", Codec(DEVICE.events))
    runner = Writer(DEVICE, log, "test")
    await runner.open()

    async def everything() -> tuple[Any, Any]:
        rows = await log.file.read(lambda c: c.execute("SELECT * FROM devices").fetchall())
        return rows, dict(runner.states.committed)

    for command in (
        i.RecordDevices(found=(CPU, GPU, DISK)),
        i.RecordHealth(device_id="test-gpu-0", status="critical", issues=("hot",)),
        ALERT,
        i.RecordPowerLimit(device_id="test-gpu-0", limit_watts=300, previous_watts=700),
        i.RecordDevices(found=(CPU, LARGER)),
    ):
        await runner.run(command, call())
    live = await everything()
    assert live[0] == [(*CPU_ROW, "unknown", "[]", None), (*LARGER_ROW, "critical", '["hot"]', 300.0)]
    assert {record.event.unit for record in await log.events()} == {event.unit for event in u.EVENTS}
    await runner.rebuild()
    assert await everything() == live
    await runner.close()
    await log.close()
