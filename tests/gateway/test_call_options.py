"""A misspelt option of a call is refused at every door, and nothing is executed."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

from aima_core.bus import call_options
from aima_core.errors import AimaError, InvalidRequest
from tests.gateway.conftest import Site
from tests.gateway.mcp.fixtures import Doors

ADD = {"counter_id": "c1", "amount": 1}
# spellings of the options; each is the name of a header or a field, with a value that would be valid
MISSPELT = {
    "Aima-Dryrun": "true",
    "aima_dry_run": "true",
    "Dry-Run": "true",
    "dry_run": "true",
    "DryRun": "true",
    "X-Aima-Dry-Run": "true",
    "Dry-Runn": "true",
    "Aima-Expect-Version": "7",
    "Expected-Version": "7",
    "expected_version": "7",
    "Idempotent-Key": "k",
    "Aima-Idempotency": "k",
    "idempotencyKey": "k",
    "Aima-Timeouts": "1",
    "Aima-As-Of": "2020-01-01T00:00:00Z",
    "Aima-Plan": "p",
}
ONLY_ON_THE_BUS = {"Timeout": "1", "timeout": "1", "Principal": "bob", "X-Principal": "bob"}


@pytest.fixture
def found(site: Site) -> Doors:
    """The gateway that tests share."""
    return Doors(site.url, site.nats.url, site.client, site.folder)


async def on_the_bus(found: Doors, name: str, value: str) -> str:
    try:
        await found.bus.ask("counter.add", ADD, timeout=10, headers={name: value})
    except AimaError as error:
        return error.reason
    return "done"


async def over_http(found: Doors, name: str, value: str) -> str:
    return _reason(await _post(found, "/api/v2/execute", {"unit": "counter.add", "input": ADD}, {name: value}))


async def over_rest(found: Doors, name: str, value: str) -> str:
    return _reason(await _post(found, "/api/v2/counters/c1/add", {"amount": 1}, {name: value}))


async def beside_the_input(found: Doors, name: str, value: str) -> str:
    return _reason(await _post(found, "/api/v2/execute", {"unit": "counter.add", "input": ADD, name: value}))


async def among_the_options(found: Doors, name: str, value: str) -> str:
    body = {"unit": "counter.add", "input": ADD, "options": {name: value}}
    return _reason(await _post(found, "/api/v2/execute", body))


async def in_the_query_string(found: Doors, name: str, value: str) -> str:
    return _reason(await _post(found, f"/api/v2/counters/c1/add?{name}={value}", {"amount": 1}))


async def in_meta(found: Doors, name: str, value: str) -> str:
    return await _tool(found, ADD, {name: value})


async def in_meta_aima(found: Doors, name: str, value: str) -> str:
    return await _tool(found, ADD, {"aima": {name: value}})


async def in_arguments(found: Doors, name: str, value: str) -> str:
    return await _tool(found, {**ADD, name: value})


async def in_the_options_argument(found: Doors, name: str, value: str) -> str:
    return await _tool(found, {**ADD, "_aima": {name: value}})


Door = Callable[[Doors, str, str], Awaitable[str]]
HEADERS: tuple[Door, ...] = (on_the_bus, over_http, over_rest)
FIELDS: tuple[Door, ...] = (beside_the_input, among_the_options, in_the_query_string, in_meta_aima, in_arguments)
NAMES_OF_BODY_OPTIONS = {"dry_run", "expected_version"}  # valid in these places


def _reason(envelope: dict[str, Any]) -> str:
    if envelope.get("success", "error" not in envelope):
        return "done"
    error = envelope["error"]
    return str(error["details"].get("reason", error["code"]))


async def _post(found: Doors, path: str, body: Any, headers: dict[str, str] | None = None) -> dict[str, Any]:
    async with httpx2.AsyncClient() as http:
        reply = await http.post(f"{found.url}{path}", json=body, headers=headers or {})
    answer: dict[str, Any] = reply.json()
    return answer


async def _tool(found: Doors, arguments: dict[str, Any], meta: dict[str, Any] | None = None) -> str:
    async with found.mcp() as mcp:
        result = await mcp.call_tool("counter_add", arguments, meta=meta)
    if not result.is_error:
        return "done"
    error = json.loads(result.content[0].text)
    return str(error["details"].get("reason", error["code"]))


async def _events(found: Doors) -> int:
    return int((await found.bus.ask("counter.log", {}, timeout=10)).data["position"])


@pytest.mark.parametrize("door", HEADERS, ids=lambda door: door.__name__)
async def test_a_header_that_looks_like_an_option_is_refused(found: Doors, door: Door) -> None:
    before = await _events(found)
    names = MISSPELT | (ONLY_ON_THE_BUS if door is on_the_bus else {})
    assert {name: await door(found, name, value) for name, value in names.items()} == dict.fromkeys(
        names, "UNKNOWN_OPTION"
    )
    assert await _events(found) == before


@pytest.mark.parametrize("door", [*FIELDS, in_meta, in_the_options_argument], ids=lambda door: door.__name__)
async def test_a_field_that_looks_like_an_option_is_refused(found: Doors, door: Door) -> None:
    before = await _events(found)
    valid = NAMES_OF_BODY_OPTIONS if door in (among_the_options, in_meta_aima, in_the_options_argument) else ()
    for name, value in MISSPELT.items():
        if name not in valid:
            assert await door(found, name, value) in ("UNKNOWN_OPTION", "VALIDATION_ERROR"), name
    assert await _events(found) == before


@pytest.mark.parametrize("door", HEADERS, ids=lambda door: door.__name__)
@pytest.mark.parametrize("name", ["aima-dry-run", "AIMA-DRY-RUN", "Aima-Dry-Run"])
async def test_the_names_of_options_have_no_case(found: Doors, door: Door, name: str) -> None:
    before = await _events(found)
    assert await door(found, name, "true") == "done"
    assert await _events(found) == before


async def test_a_dry_run_over_mcp_changes_nothing_however_it_is_requested(found: Doors) -> None:
    before = await _events(found)
    for arguments, meta in (
        ({**ADD, "_aima": {"dry_run": True}}, None),
        (ADD, {"aima": {"dry_run": True}}),
        (ADD, {"Aima-Dry-Run": "true"}),
        (ADD, {"aima-dry-run": "true"}),
    ):
        async with found.mcp() as mcp:
            result = await mcp.call_tool("counter_add", arguments, meta=meta)
        assert [event["type"] for event in result.structured_content["events"]] == ["counter.added"]
    assert await _tool(found, {**ADD, "_aima": {"expected_version": 99}}) == "VERSION_CONFLICT"
    assert await _events(found) == before


async def test_a_suggestion_names_the_option_in_its_place(found: Doors) -> None:
    with pytest.raises(InvalidRequest, match="did you mean Aima-Dry-Run"):
        await found.bus.ask("counter.add", ADD, timeout=10, headers={"Dryrun": "true"})
    async with found.mcp() as mcp:
        result = await mcp.call_tool("counter_add", {**ADD, "dry_run": True})
        assert "did you mean _aima.dry_run?" in result.content[0].text
        result = await mcp.call_tool("counter_add", ADD, meta={"dryRun": True})
        assert "did you mean _meta.aima.dry_run?" in result.content[0].text


async def test_an_option_that_is_set_twice_is_refused_unless_the_values_agree(found: Doors) -> None:
    twice = {"Aima-Timeout": "5", "aima-timeout": "5"}
    assert call_options.canonical(twice) == {"Aima-Timeout": "5"}
    with pytest.raises(InvalidRequest, match="set twice"):
        await found.bus.ask("counter.get", {"counter_id": "c1"}, timeout=5, headers={"aima-timeout": "9"})


@pytest.mark.parametrize(("unit", "data"), [("counter.get", {"counter_id": "c1"}), ("counter.hum", {})])
async def test_an_expected_version_of_a_unit_that_changes_no_stream_is_refused(
    found: Doors, unit: str, data: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await found.bus.ask(unit, data, timeout=5, headers={"Aima-Expected-Version": "0"})
    assert refused.value.reason == "NO_STREAM"


async def test_the_options_of_a_unit_are_published(found: Doors) -> None:
    async with httpx2.AsyncClient() as http:
        add = (await http.get(f"{found.url}/api/v2/schema/counter.add")).json()
        get = (await http.get(f"{found.url}/api/v2/schema/counter.get")).json()
    assert {"Aima-Dry-Run", "Aima-Expected-Version", "Aima-Idempotency-Key", "Aima-Timeout"} <= set(add["options"])
    assert {"Aima-Dry-Run", "Aima-Expected-Version"}.isdisjoint(get["options"])


NAMES = {
    "User-Agent": None,
    "X-Request-Id": None,
    "Nats-Msg-Id": None,
    "Priority": None,
    "Grpc-Timeout": None,
    "X-Stainless-Timeout": None,
    "If-Match": None,
    "idempotency-key": "Aima-Idempotency-Key",
    "TRACEPARENT": "traceparent",
}


@pytest.mark.parametrize(("name", "exact"), NAMES.items())
def test_the_headers_of_others_are_left_alone(name: str, exact: str | None) -> None:
    assert call_options.exact_name(name) == exact
