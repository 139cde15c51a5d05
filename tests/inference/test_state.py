"""The state of a pool after each event, and when a replica's breaker lets requests through."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aima_core.testing import NOON, Given
from aima_core.units import Event
from services.inference import units as u
from services.inference.domain import INFERENCE
from services.inference.rules.state import Breaker, Pool, Route
from tests.inference.test_decider import SVC, added, begun, changed, done, failed, phase, removed, renewed, service

ROUTE = Route("p0", "http://p0", "served", "openai", tools=False)
NAMED: dict[str, Any] = {"service_id": SVC, "service_name": "a", "model_id": "m", "model_name": "M", "type": "llm"}
ENDED: dict[str, Any] = {"last_used": NOON, "settled": ("req-1 completed",)}
AFTER: dict[type[Event], list[tuple[list[Event], Pool | None]]] = {
    u.ServiceAdded: [
        ([service()], Pool(**NAMED, added=True)),
        ([added(), service()], Pool(**NAMED, routes=(ROUTE,), added=True, phase="running")),
    ],
    u.ServiceRemoved: [
        ([service(), u.ServiceRemoved(service_id=SVC)], None),
        (
            [service(), phase("running"), begun(), u.ServiceRemoved(service_id=SVC)],
            Pool(**NAMED, requests={"req-1": begun()}, by_process={"p0": 1}, last_used=NOON - 2),
        ),
    ],
    u.PhaseChanged: [
        (
            [service(), phase("failed", error="no memory", code="OOM")],
            Pool(**NAMED, added=True, begun=True, phase="failed", error="no memory", error_code="OOM"),
        ),
        (
            [service(), phase("failed", error="no memory", code="OOM"), phase("starting")],
            Pool(**NAMED, added=True, begun=True, phase="starting"),
        ),
        ([phase("running")], None),
    ],
    u.RouteAdded: [
        ([added()], Pool(**NAMED, routes=(ROUTE,), phase="running")),
        (
            [service(), added(slots=4, engine="toy", device="gpu", cancels_whole=False)],
            Pool(
                **NAMED,
                routes=(msgspec.structs.replace(ROUTE, slots=4, engine="toy", device="gpu", cancels_whole=False),),
                added=True,
            ),
        ),
    ],
    u.RouteChanged: [
        (
            [added(), changed(False)],
            Pool(**NAMED, routes=(msgspec.structs.replace(ROUTE, healthy=False),), phase="running"),
        ),
        ([added(), changed(False), changed(True)], Pool(**NAMED, routes=(ROUTE,), phase="running")),
    ],
    u.RouteRemoved: [
        ([added(), removed()], None),
        ([service(), phase("running"), added(), removed()], Pool(**NAMED, added=True, begun=True, phase="running")),
        ([added("p1"), added(), removed("p1")], Pool(**NAMED, routes=(ROUTE,), phase="running")),
    ],
    u.RequestStarted: [
        (
            [service(), begun(), begun("req-2")],
            Pool(
                **NAMED,
                added=True,
                requests={"req-1": begun(), "req-2": begun("req-2")},
                by_process={"p0": 2},
                last_used=NOON - 2,
            ),
        ),
    ],
    u.LeaseRenewed: [
        (
            [service(), begun(), renewed()],
            Pool(
                **NAMED,
                added=True,
                requests={"req-1": begun(expires_at=NOON + 120)},
                by_process={"p0": 1},
                last_used=NOON - 2,
            ),
        ),
        ([service(), renewed()], Pool(**NAMED, added=True)),
    ],
    u.RequestCompleted: [
        ([service(), begun(), done()], Pool(**NAMED, added=True, **ENDED)),
        ([service(), done()], Pool(**NAMED, added=True)),
        ([added(), begun(), removed(), done()], None),
    ],
    u.RequestFailed: [
        (
            [service(), added(), begun(), failed("x", "ENGINE_GONE")],
            Pool(
                **NAMED,
                added=True,
                routes=(msgspec.structs.replace(ROUTE, breaker=Breaker(failures=1)),),
                last_used=NOON,
                settled=("req-1 failed",),
            ),
        ),
        (
            [service(), begun(), failed("x", "CANCELLED")],
            Pool(**NAMED, added=True, last_used=NOON, settled=("req-1 cancelled",)),
        ),
    ],
    u.RequestsRefused: [
        (
            [service(), *([u.RequestsRefused(service_id=SVC, count=2)] * 2)],
            Pool(**NAMED, added=True, refused=4),
        ),
        ([u.RequestsRefused(service_id=SVC, count=2)], None),
    ],
}


@pytest.mark.parametrize(
    ("events", "expected"),
    [pytest.param(*case, id=f"{kind.unit} {n}") for kind, cases in AFTER.items() for n, case in enumerate(cases, 1)],
)
def test_the_pool_after_these_events_is(events: list[Event], expected: Pool | None) -> None:
    assert Given(INFERENCE, events).world.get(f"inference/{SVC}") == expected


def test_every_event_type_is_in_the_table() -> None:
    assert set(AFTER) == set(u.EVENTS)


# --- the breaker --------------------------------------------------------------------------------------------------


def trouble(*codes: str, at: float = NOON, breaker: Breaker | None = None) -> Breaker:
    """Return a replica's breaker after requests with these begins and ends, one after another."""
    breaker = breaker or Breaker()
    for code in codes:
        breaker = breaker.started("r", at).ended("r", code, at)
    return breaker


GONE = "ENGINE_GONE"
STANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing yet": ((), "closed"),
    "two in a row": ((GONE, GONE), "closed"),
    "three in a row": ((GONE, "ENGINE_FAILED", "BAD_ANSWER"), "open"),
    "of leases, too": (("EXECUTION_FAILED",) * 3, "open"),
    "three that it has said nothing of": (("NO_ANSWER",) * 3, "open"),
    "an answer between them": ((GONE, GONE, "", GONE, GONE), "closed"),
    "one that blames nobody between them": ((GONE, GONE, "ENGINE_REFUSED", GONE), "open"),
    "only such that blame nobody": (("ENGINE_REFUSED", "CANCELLED", "TIMEOUT", "INTERNAL_ERROR"), "closed"),
}


@pytest.mark.parametrize(("codes", "state"), STANDS.values(), ids=STANDS)
def test_a_breaker_stands_after_these(codes: tuple[str, ...], state: str) -> None:
    assert trouble(*codes).state(NOON) == state


def test_it_stays_open_for_5_seconds_and_twice_as_long_each_time_that_a_trial_fails_up_to_60() -> None:
    breaker, at = trouble(GONE, GONE, GONE), NOON
    for seconds in (5, 10, 20, 40, 60, 60):
        assert not breaker.lets_through(at + seconds - 0.01)
        assert breaker.state(at + seconds) == "half_open"
        assert breaker.lets_through(at + seconds)
        at += seconds
        breaker = trouble(GONE, at=at, breaker=breaker)
    assert trouble("", breaker=breaker) == Breaker()


def test_half_open_one_request_at_a_time_may_try() -> None:
    breaker = trouble(GONE, GONE, GONE).started("t", NOON + 5)
    assert not breaker.lets_through(NOON + 9)
    assert not breaker.ended("an older one", "CANCELLED", NOON + 6).lets_through(NOON + 9)
    again = breaker.ended("t", "CANCELLED", NOON + 6)
    assert (again.state(NOON + 6), again.lets_through(NOON + 6)) == ("half_open", True)
    assert (again.trial, again.trial_at) == ("", 0.0)


def test_a_trial_keeps_others_away_for_a_minute_however_long_it_takes() -> None:
    breaker = trouble(GONE, GONE, GONE).started("a lease of an hour", NOON + 5)
    assert not breaker.lets_through(NOON + 64.99)
    assert breaker.lets_through(NOON + 65)
    second = breaker.started("another", NOON + 65)
    assert not second.lets_through(NOON + 124.99)
    overtaken = second.ended("a lease of an hour", "CANCELLED", NOON + 70)
    assert (overtaken.trial, overtaken.lets_through(NOON + 124.99)) == ("another", False)
    failed_late = second.ended("a lease of an hour", GONE, NOON + 70)
    assert (failed_late.trial, failed_late.trial_at, failed_late.open_until) == ("another", NOON + 65, NOON + 80)
    assert second.ended("a lease of an hour", "", NOON + 70) == Breaker()


def test_the_time_of_a_trial_is_that_of_the_request() -> None:
    events: list[Event] = [added()]
    for number in range(3):
        events += [begun(str(number)), failed("", GONE, request_id=str(number))]
    (pool,) = Given(INFERENCE, [*events, begun("lease", started_at=NOON + 5, expires_at=NOON + 3605)]).world.values()
    assert (pool.routes[0].breaker.trial, pool.routes[0].breaker.trial_at) == ("lease", NOON + 5)


def test_those_that_were_under_way_as_it_opened_do_not_open_it_for_longer() -> None:
    breaker = Breaker()
    for number in range(10):
        breaker = breaker.ended(str(number), GONE, NOON + number / 10)
    assert breaker.open_until == NOON + 0.2 + 5


codes = st.sampled_from(["", GONE, "ENGINE_REFUSED", "CANCELLED"])


@given(st.lists(st.tuples(st.floats(0, 30), codes), max_size=40))
def test_whatever_happens_a_breaker_opens_after_three_failures_and_closes_with_an_answer(
    happened: list[tuple[float, str]],
) -> None:
    breaker, at, row = Breaker(), NOON, 0
    for number, (after, code) in enumerate(happened):
        at += after
        if breaker.lets_through(at):
            breaker = breaker.started(str(number), at)
            assert breaker.state(at) == "closed" or not breaker.lets_through(at)
        breaker = breaker.ended(str(number), code, at)
        row = 0 if code == "" else row + (code == GONE)
        assert (breaker.state(at) == "closed") == (row < 3)
        assert breaker.open_until <= at + 60
        assert breaker.lets_through(at + 60)
        assert breaker.failures == row
