"""How many replicas the load asks for, on a clock of the test's own."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.service.rules.scaling import Bounds, Scaler, needed
from services.service.units import Autoscale

CALM = 60.0
BOUNDS = Bounds(1, 5, 4.0)


class Watched:
    """A service whose replicas are as many as its scaler says, looked at once a second."""

    def __init__(self, replicas: int, bounds: Bounds = BOUNDS, calm: float = CALM) -> None:
        self.scaler, self.bounds = Scaler(calm), bounds
        self.replicas, self.at = replicas, 1000.0
        self.changes: list[tuple[float, int]] = []

    def look(self, requests: int, *, seconds: float = 1.0) -> int:
        wanted = self.scaler.sample(self.at, requests, self.replicas, self.bounds)
        if wanted != self.replicas:
            self.changes.append((self.at - 1000.0, wanted))
            self.replicas = wanted
        self.at += seconds
        return wanted

    def looks(self, *loads: tuple[int, int]) -> list[tuple[float, int]]:
        """Look so often at so many requests; return the changes, each with its second."""
        for times, requests in loads:
            for _ in range(times):
                self.look(requests)
        return self.changes


# --- what a number of requests asks for ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requests", "bounds", "expected"),
    [
        (0, Bounds(0, 5, 4.0), 1),  # sleep is not scaling
        (0, Bounds(2, 5, 4.0), 2),
        (1, Bounds(0, 5, 4.0), 1),
        (4, Bounds(0, 5, 4.0), 1),
        (5, Bounds(0, 5, 4.0), 2),
        (8, Bounds(0, 5, 4.0), 2),
        (9, Bounds(0, 5, 4.0), 3),
        (20, Bounds(0, 5, 4.0), 5),
        (21, Bounds(0, 5, 4.0), 5),
        (1000, Bounds(0, 5, 4.0), 5),
        (3, Bounds(2, 5, 4.0), 2),
        (3, Bounds(1, 5, 0.5), 5),
        (2, Bounds(1, 5, 0.5), 4),
        (3, Bounds(1, 1, 1.0), 1),
    ],
)
def test_so_many_requests_ask_for_so_many_replicas(requests: int, bounds: Bounds, expected: int) -> None:
    assert needed(requests, bounds) == expected


def test_a_least_number_above_the_most_is_refused() -> None:
    with pytest.raises(ValidationError):
        Autoscale(min=5, max=1)


# --- with time ----------------------------------------------------------------------------------------------------

CASES: dict[str, tuple[int, tuple[tuple[int, int], ...], list[tuple[float, int]]]] = {
    # replicas at first, looks as (times, requests), changes as (second, replicas)
    "nothing to do": (1, ((200, 0),), []),
    "as many as it takes": (2, ((200, 8),), []),
    "up at the second look that asks for more": (1, ((2, 8),), [(1.0, 2)]),
    "not at the first": (1, ((1, 8),), []),
    "to the smaller of the two": (1, ((1, 20), (1, 9)), [(1.0, 3)]),
    "to the smaller of the two, the other way round": (1, ((1, 9), (1, 20)), [(1.0, 3)]),
    "at once to where the load is": (1, ((2, 100),), [(1.0, 5)]),
    "a look in between begins anew": (1, ((1, 8), (1, 4), (1, 8), (1, 4)), []),
    "after a change it takes two looks again": (1, ((2, 8), (1, 16), (1, 8)), [(1.0, 2)]),
    "after a change two looks lead further": (1, ((2, 8), (2, 16)), [(1.0, 2), (3.0, 4)]),
    "down when fewer have sufficed for a minute": (3, ((61, 4),), [(60.0, 1)]),
    "not a second sooner": (3, ((60, 4),), []),
    "down to the most that was seen": (4, ((30, 4), (1, 12), (30, 4)), [(60.0, 3)]),
    "one look that takes all begins the minute anew": (3, ((30, 4), (1, 12), (60, 4)), []),
    "a minute after the look that took all": (3, ((30, 4), (1, 12), (61, 4)), [(91.0, 1)]),
    "after it went down it takes a minute again": (3, ((61, 8), (61, 4)), [(60.0, 2), (121.0, 1)]),
    "what was seen before it went down counts no more": (3, ((1, 8), (121, 4)), [(60.0, 2), (121.0, 1)]),
    "after it went up it takes a minute": (1, ((2, 8), (61, 0)), [(1.0, 2), (62.0, 1)]),
    "it never goes below one": (2, ((500, 0),), [(60.0, 1)]),
    "down to its bounds when somebody set more": (9, ((61, 100),), [(60.0, 5)]),
}


@pytest.mark.parametrize(("replicas", "loads", "expected"), CASES.values(), ids=CASES)
def test_the_number_changes(
    replicas: int, loads: tuple[tuple[int, int], ...], expected: list[tuple[float, int]]
) -> None:
    assert Watched(replicas).looks(*loads) == expected


def test_a_service_with_a_least_number_stays_at_it() -> None:
    assert Watched(4, Bounds(2, 5, 4.0)).looks((500, 0)) == [(60.0, 2)]


def test_who_is_not_calm_at_all_shrinks_at_once_when_two_looks_agree() -> None:
    assert Watched(3, calm=0.0).looks((1, 12), (1, 4), (1, 4))[-1:] == [(2.0, 1)]


def test_looks_that_come_seldom_count_as_those_that_come_often() -> None:
    watched = Watched(3)
    for _ in range(3):
        watched.look(4, seconds=40.0)
    assert watched.changes == [(80.0, 1)]


def test_what_could_not_be_done_is_asked_for_again_after_two_looks() -> None:
    scaler = Scaler(CALM)
    assert [scaler.sample(at, 8, 1, BOUNDS) for at in range(6)] == [1, 2, 1, 2, 1, 2]  # there was no room for a second


# --- what holds of any load ---------------------------------------------------------------------------------------

bounds = st.builds(
    lambda least, more, target: Bounds(least, max(least + more, 1), target),
    st.integers(0, 3),
    st.integers(0, 6),
    st.sampled_from([0.5, 1.0, 3.0, 4.0, 7.5]),
)
loads = st.lists(st.tuples(st.integers(0, 60), st.sampled_from([1.0, 1.0, 1.0, 20.0, 61.0])), max_size=60)


def within(given: Bounds, number: int) -> int:
    return min(max(number, given.least, 1), given.most)


@given(bounds, st.integers(0, 9), loads)
def test_the_number_never_leaves_its_bounds(given: Bounds, first: int, looks: list[tuple[int, float]]) -> None:
    watched = Watched(within(given, first), given)
    for requests, seconds in looks:
        assert max(given.least, 1) <= watched.look(requests, seconds=seconds) <= given.most


@given(bounds, st.integers(0, 9), loads, st.integers(0, 60))
def test_a_constant_load_leads_to_as_many_as_it_takes_and_stays_there(
    given: Bounds, first: int, before: list[tuple[int, float]], requests: int
) -> None:
    watched = Watched(within(given, first), given)
    for other, seconds in before:
        watched.look(other, seconds=seconds)
    count = len(watched.changes)
    watched.looks((200, requests))
    assert watched.replicas == within(given, math.ceil(requests / given.target))
    assert len(watched.changes) <= count + 2, "it went there in two steps at the most"
    count = len(watched.changes)
    watched.looks((200, requests))
    assert len(watched.changes) == count


@given(st.integers(1, 4), st.integers(1, 5), st.lists(st.lists(st.booleans(), max_size=58), max_size=8))
def test_a_load_that_wavers_by_one_request_around_a_bound_changes_the_number_once_at_the_most(
    full: int, first: int, wavering: list[list[bool]]
) -> None:
    watched = Watched(min(max(first, full), full + 1))  # one too few, or just enough
    for part in wavering:
        for one_more in [*part, True]:  # at least once a minute there is one more
            watched.look(4 * full + one_more)
    assert len(watched.changes) <= 1
    assert watched.replicas in (full, full + 1)


@given(bounds, st.integers(0, 60), st.integers(0, 100), st.integers(0, 1000), st.integers(0, 100))
def test_a_single_spike_changes_nothing(given: Bounds, requests: int, before: int, spike: int, after: int) -> None:
    watched = Watched(within(given, math.ceil(requests / given.target)), given)
    assert watched.looks((before, requests), (1, max(spike, requests)), (after, requests)) == []


@given(bounds, st.integers(1, 60), st.integers(0, 58))
def test_a_short_lull_changes_nothing(given: Bounds, requests: int, lull: int) -> None:
    watched = Watched(within(given, math.ceil(requests / given.target)), given)
    assert watched.looks((100, requests), (lull, 0), (100, requests)) == []
