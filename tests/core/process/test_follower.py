"""One domain follows another: each event once and in order, whatever happens to either or to the server between."""

import asyncio
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats as nats_py
import pytest

from aima_core.bus.nats_server import NatsServer
from aima_core.process import follower
from aima_core.testing import until
from tests.core.conftest import Bare, Toy, talking
from tests.core.toy import COUNTER, TALLY

ToyMaker = Callable[[str, Path, str], Toy]


async def sources(bare: Bare) -> list[int]:
    """Return the positions of the counters' events that the tally wrote down, in the order in which it did."""
    return [event["data"]["source"] for event in await bare.events("tally")]


async def until_heard(bare: Bare, expected: list[int]) -> None:
    async def there() -> bool:
        return len(await sources(bare)) >= len(expected)

    await until(there, every=0.05)
    assert await sources(bare) == expected


async def test_each_event_is_taken_in_once_and_in_order(tmp_path: Path, nats: NatsServer) -> None:
    async with talking(tmp_path, nats, COUNTER, TALLY) as bare:
        await asyncio.gather(*[bare.ask("counter.add", counter_id=f"c{n % 5}") for n in range(600)])
        await until_heard(bare, list(range(1, 601)))


async def test_what_is_not_followed_is_passed_over(tmp_path: Path, nats: NatsServer) -> None:
    async with talking(tmp_path, nats, COUNTER, TALLY) as bare:
        bare.outside("gate")
        await bare.ask("counter.add", counter_id="c1")
        await bare.ask("counter.grow", counter_id="c1")
        await bare.ask("counter.add", counter_id="c1")
        await until_heard(bare, [1, 4])


async def test_an_event_remembers_on_whose_behalf_and_why_it_was_recorded(tmp_path: Path, nats: NatsServer) -> None:
    async with talking(tmp_path, nats, COUNTER, TALLY) as bare:
        headers = {"Aima-Correlation-Id": "why", "Aima-Principal": "someone"}
        await bare.ask("counter.add", headers, counter_id="c1")
        await until_heard(bare, [1])
        (cause,), (event,) = await bare.events(), await bare.events("tally")
    assert event["correlation_id"] == "why"
    assert event["principal"] == "someone"
    assert event["causation_id"] == cause["id"]
    assert event["trace"][3:35] == cause["trace"][3:35]


async def test_a_follower_goes_on_where_it_was(tmp_path: Path, nats: NatsServer) -> None:
    async with talking(tmp_path, nats, COUNTER, TALLY) as bare:
        await bare.ask("counter.add", counter_id="c1")
        await until_heard(bare, [1])
    async with talking(tmp_path, nats, COUNTER) as bare:  # the tally is away
        await bare.ask("counter.add", counter_id="c1")
    async with talking(tmp_path, nats, TALLY):  # the counters are away
        pass
    async with talking(tmp_path, nats, COUNTER, TALLY) as bare:
        await bare.ask("counter.add", counter_id="c1")
        await until_heard(bare, [1, 2, 3])


async def test_a_peer_whose_log_began_anew_is_followed_from_its_beginning(tmp_path: Path, nats: NatsServer) -> None:
    async with talking(tmp_path, nats, COUNTER, TALLY) as bare:
        for _ in range(3):
            await bare.ask("counter.add", counter_id="c1")
        await until_heard(bare, [1, 2, 3])
    shutil.rmtree(tmp_path / "counter")
    async with talking(tmp_path, nats, COUNTER, TALLY) as bare:
        await bare.ask("counter.add", counter_id="c1")
        await until_heard(bare, [1, 2, 3, 1])
        await bare.ask("counter.add", counter_id="c1")
        await until_heard(bare, [1, 2, 3, 1, 2])


async def test_a_peer_whose_log_began_anew_while_we_ran_is_followed_from_its_beginning(
    tmp_path: Path, nats: NatsServer, toys: ToyMaker
) -> None:
    toy = toys("counter", tmp_path, nats.url)
    async with talking(tmp_path, nats, TALLY) as bare:
        await toy.start()
        for _ in range(3):
            await bare.ask("counter.add", counter_id="c1")
        await until_heard(bare, [1, 2, 3])
        toy.kill(signal.SIGKILL)
        shutil.rmtree(tmp_path / "counter")
        await toy.start()
        await bare.ask("counter.add", counter_id="c1")
        await until_heard(bare, [1, 2, 3, 1])


async def test_more_events_than_fit_on_a_page_are_all_taken_in(
    tmp_path: Path, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "_PAGE", 7)
    async with talking(tmp_path, nats, COUNTER) as bare:
        await asyncio.gather(*[bare.ask("counter.add", counter_id="c1") for _ in range(50)])
    async with talking(tmp_path, nats, COUNTER, TALLY) as bare:
        await until_heard(bare, list(range(1, 51)))


async def test_events_too_large_to_come_together_come_in_smaller_pages(tmp_path: Path, nats: NatsServer) -> None:
    async with talking(tmp_path, nats, COUNTER) as bare:
        for _ in range(45):
            assert (await bare.ask("counter.add", counter_id="c1", note="x" * 400_000))["success"]
    async with talking(tmp_path, nats, COUNTER, TALLY) as bare:
        await until_heard(bare, list(range(1, 46)))


async def test_an_emptied_stream_makes_no_gap(tmp_path: Path, nats: NatsServer) -> None:
    async with talking(tmp_path, nats, COUNTER, TALLY) as bare:
        await bare.ask("counter.add", counter_id="c1")
        await until_heard(bare, [1])
        await bare.nc.jetstream().delete_stream("AIMA_EVENTS")
        await bare.ask("counter.add", counter_id="c1")
        await until_heard(bare, [1, 2])


async def test_a_peer_that_sends_what_cannot_be_read_is_tried_again_over_one_subscription(
    tmp_path: Path, nats: NatsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from dataclasses import replace

    from tests.core import toy

    monkeypatch.setattr("aima_core.process.domain_process._RESTART", 0.01)
    broken = 0

    def react(recorded: Any) -> Any:
        nonlocal broken
        if broken < 5:
            broken += 1
            raise ZeroDivisionError
        return toy.react(recorded)

    async with talking(tmp_path, nats, COUNTER, replace(TALLY, react=react)) as bare:
        await bare.ask("counter.add", counter_id="c1")
        await until_heard(bare, [1])
        assert broken == 5
        assert nats_subscriptions(nats, "aima.events.counter.>") == 1


def nats_subscriptions(nats: NatsServer, subject: str) -> int:
    """Count, by asking each of this process's connections, who listens to a subject."""
    import gc

    from nats.aio.client import Client

    clients = [found for found in gc.get_objects() if isinstance(found, Client) and not found.is_closed]
    return sum(sub.subject == subject for client in clients for sub in client._subs.values())


async def test_each_event_is_taken_in_once_whoever_is_killed(tmp_path: Path, nats: NatsServer, toys: ToyMaker) -> None:
    counter, tally = toys("counter", tmp_path, nats.url), toys("tally", tmp_path, nats.url)
    await asyncio.gather(counter.start(), tally.start())
    nc = await nats_py.connect(nats.url, max_reconnect_attempts=-1, reconnect_time_wait=0.05)
    bare, going = Bare(nc, tmp_path), True

    async def load() -> None:
        while going:
            try:
                await bare.raw("counter.add", b'{"counter_id":"c1"}', timeout=0.3)
            except (nats_py.errors.Error, TimeoutError):
                await asyncio.sleep(0.01)

    async def heard() -> int:
        try:
            return int((await bare.raw("tally.log", b"{}", timeout=0.5))["data"]["position"])
        except (nats_py.errors.Error, TimeoutError):
            return 0

    async def more(than: int) -> bool:
        return await heard() > than

    tasks = [asyncio.create_task(load()) for _ in range(4)]
    chance = random.Random(3)
    for victim in ("tally", "counter", "nats", "tally", "counter"):
        seen = await until(heard)
        await until(lambda seen=seen: more(seen + chance.randint(5, 60)), every=0.005)
        if victim == "nats":
            nats.send(signal.SIGKILL)
            assert nats.process
            nats.process.wait()
            await asyncio.to_thread(nats.launch)
            await until(nats.answers)
        else:
            toy = {"tally": tally, "counter": counter}[victim]
            toy.kill(signal.SIGKILL)
            await toy.start()
    going = False
    await asyncio.gather(*tasks)
    count = len(await bare.events())
    await until_heard(bare, list(range(1, count + 1)))
    await nc.close()
