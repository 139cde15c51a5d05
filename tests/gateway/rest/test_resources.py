"""Resources over HTTP: reading an address, and watching what comes to stand there."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from nats.aio.client import Client as Nats
from nats.js.errors import NoKeysError

from aima_core.bus.connection import connect
from aima_core.errors import Unavailable
from aima_core.process.effects import end
from aima_core.testing import until
from aima_core.units import key_of
from services.gateway.rest.resources import Watching
from tests.gateway.conftest import Site, listening


@pytest.fixture
def site(own_site: Site) -> Site:
    """A gateway of its own for each test: counters begin at nothing, and its bus goes away."""
    return own_site


@pytest.mark.parametrize(
    ("uri", "key"),
    [
        ("asms://service/svc-1", "service.svc-1"),
        ("asms://device/gpu-0/info", "device.gpu-0.info"),
        ("asms://services", "services"),
        ("asms://model/a b.gguf", "model.a_b_gguf"),
        ("asms://model/*", "model._"),
    ],
)
def test_an_address_has_one_key_in_the_bucket(uri: str, key: str) -> None:
    assert key_of(uri) == key


@pytest.mark.parametrize(
    "path",
    [
        "counter/c1",
        "asms://counter/c1",
        "asms:/counter/c1",
        "asms%3A%2F%2Fcounter%2Fc1",
        "counter%2Fc1",
    ],
)
async def test_an_address_is_read_however_it_is_written(site: Site, path: str) -> None:
    await site.ask("counter.add", counter_id="c1", amount=4)
    response = await site.get(f"/api/v2/resource/{path}")
    assert response.status_code == 200, response.text
    assert response.json()["data"] == {"uri": "asms://counter/c1", "data": {"total": 4}}


async def test_what_is_not_there_is_told_by_the_domain_and_what_is_no_address_by_the_door(site: Site) -> None:
    missing = await site.get("/api/v2/resource/counter/none")
    assert (missing.status_code, missing.json()["error"]["details"]["reason"]) == (404, "COUNTER_NOT_FOUND")
    for path in ("nothing/here", "counter", "counter/a/b/c", "asms://", "counter/a%2Fb"):
        assert (await site.get(f"/api/v2/resource/{path}")).status_code == 404
        assert (await site.get(f"/api/v2/resource/{path}/watch")).status_code == 404


async def test_the_addresses_that_there_are_can_be_listed(site: Site) -> None:
    listed = (await site.get("/api/v2/resources")).json()
    assert {"uri": "asms://counter/{id}", "about": "One counter.", "domain": "counter"} in listed["resources"]
    assert listed["total"] == 2


async def test_a_watcher_gets_what_stands_there_and_what_comes(site: Site) -> None:
    await site.ask("counter.add", counter_id="c1", amount=1)
    await until(lambda: _stands(site, "counter.c1"))
    async with (
        listening(site, "/api/v2/resource/counter/c1/watch") as one,
        listening(site, "/api/v2/resource/asms%3A%2F%2Fcounter%2Fc1/watch") as other,
    ):
        assert [(await heard()).data for heard in (one, other)] == [{"total": 1}] * 2
        await site.ask("counter.add", counter_id="c1", amount=2)
        assert [(await heard()).data for heard in (one, other)] == [{"total": 3}] * 2
        await site.ask("counter.drop", counter_id="c1")
        assert [(await heard()).data for heard in (one, other)] == [None] * 2
        await site.ask("counter.add", counter_id="c1", amount=9)
        assert (await one()).data == {"total": 9}


async def test_what_is_not_there_yet_can_be_watched(site: Site) -> None:
    async with listening(site, "/api/v2/resource/counter/later/watch") as next_event:
        await until(lambda: _watchers(site, 1))
        await site.ask("counter.add", counter_id="later", amount=5)
        assert (await next_event()).data == {"total": 5}
    await until(lambda: _watchers(site, 0))


async def test_a_key_reads_and_watches_what_it_reaches(locked: Site) -> None:
    await locked.ask("counter.add", counter_id="c1")
    parcels = await locked.key("parcels", "parcel:medium")
    for path in ("resource/counter/c1", "resource/counter/c1/watch"):
        refused = await locked.get(f"/api/v2/{path}", headers=parcels)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "FORBIDDEN")
    listed = (await locked.get("/api/v2/resources", headers=parcels)).json()
    assert [resource["domain"] for resource in listed["resources"]] == ["parcel"]


# --- watching, for whatever door --------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _watching(site: Site) -> Any:
    """Give what the doors watch through, on a connection of its own."""
    nc: Nats = await connect(site.nats.url, "watching")
    watching = Watching(nc)
    task = asyncio.create_task(watching.run())
    try:
        yield watching
    finally:
        await end([task])
        await nc.close()


async def _first(watching: Watching, uri: str) -> Any:
    """Begin to watch; return the changes and the first of them."""

    async def begun() -> Any:
        changes = watching.changes(uri)
        try:
            return changes, await anext(changes)
        except Unavailable:
            return None

    return await until(begun)


async def test_a_watcher_that_reads_slowly_gets_the_newest(site: Site) -> None:
    await site.ask("counter.add", counter_id="c1")
    async with _watching(site) as watching:
        changes, first = await _first(watching, "asms://counter/c1")
        assert first == b'{"total":1}'
        for _ in range(20):
            await site.ask("counter.add", counter_id="c1")
        await until(lambda: _value(site, b'{"total":21}'))
        quick, newest = await _first(watching, "asms://counter/c1")
        while newest != b'{"total":21}':
            newest = await anext(quick)
        assert await anext(changes) == b'{"total":21}'
        await changes.aclose()
        await quick.aclose()


async def test_a_bus_that_was_away_and_a_bucket_made_anew_leave_nothing_out(site: Site) -> None:
    await site.ask("counter.add", counter_id="c1")
    async with _watching(site) as watching:
        changes, _ = await _first(watching, "asms://counter/c1")
        await asyncio.to_thread(site.nats.stop)
        site.nats.launch()
        await until(lambda: _adds(site))
        total = (await site.ask("counter.get", counter_id="c1"))["total"]
        while await anext(changes) != b'{"total":%d}' % total:
            pass
        await site.client.nc.jetstream().delete_key_value("aima-resources")
        await until(lambda: _adds(site))
        total = (await site.ask("counter.get", counter_id="c1"))["total"]
        while await anext(changes) != b'{"total":%d}' % total:
            pass
        await changes.aclose()


async def test_closing_ends_all_watching(site: Site) -> None:
    await site.ask("counter.add", counter_id="c1")
    async with _watching(site) as watching:
        changes, _ = await _first(watching, "asms://counter/c1")
        waiting = asyncio.create_task(anext(changes, None))
        await asyncio.sleep(0)
        watching.close()
        assert await waiting is None


async def _adds(site: Site) -> bool:
    return (await site.post("/api/v2/counters/c1/add", {})).status_code == 200


async def _stands(site: Site, key: str) -> bool:
    bucket = await site.client.nc.jetstream().key_value("aima-resources")
    try:
        return key in await bucket.keys()
    except NoKeysError:  # the bucket is still empty
        return False


async def _value(site: Site, value: bytes) -> bool:
    bucket = await site.client.nc.jetstream().key_value("aima-resources")
    return bool((await bucket.get("counter.c1")).value == value)


async def _watchers(site: Site, count: int) -> bool:
    return f'aima_http_streams{{kind="resource"}} {count}.0' in (await site.get("/metrics")).text
