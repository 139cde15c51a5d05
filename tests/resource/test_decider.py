"""The rules of the resource domain: tables are the specification, properties what holds of anything."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aima_core.errors import AimaError, Conflict, InsufficientResources, NotFound
from aima_core.testing import NOON, Given, call
from aima_core.units import Command, Event
from services.resource import internal as i
from services.resource import units as u
from services.resource.domain import RESOURCE
from services.resource.rules.capacity import Slot, size
from services.resource.rules.decider import HYSTERESIS, THRESHOLDS, State, held, machine_at, pressure_of

GB = 10**9
CAPACITY = u.CapacityChanged(
    node="test", memory=11 * GB, system_reserve=GB, storage=100 * GB, accelerators=1, accelerator_ids=("test-gpu-0",)
)


def ask(name: str, memory: int, priority: int = 5, gpu: float = 0, available: int = 100 * GB) -> i.DecideAllocation:
    return i.DecideAllocation(
        name=name,
        type="inference_native",
        memory_bytes=memory,
        gpu_fraction=gpu,
        priority=priority,
        available=available,
    )


def allocated(name: str, memory: int, priority: int = 5, gpu: float = 0, at: float = NOON) -> u.Allocated:
    return u.Allocated(
        slot_id=f"slot-{name}",
        name=name,
        type="inference_native",
        memory=memory,
        gpu_fraction=gpu,
        priority=priority,
        owner="local",
        at=at,
    )


def updated(name: str, memory: int, status: u.SlotStatus = "active") -> u.SlotUpdated:
    return u.SlotUpdated(slot_id=f"slot-{name}", memory_limit=memory, status=status)


def preempted(name: str, by: str, words: str) -> u.Preempted:
    return u.Preempted(slot_id=f"slot-{name}", reason=words, by_slot_id=f"slot-{by}")


def machine(*events: Event) -> Given[State]:
    return Given(RESOURCE, (CAPACITY, *events))


def decided(given: Given[State], command: Command[Any]) -> list[Event] | type[AimaError]:
    try:
        return given.when(command)
    except AimaError as error:
        return type(error)


# --- one slot, in every status ------------------------------------------------------------------------------------

STATUSES: dict[str, list[Event]] = {
    "free": [],
    "active": [allocated("a", 4 * GB)],
    "idle": [allocated("a", 4 * GB), updated("a", 4 * GB, "idle")],
    "settled": [allocated("a", 4 * GB), updated("a", 3 * GB)],
    "preempted": [allocated("a", 4 * GB), preempted("a", "b", "")],
}
ALLOCATED = [allocated("a", 4 * GB)]
RELEASED = [u.Released(slot_id="slot-a")]
BY_HAND = [u.Preempted(slot_id="slot-a", reason="requested", by_slot_id="")]
__: list[Event] = []
DECIDED: dict[str, tuple[Command[Any], tuple[Any, ...]]] = {
    # command, and what it comes to when the slot is: free, active, idle, settled, preempted
    "ask": (ask("a", 4 * GB), (ALLOCATED, __, __, __, ALLOCATED)),
    "ask, other size": (
        ask("a", 5 * GB),
        ([allocated("a", 5 * GB)], Conflict, Conflict, Conflict, [allocated("a", 5 * GB)]),
    ),
    "ask, other gpu": (
        ask("a", 4 * GB, gpu=0.5),
        ([allocated("a", 4 * GB, gpu=0.5)], Conflict, Conflict, Conflict, [allocated("a", 4 * GB, gpu=0.5)]),
    ),
    "ask, other priority": (
        ask("a", 4 * GB, 7),
        ([allocated("a", 4 * GB, 7)], __, __, __, [allocated("a", 4 * GB, 7)]),
    ),
    "release": (u.Release(slot_id="slot-a"), (__, RELEASED, RELEASED, RELEASED, RELEASED)),
    "update, nothing": (u.UpdateSlot(slot_id="slot-a"), (NotFound, __, __, __, __)),
    "update to 3 GB": (
        u.UpdateSlot(slot_id="slot-a", memory_limit=3 * GB),
        (NotFound, [updated("a", 3 * GB)], [updated("a", 3 * GB, "idle")], __, [updated("a", 3 * GB, "preempted")]),
    ),
    "update to all": (
        u.UpdateSlot(slot_id="slot-a", memory_limit=10 * GB),
        (
            NotFound,
            [updated("a", 10 * GB)],
            [updated("a", 10 * GB, "idle")],
            [updated("a", 10 * GB)],
            [updated("a", 10 * GB, "preempted")],
        ),
    ),
    "update beyond": (
        u.UpdateSlot(slot_id="slot-a", memory_limit=10 * GB + 1),
        (
            NotFound,
            InsufficientResources,
            InsufficientResources,
            InsufficientResources,
            [updated("a", 10 * GB + 1, "preempted")],
        ),
    ),
    "idle": (
        u.UpdateSlot(slot_id="slot-a", status="idle"),
        (
            NotFound,
            [updated("a", 4 * GB, "idle")],
            __,
            [updated("a", 3 * GB, "idle")],
            [updated("a", 4 * GB, "idle")],
        ),
    ),
    "active": (
        u.UpdateSlot(slot_id="slot-a", status="active"),
        (NotFound, __, [updated("a", 4 * GB)], __, [updated("a", 4 * GB)]),
    ),
    "preempted": (u.UpdateSlot(slot_id="slot-a", status="preempted"), (NotFound, BY_HAND, BY_HAND, BY_HAND, __)),
    "preempted, 3 GB": (
        u.UpdateSlot(slot_id="slot-a", status="preempted", memory_limit=3 * GB),
        (
            NotFound,
            [updated("a", 3 * GB), *BY_HAND],
            [updated("a", 3 * GB, "idle"), *BY_HAND],
            BY_HAND,
            [updated("a", 3 * GB, "preempted")],
        ),
    ),
}


@pytest.mark.parametrize(
    ("command", "events", "expected"),
    [
        pytest.param(command, STATUSES[status], outcome, id=f"{name}, {status}")
        for name, (command, outcomes) in DECIDED.items()
        for status, outcome in zip(STATUSES, outcomes, strict=True)
    ],
)
def test_a_command_in_a_status_comes_to(command: Command[Any], events: list[Event], expected: Any) -> None:
    assert decided(machine(*events), command) == expected


def test_a_preempted_slot_that_is_resumed_must_fit_again() -> None:
    given = machine(*STATUSES["preempted"], allocated("b", 7 * GB))
    assert decided(given, u.UpdateSlot(slot_id="slot-a", status="active")) is InsufficientResources
    assert given.when(u.UpdateSlot(slot_id="slot-a", status="active", memory_limit=3 * GB)) == [updated("a", 3 * GB)]


def test_an_update_beyond_the_budget_preempts_nobody() -> None:
    given = machine(allocated("low", 5 * GB, 0), allocated("high", 5 * GB, 100))
    assert decided(given, u.UpdateSlot(slot_id="slot-high", memory_limit=6 * GB)) is InsufficientResources


# --- who makes room -----------------------------------------------------------------------------------------------

ROOM: dict[str, tuple[list[Event], i.DecideAllocation, Any]] = {
    "it fits": ([allocated("a", 5 * GB, 1)], ask("new", 5 * GB), []),
    "one byte too much": ([allocated("a", 5 * GB, 5)], ask("new", 5 * GB + 1), "INSUFFICIENT_MEMORY"),
    "lower priority makes room": ([allocated("a", 5 * GB, 4)], ask("new", 5 * GB + 1), ["a"]),
    "equal priority does not": ([allocated("a", 6 * GB, 5)], ask("new", 5 * GB), "INSUFFICIENT_MEMORY"),
    "an idle one of equal priority does not": (
        [allocated("a", 6 * GB, 5), updated("a", 6 * GB, "idle")],
        ask("new", 5 * GB),
        "INSUFFICIENT_MEMORY",
    ),
    "idle before lower": (
        [allocated("a", 5 * GB, 1), allocated("b", 5 * GB, 4), updated("b", 5 * GB, "idle")],
        ask("new", 5 * GB),
        ["b"],
    ),
    "lowest first": ([allocated("a", 5 * GB, 2), allocated("b", 5 * GB, 1)], ask("new", 5 * GB), ["b"]),
    "oldest first": (
        [allocated("a", 5 * GB, 1, at=NOON - 1), allocated("b", 5 * GB, 1, at=NOON - 2)],
        ask("new", 5 * GB),
        ["b"],
    ),
    "as many as it takes": (
        [allocated("a", 3 * GB, 1), allocated("b", 3 * GB, 2), allocated("c", 3 * GB, 3)],
        ask("new", 6 * GB),
        ["a", "b"],
    ),
    "none that can be spared": (
        [allocated("a", GB, 1), allocated("b", 9 * GB, 2)],
        ask("new", 9 * GB),
        ["b"],
    ),
    "none when all would not do": (
        [allocated("a", 5 * GB, 1), allocated("b", 5 * GB, 5)],
        ask("new", 6 * GB),
        "INSUFFICIENT_MEMORY",
    ),
    "more than the machine has": ([], ask("new", 10 * GB + 1, 100), "INSUFFICIENT_MEMORY"),
    "a preempted slot holds nothing": ([allocated("a", 9 * GB), *BY_HAND], ask("new", 9 * GB), []),
    "a settled slot holds its limit": ([allocated("a", 9 * GB), updated("a", 2 * GB)], ask("new", 8 * GB), []),
    "the system has less": ([], ask("new", 5 * GB, available=5 * GB - 1), "SYSTEM_MEMORY_LOW"),
    "the system has it once somebody ends": (
        [allocated("a", 5 * GB, 1)],
        ask("new", 5 * GB, available=1 * GB),
        ["a"],
    ),
    "no memory is always there": ([allocated("a", 10 * GB)], ask("new", 0, available=0), []),
    "half a GPU": ([allocated("a", 0, gpu=0.5)], ask("new", 0, gpu=0.5), []),
    "more than half": ([allocated("a", 0, gpu=0.5)], ask("new", 0, gpu=0.6), "INSUFFICIENT_ACCELERATORS"),
    "a GPU of lower priority": ([allocated("a", 0, 1, gpu=0.5)], ask("new", 0, gpu=1), ["a"]),
    "ten tenths": ([allocated(f"a{n}", 0, gpu=0.1) for n in range(9)], ask("new", 0, gpu=0.1), []),
}


@pytest.mark.parametrize(("events", "command", "expected"), ROOM.values(), ids=ROOM)
def test_room_is_made_by(events: list[Event], command: i.DecideAllocation, expected: Any) -> None:
    given = machine(*events)
    if isinstance(expected, str):
        with pytest.raises(InsufficientResources) as refusal:
            given.when(command)
        assert refusal.value.reason == expected
        return
    made = given.when(command)
    assert [event.slot_id for event in made if isinstance(event, u.Preempted)] == [f"slot-{name}" for name in expected]
    (last,) = [event for event in made if isinstance(event, u.Allocated)]
    assert last == allocated("new", command.memory_bytes, command.priority, command.gpu_fraction)


def test_a_preemption_says_who_took_it_and_why() -> None:
    assert machine(allocated("a", 6 * GB, 1)).when(ask("b", 5 * GB, 9)) == [
        u.Preempted(slot_id="slot-a", reason="b has priority 9, above 1", by_slot_id="slot-b"),
        allocated("b", 5 * GB, 9),
    ]


def test_a_refusal_says_how_much_is_missing_and_who_holds_it() -> None:
    given = machine(allocated("small", 1 * GB), allocated("large", 7 * GB, 6))
    with pytest.raises(InsufficientResources) as refusal:
        given.when(ask("new", 5 * GB))
    assert refusal.value.details == {
        "reason": "INSUFFICIENT_MEMORY",
        "requested": 5 * GB,
        "available": 2 * GB,
        "missing": 3 * GB,
        "lacking": "memory",
        "holders": [
            {"slot_id": "slot-large", "name": "large", "memory": 7 * GB, "priority": 6, "status": "active"},
            {"slot_id": "slot-small", "name": "small", "memory": 1 * GB, "priority": 5, "status": "active"},
        ],
    }
    assert refusal.value.message == (
        "4.7 GiB requested, but only 1.9 GiB of the 9.3 GiB budget is free: 2.8 GiB is missing; "
        "held by: large (6.5 GiB, priority 6), small (953.7 MiB, priority 5); "
        "stop a holder, request less, or use a higher priority"
    )


def test_a_refusal_for_want_of_system_memory_says_so() -> None:
    with pytest.raises(InsufficientResources) as refusal:
        machine().when(ask("new", 4 * GB, available=1 * GB))
    assert refusal.value.details == {
        "reason": "SYSTEM_MEMORY_LOW",
        "requested": 4 * GB,
        "available": 1 * GB,
        "missing": 3 * GB,
        "lacking": "system",
        "holders": [],
    }
    assert refusal.value.message == (
        "3.7 GiB requested, but the system has only 953.7 MiB available now (budget 9.3 GiB): 2.8 GiB is missing; "
        "no slot holds memory; end other programs or request less"
    )


def test_a_refusal_for_want_of_a_gpu_names_who_holds_it_and_not_who_holds_memory() -> None:
    given = machine(allocated("memory", 1 * GB), *(allocated(f"gpu{n}", n, 5, 0.125) for n in range(7)))
    with pytest.raises(InsufficientResources) as refusal:
        given.when(ask("new", 0, gpu=0.5))
    names = ", ".join(f"gpu{n} (0.125 GPU, priority 5)" for n in range(5))
    assert refusal.value.message == (
        f"0.5 GPU requested, but only 0.125 of 1 is free; held by: {names} and 2 more; "
        "stop a holder, request less, or use a higher priority"
    )


def test_without_a_gpu_a_fraction_of_one_is_refused() -> None:
    given = Given(RESOURCE, [u.CapacityChanged(node="test", memory=8, system_reserve=0, storage=1, accelerators=0)])
    with pytest.raises(
        InsufficientResources,
        match=r"no GPU has been detected on test, so 0\.25 of a GPU cannot be reserved; request gpu_fraction 0",
    ) as refusal:
        given.when(ask("new", 0, gpu=0.25))
    assert refusal.value.reason == "NO_ACCELERATOR"


def test_the_owner_is_who_asked_and_else_what_caused_it() -> None:
    world = machine().world
    for beside, owner in (({"principal": "ann", "causation_id": "e-1"}, "ann"), ({"causation_id": "e-1"}, "e-1")):
        (event,) = RESOURCE.decide(world, ask("new", 1), msgspec.structs.replace(call(), **beside))
        assert isinstance(event, u.Allocated)
        assert event.owner == owner


# --- the machine --------------------------------------------------------------------------------------------------


def test_capacity_is_recorded_when_it_changes() -> None:
    given = Given[State](RESOURCE)
    record = i.RecordCapacity(memory=8 * GB, system_reserve=GB, storage=50 * GB)
    event = u.CapacityChanged(node="test", memory=8 * GB, system_reserve=GB, storage=50 * GB, accelerators=0)
    assert given.then(record) == [event]
    assert given.then(record) == []


def test_gpus_are_counted_once_and_only_those_of_this_machine() -> None:
    given = Given[State](RESOURCE)
    given.then(i.RecordCapacity(memory=8, system_reserve=1, storage=5))

    def heard(device_id: str, present: bool = True, node: str = "test") -> list[int]:
        events = given.then(i.RecordAccelerator(node=node, device_id=device_id, present=present))
        return [event.accelerators for event in events if isinstance(event, u.CapacityChanged)]

    assert heard("test-gpu-0") == [1]
    assert heard("test-gpu-0") == []
    assert heard("test-gpu-1") == [2]
    assert heard("far-gpu-0", node="far") == []
    assert heard("test-gpu-0", present=False) == [1]
    assert heard("test-gpu-0", present=False) == []
    assert machine_at(given.world, "test").gpus == ("test-gpu-1",)
    assert machine_at(given.world, "test").memory == 8


PRESSURES: list[tuple[float, u.Pressure, u.Pressure]] = [
    (69.9, "low", "low"),
    (70, "low", "medium"),
    (84.9, "low", "medium"),
    (85, "low", "high"),
    (95, "low", "critical"),
    (68, "medium", "medium"),
    (67.9, "medium", "low"),
    (83, "high", "high"),
    (82.9, "high", "medium"),
    (69, "high", "medium"),
    (67.9, "high", "low"),
    (93, "critical", "critical"),
    (92.9, "critical", "high"),
    (0, "critical", "low"),
    (100, "medium", "critical"),
]


@pytest.mark.parametrize(("used", "before", "after"), PRESSURES)
def test_pressure_is_left_two_points_below_where_it_was_reached(
    used: float, before: u.Pressure, after: u.Pressure
) -> None:
    assert pressure_of(used, before) == after


def test_pressure_is_warned_of_once_per_crossing() -> None:
    given = machine()
    seen = []
    for used in (60, 71, 69, 71, 86, 99, 94, 92, 50, 50):
        for event in given.then(i.RecordPressure(used_percent=used)):
            assert isinstance(event, u.PressureWarning)
            seen.append((used, event.pressure, event.threshold))
    assert seen == [(71, "medium", 70), (86, "high", 85), (99, "critical", 95), (92, "high", 95), (50, "low", 70)]


def test_a_change_of_capacity_is_no_crossing() -> None:
    given = machine(u.PressureWarning(node="test", pressure="high", threshold=85))
    given.then(i.RecordCapacity(memory=12 * GB, system_reserve=GB, storage=100 * GB))
    assert given.when(i.RecordPressure(used_percent=86)) == []


def test_an_allocation_that_finds_memory_tight_says_so() -> None:
    assert machine().when(ask("a", GB, available=int(2.2 * GB))) == [
        allocated("a", GB),
        u.PressureWarning(node="test", pressure="medium", threshold=70),
    ]


# --- what holds of anything ---------------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c", "d", "e"])
sizes = st.integers(0, 12).map(lambda n: n * GB)
slot_ids = names.map(u.slot_of)
commands = st.one_of(
    st.builds(
        ask,
        names,
        sizes,
        st.integers(0, 3),
        st.sampled_from([0, 0.25, 0.4, 1]),
        st.sampled_from([2 * GB, 8 * GB, 100 * GB]),
    ),
    st.builds(u.Release, slot_id=slot_ids),
    st.builds(
        u.UpdateSlot,
        slot_id=slot_ids,
        memory_limit=st.none() | sizes,
        status=st.none() | st.sampled_from(["active", "idle", "preempted"]),
    ),
    st.builds(i.RecordPressure, used_percent=st.floats(0, 100)),
)


@given(st.lists(commands, max_size=30))
def test_any_commands_are_decided_or_refused_as_declared_and_asking_again_changes_nothing(
    asked: list[Command[Any]],
) -> None:
    given = machine()
    for command in asked:
        declared = u.Allocate.spec if isinstance(command, u.Allocate) else command.spec
        outcome = decided(given, command)
        if isinstance(outcome, type):
            assert issubclass(outcome, declared.errors)
            continue
        events = given.then(command)
        assert events == outcome
        if isinstance(command, u.Allocate | u.Release | u.UpdateSlot):
            assert {type(event) for event in events} <= set(declared.events)
        assert given.when(command) == []


def reserved(given: Given[State]) -> int:
    return sum(slot.memory for slot in held(given.world))


@given(st.lists(commands, max_size=40))
def test_what_is_held_is_never_above_the_budget(asked: list[Command[Any]]) -> None:
    given = machine()
    for command in asked:
        if not isinstance(decided(given, command), type):
            given.then(command)
        assert reserved(given) <= 10 * GB
        assert sum(slot.gpu_fraction for slot in held(given.world)) <= 1 + 1e-9


capacities = st.builds(
    i.RecordCapacity, memory=st.sampled_from([5 * GB, 11 * GB]), system_reserve=st.just(GB), storage=st.just(100 * GB)
)


@given(st.lists(commands | capacities, max_size=40))
def test_a_machine_that_shrinks_takes_nobodys_slot_and_gives_nothing_beyond_it(asked: list[Command[Any]]) -> None:
    given = machine()
    for command in asked:
        before = reserved(given)
        if isinstance(decided(given, command), type):
            continue
        given.then(command)
        if isinstance(command, i.RecordCapacity):
            assert reserved(given) == before
        assert reserved(given) <= max(machine_at(given.world, "test").budget, before)


@given(st.lists(commands, max_size=40))
def test_a_slot_has_one_holder_at_a_time_and_a_refusal_changes_nothing(asked: list[Command[Any]]) -> None:
    given, holding = machine(), set[str]()
    for command in asked:
        before = dict(given.world)
        if isinstance(decided(given, command), type):
            assert given.world == before
            continue
        for event in given.then(command):
            match event:
                case u.Allocated(slot_id=slot_id):
                    assert slot_id not in holding
                    holding.add(slot_id)
                case u.Released(slot_id=slot_id) | u.Preempted(slot_id=slot_id):
                    holding.discard(slot_id)
                case u.SlotUpdated(slot_id=slot_id, status=status) if status != "preempted":
                    holding.add(slot_id)  # one that was resumed
        assert {slot.slot_id for slot in held(given.world)} == holding


@given(st.lists(commands, max_size=20), st.builds(ask, st.just("new"), sizes, st.integers(0, 4)), st.integers(0, 20))
def test_a_refusal_names_the_bytes_that_are_missing_and_whoever_holds_any(
    asked: list[Any], new: i.DecideAllocation, available: int
) -> None:
    given = machine()
    for command in asked:
        if not isinstance(decided(given, command), type):
            given.then(command)
    new = new.model_copy(update={"available": available * GB})
    if decided(given, new) is not InsufficientResources:
        return
    with pytest.raises(InsufficientResources) as refusal:
        given.when(new)
    told = refusal.value.details
    assert told["missing"] == told["requested"] - told["available"] > 0
    assert f": {size(told['missing'])} is missing; " in refusal.value.message
    assert {holder["slot_id"] for holder in told["holders"]} == {slot.slot_id for slot in held(given.world)}


@given(st.lists(st.one_of(st.builds(ask, names, sizes, st.integers(0, 9)), names), max_size=40))
def test_the_memory_of_a_slot_that_had_to_go_is_given_to_one_only(asked: list[i.DecideAllocation | str]) -> None:
    """Every slot is in use from its first moment; one that was preempted is until its holder has ended."""
    given = machine()
    for step in asked:
        in_use = {slot.slot_id: slot.memory for slot in given.world.values() if isinstance(slot, Slot)}
        if isinstance(step, str):  # its holder has ended
            given.then(u.Release(slot_id=u.slot_of(step)))
            continue
        available = max(0, 11 * GB - sum(in_use.values()))
        command = step.model_copy(update={"available": available})
        outcome = decided(given, command)
        if isinstance(outcome, type) or command.slot_id in in_use:
            continue
        made = [event.slot_id for event in given.then(command) if isinstance(event, u.Preempted)]
        assert command.memory_bytes <= available + sum(in_use[slot_id] for slot_id in made)
        assert reserved(given) <= 10 * GB
        for later in (0, 100 * GB):  # what is available by then changes nothing about what it has
            assert given.when(command.model_copy(update={"available": later})) == []


@given(st.lists(st.floats(0, 100) | st.sampled_from([67.9, 68, 70, 83, 85, 93, 95]), max_size=40))
def test_pressure_is_news_exactly_when_its_level_changes(readings: list[float]) -> None:
    given, levels = machine(), [level for level, _ in THRESHOLDS]
    at = dict(THRESHOLDS)
    for used in readings:
        before = machine_at(given.world, "test").pressure
        events = given.then(i.RecordPressure(used_percent=used))
        after = machine_at(given.world, "test").pressure
        assert [event.pressure for event in events if isinstance(event, u.PressureWarning)] == (
            [after] if after != before else []
        )
        higher = levels[levels.index(after) + 1 :]
        assert used + HYSTERESIS >= at[after]
        assert all(used < at[level] for level in higher)
        # it only changes where a threshold has been crossed: reached on the way up, left by two points on the way down
        if levels.index(after) < levels.index(before):
            assert used + HYSTERESIS < at[before]
        assert given.when(i.RecordPressure(used_percent=used)) == []


@given(st.lists(commands, max_size=30), st.integers(0, 60))
def test_folding_a_prefix_and_then_the_rest_is_folding_the_whole(asked: list[Command[Any]], cut: int) -> None:
    given = machine()
    events: list[Event] = [CAPACITY]
    for command in asked:
        if not isinstance(decided(given, command), type):
            events += given.then(command)
    half = Given(RESOURCE, events[:cut])
    for event in events[cut:]:
        half.fold(event)
    assert half.world == Given(RESOURCE, events).world == given.world


@given(st.lists(commands, max_size=20), st.builds(ask, st.just("new"), sizes, st.integers(0, 4)))
def test_nobody_makes_room_who_could_be_spared_or_has_the_priority(asked: list[Any], new: i.DecideAllocation) -> None:
    given = machine()
    for command in asked:
        if not isinstance(decided(given, command), type):
            given.then(command)
    outcome = decided(given, new)
    if isinstance(outcome, type):
        return
    victims = [event.slot_id for event in outcome if isinstance(event, u.Preempted)]
    slots = {slot.slot_id: slot for slot in held(given.world)}
    assert all(slots[victim].priority < new.priority for victim in victims)
    kept = sum(slot.memory for slot in slots.values() if slot.slot_id not in victims)
    assert all(kept + slots[victim].memory + new.memory_bytes > 10 * GB for victim in victims)
