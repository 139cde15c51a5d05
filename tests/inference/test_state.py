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
from services.inference.rules.breaker import TRIAL, Breaker
from services.inference.rules.crashes import crashed
from services.inference.rules.state import Pool, Route, TrySuspect, todo
from tests.inference.test_decider import SVC, added, begun, changed, done, failed, phase, removed, renewed, service

ROUTE = Route("p0", "http://p0", "served", "openai", tools=False, breaker=Breaker(tried=True))
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
                routes=(
                    msgspec.structs.replace(ROUTE, lost=1, breaker=Breaker(tried=True, failures=1, callers=("/",))),
                ),
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


# --- crashes ------------------------------------------------------------------------------------------------------

LOST = failed("", "ENGINE_GONE")
CRASHED: dict[str, tuple[list[Event], bool]] = {
    "its only request, before the loss is recorded": ([begun()], True),
    "its only request, after the loss is recorded": ([begun(), LOST], True),
    "its only request, beside one that never reached it": (
        [begun(), LOST, begun("2"), failed("", "ENGINE_UNREACHABLE", request_id="2")],
        True,
    ),
    "one of two requests": ([begun(), begun("2")], False),
    "one of two requests, one loss is recorded": ([begun(), begun("2"), LOST], False),
    "no request": ([begun(), done()], False),
}


@pytest.mark.parametrize(("requests", "alone"), CRASHED.values(), ids=CRASHED)
def test_a_crash_is_the_fault_of(requests: list[Event], alone: bool) -> None:
    for crash in (True, False):
        gone = u.RouteRemoved(service_id=SVC, process_id="p0", crashed=crash)
        (pool,) = Given(INFERENCE, [service(), added(), *requests, gone]).world.values()
        assert pool.crashed == (("p0",) if alone and crash else ())


@pytest.mark.parametrize(
    ("exit_code", "fault"),
    [(None, False), (0, False), (1, True), (-6, True), (-11, True), (-9, False), (-15, False), (137, False)],
)
def test_a_process_ends_by_its_own_fault_with(exit_code: int | None, fault: bool) -> None:
    assert crashed(exit_code) == fault


# --- the breaker --------------------------------------------------------------------------------------------------


def after(*ends: str, at: float = NOON, breaker: Breaker | None = None) -> Breaker:
    """Return a breaker after requests that started and ended, one after another. An end is `code` or `code caller`."""
    breaker = breaker or Breaker()
    for end in ends:
        code, _, caller = end.partition(" ")
        breaker = breaker.started("r", at).ended("r", code, at, caller)
    return breaker


GONE = "ENGINE_GONE"
OPEN = after(GONE, f"{GONE} bob", GONE)
STATES: dict[str, tuple[tuple[str, ...], str]] = {
    "no request": ((), "closed"),
    "two failures in a row": ((GONE, f"{GONE} bob"), "closed"),
    "three failures of two callers": ((GONE, "ENGINE_FAILED bob", "BAD_ANSWER"), "open"),
    "ten failures of one caller": ((GONE,) * 10, "closed"),
    "three failures of leases": (("EXECUTION_FAILED", "EXECUTION_FAILED bob", "EXECUTION_FAILED"), "open"),
    "three requests without an answer": (("NO_ANSWER", "NO_ANSWER bob", "NO_ANSWER"), "open"),
    "an answer between the failures": ((GONE, f"{GONE} bob", "", GONE, f"{GONE} bob"), "closed"),
    "a refused request between the failures": ((GONE, f"{GONE} bob", "ENGINE_REFUSED", GONE), "open"),
    "codes that do not blame the replica": (("ENGINE_REFUSED", "CANCELLED", "TIMEOUT", "INTERNAL_ERROR"), "closed"),
}


@pytest.mark.parametrize(("ends", "state"), STATES.values(), ids=STATES)
def test_the_breaker_of_a_type_without_a_trial_request_is_after(ends: tuple[str, ...], state: str) -> None:
    assert after(*ends).state(NOON) == state


TRIED: dict[str, tuple[tuple[str, ...], str, bool]] = {
    "two failures": ((GONE, f"{GONE} bob"), "closed", False),
    "three failures of two callers": ((GONE, f"{GONE} bob", GONE), "closed", True),
    "three failures of one caller": ((GONE,) * 3, "closed", True),
    "a failed trial before the third failure": ((GONE, f"{GONE} {TRIAL}"), "closed", False),
    "three failures and a failed trial": ((GONE,) * 3 + (f"{GONE} {TRIAL}",), "open", True),
    "three failures and an answered trial": ((GONE,) * 3 + (f" {TRIAL}",), "closed", False),
    "three failures and a refused trial": ((GONE,) * 3 + (f"ENGINE_REFUSED {TRIAL}",), "closed", False),
    "three failures and a trial without a result": ((GONE,) * 3 + (f"CANCELLED {TRIAL}",), "closed", True),
}


@pytest.mark.parametrize(("ends", "state", "suspect"), TRIED.values(), ids=TRIED)
def test_the_breaker_of_a_type_with_a_trial_request_is_after(ends: tuple[str, ...], state: str, suspect: bool) -> None:
    breaker = after(*ends, breaker=Breaker(tried=True))
    assert (breaker.state(NOON), breaker.suspect) == (state, suspect)


def test_it_stays_open_for_5_seconds_and_twice_as_long_after_each_failed_trial_up_to_60() -> None:
    breaker, at = OPEN, NOON
    for seconds in (5, 10, 20, 40, 60, 60):
        assert not breaker.lets_through(at + seconds - 0.01)
        assert breaker.state(at + seconds) == "half_open"
        assert breaker.lets_through(at + seconds)
        at += seconds
        breaker = after(GONE, at=at, breaker=breaker)
    assert after("", breaker=breaker) == Breaker()


def test_a_half_open_breaker_of_a_type_with_a_trial_request_keeps_all_callers_away() -> None:
    breaker = after(*(GONE,) * 3, f"{GONE} {TRIAL}", breaker=Breaker(tried=True))
    assert breaker.state(NOON + 5) == "half_open"
    assert not breaker.lets_through(NOON + 5)
    assert after(f" {TRIAL}", at=NOON + 5, breaker=breaker) == Breaker(tried=True)


def test_a_half_open_breaker_lets_one_request_at_a_time_through() -> None:
    breaker = OPEN.started("t", NOON + 5)
    assert not breaker.lets_through(NOON + 9)
    assert not breaker.ended("an older one", "CANCELLED", NOON + 6).lets_through(NOON + 9)
    again = breaker.ended("t", "CANCELLED", NOON + 6)
    assert (again.state(NOON + 6), again.lets_through(NOON + 6)) == ("half_open", True)
    assert (again.trial, again.trial_at) == ("", 0.0)


def test_a_trial_keeps_other_requests_away_for_a_minute_at_most() -> None:
    breaker = OPEN.started("a lease of an hour", NOON + 5)
    assert not breaker.lets_through(NOON + 64.99)
    assert breaker.lets_through(NOON + 65)
    second = breaker.started("another", NOON + 65)
    assert not second.lets_through(NOON + 124.99)
    overtaken = second.ended("a lease of an hour", "CANCELLED", NOON + 70)
    assert (overtaken.trial, overtaken.lets_through(NOON + 124.99)) == ("another", False)
    failed_late = second.ended("a lease of an hour", GONE, NOON + 70)
    assert (failed_late.trial, failed_late.trial_at, failed_late.open_until) == ("another", NOON + 65, NOON + 80)
    assert second.ended("a lease of an hour", "", NOON + 70) == Breaker()


def failures(*callers: str, model_type: str = "asr", at: float = NOON - 2) -> list[Event]:
    """Return a replica of a model type and its failed requests, one of each caller, that start at `at`."""
    events: list[Event] = [added(type=model_type)]
    for number, caller in enumerate(callers):
        ident = str(number)
        events += [begun(ident, client=caller, started_at=at), failed("", GONE, request_id=ident)]
    return events


def test_the_trial_starts_when_its_request_starts() -> None:
    lease = begun("lease", started_at=NOON + 5, expires_at=NOON + 3605)
    (pool,) = Given(INFERENCE, [*failures("a", "b", "a"), lease]).world.values()
    assert (pool.routes[0].breaker.trial, pool.routes[0].breaker.trial_at) == ("lease", NOON + 5)


def test_requests_that_were_under_way_when_it_opened_do_not_open_it_for_longer() -> None:
    breaker = Breaker()
    for number in range(10):
        breaker = breaker.ended(str(number), GONE, NOON + number / 10, str(number))
    assert breaker.open_until == NOON + 0.2 + 5


def test_a_suspect_replica_gets_a_trial_request_but_not_within_5_seconds_after_an_answer() -> None:
    def trials(*events: Event) -> list[Any]:
        (pool,) = Given(INFERENCE, events).world.values()
        return [effect for effect in todo(pool) if isinstance(effect, TrySuspect)]

    suspect = failures("a", "a", "a", model_type="llm")
    assert trials(*suspect) == [TrySuspect(SVC, "p0", 5.0)]  # it has never answered
    assert trials(*suspect, changed(False)) == []
    answered = [suspect[0], begun("x"), done(request_id="x"), *suspect[1:]]
    assert trials(*answered) == [TrySuspect(SVC, "p0", NOON + 5)]
    assert trials(*answered[:-2]) == []
    trial = [begun("trial", client=TRIAL), failed("", GONE, request_id="trial")]
    assert trials(*suspect, *trial) == [TrySuspect(SVC, "p0", NOON + 5)]  # when its breaker is half-open
    assert trials(*suspect, *trial[:1], done(request_id="trial")) == []
    assert trials(*failures("a", "b", "a")) == []


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
        breaker = breaker.ended(str(number), code, at, str(number))
        row = 0 if code == "" else row + (code == GONE)
        assert (breaker.state(at) == "closed") == (row < 3)
        assert breaker.open_until <= at + 60
        assert breaker.lets_through(at + 60)
        assert breaker.failures == row
