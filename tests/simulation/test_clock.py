import asyncio
import secrets
import time

import pytest

from aima_core.testing import NOON
from tests.simulation.clock import Standstill, VirtualLoop, run


def test_an_hour_passes_at_once_on_every_clock() -> None:
    async def main(loop: VirtualLoop) -> tuple[float, float, float]:
        before = time.monotonic()
        await asyncio.sleep(3600)
        return time.time() - NOON, time.monotonic() - before, asyncio.get_running_loop().time() - before

    began = time.perf_counter()
    assert run(1, main) == pytest.approx((3600, 3600, 3600))
    assert time.time() - NOON != pytest.approx(3600)
    assert time.perf_counter() - began < 60


def test_what_is_due_first_happens_first() -> None:
    order: list[int] = []

    async def main(loop: VirtualLoop) -> None:
        async def later(seconds: int) -> None:
            await asyncio.sleep(seconds)
            order.append(seconds)

        await asyncio.gather(later(30), later(10), later(20))

    run(1, main)
    assert order == [10, 20, 30]


def test_work_in_a_thread_is_done_also_when_nobody_waits_for_it() -> None:
    done: list[str] = []

    async def main(loop: VirtualLoop) -> None:
        working = asyncio.create_task(asyncio.to_thread(done.append, "work"))
        await asyncio.sleep(0)
        working.cancel()
        await asyncio.wait((working,))
        assert working.cancelled()
        await asyncio.sleep(1)

    run(1, main)
    assert done == ["work"]


def test_chance_is_of_the_seed() -> None:
    async def main(loop: VirtualLoop) -> str:
        return secrets.token_hex(8)

    assert run(1, main) == run(1, main) != run(2, main)
    assert secrets.token_hex(8) != secrets.token_hex(8)


def test_waiting_for_what_never_comes_ends_the_run() -> None:
    async def main(loop: VirtualLoop) -> None:
        await asyncio.Event().wait()

    with pytest.raises(Standstill, match="nothing will ever happen"):
        run(1, main)


def test_going_on_without_any_time_ends_the_run() -> None:
    async def main(loop: VirtualLoop) -> None:
        def again() -> None:
            loop.call_soon(again)

        again()
        await asyncio.sleep(1)

    with pytest.raises(Standstill, match="without any time passing"):
        run(1, main)
