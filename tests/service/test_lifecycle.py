"""The tables of statuses: whole, without a dead end, and each of them is what the events of a real life go through."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from aima_core.testing import Given
from aima_core.units import Event
from services.service import units as u
from services.service.domain import SERVICE
from services.service.rules import lifecycle
from tests.service.given import (
    BOTH,
    DELETED,
    R0,
    R1,
    STOPPED,
    TWO,
    another,
    created,
    down,
    failed,
    gone,
    health,
    leaving,
    progress,
    requested,
    scaled,
    started,
    stop,
    stray,
    up,
)

SERVICES: set[str] = set(get_args(u.ServiceStatus))
REPLICAS: set[str] = set(get_args(u.ReplicaStatus))

# what a status leads to, written out: the tables, the settling of running and degraded, and how things begin
AFTER: dict[str, set[str]] = {
    "created": {"starting"},
    "starting": {"running", "degraded", "stopping", "failed"},
    "running": {"degraded", "stopping", "failed"},
    "degraded": {"running", "stopping", "failed"},
    "stopping": {"stopped", "failed"},
    "stopped": {"starting", "stopping"},
    "failed": {"starting", "stopped", "stopping"},
}
AFTER_REPLICA: dict[str, set[str]] = {
    "asked": {"starting", "running", "failed", "ended"},
    "waiting": {"starting", "running", "failed", "ended"},
    "starting": {"running", "failed", "ended"},
    "running": {"unhealthy", "failed", "ended"},
    "unhealthy": {"running", "failed", "ended"},
    "failed": {"ended"},
    "ended": set(),
}
CHANGES_NO_STATUS = {u.ServiceScaled, u.StrayFound, u.ReplicaRequested, u.ReplicaLeaving}
"""Of a service or of a replica that is there; the last two put one in, or take it out."""


def led_to(tables: Any) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for table in tables.values():
        for before, after in table.items():
            found.setdefault(before, set())
            if before != after:
                found[before].add(after)
    return found


def test_a_service_goes_from_each_status_to_these() -> None:
    by_events = led_to(lifecycle.SERVICE)
    for status in ("starting", "degraded"):  # where it is seen how many replicas answer
        by_events[status] |= {"running", "degraded"} - {status}
    by_events["running"].add("degraded")
    assert by_events == AFTER


def test_a_replica_goes_from_each_status_to_these() -> None:
    assert led_to(lifecycle.REPLICA) | {"ended": set()} == AFTER_REPLICA


@pytest.mark.parametrize(
    ("after", "first", "known"),
    [(AFTER, {"created"}, SERVICES), (AFTER_REPLICA, {"asked", "waiting"}, REPLICAS)],
    ids=["service", "replica"],
)
def test_every_status_is_reached_from_the_beginning(
    after: dict[str, set[str]], first: set[str], known: set[str]
) -> None:
    found, seen = set(first), set[str]()
    while found - seen:
        status = (found - seen).pop()
        seen.add(status)
        found |= after[status]
    assert seen == known == set(after)


def test_every_status_can_be_left() -> None:
    assert all(AFTER.values())
    assert [status for status, after in AFTER_REPLICA.items() if not after] == ["ended"]  # its process is no more


def test_every_service_can_be_brought_to_rest() -> None:
    def reaches(status: str, goal: str, seen: frozenset[str] = frozenset()) -> bool:
        if status == goal:
            return True
        return any(reaches(after, goal, seen | {status}) for after in AFTER[status] - seen)

    assert all(reaches(status, "stopped") and reaches(status, "running") for status in SERVICES)


def test_every_event_is_in_a_table_or_is_known_to_change_no_status() -> None:
    tabled = {*lifecycle.SERVICE, *lifecycle.REPLICA}
    assert tabled | CHANGES_NO_STATUS | {u.ServiceCreated, u.ServiceDeleted} == set(u.EVENTS)
    assert not tabled & CHANGES_NO_STATUS
    assert not set(lifecycle.SERVICE) & set(lifecycle.REPLICA)
    assert set(lifecycle.SETTLES) <= {*lifecycle.REPLICA, *CHANGES_NO_STATUS}


def test_who_is_on_the_way_may_yet_answer_for_the_first_time() -> None:
    assert set(lifecycle.ON_THE_WAY) == set(lifecycle.REPLICA[u.ReplicaStarted])


# --- the tables and the states that are folded are the same thing ---------------------------------------------------

LIVES: dict[str, list[Event]] = {
    "created": [created(replicas=2)],
    "starting": TWO,
    "running": BOTH,
    "degraded": [*BOTH, health("unhealthy", R1)],
    "stopping": [*BOTH, stop()],
    "stopped": [*BOTH, stop(), gone(R0), gone(R1), STOPPED],
    "failed": [*BOTH, down(R0), down(R1), failed()],
}
OF_A_SERVICE: dict[type[Event], Event] = {
    u.StartRequested: requested(2, run=2),
    u.ServiceStarted: started(),
    u.StopRequested: stop(),
    u.ServiceStopped: STOPPED,
    u.ServiceFailed: failed(),
}


@pytest.mark.parametrize("status", LIVES)
@pytest.mark.parametrize("kind", OF_A_SERVICE, ids=[kind.unit for kind in OF_A_SERVICE])
def test_an_event_of_a_service_does_what_the_table_says_or_nothing(kind: type[Event], status: Any) -> None:
    given = Given(SERVICE, LIVES[status])
    (before,) = given.world.values()
    given.fold(OF_A_SERVICE[kind])
    (after,) = given.world.values()
    assert before.status == status
    to = lifecycle.SERVICE[kind].get(status)
    if to is None:
        assert after == before
    else:
        # a start that is over finds out that nobody answers yet
        assert after.status == ("degraded" if to == "running" else to)


def test_every_status_and_every_event_of_a_service_is_tried() -> None:
    assert set(LIVES) == SERVICES
    assert set(OF_A_SERVICE) == set(lifecycle.SERVICE)


REPLICA_LIVES: dict[str, list[Event]] = {
    "asked": TWO,
    "waiting": [*TWO, down(R1), gone(R1), another(R1, "again", restarts=1)],
    "starting": [*TWO, progress(R1)],
    "running": [*TWO, up(R1)],
    "unhealthy": [*TWO, up(R1), health("unhealthy", R1)],
    "failed": [*TWO, down(R1)],
    "ended": [*TWO, down(R1), gone(R1)],
}
OF_A_REPLICA: dict[str, Event] = {
    "service.replica_progress": progress(R1),
    "service.replica_started": up(R1),
    "service.replica_health_changed, ill": health("unhealthy", R1),
    "service.replica_health_changed, well": health("healthy", R1),
    "service.replica_failed": down(R1),
    "service.replica_ended": gone(R1),
}


@pytest.mark.parametrize("status", REPLICA_LIVES)
@pytest.mark.parametrize("event", OF_A_REPLICA.values(), ids=OF_A_REPLICA)
def test_an_event_of_a_replica_does_what_the_table_says_or_nothing(event: Event, status: Any) -> None:
    given = Given(SERVICE, REPLICA_LIVES[status])
    before = given.world["service/svc-a"].replica_set[1]
    given.fold(event)
    after = given.world["service/svc-a"].replica_set[1]
    assert before.status == status
    to = lifecycle.REPLICA[type(event)].get(status)
    if to is None or (isinstance(event, u.ReplicaHealthChanged) and (event.status == "healthy") != (to == "running")):
        assert after == before
    else:
        assert after.status == to


def test_every_status_and_every_event_of_a_replica_is_tried() -> None:
    assert set(REPLICA_LIVES) == REPLICAS
    assert {type(event) for event in OF_A_REPLICA.values()} == set(lifecycle.REPLICA)


SETTLING: dict[str, tuple[list[Event], str]] = {
    "all answer": ([], "running"),
    "one is silent": ([health("unhealthy", R1)], "degraded"),
    "one was silent": ([health("unhealthy", R1), health("healthy", R1)], "running"),
    "one has failed": ([down(R1)], "degraded"),
    "one has failed and is gone": ([down(R1), gone(R1)], "degraded"),
    "one is tried again": ([down(R1), another("svc-a-r1-1-1", "again", restarts=1)], "degraded"),
    "one is back": ([down(R1), another("svc-a-r1-1-1", "again", restarts=1), up("svc-a-r1-1-1")], "running"),
    "one more": ([scaled(2, 3), another("svc-a-r2-1-1", "requested")], "degraded"),
    "one more is up": ([scaled(2, 3), another("svc-a-r2-1-1", "requested"), up("svc-a-r2-1-1")], "running"),
    "one fewer": ([scaled(2, 1), leaving(R1)], "running"),
    "one fewer, that was silent": ([health("unhealthy", R1), scaled(2, 1), leaving(R1)], "running"),
    "one fewer, the other is silent": ([health("unhealthy", R0), scaled(2, 1), leaving(R1)], "degraded"),
    "none answers": ([health("unhealthy", R0), health("unhealthy", R1)], "degraded"),
    "a stray": ([stray()], "running"),
}


@pytest.mark.parametrize(("events", "expected"), SETTLING.values(), ids=SETTLING)
def test_a_service_is_running_when_every_replica_answers_else_degraded(events: list[Event], expected: str) -> None:
    (service,) = Given(SERVICE, [*BOTH, *events]).world.values()
    assert service.status == expected


def test_a_service_that_starts_is_not_judged_by_its_replicas() -> None:
    for events in ([up(R0)], [up(R0), up(R1)], [down(R0)], [up(R0), health("unhealthy", R0)]):
        (service,) = Given(SERVICE, [*TWO, *events]).world.values()
        assert service.status == "starting"


def test_a_service_that_is_deleted_is_no_more() -> None:
    for events in LIVES.values():
        assert Given(SERVICE, [*events, DELETED]).world == {}
        assert Given(SERVICE, [*events, DELETED, up(R0), stop()]).world == {}
