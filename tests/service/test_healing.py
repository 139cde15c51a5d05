"""When a replica that has failed is started again, and when nobody tries any more."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aima_core.testing import NOON, Given
from aima_core.units import Event
from services.resource.units import REFUSALS
from services.service import healing
from services.service import units as u
from services.service.domain import SERVICE
from tests.service.given import ENDPOINT, R0, R1, TWO, broke, late, progress, ready, started, up

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
    delays = [healing.delay(failures, f"{number}") for number in range(200)]
    assert least <= min(delays) < least * 1.01
    assert most * 0.99 < max(delays) <= most


@given(st.integers(1, 1000), seeds)
def test_no_delay_is_longer_than_a_minute_and_its_quarter(failures: int, seed: str) -> None:
    assert 0.5 <= healing.delay(failures, seed) <= 75.0


@given(st.integers(1, 7), seeds)
def test_one_more_failure_waits_longer(failures: int, seed: str) -> None:
    assert healing.delay(failures + 1, seed) > healing.delay(failures, seed)


def test_what_died_together_does_not_start_together_and_deciding_again_decides_the_same() -> None:
    delays = [healing.delay(1, f"request-1/svc-a-r{replica}-1") for replica in range(100)]
    assert len(set(delays)) > 60  # of 125 milliseconds
    assert delays == [healing.delay(1, f"request-1/svc-a-r{replica}-1") for replica in range(100)]


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
    assert healing.streak(failures, answered_at, NOON) == expected


# --- giving up ----------------------------------------------------------------------------------------------------

ONCE = ("DIED", "START_FAILED", "TIMEOUT", "UNRESPONSIVE", "STOPPED", "REBOOTED", "SOMETHING_NEW", "")
HOPELESS = (
    *("OUT_OF_MEMORY", "MODEL_INVALID", "MODEL_MISSING", "MODEL_UNSUPPORTED", "MODEL_NOT_FOUND", "MODEL_NOT_READY"),
    *("MISSING_LIBRARY", "LAUNCH_FAILED", "ENGINE_NOT_FOUND", "ENGINE_UNFIT", "VALIDATION_ERROR"),
)
NO_ROOM = ("INSUFFICIENT_MEMORY", "SYSTEM_MEMORY_LOW", "NO_ACCELERATOR", "INSUFFICIENT_ACCELERATORS", "PREEMPTED")


@pytest.mark.parametrize("starting", [True, False])
@pytest.mark.parametrize(("unanswered", "expected"), [(0, False), (1, False), (3, False), (4, True), (5, True)])
@pytest.mark.parametrize("code", ONCE)
def test_what_may_pass_is_tried_four_times(code: str, unanswered: int, expected: bool, starting: bool) -> None:
    assert healing.given_up(code, unanswered, starting=starting) is expected


@pytest.mark.parametrize("starting", [True, False])
@pytest.mark.parametrize("code", HOPELESS)
def test_what_would_fail_in_the_same_way_is_not_tried_again(code: str, starting: bool) -> None:
    assert healing.given_up(code, 0, starting=starting)


@pytest.mark.parametrize("unanswered", [0, 4, 100])
@pytest.mark.parametrize("code", NO_ROOM)
def test_who_runs_waits_for_room_and_who_starts_is_told_at_once(code: str, unanswered: int) -> None:
    assert healing.given_up(code, unanswered, starting=True)
    assert not healing.given_up(code, unanswered, starting=False)


def test_every_code_that_is_known_is_in_a_table() -> None:
    assert set(HOPELESS) == healing.HOPELESS
    assert set(NO_ROOM) == healing.NO_ROOM
    assert set(REFUSALS) < healing.NO_ROOM
    assert not healing.HOPELESS & healing.NO_ROOM


# --- through the rules of the service -----------------------------------------------------------------------------


def processes(events: list[Event]) -> list[str]:
    return [event.process_id for event in events if isinstance(event, u.ReplicaRequested)]


MAY_PASS = ["DIED", "START_FAILED", "TIMEOUT", "STOPPED"]
RUNS_ALREADY = [*TWO, up(R0), started(ENDPOINT[R0], status="degraded")]
failures = st.lists(st.tuples(st.sampled_from(MAY_PASS), st.booleans(), st.booleans()), min_size=10, max_size=10)


@settings(deadline=None)
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
    assert service.members[1].status == ("ended" if ended else "failed")


@settings(deadline=None)
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


@settings(deadline=None)
@given(st.lists(st.sampled_from(MAY_PASS), min_size=20, max_size=20), st.sets(st.integers(0, 19), min_size=1))
def test_a_replica_that_has_answered_once_has_all_its_tries_again(codes: list[str], answers: set[int]) -> None:
    given, present, unanswered = Given(SERVICE, RUNS_ALREADY), R1, 0
    for number, code in enumerate(codes):
        unanswered += 1
        if number in answers:
            given.then(ready(present))
            unanswered = 0
        new = processes(given.then(broke(present, "DIED" if number in answers else code)))
        assert bool(new) == (unanswered < 4)
        if not new:
            return
        (present,) = new


def test_a_start_that_takes_too_long_does_not_give_a_replica_more_tries_than_it_has() -> None:
    given, present = Given(SERVICE, [*TWO, up(R0)]), R1
    for _ in range(3):
        (present,) = processes(given.then(broke(present)))
    events = given.then(late(), at=NOON + 40)
    assert processes(events) == []
    (service,) = given.world.values()
    assert (service.status, service.members[1].unanswered) == ("degraded", 4)
