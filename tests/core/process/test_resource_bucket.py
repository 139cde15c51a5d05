import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from nats.js.errors import KeyNotFoundError, NotFoundError

from aima_core.bus.nats_server import NatsServer
from aima_core.testing import until
from aima_core.units import Resource
from tests.core.conftest import Bare, talking
from tests.core.toy import COUNTER, Get

BUCKET = "aima-resources"


async def value(bare: Bare, key: str) -> Any:
    """Return what stands under a key; None when nothing does."""
    try:
        bucket = await bare.nc.jetstream().key_value(BUCKET)
        return json.loads((await bucket.get(key)).value or b"null")
    except (NotFoundError, KeyNotFoundError):
        return None


async def until_stands(bare: Bare, key: str, expected: Any) -> None:
    async def stands() -> bool:
        return bool(await value(bare, key) == expected)

    await until(stands)


async def test_a_resource_is_read_by_its_address(tmp_path: Path, nats: NatsServer) -> None:
    async with talking(tmp_path, nats) as bare:
        await bare.ask("counter.add", counter_id="c1", amount=5)
        reply = await bare.ask("counter.read", uri="asms://counter/c1")
        assert reply["data"] == {"uri": "asms://counter/c1", "data": {"total": 5}}


async def test_an_address_at_which_nothing_stands_is_not_found(tmp_path: Path, nats: NatsServer) -> None:
    async with talking(tmp_path, nats) as bare:
        reply = await bare.ask("counter.read", uri="asms://counter/none")
        assert (reply["error"]["code"], reply["error"]["details"]) == ("NOT_FOUND", {"reason": "COUNTER_NOT_FOUND"})
        for uri in (
            "asms://engine/c1",
            "asms://counter/",
            "asms://counter",
            "asms://counter/a/b",
            "",
            "x",
            "file:///etc",
        ):
            reply = await bare.ask("counter.read", uri=uri)
            assert reply["error"]["code"] == "NOT_FOUND"
            assert reply["error"]["details"] == {"uri": uri}
            assert "asms://counter/{id}" in reply["error"]["message"]


async def test_an_event_that_touches_an_address_renews_its_key(tmp_path: Path, nats: NatsServer) -> None:
    async with talking(tmp_path, nats) as bare:
        for total in (1, 2, 3):
            await bare.ask("counter.add", counter_id="c1")
            await until_stands(bare, "counter.c1", {"total": total})
        assert await value(bare, "counter.c2") is None


async def test_a_watcher_sees_the_last_of_many_changes(tmp_path: Path, nats: NatsServer) -> None:
    async with talking(tmp_path, nats) as bare:
        await asyncio.gather(*[bare.ask("counter.add", counter_id="c1") for _ in range(300)])
        await until_stands(bare, "counter.c1", {"total": 300})


async def test_a_key_goes_when_its_resource_does(tmp_path: Path, nats: NatsServer) -> None:
    async with talking(tmp_path, nats) as bare:
        await bare.ask("counter.add", counter_id="c1")
        await until_stands(bare, "counter.c1", {"total": 1})
        await bare.ask("counter.drop", counter_id="c1")
        await until_stands(bare, "counter.c1", None)


async def test_a_bucket_that_is_gone_is_made_anew_when_the_process_starts(tmp_path: Path, nats: NatsServer) -> None:
    async with talking(tmp_path, nats) as bare:
        for name in ("c1", "c2", "c3"):
            await bare.ask("counter.add", counter_id=name)
            await until_stands(bare, f"counter.{name}", {"total": 1})
        await bare.nc.jetstream().delete_key_value(BUCKET)
    async with talking(tmp_path, nats) as bare:
        for name in ("c1", "c2", "c3"):
            await until_stands(bare, f"counter.{name}", {"total": 1})


async def test_what_changed_unseen_is_put_right_when_the_process_starts(tmp_path: Path, nats: NatsServer) -> None:
    async with talking(tmp_path, nats) as bare:
        for name in ("c1", "c2"):
            await bare.ask("counter.add", counter_id=name)
            await until_stands(bare, f"counter.{name}", {"total": 1})
        await bare.ask("counter.drop", counter_id="c2")
        await until_stands(bare, "counter.c2", None)
        bucket = await bare.nc.jetstream().key_value(BUCKET)
    async with talking(tmp_path / "elsewhere", nats) as bare:  # as if the process had died before it could write
        bucket = await bare.nc.jetstream().key_value(BUCKET)
        await bucket.put("counter.c1", b'{"total":99}')
        await bucket.put("counter.c2", b'{"total":1}')
    async with talking(tmp_path, nats) as bare:
        await until_stands(bare, "counter.c1", {"total": 1})
        await until_stands(bare, "counter.c2", None)


async def test_no_id_keeps_the_other_keys_from_being_written(tmp_path: Path, nats: NatsServer) -> None:
    async with talking(tmp_path, nats) as bare:
        late = {"Aima-Timeout": "0.05"}
        for ident in ("a b", "", "ü", "x" * 10_000, "a.b", "*", ">"):
            await bare.ask("counter.grow", late, counter_id=ident)
        await bare.ask("counter.add", counter_id="c1")
        await until_stands(bare, "counter.c1", {"total": 1})
        await until_stands(bare, "counter.a_b", {"total": 0})


async def test_a_bug_in_reading_one_address_leaves_the_others_alone(
    tmp_path: Path, nats: NatsServer, caplog: Any
) -> None:
    def query(ident: str | None) -> Get:
        if ident == "bad":
            raise ZeroDivisionError
        return Get(counter_id=ident or "")

    resource = Resource(uri="asms://counter/{id}", about="", query=query, touched=lambda event: [event.counter_id])
    async with talking(tmp_path, nats, replace(COUNTER, resources=(resource,))) as bare:
        for ident in ("bad", "c1"):
            await bare.ask("counter.add", counter_id=ident)
        await until_stands(bare, "counter.c1", {"total": 1})
        assert [record.message for record in caplog.records].count("copying a resource failed unexpectedly") == 1


async def test_a_domain_without_resources_is_served(tmp_path: Path, nats: NatsServer, caplog: Any) -> None:
    async with talking(tmp_path, nats, replace(COUNTER, resources=())) as bare:
        await bare.ask("counter.add", counter_id="c1")
        assert (await bare.ask("counter.read", uri="asms://counter/c1"))["error"]["code"] == "NOT_FOUND"
        assert "background work failed unexpectedly; restarting" not in [record.message for record in caplog.records]
