"""When a replica that has failed is started again, and when nobody tries any more."""

from __future__ import annotations

from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aima_core.testing import NOON, Given
from aima_core.units import Event
from services.resource.units import REFUSALS
from services.service import units as u
from services.service.domain import SERVICE
from services.service.rules import restart_policy
from tests.service.given import BOTH, ENDPOINT, R0, R1, TWO, broke, down, late, progress, ready, started, up

seeds = st.text(max_size=30)

# --- the delay ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "least", "most"),
    [
        (1, 0.5, 0.625),
        (2, 1.0, 1.25),
        (3, 2.0, 2.5),
        (4, 4.0, 5.0),
        (5, 8.0, 10.0),
        (6, 16.0, 20.0),
        (7, 32.0, 40.0),
        (8, 60.0, 75.0),
        (9, 60.0, 75.0),
        (1_000_000, 60.0, 75.0),
    ],
)
def test_the_next_process_comes_after_half_a_second_and_each_failure_in_a_row_doubles_that_to_a_minute(
    failures: int, least: float, most: float
) -> None:
    delays = [restart_policy.delay(failures, f"{number}") for number in range(200)]
    assert least <= min(delays) < least * 1.01
    assert most * 0.99 < max(delays) <= most


@given(st.integers(1, 1000), seeds)
def test_no_delay_is_longer_than_a_minute_and_its_quarter(failures: int, seed: str) -> None:
    assert 0.5 <= restart_policy.delay(failures, seed) <= 75.0


@given(st.integers(1, 7), seeds)
def test_one_more_failure_waits_longer(failures: int, seed: str) -> None:
    assert restart_policy.delay(failures + 1, seed) > restart_policy.delay(failures, seed)


def test_what_died_together_does_not_start_together_and_deciding_again_decides_the_same() -> None:
    delays = [restart_policy.delay(1, f"request-1/svc-a-r{replica}-1") for replica in range(100)]
    assert len(set(delays)) > 60  # of 125 milliseconds
    assert delays == [restart_policy.delay(1, f"request-1/svc-a-r{replica}-1") for replica in range(100)]


# --- the streak ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "answered_at", "expected"),
    [
        (0, 0.0, 1),
        (3, 0.0, 4),
        (0, NOON - 1, 1),
        (3, NOON - 1, 4),
        (3, NOON - 9.9, 4),
        (3, NOON - 10, 1),
        (3, NOON - 86_400, 1),
    ],
)
def test_failures_in_a_row_begin_anew_after_ten_seconds_of_answering(
    failures: int, answered_at: float, expected: int
) -> None:
    assert restart_policy.streak(failures, answered_at, NOON) == expected


# --- giving up ----------------------------------------------------------------------------------------------------

ONCE = ("DIED", "START_FAILED", "TIMEOUT", "UNRESPONSIVE", "STOPPED", "REBOOTED", "SOMETHING_NEW", "")
HOPELESS = ("OUT_OF_MEMORY", "MODEL_INVALID")
ASKED_WRONGLY = (
    *("MODEL_MISSING", "MODEL_UNSUPPORTED", "MODEL_NOT_FOUND", "MODEL_NOT_READY", "MISSING_LIBRARY"),
    *("LAUNCH_FAILED", "ENGINE_NOT_FOUND", "ENGINE_UNFIT", "VALIDATION_ERROR"),
    *("NO_FREE_PORT", "PORT_IN_USE", "NOT_WRITABLE"),
)
NO_ROOM = ("INSUFFICIENT_MEMORY", "SYSTEM_MEMORY_LOW", "NO_ACCELERATOR", "INSUFFICIENT_ACCELERATORS", "PREEMPTED")
GIVEN_UP: dict[tuple[str, ...], dict[int, tuple[bool, bool]]] = {
    # after so many processes that never answered: one that has never answered, one that once has
    ONCE: {0: (False, False), 1: (False, False), 3: (False, False), 4: (True, False), 100: (True, False)},
    HOPELESS: {0: (True, True), 1: (True, True), 4: (True, True)},
    ASKED_WRONGLY: {0: (True, False), 1: (True, False), 4: (True, False)},
    NO_ROOM: {0: (False, False), 4: (False, False), 100: (False, False)},
}


@pytest.mark.parametrize(
    ("code", "unanswered", "expected"),
    [
        (code, unanswered, expected)
        for codes, table in GIVEN_UP.items()
        for code in codes
        for unanswered, expected in table.items()
    ],
)
def test_whether_a_replica_is_given_up(code: str, unanswered: int, expected: tuple[bool, bool]) -> None:
    assert tuple(restart_policy.given_up(code, unanswered, proven=proven) for proven in (False, True)) == expected


def test_every_code_that_is_known_is_in_a_table() -> None:
    assert set(HOPELESS) == restart_policy.HOPELESS
    assert set(ASKED_WRONGLY) == restart_policy.ASKED_WRONGLY
    assert set(NO_ROOM) == restart_policy.NO_ROOM
    assert set(REFUSALS) < restart_policy.NO_ROOM
    assert len({*HOPELESS, *ASKED_WRONGLY, *NO_ROOM}) == len((*HOPELESS, *ASKED_WRONGLY, *NO_ROOM))


# --- through the rules of the service -----------------------------------------------------------------------------


def processes(events: list[Event]) -> list[str]:
    return [event.process_id for event in events if isinstance(event, u.ReplicaRequested)]


MAY_PASS = ["DIED", "START_FAILED", "TIMEOUT", "STOPPED"]
RUNS_ALREADY = [*TWO, up(R0), started(ENDPOINT[R0], status="degraded")]
failures = st.lists(st.tuples(st.sampled_from(MAY_PASS), st.booleans(), st.booleans()), min_size=10, max_size=10)


@given(st.sampled_from([TWO, [*TWO, up(R0)], RUNS_ALREADY]), failures, st.floats(0, 1))
def test_a_replica_that_never_answers_is_given_up_after_four_processes(
    events: list[Event], asked: list[tuple[str, bool, bool]], later: float
) -> None:
    given, at, present, count = Given(SERVICE, events), NOON, R1, 0
    for code, heard_of, ended in asked:
        if heard_of:
            given.fold(progress(present))
        found = given.then(broke(present, code, gone=ended), at=at)
        count += any(isinstance(event, u.ReplicaFailed) for event in found)
        new = processes(found)
        if not new:
            break
        (present,), at = new, at + later
    assert count == 4
    (service,) = given.world.values()
    assert service.replica_set[1].status == ("ended" if ended else "failed")


@given(st.lists(st.sampled_from([*MAY_PASS, *NO_ROOM]), min_size=8, max_size=40))
def test_a_replica_of_a_service_that_runs_waits_for_room_as_long_as_it_takes(codes: list[str]) -> None:
    given, present = Given(SERVICE, RUNS_ALREADY), R1
    for number, code in enumerate(codes):
        new = processes(given.then(broke(present, code)))
        tries = [code for code in codes[: number + 1] if code in MAY_PASS]
        assert bool(new) == (len(tries) < 4)
        if not new:
            return
        (present,) = new


@given(st.lists(st.sampled_from([*MAY_PASS, *ASKED_WRONGLY, *NO_ROOM]), min_size=10, max_size=20), st.integers(0, 3))
def test_a_replica_that_has_answered_once_is_never_given_up(codes: list[str], answers: int) -> None:
    given, present = Given(SERVICE, RUNS_ALREADY), R1
    for number in range(answers + 1):
        if number == answers:
            given.then(ready(present))
        (present,) = processes(given.then(broke(present)))
    for code in codes:
        (present,) = processes(given.then(broke(present, code)))
    assert given.then(broke(present, "MODEL_INVALID")) == [down(present, code="MODEL_INVALID", attempt=ANY)]


def test_a_replica_that_has_answered_once_is_started_again_less_and_less_often() -> None:
    given, present, at = Given(SERVICE, BOTH), R1, NOON
    waits: list[int] = []
    for _ in range(10):
        (event,) = (event for event in given.then(broke(present), at=at) if isinstance(event, u.ReplicaRequested))
        waits.append(int(event.not_before - at))
        assert event.deadline == event.not_before + 300
        present, at = event.process_id, event.not_before
    assert waits[:7] == [0, 1, 2, 4, 9, 18, 37]
    assert all(60 <= wait <= 75 for wait in waits[7:])


def test_a_start_for_which_there_is_no_room_waits_for_it_until_its_deadline() -> None:
    given, present, at = Given(SERVICE, TWO), R1, NOON
    waits: list[float] = []
    while new := [
        event
        for event in given.then(broke(present, "INSUFFICIENT_MEMORY"), at=at)
        if isinstance(event, u.ReplicaRequested)
    ]:
        assert new[0].deadline == NOON + 40
        present, at = new[0].process_id, new[0].not_before
        waits.append(at - NOON)
    assert [int(wait) for wait in waits] == [0, 1, 3, 8, 17, 36]
    (service,) = given.world.values()
    assert (service.status, [replica.status for replica in service.replica_set]) == ("starting", ["asked", "failed"])


def test_a_start_that_takes_too_long_does_not_give_a_replica_more_tries_than_it_has() -> None:
    given, present = Given(SERVICE, [*TWO, up(R0)]), R1
    for _ in range(3):
        (present,) = processes(given.then(broke(present)))
    events = given.then(late(), at=NOON + 40)
    assert processes(events) == []
    (service,) = given.world.values()
    assert (service.status, service.replica_set[1].unanswered) == ("degraded", 4)
