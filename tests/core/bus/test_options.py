"""No option of a call is ignored: a misspelt, doubled, empty or unsupported one is refused, and nothing is executed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aima_core.bus.call_options import looks_like_option
from aima_core.bus.nats_server import NatsServer
from tests.core.bus.test_endpoints import ADD, hpub, inboxed
from tests.core.conftest import Bare, talking

# spellings by the header that the message of the refusal must name
MISSPELT = {
    "Aima-Dry-Run": [
        *("Aima-Dryrun", "Dry-Run", "dryrun", "dry_run", "DRY-RUN", "X-Aima-Dry-Run", "x-dry-run", "Aima_Dry_Run"),
        *("aima-dry-run-", "Amia-Dry-Run", "Dry-Rnu", "Aima-Dry", "dryRun", "Aima-DryRun-Mode", "Dry"),
    ],
    "Aima-Expected-Version": [
        *("Expected-Version", "expected_version", "Aima-Expect-Version", "X-Aima-Expected-Version", "expectedVersion"),
        *("Aima-Expected-Versoin", "Expcted-Version", "Aima-Version-Expected", "Aima-ExpectedVersion", "Aima-Expect"),
    ],
    "Aima-Idempotency-Key": [
        *("idempotency_key", "X-Idempotency-Key", "Aima-Idempotency", "Aima-Idempotent-Key"),
        *("Idempotancy-Key", "Aima-Idempotencykey", "IdempotencyKey"),
    ],
    "Aima-Timeout": ["Timeout", "timeout", "X-Timeout", "Aima-Time-Out", "aima_timeout", "Aima-Timeuot", "Deadline"],
    "Aima-Principal": ["Principal", "principal", "X-Principal", "Aima-Principle", "aima_principal", "Ama-Principal"],
}
CASES = [(name, header) for header, names in MISSPELT.items() for name in names]
FOREIGN = [
    *(
        "Accept",
        "Content-Length",
        "Date",
        "Expect",
        "Nats-Msg-Id",
        "Nats-Expected-Stream",
        "Request-Timeout",
        "tracestate",
    ),
    *("X-Api-Key", "X-Forwarded-For", "X-Stainless-Timeout", "Sec-Fetch-Mode", "grpc-timeout", "Anthropic-Version"),
]


@pytest.fixture
async def bare(tmp_path: Path, shared_nats: NatsServer) -> AsyncIterator[Bare]:
    async with talking(tmp_path, shared_nats) as bus:
        yield bus


async def refused(bare: Bare, headers: dict[str, str], unit: str = "counter.add", payload: bytes = ADD) -> Any:
    """Return the error of a refused request. Nothing was recorded."""
    reply = await bare.raw(unit, payload, headers)
    assert (reply["success"], reply.get("error", {}).get("code")) == (False, "INVALID_REQUEST"), (headers, reply)
    assert await bare.events() == [], headers
    return reply["error"]


async def test_every_misspelt_option_is_refused_with_the_option_that_was_meant(bare: Bare) -> None:
    for name, header in CASES:
        error = await refused(bare, {name: "true"})
        assert (error["details"]["reason"], error["details"]["option"]) == ("UNKNOWN_OPTION", name)
        assert f"did you mean {header}?" in error["message"]


async def test_options_of_other_releases_are_refused(bare: Bare) -> None:
    for name in ("Aima-Plan", "Aima-As-Of", "Aima-Anything"):
        assert (await refused(bare, {name: "x"}))["details"]["option"] == name


async def test_a_header_of_another_system_is_ignored(bare: Bare) -> None:
    assert (await bare.raw("counter.add", ADD, dict.fromkeys(FOREIGN, "true")))["data"] == {"total": 5}


@pytest.mark.parametrize("change", [str.lower, str.upper, str.swapcase])
async def test_the_names_of_options_have_no_case(bare: Bare, change: Any) -> None:
    planned = await bare.raw("counter.add", ADD, {change("Aima-Dry-Run"): "true"})
    assert [event["type"] for event in planned["data"]["events"]] == ["counter.added"]
    assert (await refusal(bare, change("Aima-Expected-Version"), "7"))["code"] == "CONFLICT"
    assert (await refusal(bare, change("Aima-Timeout"), "soon"))["details"]["header"] == "Aima-Timeout"
    assert await bare.events() == []
    for _ in range(2):
        named = {change("Aima-Idempotency-Key"): "k", change("Aima-Principal"): "ann"}
        assert (await bare.raw("counter.add", ADD, named))["data"] == {"total": 5}
    assert [event["principal"] for event in await bare.events()] == ["ann"]
    packed = await bare.raw("counter.get", b"\x81\xaacounter_id\xa2c1", {change("Content-Type"): "application/msgpack"})
    assert packed["data"] == {"total": 5}


async def refusal(bare: Bare, name: str, value: str) -> Any:
    return (await bare.raw("counter.add", ADD, {name: value}))["error"]


@pytest.mark.parametrize("name", ["Timeout", "Idempotency-Key", "Dry-Run", "Expected-Version", "Principal", "Parts"])
async def test_an_option_without_a_value_is_refused(bare: Bare, name: str) -> None:
    error = await refused(bare, {f"Aima-{name}": ""})
    assert error["details"] == {"header": f"Aima-{name}"}


@pytest.mark.parametrize(
    ("first", "second"),
    [("Aima-Dry-Run: true", "Aima-Dry-Run: false"), ("aima-dry-run: true", "Aima-Dry-Run: false")]
    + [
        (f"Aima-{name}: 1", f"AIMA-{name}: 2")
        for name in ("Expected-Version", "Idempotency-Key", "Timeout", "Principal")
    ],
)
async def test_an_option_with_two_values_is_refused(
    bare: Bare, shared_nats: NatsServer, first: str, second: str
) -> None:
    for lines in ((first, second), (second, first)):
        inbox, replies = await inboxed(bare)
        header = "\r\n".join(["NATS/1.0", *lines, "", ""]).encode()
        await asyncio.to_thread(hpub, shared_nats, header, ADD, inbox.encode())
        reply = json.loads((await replies.next_msg(timeout=5)).data)
        assert reply["error"]["code"] == "INVALID_REQUEST"
        assert await bare.events() == []


async def test_an_option_twice_with_one_value_is_one_option(bare: Bare, shared_nats: NatsServer) -> None:
    inbox, replies = await inboxed(bare)
    header = b"NATS/1.0\r\nAima-Dry-Run: true\r\naima-dry-run: true\r\nFoo: 1\r\nFoo: 2\r\n\r\n"
    await asyncio.to_thread(hpub, shared_nats, header, ADD, inbox.encode())
    reply = json.loads((await replies.next_msg(timeout=5)).data)
    assert [event["type"] for event in reply["data"]["events"]] == ["counter.added"]
    assert await bare.events() == []


@pytest.mark.parametrize("name", ["Aima-Seq", "aima-final", "Aima-Malformed"])
async def test_headers_that_only_aima_sends_are_refused(bare: Bare, name: str) -> None:
    assert (await refused(bare, {name: "true"}))["details"]["reason"] in ("UNKNOWN_OPTION", "NOT_DECODABLE")


async def test_an_idempotency_key_of_a_query_is_refused(bare: Bare) -> None:
    error = await refused(bare, {"Aima-Idempotency-Key": "k"}, "counter.log", b"{}")
    assert error["details"] == {"reason": "NOT_HONOURED", "option": "Aima-Idempotency-Key", "unit": "counter.log"}


@pytest.mark.parametrize("name", ["aima-dryrun", "Dry-Run", "Aima-Batch"])
async def test_the_requests_of_a_batch_follow_the_same_rules(bare: Bare, name: str) -> None:
    item = {"data": {"counter_id": "c1"}, "headers": {name: "true"}}
    (reply,) = await bare.raw("counter.add", json.dumps([item]).encode(), {"aima-batch": "true"})
    assert (reply["success"], reply["error"]["code"]) == (False, "INVALID_REQUEST")
    assert await bare.events() == []
    error = await refused(bare, {"AIMA-BATCH": "true", "dry_run": "true"}, payload=b"[]")
    assert "did you mean Aima-Dry-Run?" in error["message"]


async def test_each_principal_has_its_own_idempotency_keys(bare: Bare) -> None:
    totals = []
    for principal in ("ann", "bob", "", "ann", "bob", ""):
        headers = {"Aima-Idempotency-Key": "k"} | ({"Aima-Principal": principal} if principal else {})
        totals.append((await bare.raw("counter.add", ADD, headers))["data"]["total"])
    assert totals == [5, 10, 15, 5, 10, 15]
    other = {"Aima-Idempotency-Key": "k", "Aima-Principal": "ann"}
    reply = await bare.raw("counter.add", b'{"counter_id":"c1","amount":6}', other)
    assert reply["error"]["details"] == {"reason": "KEY_REUSED", "key": "k"}


@given(st.sampled_from([name for name, _ in CASES]), st.sampled_from(["", "X-", "x_"]), st.booleans())
def test_case_and_prefixes_do_not_hide_an_option(name: str, prefix: str, upper: bool) -> None:
    assert looks_like_option(prefix + (name.upper() if upper else name))


@given(st.text(max_size=300))
def test_any_text_can_be_checked(name: str) -> None:
    assert looks_like_option(f"Aima-{name}")
    assert looks_like_option(name) in (True, False)
