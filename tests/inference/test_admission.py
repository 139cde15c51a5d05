"""The queues of waiting requests: the order of turns, and that no request is lost, on a real event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aima_core.errors import EngineNotRunning, Unavailable
from services.inference.outside.admission import QUEUE_FULL, Admission
from services.inference.rules.routing import BUSY, LOADING

A, B = frozenset({"svc-a"}), frozenset({"svc-b"})


class Desk:
    """Replicas with `room` slots for each service; `placed` has the requests in the order in which they got a slot."""

    def __init__(self, limit: int = 100, **room: int) -> None:
        self.admission = Admission(limit)
        self.room = {f"svc-{name}": count for name, count in room.items()}
        self.placed: list[str] = []
        self.tasks: dict[str, asyncio.Task[str]] = {}
        self.failure: Exception | None = None

    def ask(
        self, name: str, services: frozenset[str] = A, *, again: int | None = None, avoid: frozenset[str] = frozenset()
    ) -> asyncio.Task[str]:
        number = self.admission.number() if again is None else again
        place = self._placer(name, services - avoid)
        task = asyncio.create_task(self.admission.admit(services, place, number, again=again is not None))
        self.tasks[name] = task
        return task

    def free(self, service_id: str = "svc-a") -> None:
        self.room[service_id] += 1
        self.admission.wake()

    def _placer(self, name: str, services: frozenset[str]) -> Callable[[], Awaitable[str]]:
        async def place() -> str:
            if self.failure:
                raise self.failure
            free = next((ident for ident in sorted(services) if self.room[ident] > 0), None)
            if free is None:
                raise Unavailable("full", reason=BUSY)
            self.room[free] -= 1
            self.placed.append(name)
            try:
                await asyncio.sleep(0)  # the commit
            except asyncio.CancelledError:
                self.placed.remove(name)
                self.free(free)
                raise
            return free

        return place


def nobody(_: str) -> bool:
    """Return that no other service can take the waiting requests."""
    return False


async def settled() -> None:
    """Run the event loop until no task can continue."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_those_who_wait_are_served_in_the_order_of_their_coming_and_newcomers_behind_them() -> None:
    desk = Desk(a=1)
    for name in "12345":
        desk.ask(name)
        await settled()
    assert (desk.placed, desk.admission.queued("svc-a")) == (["1"], 4)
    desk.free()
    desk.ask("6")  # there is room, but it is somebody's before
    await settled()
    assert desk.placed == ["1", "2"]
    for _ in range(4):
        desk.free()
        await settled()
    assert desk.placed == ["1", "2", "3", "4", "5", "6"]
    assert desk.admission.queued("svc-a") == 0
    assert [await task for task in desk.tasks.values()] == ["svc-a"] * 6


async def test_room_for_several_is_taken_by_several() -> None:
    desk = Desk(a=0)
    for name in "1234":
        desk.ask(name)
    await settled()
    desk.room["svc-a"] = 3
    desk.admission.wake()
    await settled()
    assert desk.placed == ["1", "2", "3"]


async def test_whoever_leaves_leaves_no_gap() -> None:
    desk = Desk(a=0)
    first, middle, *_ = [desk.ask(name) for name in "1234"]
    await settled()
    middle.cancel()
    await settled()
    assert desk.admission.queued("svc-a") == 3
    desk.free()
    first.cancel()  # it has been woken, and goes all the same
    await settled()
    assert desk.placed == ["3"]
    assert desk.admission.queued("svc-a") == 1


async def test_a_line_that_is_full_refuses_at_once() -> None:
    desk = Desk(limit=2, a=0, b=0)
    for name in "12":
        desk.ask(name)
    await settled()
    with pytest.raises(Unavailable) as refused:
        await desk.ask("3")
    assert refused.value.reason == QUEUE_FULL
    for name in "4567":
        desk.ask(name, A | B)  # a place for each service
    await settled()
    with pytest.raises(Unavailable):
        await desk.ask("8", A | B)
    assert (desk.admission.queued("svc-a"), desk.admission.queued("svc-b")) == (6, 4)
    desk.tasks["1"].cancel()
    await settled()
    desk.ask("9")
    await settled()
    assert desk.admission.queued("svc-a") == 6
    with pytest.raises(Unavailable) as refused:
        await Desk(limit=0, a=0).ask("1")
    assert refused.value.reason == QUEUE_FULL


async def test_whoever_needs_another_service_is_not_held_up() -> None:
    desk = Desk(a=0, b=1)
    desk.ask("a")
    await settled()
    desk.ask("b", B)
    desk.ask("either", A | B)
    await settled()
    assert desk.placed == ["b"]
    desk.free("svc-b")
    await settled()
    assert desk.placed == ["b", "either"]


async def test_a_newcomer_to_several_services_takes_what_those_before_it_do_not_want() -> None:
    desk = Desk(a=0, b=1)
    desk.ask("a")
    await settled()
    desk.ask("either", A | B)
    await settled()
    assert desk.placed == ["either"]


async def test_one_that_tries_again_has_its_old_place_and_holds_nobody_up() -> None:
    desk = Desk(limit=2, a=0)
    old = desk.admission.number()
    for name in "12":
        desk.ask(name)
    await settled()
    desk.ask("again", again=old)  # although the line is full
    await settled()
    assert desk.admission.queued("svc-a") == 3
    desk.free()
    await settled()
    assert desk.placed == ["again"]
    choosy = Desk(a=0, b=0)
    old = choosy.admission.number()
    again = choosy.ask("again", A | B, again=old, avoid=A)
    await settled()
    assert not choosy.admission.ahead(A | B)
    choosy.ask("next", A | B)
    await settled()
    choosy.free("svc-a")
    await settled()
    assert choosy.placed == ["next"]
    choosy.free("svc-b")
    assert await again == "svc-b"


async def test_what_else_goes_wrong_ends_the_waiting_of_everybody_it_happens_to() -> None:
    desk = Desk(a=0)
    for name in "123":
        desk.ask(name)
    await settled()
    desk.failure = EngineNotRunning("it has failed")
    desk.admission.wake()
    await settled()
    for task in desk.tasks.values():
        with pytest.raises(EngineNotRunning):
            await task
    assert desk.admission.queued("svc-a") == 0


async def test_a_refusal_reaches_everybody_who_waits_for_the_service() -> None:
    desk = Desk(a=0, b=0)
    told = [desk.ask("1"), desk.ask("2", A | B)]
    other = desk.ask("3", B)
    await settled()
    desk.admission.refuse("svc-a", Unavailable("no memory", reason="INSUFFICIENT_MEMORY", missing=5), nobody)
    for task in told:
        with pytest.raises(Unavailable) as refused:
            await task
        assert (refused.value.message, refused.value.details) == (
            "no memory",
            {"reason": "INSUFFICIENT_MEMORY", "missing": 5},
        )
    desk.free("svc-b")
    assert await other == "svc-b"


async def test_a_refusal_ends_no_waiting_for_another_service_that_may_still_do() -> None:
    desk = Desk(a=0, b=0)
    told, either, other = desk.ask("1"), desk.ask("2", A | B), desk.ask("3", B)
    await settled()
    assert desk.admission.needs("svc-a", lambda ident: ident == "svc-b")  # the first
    desk.admission.refuse("svc-a", Unavailable("no memory"), lambda ident: ident == "svc-b")
    with pytest.raises(Unavailable):
        await told
    assert not desk.admission.needs("svc-a", lambda ident: ident == "svc-b")
    assert desk.admission.needs("svc-a", nobody)
    assert not desk.admission.needs("svc-c", nobody)
    desk.room["svc-b"] = 2
    desk.admission.wake()
    assert [await either, await other] == ["svc-b", "svc-b"]


async def test_whoever_is_refused_hears_when_those_who_wait_will_be_served() -> None:
    desk = Desk(a=0)
    assert desk.admission.retry_after(A) == 1
    desk.admission.ended("svc-a")
    for name in range(30):
        desk.ask(str(name))
    await settled()
    assert desk.admission.retry_after(A) == 30  # one ended in the last second
    desk.admission.forget("svc-a")
    assert desk.admission.retry_after(A) == 1
    for task in desk.tasks.values():
        task.cancel()


actions = st.one_of(
    st.sampled_from([("ask", A), ("ask", B), ("ask", A | B)]),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.sampled_from([("free", "svc-a"), ("free", "svc-b"), ("turn", "")]),
)


@given(st.lists(actions, max_size=60))
def test_nobody_is_lost_or_overtaken_whoever_comes_and_goes(happened: list[tuple[str, object]]) -> None:
    async def check() -> None:
        desk = Desk(a=1, b=1)
        wanted: dict[str, frozenset[str]] = {}
        for action, what in happened:
            match action, what:
                case "ask", frozenset():
                    name = str(len(wanted))
                    wanted[name] = what
                    desk.ask(name, what)
                case "cancel", int():
                    if task := desk.tasks.get(str(what)):
                        task.cancel()
                case "free", str():
                    desk.free(what)
                case _:
                    await settled()
        await settled()
        waiting = [name for name, task in desk.tasks.items() if not task.done()]
        for ident in ("svc-a", "svc-b"):
            queued = [name for name in waiting if ident in wanted[name]]
            assert desk.admission.queued(ident) == len(queued)
            assert not (queued and desk.room[ident]), "there is room, and somebody waits"
        for services in (A, B, A | B):
            order = [int(name) for name in desk.placed if wanted[name] == services]
            assert order == sorted(order)
        for _ in waiting:
            desk.free("svc-a")
            desk.free("svc-b")
            await settled()
        assert all(task.done() for task in desk.tasks.values())
        assert (desk.admission.queued("svc-a"), desk.admission.queued("svc-b")) == (0, 0)
        for name, task in desk.tasks.items():
            with contextlib.suppress(asyncio.CancelledError):
                assert await task in wanted[name]

    asyncio.run(check())


async def test_loading_is_waited_for_like_busy() -> None:
    admission, loaded = Admission(1), asyncio.Event()

    async def place() -> str:
        if not loaded.is_set():
            raise Unavailable("loading", reason=LOADING)
        return "placed"

    task = asyncio.create_task(admission.admit(A, place, admission.number()))
    await settled()
    assert admission.queued("svc-a") == 1
    loaded.set()
    admission.wake()
    assert await task == "placed"
