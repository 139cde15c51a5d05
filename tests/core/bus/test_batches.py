"""Several requests in one message: each is served as if it had come alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats as nats_py
import pytest
from nats.aio.msg import Msg

from aima_core.bus.batches import Batcher
from aima_core.bus.client import Client
from aima_core.bus.nats_server import NatsServer
from aima_core.errors import AimaError, Conflict, Unavailable, UnitNotFound, ValidationFailed
from aima_core.testing import until
from tests.core.conftest import Bare, talking

BATCH = {"Aima-Batch": "true"}


@pytest.fixture
async def bare(tmp_path: Path, shared_nats: NatsServer) -> AsyncIterator[Bare]:
    async with talking(tmp_path, shared_nats) as found:
        yield found


def add(counter: str, amount: Any = 1, **headers: str) -> dict[str, Any]:
    named = {f"Aima-{name.replace('_', '-').title()}": value for name, value in headers.items()}
    return {"data": {"counter_id": counter, "amount": amount}, "headers": named}


async def batch(bare: Bare, unit: str, *items: Any) -> Any:
    return await bare.raw(unit, json.dumps(items).encode(), BATCH)


# --- the message --------------------------------------------------------------------------------------------------


async def test_each_request_of_a_batch_is_answered_in_its_place(bare: Bare) -> None:
    replies = await batch(bare, "counter.add", add("a", 1), add("b", 2), add("a", 3), add("A"), add("b", "x"), {})
    assert [reply["success"] for reply in replies] == [True, True, True, False, False, False]
    assert [reply["data"]["total"] for reply in replies[:3]] == [4, 2, 4]  # committed together
    assert {reply["error"]["code"] for reply in replies[3:]} == {"VALIDATION_ERROR"}
    assert [await bare.total(counter) for counter in ("a", "b")] == [4, 2]


async def test_each_request_of_a_batch_has_headers_of_its_own(bare: Bare) -> None:
    first, again, planned, late = await batch(
        bare,
        "counter.add",
        add("a", 5, principal="ann", idempotency_key="k", request_id="r1"),
        add("a", 5, principal="ann", idempotency_key="k"),
        add("b", 5, dry_run="true"),
        add("c", 5, timeout="-1"),
    )
    assert (first["meta"]["request_id"], first["data"]) == ("r1", again["data"])
    assert [event["type"] for event in planned["data"]["events"]] == ["counter.added"]
    assert late["error"]["code"] == "INVALID_REQUEST"
    assert [(event["principal"], event["request_id"]) for event in await bare.events()] == [("ann", "r1")]


async def test_there_are_no_parts_in_a_batch(bare: Bare) -> None:
    (reply,) = await batch(bare, "counter.hum", {"data": {"stream": True}, "headers": {"Aima-Parts": "true"}})
    assert reply["success"]
    assert await batch(bare, "counter.hum") == []


async def test_a_request_of_a_batch_cannot_say_where_its_parts_go(bare: Bare) -> None:
    heard = await bare.nc.subscribe("aima.victim.>")
    item = {"data": {"stream": True}, "reply": "aima.victim.delete"}
    reply = await batch(bare, "counter.hum", item)
    assert reply["error"]["details"]["reason"] == "NOT_DECODABLE"
    await bare.nc.flush()
    assert heard.pending_msgs == 0


@pytest.mark.parametrize("name", ["Dry-Run", "Principal", "Idempotency-Key", "Parts", "Expected-Version"])
async def test_headers_of_requests_are_not_those_of_the_batch(bare: Bare, name: str) -> None:
    reply = await bare.raw("counter.add", json.dumps([add("a")]).encode(), BATCH | {f"Aima-{name}": "true"})
    assert reply["error"]["details"] == {"reason": "HEADER_OF_ITEMS", "header": f"Aima-{name}"}
    assert await bare.total("a") == 0


async def test_what_is_said_to_be_no_batch_is_none(bare: Bare) -> None:
    one = json.dumps({"counter_id": "a"}).encode()
    assert (await bare.raw("counter.add", one, {"Aima-Batch": "false"}))["success"]
    assert (await bare.raw("counter.add", one, {"Aima-Batch": "maybe"}))["error"]["code"] == "INVALID_REQUEST"
    assert (await bare.raw("counter.get", b"[]", BATCH))["error"]["details"]["reason"] == "NO_BATCHES"


async def test_each_request_of_a_batch_counts(bare: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aima_core.bus.endpoints._MOST_AT_ONCE", 4)
    reply = await batch(bare, "counter.add", *[add("a")] * 4)
    assert reply["error"]["code"] == "RATE_LIMITED"
    assert len(await batch(bare, "counter.add", *[add("a")] * 3)) == 3


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "NOT_DECODABLE"),
        (b"{}", "NOT_DECODABLE"),
        (b"[1]", "NOT_DECODABLE"),
        (b'[{"headers": {"a": 1}}]', "NOT_DECODABLE"),
        (b"[" * 100_000, "NOT_DECODABLE"),
        (json.dumps([{}] * 257).encode(), "TOO_MANY_ITEMS"),
    ],
)
async def test_what_is_no_batch_is_refused_as_a_whole(bare: Bare, payload: bytes, reason: str) -> None:
    reply = await bare.raw("counter.add", payload, BATCH)
    assert (reply["error"]["code"], reply["error"]["details"]["reason"]) == ("INVALID_REQUEST", reason)


async def test_input_of_an_item_that_is_no_object_is_refused_alone(bare: Bare) -> None:
    well, *others = await batch(bare, "counter.add", add("a"), {"data": 1}, {"data": None}, {"data": []})
    assert well["success"]
    assert {reply["error"]["code"] for reply in others} == {"INVALID_REQUEST"}


async def test_those_that_still_wait_when_the_process_ends_are_told_so_each(
    tmp_path: Path, shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aima_core.process.domain_process._DRAIN", 0.05)
    nc = await nats_py.connect(shared_nats.url)
    async with talking(tmp_path, shared_nats) as bare:
        items = json.dumps([{"data": {"counter_id": name}} for name in ("a", "b")]).encode()
        message = asyncio.create_task(nc.request("aima.counter.grow", items, 10, headers=BATCH))

        async def under_way() -> bool:
            return len(await bare.events()) == 2

        await until(under_way)
    replies = json.loads((await message).data)
    assert [reply["error"]["details"]["reason"] for reply in replies] == ["STOPPING"] * 2
    await nc.close()


# --- who asks -----------------------------------------------------------------------------------------------------


async def messages(bare: Bare) -> list[Msg]:
    """Return what from now on is asked of the counters, as it comes."""
    heard: list[Msg] = []

    async def hear(message: Msg) -> None:
        heard.append(message)

    await bare.nc.subscribe("aima.counter.add", cb=hear)
    await bare.nc.flush()
    return heard


async def asked(together: Batcher, *counters: str, amount: int = 1) -> list[Any]:
    """Ask for all of them at once; return totals and errors."""
    asks = [together.ask({"counter_id": name, "amount": amount}, {"Aima-Principal": name}) for name in counters]
    answers = await asyncio.gather(*asks, return_exceptions=True)
    return [answer if isinstance(answer, BaseException) else answer.data["total"] for answer in answers]


async def test_what_is_asked_at_the_same_moment_goes_in_one_message(bare: Bare) -> None:
    heard, together = await messages(bare), Batcher(Client(bare.nc), "counter.add", timeout=10)
    totals = await asked(together, "a", "b", "NONE", "a")
    assert (totals[0], totals[1], totals[3]) == (2, 1, 2)
    assert isinstance(totals[2], ValidationFailed)
    assert [event["principal"] for event in await bare.events()] == ["a", "b", "a"]
    assert await asked(together, "a") == [3]
    await until(lambda: len(heard) == 2)
    assert all("Aima-Batch" in (message.headers or {}) for message in heard)
    assert max(await asked(together, *["c"] * 600)) == 600
    await until(lambda: len(heard) == 5)


async def test_what_need_not_go_at_once_waits_for_others_or_until_it_is_sent(bare: Bare) -> None:
    heard, patient = await messages(bare), Batcher(Client(bare.nc), "counter.add", timeout=10, wait=60)
    first = asyncio.create_task(asked(patient, "a"))
    await bare.ask("counter.get", counter_id="a")
    second = asyncio.create_task(asked(patient, "a"))
    await bare.ask("counter.get", counter_id="a")
    assert (first.done(), second.done(), heard) == (False, False, [])
    patient.send()
    assert [await first, await second] == [[2], [2]]
    patient.send()  # nothing waits
    quick = Batcher(Client(bare.nc), "counter.add", timeout=10, wait=0.01)
    assert await asked(quick, "a", "b") == [3, 1]
    assert len(heard) == 2


async def test_what_goes_ahead_is_decided_first(bare: Bare) -> None:
    first = Batcher(Client(bare.nc), "counter.add", timeout=10, wait=60)
    second = Batcher(Client(bare.nc), "counter.add", timeout=10, ahead=first)
    for sizes in ((1, 1), (5, 1), (1, 5), (9, 2)) * 5:
        names = [[f"{letter}{number}" for number in range(size)] for letter, size in zip("ab", sizes, strict=True)]
        before = len(await bare.events())
        asking = asyncio.create_task(asked(first, *names[0]))
        await bare.ask("counter.get", counter_id="a0")  # by then all of the first wait to be sent
        await asyncio.gather(asking, asked(second, *names[1]))
        told = [event["stream"].removeprefix("counter/") for event in (await bare.events())[before:]]
        assert told == [*names[0], *names[1]]


async def test_who_gives_up_leaves_the_others_their_answers(bare: Bare) -> None:
    together = Batcher(Client(bare.nc), "counter.add", timeout=10, wait=60)
    asking = [asyncio.create_task(asked(together, name)) for name in ("a", "b", "c")]
    await bare.ask("counter.get", counter_id="a")  # by then all three wait to be sent
    asking[1].cancel()
    together.send()
    assert (await asking[0], await asking[2]) == ([1], [1])
    assert asking[1].cancelled()
    assert await bare.total("b") == 1  # it was asked for, and is done; only nobody hears of it


async def test_what_refuses_the_message_refuses_all_of_it(bare: Bare) -> None:
    for unit, error in (("counter.none", UnitNotFound), ("nobody.add", Unavailable)):
        answers = await asked(Batcher(Client(bare.nc), unit, timeout=10), "a", "b")
        assert [type(answer) for answer in answers] == [error] * 2


async def test_an_answer_that_is_none_is_an_error_for_all(bare: Bare) -> None:
    conflict = b'{"success":false,"error":{"code":"CONFLICT","message":"no"}}'
    odd_details = b'[{"success":false,"error":{"details":[1]}},1]'
    for answer in (b"[]", b"[", b"[null,1]", b"\xff", b'["\xff",{}]', b"[" * 100_000, odd_details, conflict, b"x"):

        async def odd(message: Msg, answer: bytes = answer) -> None:
            await message.respond(answer)

        subscription = await bare.nc.subscribe("aima.odd.unit", cb=odd)
        found = await asked(Batcher(Client(bare.nc), "odd.unit", timeout=10), "a", "b")
        assert all(isinstance(each, AimaError) for each in found)
        assert found[0] is not found[1]
        assert all(isinstance(each, Conflict) for each in found) is (b"CONFLICT" in answer)
        await subscription.unsubscribe()
