"""What happens to the replicas of a service, and what each of its situations calls for outside."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from aima_core.testing import NOON, Given
from aima_core.units import Command, Event
from services.service import units as u
from services.service.domain import SERVICE
from services.service.rules import lifecycle, state
from services.service.rules import todo as effects
from services.service.rules.state import Service
from services.service.rules.todo import todo
from tests.service.given import (
    BEFORE,
    BOTH,
    BROKEN,
    ENDPOINT,
    GIVEN_UP,
    ONE,
    R0,
    R1,
    R2,
    REBOOT,
    STOPPED,
    STRAY,
    SVC,
    TWO,
    UP,
    again,
    another,
    begin,
    broke,
    came,
    created,
    decided,
    down,
    ended,
    failed,
    gone,
    health,
    leaving,
    progress,
    ready,
    requested,
    scale,
    scaled,
    sick,
    sleep,
    started,
    stop,
    stopped,
    stray,
    up,
    well,
)

__: list[Event] = []

# --- a replica in every status, in a service that runs ------------------------------------------------------------

N, NEXT = f"{R1}-1", f"{R1}-2"  # the second replica's process, its second one, and the one after it
LOST = [*BOTH, down(R1, at=BEFORE), gone(R1)]
IN_PLACE = again(N, 1, 0.5, at=BEFORE)
STATUSES: dict[str, list[Event]] = {
    "asked": [*LOST, another(N, "started again")],
    "waiting": [*LOST, IN_PLACE],
    "starting": [*LOST, IN_PLACE, progress(N, "creating", "creating")],
    "running": [*LOST, IN_PLACE, up(N, at=BEFORE)],
    "unhealthy": [*LOST, IN_PLACE, up(N, at=BEFORE), health("unhealthy", N, at=NOON - 5)],
    "failed": [*LOST, IN_PLACE, down(N, code="MODEL_INVALID", attempt=2, at=BEFORE)],
    "ended": [*LOST, IN_PLACE, down(N, code="MODEL_INVALID", attempt=2, at=BEFORE), gone(N)],
}
LOADING = [progress(N)]
FIRST, SECOND, FIRST_AGAIN = 0.509, 1.018, 0.509  # seconds until the next process after so many failures in a row


def fails(code: str = "DIED", attempt: int = 2, error: str = "it broke") -> u.ReplicaFailed:
    return down(N, error, code, attempt)


def replaced(code: str = "DIED", *, ended: bool = False, error: str = "it broke") -> tuple[list[Event], ...]:
    """What its failure comes to when it is tried again: asked, waiting, starting, running, unhealthy."""
    why, end = f"{code}: {error}", [gone(N)] if ended else []
    fresh: list[Event] = [fails(code, 1, error), *end, again(NEXT, 1, FIRST, why)]  # it had not failed before
    twice: list[Event] = [fails(code, 2, error), *end, again(NEXT, 2, SECOND, why)]  # it has failed twice in a row
    since: list[Event] = [fails(code, 1, error), *end, again(NEXT, 2, FIRST_AGAIN, why)]  # it has answered since
    return fresh, twice, twice, since, since


def given_up(code: str) -> tuple[list[Event], ...]:
    fresh, twice, since = [fails(code, 1)], [fails(code, 2)], [fails(code, 1)]
    return [*fresh], [*twice], [*twice], [*since], [*since]


def stopping(force: bool = True, asleep: bool = False) -> u.StopRequested:
    return stop(force=force, reason=REBOOT, asleep=asleep)


BY_HAND = "its engine instance was stopped (requested)"
REBOOTED: tuple[list[Event], ...] = tuple([fails("REBOOTED", attempt), stopping()] for attempt in (1, 2, 2, 1, 1))
NEWS: dict[str, tuple[Command[Any], tuple[Any, ...]]] = {
    #  asked, waiting, starting, running, unhealthy, failed, ended
    "progress": (came(N), (LOADING, LOADING, LOADING, __, __, __, [stray(N)])),
    "progress, nothing new": (
        came(N, "creating", "creating"),
        (*([[progress(N, "creating", "creating")]] * 2), __, __, __, __, [stray(N)]),
    ),
    "progress, only the phase is new": (
        came(N, "loading", "creating"),
        (*([[progress(N, "loading", "creating")]] * 3), __, __, __, [stray(N)]),
    ),
    "progress, on its way down": (came(N, "failed"), (*([[progress(N, "failed")]] * 3), __, __, __, __)),
    "ready": (ready(N), ([up(N)], [up(N)], [up(N)], __, [health("healthy", N)], __, [stray(N)])),
    "unhealthy": (sick(N), (__, __, __, [health("unhealthy", N)], __, __, __)),
    "healthy": (well(N), (__, __, __, __, [health("healthy", N)], __, __)),
    "died": (broke(N), (*replaced(), __, __)),
    "died, nothing is left": (broke(N, gone=True), (*replaced(ended=True), [gone(N)], __)),
    "did not start": (broke(N, "START_FAILED"), (*replaced("START_FAILED"), __, __)),
    "out of memory": (broke(N, "OUT_OF_MEMORY"), (*given_up("OUT_OF_MEMORY"), __, __)),
    "model invalid": (broke(N, "MODEL_INVALID"), (*given_up("MODEL_INVALID"), __, __)),
    "model missing": (broke(N, "MODEL_MISSING"), (*replaced("MODEL_MISSING"), __, __)),  # it has answered before
    "no room": (broke(N, "INSUFFICIENT_MEMORY"), (*replaced("INSUFFICIENT_MEMORY"), __, __)),
    "evicted": (broke(N, "PREEMPTED"), (*replaced("PREEMPTED"), __, __)),
    "not in time": (broke(N, "TIMEOUT"), (*replaced("TIMEOUT")[:3], __, replaced("TIMEOUT")[4], __, __)),
    "silent": (broke(N, "UNRESPONSIVE"), (__, __, __, __, replaced("UNRESPONSIVE")[4], __, __)),
    "rebooted": (broke(N, "REBOOTED"), (*REBOOTED, __, __)),
    "ended": (ended(N), (*replaced("STOPPED", ended=True, error=BY_HAND), [gone(N)], __)),
    # at 0: it is not silent, it is being started
    "restarted": (ended(N, "restart"), (__, __, __, [health("unhealthy", N, at=0.0)], __, [gone(N)], __)),
}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("news", NEWS)
def test_news_of_a_replica_in_a_status_comes_to(news: str, status: str) -> None:
    command, outcomes = NEWS[news]
    assert decided(Given(SERVICE, STATUSES[status]), command) == dict(zip(STATUSES, outcomes, strict=True))[status]


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("news", NEWS)
def test_hearing_it_again_changes_nothing(news: str, status: str) -> None:
    given = Given(SERVICE, STATUSES[status])
    given.then(NEWS[news][0])
    assert given.when(NEWS[news][0]) == __


def test_no_status_of_a_replica_and_no_news_is_missing_in_the_table() -> None:
    for status, events in STATUSES.items():
        (service,) = Given(SERVICE, events).world.values()
        (replica,) = (replica for replica in service.replica_set if replica.process_id == N)
        assert (replica.status, service.status) == (status, "running" if status == "running" else "degraded")
    assert set(STATUSES) == set(get_args(u.ReplicaStatus))
    news = {kind for kind in SERVICE.internal if "process_id" in kind.model_fields}
    assert {type(command) for command, _ in NEWS.values()} == news


# --- a machine that was restarted ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({}, [stopping()]),
        ({"idle_timeout": 60.0}, [stopping(asleep=True)]),
        ({"autoscale": {"min": 0, "max": 2, "target_concurrency": 4}}, [stopping(asleep=True)]),
        ({"autoscale": {"min": 1, "max": 2, "target_concurrency": 4}}, [stopping()]),
        ({"persistent": True}, [again(f"{R1}-1", 1, 0.0, "REBOOTED: it broke")]),
        ({"persistent": True, "idle_timeout": 60.0}, [again(f"{R1}-1", 1, 0.0, "REBOOTED: it broke")]),
    ],
)
def test_after_a_reboot_a_service_comes_back_at_once_if_it_is_persistent_and_sleeps_if_it_may(
    about: dict[str, Any], expected: list[Event]
) -> None:
    given = Given(SERVICE, [created(replicas=2, **about), *BOTH[1:]])
    assert given.when(broke(R1, "REBOOTED")) == [down(R1, code="REBOOTED"), *expected]


def test_after_a_reboot_nothing_is_left_when_the_last_process_is_known_to_be_gone() -> None:
    assert Given(SERVICE, UP).when(broke(R0, "REBOOTED", gone=True)) == [
        *(down(code="REBOOTED"), gone(), stopping(), stopped(REBOOT)),
    ]
    assert Given(SERVICE, [created(idle_timeout=60.0), *UP[1:]]).when(broke(R0, "REBOOTED", gone=True)) == [
        *(down(code="REBOOTED"), gone(), stopping(asleep=True), stopped(REBOOT, asleep=True)),
    ]
    assert Given(SERVICE, UP).when(broke(R0, "REBOOTED")) == [down(code="REBOOTED"), stopping()]
    given = Given(SERVICE, BOTH)
    assert given.then(broke(R0, "REBOOTED", gone=True)) == [down(code="REBOOTED"), gone(), stopping()]
    assert given.then(broke(R1, "REBOOTED", gone=True)) == [gone(R1), stopped(REBOOT)]


# --- the other replicas, while a service starts or runs -----------------------------------------------------------

ABOUT_TWO = TWO[0]
LONG_AGO = requested(2, at=NOON - 59.7)  # its time is over in 0.3 s, before another process could be tried
SITUATIONS: dict[str, list[Event]] = {
    "starting, the other comes": TWO,
    "starting, the other is up": [*TWO, up(R0)],
    "starting, the other was given up": [*TWO, down(R0, code="MODEL_INVALID")],
    "starting, the other is silent": [*TWO, up(R0), health("unhealthy", R0)],
    "starting, late": [ABOUT_TWO, LONG_AGO],
    "starting, late, the other is up": [ABOUT_TWO, LONG_AGO, up(R0)],
    "starting, late, the other was given up": [ABOUT_TWO, LONG_AGO, down(R0, code="MODEL_INVALID")],
    "running": BOTH,
    "degraded, the other was given up": [*BOTH, down(R0, code="MODEL_INVALID"), gone(R0)],
    "degraded, the other waits": [*BOTH, down(R0), gone(R0), again(f"{R0}-1", 1, 0.5)],
    "degraded, the other is silent": [*BOTH, health("unhealthy", R0)],
}
R0_UP = started(ENDPOINT[R0], status="degraded")
R1_UP = started(ENDPOINT[R1], status="degraded")
BOTH_UP = started(ENDPOINT[R0], ENDPOINT[R1])
LATE_UP = msgspec.structs.replace(R0_UP, duration=59.7)


def dies(code: str, *more: Event, attempt: int = 1) -> list[Event]:
    return [down(R1, code=code, attempt=attempt), *more]


def anew(code: str, launch: int = 1, *, by: float = 0.0) -> u.ReplicaRequested:
    return again(f"{R1}-{launch}", 1, 0.617, f"{code}: it broke", by=by)


def over(code: str) -> u.ServiceFailed:
    return failed(code=code)


IN_SITUATION: dict[str, dict[str, tuple[Command[Any], list[Event]]]] = {
    "starting, the other comes": {
        "ready": (ready(R1), [up(R1)]),
        "died": (broke(R1), dies("DIED", anew("DIED", by=NOON + 40))),
        "model invalid": (broke(R1, "MODEL_INVALID"), dies("MODEL_INVALID")),
        "model missing": (broke(R1, "MODEL_MISSING"), dies("MODEL_MISSING")),
        "no room": (
            broke(R1, "INSUFFICIENT_MEMORY"),
            dies("INSUFFICIENT_MEMORY", anew("INSUFFICIENT_MEMORY", by=NOON + 40)),
        ),
        "evicted": (broke(R1, "PREEMPTED"), dies("PREEMPTED", anew("PREEMPTED", by=NOON + 40))),
    },
    "starting, the other is up": {
        "ready": (ready(R1), [up(R1), BOTH_UP]),
        "died": (broke(R1), dies("DIED", anew("DIED", by=NOON + 40))),
        "model invalid": (broke(R1, "MODEL_INVALID"), dies("MODEL_INVALID", R0_UP)),
        "model missing": (broke(R1, "MODEL_MISSING"), dies("MODEL_MISSING", R0_UP)),
        "no room": (
            broke(R1, "SYSTEM_MEMORY_LOW"),
            dies("SYSTEM_MEMORY_LOW", anew("SYSTEM_MEMORY_LOW", by=NOON + 40)),
        ),
        "the other lacks its model now": (
            broke(R0, "MODEL_MISSING"),
            [down(R0, code="MODEL_MISSING"), again(f"{R0}-1", 1, 0.533, "MODEL_MISSING: it broke", by=NOON + 40)],
        ),
        "the other is silent": (sick(R0), [health("unhealthy", R0)]),
        "the other died": (broke(R0), [down(R0), again(f"{R0}-1", 1, 0.533, by=NOON + 40)]),
    },
    "starting, the other was given up": {
        "ready": (ready(R1), [up(R1), R1_UP]),
        "died": (broke(R1), dies("DIED", anew("DIED", by=NOON + 40))),
        "model invalid": (broke(R1, "MODEL_INVALID"), dies("MODEL_INVALID", over("MODEL_INVALID"))),
        "model missing": (broke(R1, "MODEL_MISSING"), dies("MODEL_MISSING", over("MODEL_MISSING"))),
        "no room": (broke(R1, "NO_ACCELERATOR"), dies("NO_ACCELERATOR", anew("NO_ACCELERATOR", by=NOON + 40))),
    },
    "starting, the other is silent": {
        "ready": (ready(R1), [up(R1), R1_UP]),
        "model invalid": (broke(R1, "MODEL_INVALID"), dies("MODEL_INVALID")),
        "the other answers": (well(R0), [health("healthy", R0)]),
    },
    "starting, late": {
        "died": (broke(R1), dies("DIED")),
        "no room": (broke(R1, "PREEMPTED"), dies("PREEMPTED")),
        "ready": (ready(R1), [up(R1)]),
    },
    "starting, late, the other is up": {
        "died": (broke(R1), dies("DIED", LATE_UP)),
    },
    "starting, late, the other was given up": {
        "died": (broke(R1), dies("DIED", over("DIED"))),
        "no room": (broke(R1, "PREEMPTED"), dies("PREEMPTED", over("PREEMPTED"))),
    },
    "running": {
        "died": (broke(R1), dies("DIED", anew("DIED"))),
        "model invalid": (broke(R1, "MODEL_INVALID"), dies("MODEL_INVALID")),
    },
    "degraded, the other was given up": {
        "died": (broke(R1), dies("DIED", anew("DIED"))),
        "model invalid": (broke(R1, "MODEL_INVALID"), dies("MODEL_INVALID", over("MODEL_INVALID"))),
        "no room": (broke(R1, "PREEMPTED"), dies("PREEMPTED", anew("PREEMPTED"))),
        "silent": (sick(R1), [health("unhealthy", R1)]),
        "the other turns up": (ready(R0), [stray(R0)]),
    },
    "degraded, the other waits": {
        "died": (broke(R1), dies("DIED", anew("DIED", 2))),
        "model invalid": (broke(R1, "MODEL_INVALID"), dies("MODEL_INVALID")),
        "the other is up": (ready(f"{R0}-1"), [up(f"{R0}-1")]),
    },
    "degraded, the other is silent": {
        "died": (broke(R1), dies("DIED", anew("DIED"))),
        "model invalid": (broke(R1, "MODEL_INVALID"), dies("MODEL_INVALID")),
        "the other answers": (well(R0), [health("healthy", R0)]),
        "the other is back": (ready(R0), [health("healthy", R0)]),
    },
}


@pytest.mark.parametrize(
    ("situation", "command", "expected"),
    [
        pytest.param(situation, command, expected, id=f"{situation}: {name}")
        for situation, table in IN_SITUATION.items()
        for name, (command, expected) in table.items()
    ],
)
def test_news_beside_another_replica_comes_to(situation: str, command: Command[Any], expected: list[Event]) -> None:
    assert Given(SERVICE, SITUATIONS[situation]).when(command) == expected


def test_every_situation_is_in_the_table() -> None:
    assert set(SITUATIONS) == set(IN_SITUATION)


# --- late news: of a service on its way down, of a process it does not know ----------------------------------------

WITHOUT_R1 = [*BOTH, scaled(2, 1), leaving(R1)]
DOWN: dict[str, list[Event]] = {
    "nothing": [],
    "created": [created()],
    "starting": ONE,
    "running": UP,
    "stopping": [*UP, stop()],
    "stopping, gone already": [*BOTH, stop(), gone(R0)],
    "stopping, to sleep": [*UP, sleep()],
    "took too long to stop": [*UP, stop(), failed(code="STOP_TIMEOUT")],
    "took too long to stop, another is there": [*BOTH, stop(), failed(code="STOP_TIMEOUT")],
    "took too long to go to sleep": [*UP, sleep(), failed(code="STOP_TIMEOUT")],
    "stopped": [*UP, stop(), gone(), STOPPED],
    "failed": [*UP, down(code="MODEL_INVALID"), failed()],
    "failed, gone": [*UP, down(code="MODEL_INVALID"), failed(), gone()],
    "of an earlier run": [*UP, stop(), gone(), STOPPED, requested(run=2)],
    "of an earlier process": [*UP, down(), again(f"{R0}-1", 1, 0.5)],
    "of an earlier process, gone": [*UP, down(), gone(), again(f"{R0}-1", 1, 0.5)],
    "leaving": [created(replicas=2), *BOTH[1:], scaled(2, 1), leaving(R0)],
}
FOUND, ASLEEP = [stray(R0)], stopped("no request for 60 s", asleep=True)
FAILED_NOW = [down(code="MODEL_INVALID"), failed(code="MODEL_INVALID")]
LATE_NEWS: dict[str, dict[str, tuple[Any, ...]]] = {
    # progress, on its way down, ready, unhealthy, failed, failed and nothing is left, ended
    "nothing": {R0: (__, __, __, __, __, __, __)},
    "created": {R0: (FOUND, __, FOUND, __, __, __, __)},
    "starting": {
        R0: (
            *([progress()], [progress(phase="failed")], [up(), started(ENDPOINT[R0])], __),
            *(FAILED_NOW, [FAILED_NOW[0], gone(), FAILED_NOW[1]]),
            [
                down(error=BY_HAND, code="STOPPED"),
                gone(),
                again(f"{R0}-1", 1, 0.533, f"STOPPED: {BY_HAND}", by=NOON + 40),
            ],
        ),
    },
    "running": {
        STRAY: ([stray()], __, [stray()], __, __, __, __),
        R2: ([stray(R2)], __, [stray(R2)], __, __, __, __),
    },
    "stopping": {
        R0: (__, __, __, __, __, [gone(), STOPPED], [gone(), STOPPED]),
        STRAY: ([stray()], __, [stray()], __, __, __, __),
    },
    "stopping, gone already": {
        R0: (FOUND, __, FOUND, __, __, __, __),
        R1: (__, __, __, __, __, [gone(R1), STOPPED], [gone(R1), STOPPED]),
    },
    "stopping, to sleep": {R0: (__, __, __, __, __, *([[gone(), ASLEEP]] * 2))},
    "took too long to stop": {
        R0: (__, __, __, __, __, [gone(), STOPPED], [gone(), STOPPED]),
        STRAY: ([stray()], __, [stray()], __, __, __, __),
    },
    "took too long to stop, another is there": {R0: (__, __, __, __, __, [gone()], [gone()])},
    "took too long to go to sleep": {R0: (__, __, __, __, __, [gone(), ASLEEP], [gone(), ASLEEP])},
    "stopped": {R0: (FOUND, __, FOUND, __, __, __, __)},
    "failed": {R0: (__, __, __, __, __, [gone()], [gone()])},
    "failed, gone": {R0: (FOUND, __, FOUND, __, __, __, __)},
    "of an earlier run": {R0: (FOUND, __, FOUND, __, __, __, __)},
    "of an earlier process": {R0: (__, __, __, __, __, [gone()], [gone()])},
    "of an earlier process, gone": {R0: (FOUND, __, FOUND, __, __, __, __)},
    "leaving": {R0: (__, __, __, __, __, [gone()], [gone()])},
}


def all_news(process_id: str) -> tuple[Command[Any], ...]:
    return (
        came(process_id),
        came(process_id, "failed"),
        ready(process_id),
        sick(process_id),
        broke(process_id, "MODEL_INVALID"),
        broke(process_id, "MODEL_INVALID", gone=True),
        ended(process_id),
    )


@pytest.mark.parametrize(
    ("situation", "command", "expected"),
    [
        pytest.param(situation, command, expected, id=f"{situation}: {type(command).__name__} of {process}")
        for situation, table in LATE_NEWS.items()
        for process, outcomes in table.items()
        for command, expected in zip(all_news(process), outcomes, strict=True)
    ],
)
def test_late_news_comes_to(situation: str, command: Command[Any], expected: list[Event]) -> None:
    assert Given(SERVICE, DOWN[situation]).when(command) == expected


def test_every_situation_has_late_news() -> None:
    assert set(DOWN) == set(LATE_NEWS)


@pytest.mark.parametrize(
    "events",
    [
        [*BOTH, down(R0, code="MODEL_INVALID"), gone(R0)],
        [*BROKEN, gone(R0), gone(R1)],
        [*BOTH, stop(), gone(R0)],
        [*BOTH, stop(), gone(R0), gone(R1), STOPPED],
        [created()],
    ],
)
def test_a_process_that_turns_up_when_it_was_gone_is_sent_away_and_nothing_else_changes(events: list[Event]) -> None:
    given = Given(SERVICE, events)
    (before,) = given.world.values()
    assert given.then(ready(R0)) == [stray(R0)]
    (service,) = given.world.values()
    assert effects.EndReplica(SVC, R0, drain=False, force=False) in todo(service)
    assert (service.replica_set, service.status) == (before.replica_set, before.status)
    assert given.then(ready(R0)) == []
    given.then(ended(R0))
    assert given.world == {f"service/{SVC}": before}


# --- how failures in a row are counted ----------------------------------------------------------------------------


def attempts(*moments: tuple[float, Command[Any]]) -> list[int]:
    given = Given(SERVICE, UP)
    found: list[int] = []
    for at, command in moments:
        events = given.then(command, at=NOON + at)
        found += [event.attempt for event in events if isinstance(event, u.ReplicaFailed)]
    return found


def test_a_replica_that_has_answered_for_ten_seconds_begins_to_count_anew() -> None:
    first, second = f"{R0}-1", f"{R0}-2"
    assert attempts((0, broke(R0)), (5, ready(first)), (14.9, broke(first)), (16, broke(second))) == [1, 2, 3]
    assert attempts((0, broke(R0)), (5, ready(first)), (15, broke(first)), (16, broke(second))) == [1, 1, 2]


def test_the_time_in_which_a_replica_was_silent_is_not_time_in_which_it_answered() -> None:
    first = f"{R0}-1"
    silent = ((5, ready(first)), (6, sick(first)), (16, broke(first, "UNRESPONSIVE")))
    assert attempts((0, broke(R0)), *silent) == [1, 2]
    long_after = ((5, ready(first)), (15, sick(first)), (25, broke(first, "UNRESPONSIVE")))
    assert attempts((0, broke(R0)), *long_after) == [1, 1]


def test_a_replica_keeps_the_memory_of_its_failures_and_its_place() -> None:
    (service,) = Given(SERVICE, [*BOTH, down(R0), gone(R0), again(f"{R0}-1", 1, 0.5)]).world.values()
    assert [replica.process_id for replica in service.replica_set] == [f"{R0}-1", R1]
    assert service.replica_set[0].failures == (state.Failure(R0, NOON, "it broke", "DIED"),)


def test_of_its_failures_the_last_five_are_kept() -> None:
    given = Given(SERVICE, UP)
    for launch in range(7):
        given.then(broke(f"{R0}-{launch}" if launch else R0))
        given.then(ready(f"{R0}-{launch + 1}"))
    (service,) = given.world.values()
    assert [failure.process_id for failure in service.replica_set[0].failures] == [f"{R0}-{n}" for n in range(2, 7)]
    assert (service.replica_set[0].restarts, service.launches) == (7, 7)


def test_a_replica_that_was_given_up_and_is_started_again_by_somebody_counts_from_nothing() -> None:
    never = [*TWO, up(R0), down(R1), started(ENDPOINT[R0], status="degraded")]
    given = Given(SERVICE, [*never, again(f"{R1}-1", 1, 0.5), down(f"{R1}-1", attempt=2)])
    assert given.then(begin()) == [another(f"{R1}-2", "started again")]
    (service,) = given.world.values()
    replica = service.replica_set[1]
    assert (replica.status, replica.restarts, replica.streak, replica.unanswered) == ("asked", 0, 0, 0)
    assert [failure.process_id for failure in replica.failures] == [R1, f"{R1}-1"]
    assert given.then(begin()) == []


def test_that_a_replica_has_answered_is_known_of_all_its_processes_in_the_run_and_of_none_in_the_next() -> None:
    lived = [*BOTH, down(R1), gone(R1), again(N, 1, 0.5)]
    assert [replica.proven for replica in service_of(TWO).replica_set] == [False, False]
    assert [replica.proven for replica in service_of(lived).replica_set] == [True, True]
    assert [replica.proven for replica in service_of([*GIVEN_UP, another(N, "started again")]).replica_set] == [
        True,
        True,
    ]
    assert [replica.proven for replica in service_of([*lived, scaled(2, 3), another(R2, "requested")]).replica_set] == [
        *(True, True, False),
    ]
    assert [replica.proven for replica in service_of([*BROKEN, requested(2, run=2)]).replica_set] == [False, False]


def test_processes_that_are_asked_for_together_have_names_of_their_own() -> None:
    given = Given(SERVICE, UP)
    assert given.then(scale(3)) == [
        scaled(1, 3),
        another(f"{R1}-1", "requested"),
        another(f"{R2}-2", "requested"),
    ]
    assert given.then(broke(f"{R1}-1"))[-1] == again(f"{R1}-3", 1, 0.509)


# --- who leaves, who comes ----------------------------------------------------------------------------------------

THREE = [created(replicas=3), requested(3), up(R0), up(R1), up(R2), started(duration=0)]
STAY: dict[str, tuple[list[Event], int, list[str]]] = {
    # what has happened, how many there shall be, the processes that leave
    "all answer": (THREE, 2, [R2]),
    "all answer, one stays": (THREE, 1, [R2, R1]),
    "a silent one first": ([*THREE, health("unhealthy", R0)], 2, [R0]),
    "a waiting one first": ([*THREE, down(R1), again(f"{R1}-1", 1, 0.5)], 2, [f"{R1}-1"]),
    "one that was given up first": ([*THREE, down(R0, code="MODEL_INVALID")], 2, [R0]),
    "one that was given up before one that is silent": (
        [*THREE, down(R0, code="MODEL_INVALID"), health("unhealthy", R2)],
        *(2, [R0]),
    ),
    "one that was given up before one that comes": (
        [*THREE, down(R0, code="MODEL_INVALID"), down(R1, code="MODEL_INVALID"), down(R2), again(f"{R2}-1", 1, 0.5)],
        *(1, [R1, R0]),
    ),
}


@pytest.mark.parametrize(("events", "replicas", "expected"), STAY.values(), ids=STAY)
def test_fewer_replicas_means_that_these_leave(events: list[Event], replicas: int, expected: list[str]) -> None:
    found = Given(SERVICE, events).when(scale(replicas))
    assert found == [scaled(3, replicas), *(leaving(process) for process in expected)]


def test_a_start_is_over_when_those_leave_that_it_still_waited_for() -> None:
    given = Given(SERVICE, [*TWO, up(R0)])
    assert given.then(scale(1)) == [scaled(2, 1), leaving(R1), started(ENDPOINT[R0])]
    (service,) = given.world.values()
    assert service.status == "running"


def test_a_start_never_waits_for_a_replica_that_was_given_up() -> None:
    given = Given(SERVICE, [*TWO, down(R0, code="MODEL_INVALID"), gone(R0)])
    assert given.then(scale(1)) == [scaled(2, 1), leaving(R0)]
    assert given.then(ready(R1))[-1] == started(ENDPOINT[R1])


def test_new_replicas_take_the_lowest_numbers_that_are_free() -> None:
    given = Given(SERVICE, [*THREE, health("unhealthy", R0)])
    assert given.then(scale(2)) == [scaled(3, 2), leaving(R0)]
    assert given.then(scale(4)) == [
        *(scaled(2, 4), another(f"{R0}-1", "requested"), another(f"{SVC}-r3-1-2", "requested")),
    ]


def test_no_more_replicas_come_than_are_wanted_whatever_their_numbers() -> None:
    given = Given(SERVICE, [*THREE, health("unhealthy", R0), health("unhealthy", R1)])
    assert given.then(scale(1)) == [scaled(3, 1), leaving(R1), leaving(R0)]
    assert given.then(scale(2)) == [scaled(1, 2), another(f"{R0}-1", "requested")]


def test_a_service_runs_fully_again_when_the_replica_leaves_that_did_not_answer() -> None:
    (service,) = Given(SERVICE, [*GIVEN_UP, scaled(2, 1), leaving(R1)]).world.values()
    assert (service.status, service.desired_replicas, service.present()) == ("running", 1, (R0,))


# --- what is called for outside -----------------------------------------------------------------------------------


def run(process_id: str, replica: int, *, not_before: float = 0.0, deadline: float = NOON + 40) -> effects.RunReplica:
    return effects.RunReplica(SVC, process_id, replica, not_before, deadline)


def end(process_id: str, *, drain: bool = False, force: bool = False) -> effects.EndReplica:
    return effects.EndReplica(SVC, process_id, drain, force)


def expire(process_id: str, at: float = NOON + 300.5) -> effects.ExpireReplica:
    return effects.ExpireReplica(SVC, process_id, at)


START_ENDS = effects.Expire(SVC, 1, NOON + 40, stopping=False)
STOP_ENDS, KILL_ENDS = (effects.Expire(SVC, 1, NOON + seconds, stopping=True) for seconds in (60, 30))
HUNG = [*BOTH, health("unhealthy", R1)]
PORT_TAKEN = again(N, 1, 0.5)
CALLED_FOR: dict[str, tuple[list[Event], set[Any]]] = {
    "nothing": ([], set()),
    "created": ([created()], set()),
    "a start": (TWO, {START_ENDS, run(R0, 0), run(R1, 1)}),
    "a start, one has been heard of": ([*TWO, progress(R0)], {START_ENDS, run(R1, 1)}),
    "a start, one is up": ([*TWO, up(R0)], {START_ENDS, run(R1, 1)}),
    "a start, one is tried again": (
        [*TWO, down(R1), gone(R1), again(N, 1, 0.5, by=NOON + 40)],
        {START_ENDS, run(R0, 0), run(N, 1, not_before=NOON + 0.5)},
    ),
    "a start after a failure": (
        [*UP, down(code="MODEL_INVALID"), failed(), requested(run=2)],
        {end(R0), effects.Expire(SVC, 2, NOON + 60, stopping=False)},
    ),
    "a start after a failure, all is gone": (
        [*UP, down(code="MODEL_INVALID"), failed(), requested(run=2), gone(R0)],
        {effects.Expire(SVC, 2, NOON + 60, stopping=False), run(f"{SVC}-r0-2", 0, deadline=NOON + 60)},
    ),
    "running": (BOTH, set()),
    "one died, and is not gone yet": ([*BOTH, down(R1), PORT_TAKEN], {end(R1), expire(N)}),
    "one died": (
        [*BOTH, down(R1), PORT_TAKEN, gone(R1)],
        {expire(N), run(N, 1, not_before=NOON + 0.5, deadline=NOON + 300.5)},
    ),
    "one died, another is on its way": ([*BOTH, down(R1), PORT_TAKEN, gone(R1), progress(N)], {expire(N)}),
    "one died and is up again": ([*BOTH, down(R1), PORT_TAKEN, gone(R1), up(N)], set()),
    "one was given up": ([*BOTH, down(R1, code="MODEL_INVALID")], {end(R1)}),
    "one was given up and is gone": (GIVEN_UP, set()),
    "one is silent": (HUNG, {effects.ReplaceSilent(SVC, R1, NOON)}),
    "one is being restarted": ([*BOTH, health("unhealthy", R1, at=0.0)], set()),
    "one was silent": ([*HUNG, health("healthy", R1, at=NOON + 3)], set()),
    "one is replaced because it was silent": (
        [*HUNG, down(R1, code="UNRESPONSIVE"), PORT_TAKEN],
        {end(R1, force=True), expire(N)},
    ),
    "one was silent and given up": ([*HUNG, down(R1, code="UNRESPONSIVE")], {end(R1, force=True)}),
    "one more": (
        [*UP, scaled(1, 2), another(f"{R1}-1", "requested")],
        {expire(f"{R1}-1", NOON + 300), run(f"{R1}-1", 1, deadline=NOON + 300)},
    ),
    "one fewer": ([*BOTH, scaled(2, 1), leaving(R1)], {end(R1, drain=True)}),
    "one fewer, that is silent": ([*HUNG, scaled(2, 1), leaving(R1)], {end(R1)}),
    "one fewer, and one more again": (
        [*BOTH, scaled(2, 1), leaving(R1), scaled(1, 2), another(f"{R1}-1", "requested")],
        {end(R1, drain=True), expire(f"{R1}-1", NOON + 300)},
    ),
    "one fewer, that was gone": ([*GIVEN_UP, scaled(2, 1), leaving(R1)], set()),
    "a stray": ([*BOTH, stray()], {end(STRAY)}),
    "a stray does not keep a replica from its place": ([*ONE, stray()], {end(STRAY), START_ENDS, run(R0, 0)}),
    "stopping": ([*BOTH, stop()], {STOP_ENDS, end(R0, drain=True), end(R1, drain=True)}),
    "stopping a start": ([*TWO, up(R0), stop()], {STOP_ENDS, end(R0, drain=True), end(R1)}),
    "stopping, one is silent": ([*HUNG, stop()], {STOP_ENDS, end(R0, drain=True), end(R1)}),
    "stopping, one is gone": ([*BOTH, stop(), gone(R0)], {STOP_ENDS, end(R1, drain=True)}),
    "stopping, one leaves already": (
        [*BOTH, scaled(2, 1), leaving(R1), stop()],
        {STOP_ENDS, end(R0, drain=True), end(R1, drain=True)},
    ),
    "stopping by force": (
        [*BOTH, stop(force=True)],
        {KILL_ENDS, end(R0, force=True), end(R1, force=True)},
    ),
    "stopping by force after all": ([*BOTH, stop(), gone(R0), stop(force=True)], {KILL_ENDS, end(R1, force=True)}),
    "stopping by force, one leaves already": (
        [*BOTH, scaled(2, 1), leaving(R1), stop(force=True)],
        {KILL_ENDS, end(R0, force=True), end(R1, force=True)},
    ),
    "to sleep": ([*UP, sleep()], {STOP_ENDS, end(R0, drain=True)}),
    "stopping, one was silent before it was replaced": (
        [*HUNG, down(R1, code="UNRESPONSIVE"), PORT_TAKEN, gone(R1), up(N), stop()],
        {STOP_ENDS, end(R0, drain=True), end(N, drain=True)},
    ),
    "a forced stop that took too long is still forced": (
        [*BOTH, stop(force=True), failed(code="STOP_TIMEOUT")],
        {end(R0, force=True), end(R1, force=True)},
    ),
    "a stop that took too long, all is gone": (
        [*UP, stop(), failed(code="STOP_TIMEOUT"), gone(R0), STOPPED],
        set(),
    ),
    "a stop that took too long": ([*BOTH, stop(), failed(code="STOP_TIMEOUT")], {end(R0), end(R1)}),
    "stopped": ([*UP, stop(), gone(R0), STOPPED], set()),
    "stopped, a stray": ([*UP, stop(), gone(R0), STOPPED, stray()], {end(STRAY)}),
    "asleep": ([*UP, sleep(), gone(R0), ASLEEP], set()),
    "failed": (BROKEN, {end(R0), end(R1)}),
    "failed, one did not answer": ([*TWO, down(R0), failed()], {end(R0), end(R1)}),
    "failed, all is gone": ([*BROKEN, gone(R0), gone(R1)], set()),
}


@pytest.mark.parametrize(("events", "expected"), CALLED_FOR.values(), ids=CALLED_FOR)
def test_what_has_happened_calls_for(events: list[Event], expected: set[Any]) -> None:
    found = [effect for service in Given(SERVICE, events).world.values() for effect in todo(service)]
    assert set(found) == expected
    assert len(found) == len(expected)


def test_every_kind_of_effect_is_called_for() -> None:
    kinds = {type(effect) for _, called_for in CALLED_FOR.values() for effect in called_for}
    assert kinds == {
        *(effects.RunReplica, effects.EndReplica, effects.ReplaceSilent, effects.ExpireReplica, effects.Expire),
    }


@pytest.mark.parametrize("status", lifecycle.ON_THE_WAY)
def test_a_replica_that_is_to_answer_some_day_has_a_deadline(status: str) -> None:
    (service,) = Given(SERVICE, STATUSES[status]).world.values()
    assert [effect for effect in todo(service) if isinstance(effect, effects.ExpireReplica)] == [
        expire(N, NOON + 300 if status == "asked" else NOON + 280.5)
    ]


def test_a_replica_that_answers_again_is_not_silent_any_more() -> None:
    service = service_of([*HUNG, health("healthy", R1, at=NOON + 3)])
    assert (service.replica_set[1].answers, service.replica_set[1].silent_since) == (True, 0.0)


def service_of(events: list[Event]) -> Service:
    (service,) = Given(SERVICE, events).world.values()
    return service


def test_a_silent_replica_counts_from_when_it_fell_silent() -> None:
    events = [*HUNG, health("healthy", R1, at=NOON + 3), health("unhealthy", R1, at=NOON + 7)]
    assert list(todo(service_of(events))) == [effects.ReplaceSilent(SVC, R1, NOON + 7)]
