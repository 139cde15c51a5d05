"""The copy of the log on JetStream: everything, in order, once; whatever was killed, and when."""

import asyncio
import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats as nats_py
import pytest
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from aima_core.bus.nats_server import NatsServer
from aima_core.process.relay import STREAM, SUBJECTS, subject
from aima_core.store.log import Log
from aima_core.store.records import Codec
from aima_core.testing import until
from tests.core.conftest import Bare, Toy, talking
from tests.core.toy import COUNTER_EVENTS, GrowthAsked

ADD = b'{"counter_id":"c1"}'
ToyMaker = Callable[[str, Path, str], Toy]


async def copied(url: str) -> list[tuple[str, Any]]:
    """Return subject and body of every message in the stream, as somebody sees them who begins at the beginning."""
    nc = await nats_py.connect(url)
    try:
        js = nc.jetstream()
        try:
            count = (await js.stream_info(STREAM)).state.messages
        except NotFoundError:
            return []
        config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE)
        subscription = await js.pull_subscribe(SUBJECTS, stream=STREAM, config=config)
        found: list[tuple[str, Any]] = []
        while len(found) < count:
            found += [(m.subject, json.loads(m.data)) for m in await subscription.fetch(count - len(found), timeout=5)]
        return found
    finally:
        await nc.close()


async def positions(url: str) -> list[int]:
    return [body["position"] for _, body in await copied(url)]


async def until_copied(url: str, count: int) -> None:
    async def there() -> bool:
        return len(await copied(url)) >= count

    await until(there, every=0.1)
    assert await positions(url) == list(range(1, count + 1))


async def test_every_event_is_copied_in_order_with_its_envelope(tmp_path: Path, nats: NatsServer) -> None:
    async with talking(tmp_path, nats) as bare:
        replies = [bare.ask("counter.add", counter_id=f"c{n % 3}", amount=n % 9 + 1) for n in range(500)]
        assert all(reply["success"] for reply in await asyncio.gather(*replies))
        await until_copied(nats.url, 500)
        found = await copied(nats.url)
        assert [body for _, body in found] == await bare.events()
        assert [where for where, _ in found] == [
            f"aima.events.{body['type']}.{body['stream'][8:]}" for _, body in found
        ]


async def test_an_event_is_on_the_bus_after_its_commit(tmp_path: Path, nats: NatsServer) -> None:
    async with talking(tmp_path, nats) as bare:
        await bare.ask("counter.add", counter_id="c1")
        await until_copied(nats.url, 1)
        live = await bare.nc.subscribe("aima.events.counter.>")
        await bare.nc.flush()
        await bare.ask("counter.add", counter_id="c1")
        assert json.loads((await live.next_msg(timeout=5)).data)["position"] == 2


async def test_a_process_that_starts_again_copies_nothing_twice(tmp_path: Path, nats: NatsServer) -> None:
    for count in (1, 2, 3):
        async with talking(tmp_path, nats) as bare:
            await bare.ask("counter.add", counter_id="c1")
            await until_copied(nats.url, count)


async def test_a_stream_that_was_deleted_is_made_anew_from_the_log(tmp_path: Path, nats: NatsServer) -> None:
    async with talking(tmp_path, nats) as bare:
        await asyncio.gather(*[bare.raw("counter.add", ADD) for _ in range(400)])
        await until_copied(nats.url, 400)
        await bare.nc.jetstream().delete_stream(STREAM)
        await bare.raw("counter.add", ADD)
        await until_copied(nats.url, 401)
    async with talking(tmp_path, nats) as bare:
        await bare.nc.jetstream().delete_stream(STREAM)
    async with talking(tmp_path, nats):
        await until_copied(nats.url, 401)


@pytest.mark.parametrize("stays", [False, True], ids=["with its domains", "alone"])
async def test_what_a_stream_lost_of_its_end_is_copied_again(tmp_path: Path, nats: NatsServer, stays: bool) -> None:
    kept = tmp_path / "kept"
    async with talking(tmp_path, nats) as bare:
        await asyncio.gather(*[bare.raw("counter.add", ADD) for _ in range(20)])
        await until_copied(nats.url, 20)
    nats.stop()
    shutil.copytree(nats.folder, kept)
    nats.launch()
    await until(nats.answers)

    async def lose() -> None:
        """Let the power go before the last writes are on the disk."""
        await asyncio.to_thread(nats.stop)
        shutil.rmtree(nats.folder)
        shutil.copytree(kept, nats.folder)
        nats.launch()
        await until(nats.answers)

    async with talking(tmp_path, nats) as bare:
        await asyncio.gather(*[bare.raw("counter.add", ADD) for _ in range(20)])
        await until_copied(nats.url, 40)
        if stays:
            await lose()  # nothing new has to happen
            await until_copied(nats.url, 40)
    if not stays:
        await lose()
        async with talking(tmp_path, nats):
            await until_copied(nats.url, 40)


async def test_another_log_begun_in_its_place_is_copied_from_its_beginning(tmp_path: Path, nats: NatsServer) -> None:
    for name in ("one", "other"):
        async with talking(tmp_path / name, nats) as bare:
            await bare.raw("counter.add", ADD)
            await bare.raw("counter.add", ADD)
            ids = [event["id"] for event in await bare.events()]

            async def there(wanted: list[str] = ids) -> bool:
                return [body["id"] for _, body in await copied(nats.url)][-2:] == wanted

            await until(there, every=0.1)
    assert await positions(nats.url) == [1, 2, 1, 2]


async def test_two_domains_share_the_stream(tmp_path: Path, nats: NatsServer) -> None:
    from tests.core.toy import COUNTER, TALLY

    async with talking(tmp_path, nats, COUNTER, TALLY) as bare:
        await asyncio.gather(*[bare.raw("counter.add", ADD) for _ in range(20)])

        async def there() -> bool:
            return len(await copied(nats.url)) == 40

        await until(there, every=0.1)
        found = [body for _, body in await copied(nats.url)]
    for domain in ("counter", "tally"):
        assert [b["position"] for b in found if b["type"].startswith(domain)] == list(range(1, 21))


@pytest.mark.parametrize("ident", ["", "a b", "a.b.c", "*", ">", "ü" * 50, "x" * 10_000, "a\nb", "\0"])
async def test_no_id_keeps_the_events_behind_it_from_being_copied(tmp_path: Path, nats: NatsServer, ident: str) -> None:
    async with talking(tmp_path, nats) as bare:
        await bare.ask("counter.grow", {"Aima-Timeout": "0.05"}, counter_id=ident)
        await bare.raw("counter.add", ADD)
        await until_copied(nats.url, 2)
        assert (await bare.raw("counter.add", ADD))["data"] == {"total": 2}


def test_a_stream_id_is_one_token_of_the_subject() -> None:
    from aima_core.store.records import Meta, Recorded

    def of(ident: str) -> str:
        event = GrowthAsked(counter_id=ident)
        return subject(Recorded(1, event.stream, 1, 0.0, Meta(), event, "x-1"))

    assert of("svc-1_A") == "aima.events.counter.growth_asked.svc-1_A"
    assert of("a.b c/*>") == "aima.events.counter.growth_asked.a_b_c___"
    assert of("") == "aima.events.counter.growth_asked._"
    assert len(of("x" * 10_000)) < 300


# --- killed -------------------------------------------------------------------------------------------------------


async def test_a_server_that_is_killed_again_and_again_under_load_costs_no_event_and_doubles_none(
    tmp_path: Path, nats: NatsServer
) -> None:
    async with talking(tmp_path, nats) as bare:
        going = True
        acknowledged = 0

        async def load() -> None:
            nonlocal acknowledged
            while going:
                try:
                    reply = await bare.raw("counter.add", ADD, {"Aima-Timeout": "2"}, timeout=0.5)
                    acknowledged += reply["success"]
                except (nats_py.errors.Error, TimeoutError):
                    await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(load()) for _ in range(16)]
        chance = random.Random(1)
        for _ in range(3):
            before = acknowledged
            await until(lambda seen=before: acknowledged > seen + chance.randint(20, 200), every=0.001)
            nats.send(signal.SIGKILL)
            assert nats.process
            nats.process.wait()
            await asyncio.to_thread(nats.launch)
            await until(nats.answers)
        before = acknowledged
        await until(lambda: acknowledged > before)
        going = False
        await asyncio.gather(*tasks)

        events = await until(bare.events)
        assert len(events) >= acknowledged
        await until_copied(nats.url, len(events))
        assert [body for _, body in await copied(nats.url)] == events


async def hammer(url: str, tally: dict[str, int], stop: asyncio.Event) -> None:
    """Ask for additions, each under a key of its own until it is acknowledged; count what was acknowledged."""
    nc = await nats_py.connect(url)
    number = 0
    while not stop.is_set():
        number += 1
        key = f"{id(nc)}-{number}"
        while True:
            try:
                message = await nc.request("aima.counter.add", ADD, headers={"Aima-Idempotency-Key": key}, timeout=0.3)
            except (nats_py.errors.Error, TimeoutError):
                await asyncio.sleep(0.01)  # nobody there, or dead in the midst of it: ask again under the same key
                continue
            if json.loads(message.data)["success"]:
                break
        tally["acknowledged"] += 1
    await nc.close()


async def test_a_process_that_is_killed_at_random_moments_loses_nothing_and_does_nothing_twice(
    tmp_path: Path, nats: NatsServer, toys: ToyMaker
) -> None:
    toy = toys("counter", tmp_path, nats.url)
    await toy.start()
    tally, stop = {"acknowledged": 0}, asyncio.Event()
    tasks = [asyncio.create_task(hammer(nats.url, tally, stop)) for _ in range(16)]
    chance = random.Random(2)
    for _ in range(5):
        before = tally["acknowledged"]
        more = chance.randint(1, 300)
        await until(lambda seen=before, more=more: tally["acknowledged"] > seen + more, every=0.0005)
        assert toy.kill(signal.SIGKILL) == -signal.SIGKILL
        await toy.start()
    stop.set()
    await asyncio.gather(*tasks)

    nc = await nats_py.connect(nats.url)
    total = await Bare(nc, tmp_path).total("c1")
    events = await Bare(nc, tmp_path).events()
    await nc.close()
    assert total == len(events) == tally["acknowledged"]
    await until_copied(nats.url, len(events))
    assert [body for _, body in await copied(nats.url)] == events
    assert toy.kill(signal.SIGTERM) == 0
    log = await Log.open(tmp_path / "counter", "counter", Codec(COUNTER_EVENTS))
    assert await log.verify() is None
    await log.close()


async def test_a_growth_that_was_under_way_when_the_process_was_killed_is_finished_by_the_next(
    tmp_path: Path, nats: NatsServer, toys: ToyMaker
) -> None:
    toy = toys("counter", tmp_path, nats.url)
    await toy.start()
    nc = await nats_py.connect(nats.url)
    bare = Bare(nc, tmp_path)
    await bare.ask("counter.grow", {"Aima-Timeout": "0.1"}, counter_id="c1")
    assert bare.world() == ["began c1"]
    toy.kill(signal.SIGKILL)
    await toy.start()
    await until(lambda: bare.world() == ["began c1", "began c1"])
    bare.outside("gate")

    async def grown() -> bool:
        return await bare.total("c1") == 100

    await until(grown)
    assert [event["type"] for event in await bare.events()] == ["counter.growth_asked", "counter.grown"]
    await nc.close()


async def test_a_second_process_on_the_same_log_does_not_start(
    tmp_path: Path, nats: NatsServer, toys: ToyMaker
) -> None:
    first, second = toys("counter", tmp_path, nats.url), toys("counter", tmp_path, nats.url)
    await first.start()
    assert first.process
    second.launch()
    assert second.process
    assert await asyncio.to_thread(second.process.wait, 20) == 1
    assert f"process {first.process.pid}" in second.log.read_text()


async def test_a_process_without_a_server_ends_with_an_error_that_names_the_address(
    tmp_path: Path, nats: NatsServer, toys: ToyMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aima_core.bus.connection import connect
    from aima_core.errors import Unavailable

    nats.stop()
    begun = time.monotonic()
    with pytest.raises(Unavailable, match=nats.url) as refusal:
        await connect(nats.url, "test", wait=0.5)
    assert refusal.value.details == {"reason": "NO_NATS", "url": nats.url}
    assert time.monotonic() - begun < 5
