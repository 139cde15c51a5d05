"""What the gateway takes from JetStream: nothing while nobody listens, all of it for whoever does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import AsyncIterator, Callable
from functools import partial
from operator import attrgetter
from pathlib import Path

import pytest
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError

from aima_core.bus.connection import connect
from aima_core.bus.nats_server import NatsServer
from aima_core.process.effects import end
from aima_core.process.relay import STREAM, ensure_stream
from aima_core.testing import until
from services.gateway.events.event_filter import EventFilter
from services.gateway.events.feed import numbers
from services.gateway.events.stream import EventTail
from services.gateway.rest.resources import Watching
from tests.gateway.conftest import Site, gateway, listening

BUCKET = "KV_aima-resources"
HASTE = 0.05  # seconds of grace


@pytest.fixture
def site(own_site: Site) -> Site:
    """A gateway of its own for each test: what its stream holds is counted."""
    return own_site


@pytest.fixture
async def hasty(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    """A gateway that stops to listen soon after the last client has left."""
    monkeypatch.setattr("services.gateway.outside.EventTail", partial(EventTail, grace=HASTE))
    monkeypatch.setattr("services.gateway.outside.Watching", partial(Watching, grace=HASTE))
    async with gateway(tmp_path / "data", nats, free_port()) as site:
        await site.ask("counter.add", counter_id="c1")
        await until(lambda: _stored(site, 1))
        yield site


async def test_only_while_somebody_listens_is_there_a_consumer_and_then_one_for_all(hasty: Site) -> None:
    watch = "/api/v2/resource/counter/c1/watch"
    assert await _consumers(hasty) == (0, 0)
    async with listening(hasty, "/api/v2/events") as one, listening(hasty, watch) as first:
        await until(lambda: _are_consumers(hasty, (1, 1)))
        async with listening(hasty, "/api/v2/events") as other, listening(hasty, watch) as second:
            assert [(await heard()).data for heard in (first, second)] == [{"total": 1}] * 2
            await hasty.ask("counter.add", counter_id="c1")
            assert [(await heard()).ident for heard in (one, other)] == ["2", "2"]
            assert [(await heard()).data for heard in (first, second)] == [{"total": 2}] * 2
            assert await _consumers(hasty) == (1, 1)
    await until(lambda: _are_consumers(hasty, (0, 0)))


async def test_a_client_that_comes_back_when_nobody_listened_any_more_misses_nothing(hasty: Site) -> None:
    async with listening(hasty, "/api/v2/events?after=0") as next_event:
        await hasty.ask("counter.add", counter_id="c1")
        assert [(await next_event()).ident for _ in range(2)] == ["1", "2"]
    await until(lambda: _are_consumers(hasty, (0, 0)))
    for _ in range(3):
        await hasty.ask("counter.add", counter_id="c1")
    await until(lambda: _stored(hasty, 5))
    async with (
        listening(hasty, "/api/v2/events") as new,
        listening(hasty, "/api/v2/events", headers={"Last-Event-ID": "2"}) as back,
        listening(hasty, "/api/v2/resource/counter/c1/watch") as watching,
    ):
        assert (await watching()).data == {"total": 5}
        await hasty.ask("counter.add", counter_id="c1")
        assert [(await back()).ident for _ in range(4)] == ["3", "4", "5", "6"]
        assert (await new()).ident == "6"
        assert (await watching()).data == {"total": 6}


async def test_a_stream_made_anew_while_nobody_listened_is_told_to_who_was_beyond_its_end(hasty: Site) -> None:
    async with listening(hasty, "/api/v2/events?after=0") as next_event:
        assert (await next_event()).ident == "1"
    await until(lambda: _are_consumers(hasty, (0, 0)))
    await hasty.client.nc.jetstream().delete_stream(STREAM)
    await hasty.ask("counter.add", counter_id="c1")  # its relay makes the stream again, with all of its log
    await until(lambda: _stored(hasty, 2))
    async with (
        listening(hasty, "/api/v2/events", headers={"Last-Event-ID": "9"}) as back,
        listening(hasty, "/api/v2/events") as new,
    ):
        await hasty.ask("counter.add", counter_id="c1")
        assert [(await back()).ident for _ in range(3)] == ["1", "2", "3"]
        assert (await new()).ident == "3"


async def test_who_comes_while_jetstream_is_away_is_told_so_and_served_when_it_is_back(site: Site) -> None:
    paths = ("/api/v2/events", "/api/v2/events?after=1", "/api/v2/resource/counter/c1/watch")
    await asyncio.to_thread(site.nats.stop)
    for refused in await asyncio.gather(*(site.get(path) for path in paths)):
        assert (refused.status_code, refused.json()["error"]["details"]["reason"]) == (503, "NO_JETSTREAM")
    site.nats.launch()
    for path in paths:
        await until(lambda path=path: _is_served(site, path))


# --- whatever the moment ------------------------------------------------------------------------------------------


async def test_who_leaves_and_comes_back_at_any_moment_misses_nothing_and_hears_nothing_twice(site: Site) -> None:
    js, heard = site.client.nc.jetstream(), [0]
    pauses = itertools.cycle((0, HASTE * 0.9, HASTE, HASTE * 1.02, HASTE * 1.2))
    async with _tail(site, HASTE) as tail, asyncio.TaskGroup() as group:
        group.create_task(_publish(js, 400, every=0.005))
        while heard[-1] < 400:
            heard += await _hear(tail, EventFilter(after=heard[-1]))
            await asyncio.sleep(next(pauses))
    assert heard == list(range(401))


async def test_who_comes_back_in_time_is_told_for_as_long_as_it_stays(site: Site) -> None:
    js = site.client.nc.jetstream()
    async with _tail(site, HASTE) as tail:
        place = await tail.position(EventFilter())
        async with contextlib.aclosing(tail.follow(place, EventFilter(), attrgetter("frame"))) as frames:
            hearing = asyncio.create_task(anext(frames))
            await asyncio.sleep(3 * HASTE)  # nothing shall happen: the grace after the question for a place is over
            await _publish(js, 1)
            assert _idents(await asyncio.wait_for(hearing, 5)) == [1]


async def test_many_who_come_at_once_are_all_served(site: Site) -> None:
    js = site.client.nc.jetstream()
    await _publish(js, 3)
    async with _tail(site, HASTE) as tail:
        for _ in range(3):
            live = [asyncio.create_task(_hear(tail, EventFilter())) for _ in range(100)]
            old = [asyncio.create_task(_hear(tail, EventFilter(after=1))) for _ in range(100)]
            assert {heard[0] for heard in await asyncio.gather(*old)} == {2}
            last = (await tail.position(EventFilter())).seq
            await _publish(js, 1)
            assert {heard[0] for heard in await asyncio.gather(*live)} == {last + 1}


async def test_a_stream_made_anew_between_the_question_for_a_place_and_its_use_is_told_whole(site: Site) -> None:
    js = site.client.nc.jetstream()
    await _publish(js, 5)
    async with _tail(site, 0) as tail:
        place = await tail.position(EventFilter())
        assert place.seq == 5
        await js.delete_stream(STREAM)
        await ensure_stream(js)
        await _publish(js, 2)
        frames = tail.follow(place, EventFilter(), attrgetter("frame"))
        assert _idents(await anext(frames)) == [1, 2]
        await frames.aclose()


async def test_only_a_number_beyond_the_end_of_the_stream_is_of_another_one(site: Site) -> None:
    js = site.client.nc.jetstream()
    async with _tail(site, 60) as tail:
        await tail.position(EventFilter())
        for number in range(1, 51):  # whether the feed has come to it or not
            await _publish(js, 1)
            assert (await tail.position(EventFilter(after=number))).seq == number
        assert (await tail.position(EventFilter(after=51))).seq == 0


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.AIMA_EVENTS.consumer.1.23.4.1767268800000000000.5",
        "$JS.ACK._.hash.AIMA_EVENTS.consumer.1.23.4.1767268800000000000.5",
        "$JS.ACK.domain.hash.AIMA_EVENTS.consumer.1.23.4.1767268800000000000.5.random",
    ],
)
def test_the_numbers_of_a_message_are_those_that_nats_py_reads(reply: str) -> None:
    message = Msg(_client=None, reply=reply)  # type: ignore[arg-type]
    assert numbers(message) == (23, 4)
    assert numbers(message) == (message.metadata.sequence.stream, message.metadata.sequence.consumer)


# --- helpers ------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _tail(site: Site, grace: float) -> AsyncIterator[EventTail]:
    """Give what the door to events listens through, on a connection of its own."""
    nc: Nats = await connect(site.nats.url, "tail")
    tail = EventTail(nc, grace)
    tasks = [asyncio.create_task(work()) for work in (tail.run, tail.wake)]
    try:
        yield tail
    finally:
        await end(tasks)
        await nc.close()


async def _publish(js: JetStreamContext, count: int, every: float = 0) -> None:
    for _ in range(count):
        await js.publish("aima.events.counter.added.c1", b'{"stream":"counter/c1"}')
        await asyncio.sleep(every)


async def _hear(tail: EventTail, asked: EventFilter) -> list[int]:
    """Come, hear the next events, and leave; return their numbers."""
    place = await tail.position(asked)
    async with contextlib.aclosing(tail.follow(place, asked, attrgetter("frame"))) as frames:
        return _idents(await asyncio.wait_for(anext(frames), 20))


def _idents(frames: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"^id: (\d+)$", frames, re.MULTILINE)]


async def _consumers(site: Site) -> tuple[int, int]:
    """Return how many consumers the stream of events has, and the bucket of resources."""
    js = site.client.nc.jetstream()
    return len(await js.consumers_info(STREAM)), len(await js.consumers_info(BUCKET))


async def _are_consumers(site: Site, count: tuple[int, int]) -> bool:
    return await _consumers(site) == count


async def _stored(site: Site, count: int) -> bool:
    """Whether the stream has so many events, and the bucket what the counter came to."""
    js = site.client.nc.jetstream()
    with contextlib.suppress(NotFoundError):
        total = (await (await js.key_value("aima-resources")).get("counter.c1")).value
        return (await js.stream_info(STREAM)).state.messages == count and total == b'{"total":%d}' % count
    return False


async def _is_served(site: Site, path: str) -> bool:
    async with site.http.stream("GET", path) as response:
        return response.status_code == 200
