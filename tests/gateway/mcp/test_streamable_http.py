"""The Model Context Protocol over HTTP: the SDK's own client, a real gateway, real domains on a real bus."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import mcp_types as types
import pytest
from jsonschema import Draft202012Validator
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError

from aima_core.bus.nats_server import NatsServer
from aima_core.testing import serving, settings_for, until
from services.gateway.mcp.streamable_http import SESSIONS_EACH, STREAMS_EACH
from tests.core.toy import COUNTER, TALLY
from tests.gateway.conftest import Site, gateway
from tests.gateway.mcp.fixtures import MODERN, SESSIONS, Doors, bearer, doors, error_of, hearing, listed
from tests.toys.models import model_view, shelf

DOCUMENT = Path(__file__).parents[3] / "docs" / "mcp.md"
ERAS = pytest.mark.parametrize("mode", [MODERN, SESSIONS])
SECRET = "what nobody but the unit should know"
HEADERS = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-11-25"}
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}
LIST = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


async def begin(http: httpx2.AsyncClient) -> dict[str, str]:
    """Begin a session; return the header that names it."""
    begun = await http.post("/mcp", json=HELLO)
    assert begun.status_code == 200, begun.text
    return {"Mcp-Session-Id": begun.headers["mcp-session-id"]}


def too_many(reply: httpx2.Response) -> str:
    """Return why somebody is refused who has too much of something."""
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (429, "RATE_LIMITED")
    assert int(reply.headers["retry-after"]) == error["details"]["retry_after"]
    return str(error["details"]["reason"])


def planned(result: types.CallToolResult) -> list[str]:
    """Return the types of the events that a dry run says would be recorded."""
    assert result.structured_content, result
    assert json.loads(result.content[0].text) == result.structured_content  # type: ignore[union-attr]
    return [event["type"] for event in result.structured_content["events"]]


@pytest.fixture
def found(site: Site) -> Doors:
    """The gateway that tests share. What it remembers is of all of them."""
    return Doors(site.url, site.nats.url, site.client, site.folder)


# --- tools --------------------------------------------------------------------------------------------------------


@ERAS
async def test_every_unit_on_the_bus_is_a_tool_with_schemas(found: Doors, mode: str) -> None:
    async with found.mcp(mode) as mcp:
        tools = {tool.name: tool for tool in (await mcp.list_tools()).tools}
        units = {unit.spec.name: unit for unit in COUNTER.units}
        assert {name.replace(".", "_") for name in units} <= set(tools)
        assert {"counter_log", "counter_read", "gateway_identify"} <= set(tools)
        for tool in tools.values():
            Draft202012Validator.check_schema(tool.input_schema)
            Draft202012Validator.check_schema(tool.output_schema)
            assert tool.input_schema["type"] == tool.output_schema["type"] == "object"
            assert tool.description
            assert tool.title
        add = tools["counter_add"]
        assert add.title == "Counter: add"
        assert add.description.startswith("Add to a counter. It may not go beyond a million.")
        assert 'Example: {"counter_id": "c1", "amount": 2}' in add.description
        schema = units["counter.add"].model_json_schema()
        options = add.input_schema["properties"].pop("_aima")
        assert add.input_schema == schema
        assert set(options["properties"]) == {"dry_run", "expected_version", "idempotency_key", "timeout"}
        assert tools["counter_get"].input_schema == units["counter.get"].model_json_schema()


@ERAS
async def test_a_tool_answers_to_both_of_its_names_with_structure_and_text(tmp_path: Path, mode: str) -> None:
    async with doors(tmp_path, COUNTER) as found, found.mcp(mode) as mcp:
        await mcp.list_tools()  # so that the client holds answers against the schemas
        added = await mcp.call_tool("counter_add", {"counter_id": "c1", "amount": 3})
        assert added.structured_content == {"total": 3}
        assert json.loads(added.content[0].text) == {"total": 3}
        assert added.meta["aima"]["version"] == 1
        assert (await mcp.call_tool("counter.get", {"counter_id": "c1"})).structured_content == {"total": 3}
        assert (await mcp.call_tool("counter_log")).structured_content["position"] == 1


@pytest.mark.parametrize(
    ("unit", "data", "code"),
    [
        ("counter.get", {"counter_id": "none"}, "NOT_FOUND"),
        ("counter.add", {"counter_id": "BAD", "amount": 0, "more": 1}, "VALIDATION_ERROR"),
        ("counter.add_measured", {"counter_id": "c1"}, "NOT_FOUND"),
        ("counter.break", {"secret": SECRET}, "INTERNAL_ERROR"),
        ("gateway.create_key", {"name": "me"}, "UNAUTHORIZED"),
    ],
)
async def test_a_refusal_has_the_body_that_it_has_over_http(
    found: Doors, unit: str, data: dict[str, Any], code: str
) -> None:
    expected = await found.error_over_http(unit, data)
    for mode in (MODERN, SESSIONS):
        async with found.mcp(mode) as mcp:
            error = error_of(await mcp.call_tool(unit.replace(".", "_"), data))
            assert error == expected
            assert error["code"] == code
            assert SECRET not in json.dumps(error)


@pytest.mark.parametrize("note", [r'"\ud800"', "1" * 40, "[" * 300 + "]" * 300, "NaN"])
async def test_input_that_is_none_is_refused_as_a_mistake_of_the_client(found: Doors, note: str) -> None:
    params = {"name": "counter_add", "arguments": {"counter_id": "c1", "note": "HERE"}, "_meta": META}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).replace('"HERE"', note)
    headers = HEADERS | {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": "counter_add"}
    async with httpx2.AsyncClient() as http:
        reply = await http.post(
            f"{found.url}/mcp", content=body.encode(), headers=headers | {"Content-Type": "application/json"}
        )
        assert reply.status_code == 200, reply.text
        error = json.loads(reply.json()["result"]["content"][0]["text"])
        assert error["code"] in ("INVALID_REQUEST", "VALIDATION_ERROR")


@ERAS
async def test_an_unknown_tool_is_the_protocols_error_with_the_nearest_names(found: Doors, mode: str) -> None:
    async with found.mcp(mode) as mcp:
        with pytest.raises(MCPError, match="no tool counter_ad; did you mean counter_add") as refused:
            await mcp.call_tool("counter_ad", {"counter_id": "c1"})
        assert refused.value.code == types.INVALID_PARAMS
        assert refused.value.data["code"] == "UNIT_NOT_FOUND"
        assert "counter_add" in refused.value.data["details"]["near"]


@ERAS
async def test_parts_are_progress_to_who_asks_for_it(found: Doors, mode: str) -> None:
    seen, heard = hearing()
    async with found.mcp(mode, heard=heard) as mcp:
        told: list[tuple[float, float | None, str | None]] = []

        async def progress(*news: Any) -> None:
            told.append(news)

        hummed = await mcp.call_tool("counter_hum", {"times": 3}, progress_callback=progress)
        assert hummed.structured_content == {"success": True}
        assert [message for _, _, message in told] == ['{"hum": 0}', '{"hum": 1}', '{"hum": 2}']
        assert told == sorted(told)
        told.clear()
        seen.clear()
        await mcp.call_tool("counter_hum", {"times": 3})
        assert told == seen == []


@ERAS
async def test_a_call_that_the_client_gives_up_ends_at_the_unit(tmp_path: Path, mode: str) -> None:
    async with doors(tmp_path, COUNTER) as found, found.mcp(mode) as mcp:
        call = asyncio.create_task(mcp.call_tool("counter_hum", {"times": 100_000}))
        world = tmp_path / "counter" / "world"
        await until(lambda: world.exists() and "hum began" in world.read_text())
        call.cancel()
        await until(lambda: "hum cancelled" in world.read_text())
        assert (await mcp.call_tool("counter_add", {"counter_id": "c1"})).structured_content == {"total": 1}


async def test_a_call_whose_connection_drops_ends_at_the_unit_and_the_session_goes_on(tmp_path: Path) -> None:
    async with (
        doors(tmp_path, COUNTER) as found,
        httpx2.AsyncClient(base_url=found.url, headers=HEADERS, timeout=30) as http,
    ):
        session = await begin(http)
        call = LIST | {"method": "tools/call", "params": {"name": "counter_hum", "arguments": {"times": 100_000}}}
        world = tmp_path / "counter" / "world"
        async with http.stream("POST", "/mcp", json=call, headers=session) as answer:
            assert answer.status_code == 200
            await until(lambda: world.exists() and "hum began" in world.read_text())
        await until(lambda: "hum cancelled" in world.read_text())
        assert (await http.post("/mcp", json=LIST, headers=session)).status_code == 200


@ERAS
async def test_what_travels_beside_the_input_stands_in_meta(tmp_path: Path, mode: str) -> None:
    async with doors(tmp_path, COUNTER) as found, found.mcp(mode) as mcp:
        data = {"counter_id": "c1", "amount": 2}
        for _ in range(2):
            added = await mcp.call_tool("counter_add", data, meta={"Aima-Idempotency-Key": "once"})
            assert added.structured_content == {"total": 2}
        late = await mcp.call_tool("counter_add", data, meta={"Aima-Expected-Version": "7"})
        assert error_of(late)["details"]["reason"] == "VERSION_CONFLICT"
        wrong = await mcp.call_tool("counter_add", data, meta={"Aima-Timeout": "never"})
        assert error_of(wrong)["code"] == "INVALID_REQUEST"
        tried = await mcp.call_tool("counter_add", data, meta={"Aima-Dry-Run": "true"})
        assert planned(tried) == ["counter.added"]
        assert (await mcp.call_tool("counter_get", {"counter_id": "c1"})).structured_content == {"total": 2}


@ERAS
async def test_a_call_says_in_meta_how_it_is_to_be_asked(tmp_path: Path, mode: str) -> None:
    async with doors(tmp_path, COUNTER) as found, found.mcp(mode) as mcp:
        await mcp.list_tools()  # so that the client holds answers against the schemas
        add = partial(mcp.call_tool, "counter_add", {"counter_id": "c1", "amount": 2})
        assert planned(await add(meta={"aima": {"dry_run": True}})) == ["counter.added"]
        assert error_of(await mcp.call_tool("counter_get", {"counter_id": "c1"}))["code"] == "NOT_FOUND"
        for _ in range(2):
            added = await add(meta={"aima": {"idempotency_key": "once", "dry_run": False, "trace_id": "0af7" * 8}})
            assert added.structured_content == {"total": 2}
            assert added.meta["aima"]["trace_id"] == "0af7" * 8
        late = await add(meta={"aima": {"expected_version": 7}, "Aima-Expected-Version": "7"})
        assert error_of(late)["details"]["reason"] == "VERSION_CONFLICT"
        torn = await add(meta={"aima": {"expected_version": 7}, "Aima-Expected-Version": "1"})
        assert error_of(torn)["details"]["reason"] == "SET_TWICE"
        slow = await mcp.call_tool("counter_hum", {"times": 100_000}, meta={"aima": {"timeout": 0.2}})
        assert error_of(slow)["code"] == "TIMEOUT"
        assert (await mcp.call_tool("counter_get", {"counter_id": "c1"})).structured_content == {"total": 2}


async def test_the_idempotency_key_in_meta_of_one_key_is_not_that_of_another(tmp_path: Path) -> None:
    async with doors(tmp_path, COUNTER) as found:
        for number in (1, 2):
            async with found.mcp(key=await found.key(f"key{number}", "counter:medium")) as mcp:
                meta = {"aima": {"idempotency_key": "same"}}
                added = await mcp.call_tool("counter_add", {"counter_id": "c1", "amount": number}, meta=meta)
                assert added.structured_content == {"total": number * (number + 1) // 2}


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"dry-run": True}, "_meta.aima.dry-run"),
        ({"async": True}, "_meta.aima.async"),
        ({"dry_run": "yes"}, "_meta.aima.dry_run"),
        ({"timeout": 0}, "_meta.aima.timeout"),
        ({"idempotency_key": ""}, "_meta.aima.idempotency_key"),
        ({"expected_version": -1}, "_meta.aima.expected_version"),
        (["dry_run"], "_meta.aima"),
    ],
)
async def test_what_meta_says_is_refused_with_its_name_when_it_makes_no_sense(
    found: Doors, said: Any, field: str
) -> None:
    async with found.mcp() as mcp:
        refusal = error_of(await mcp.call_tool("counter_add", {"counter_id": "refused"}, meta={"aima": said}))
        assert (refusal["code"], refusal["details"]["fields"][0]["field"]) == ("VALIDATION_ERROR", field)
        assert error_of(await mcp.call_tool("counter_get", {"counter_id": "refused"}))["code"] == "NOT_FOUND"


async def test_what_is_in_a_call_reaches_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "aima")
    async with doors(tmp_path, COUNTER) as found:
        for mode in (MODERN, SESSIONS):
            async with found.mcp(mode) as mcp:
                await mcp.call_tool("counter_break", {"secret": "x"})
                await mcp.call_tool("counter_add", {"counter_id": "c1", "note": SECRET})
                await mcp.call_tool("counter_add", {"counter_id": SECRET})
                with pytest.raises(MCPError):
                    await mcp.get_prompt("pipelines", {"goal": SECRET, "other": SECRET})
    assert SECRET not in caplog.text
    assert SECRET not in "".join(str(getattr(record, "fields", "")) for record in caplog.records)


# --- what comes and goes ------------------------------------------------------------------------------------------


async def test_a_domain_that_comes_is_told_of_in_a_session_without_a_restart(tmp_path: Path) -> None:
    seen, heard = hearing()
    async with doors(tmp_path, COUNTER) as found, found.mcp(SESSIONS, heard=heard) as mcp:
        assert mcp.server_capabilities.tools.list_changed
        assert not await listed(mcp, ["tally"])
        async with serving(TALLY, settings=settings_for(tmp_path, found.nats, TALLY)):
            await until(lambda: "notifications/tools/list_changed" in seen)
            await until(lambda: "notifications/resources/list_changed" in seen)
            await until(lambda: listed(mcp, ["tally"]))
            assert (await mcp.call_tool("tally_log")).structured_content["events"] == []


async def test_a_domain_that_comes_is_told_of_to_who_listens(tmp_path: Path) -> None:
    async with (
        doors(tmp_path, COUNTER) as found,
        found.mcp(MODERN) as mcp,
        mcp.listen(tools_list_changed=True) as news,
        serving(TALLY, settings=settings_for(tmp_path, found.nats, TALLY)),
    ):
        await anext(aiter(news))
        await until(lambda: listed(mcp, ["tally"]))


async def test_a_tool_of_a_domain_that_has_just_come_is_found_when_it_is_called(tmp_path: Path) -> None:
    async with (
        doors(tmp_path, COUNTER) as found,
        found.mcp() as mcp,
        serving(TALLY, settings=settings_for(tmp_path, found.nats, TALLY)),
    ):
        assert (await mcp.call_tool("tally_log")).structured_content["events"] == []


# --- resources ----------------------------------------------------------------------------------------------------


@ERAS
async def test_addresses_are_listed_and_read(tmp_path: Path, mode: str) -> None:
    async with doors(tmp_path, COUNTER) as found, found.mcp(mode) as mcp:
        (template,) = (await mcp.list_resource_templates()).resource_templates
        assert (template.uri_template, template.name) == ("asms://counter/{id}", "counter id")
        assert (await mcp.list_resources()).resources == []
        await mcp.call_tool("counter_add", {"counter_id": "c1", "amount": 2})
        (content,) = (await mcp.read_resource("asms://counter/c1")).contents
        assert (content.mime_type, json.loads(content.text)) == ("application/json", {"total": 2})
        for uri, reason in (("asms://counter/none", "COUNTER_NOT_FOUND"), ("asms://nothing", "RESOURCE_NOT_FOUND")):
            with pytest.raises(MCPError) as refused:
                await mcp.read_resource(uri)
            assert refused.value.data["details"]["reason"] == reason


async def test_a_session_hears_of_changes_of_what_it_subscribes_to_and_of_nothing_else(tmp_path: Path) -> None:
    seen, heard = hearing()
    async with doors(tmp_path, COUNTER) as found, found.mcp(SESSIONS, heard=heard) as mcp:
        with pytest.warns(MCPDeprecationWarning):
            await mcp.subscribe_resource("asms://counter/c1")
        await mcp.call_tool("counter_add", {"counter_id": "c2"})
        await mcp.call_tool("counter_add", {"counter_id": "c1"})
        await until(lambda: seen)
        assert seen == ["notifications/resources/updated"]
        with pytest.warns(MCPDeprecationWarning):
            await mcp.subscribe_resource("asms://counter/c2")
        with pytest.warns(MCPDeprecationWarning):
            await mcp.unsubscribe_resource("asms://counter/c1")
        seen.clear()
        await mcp.call_tool("counter_add", {"counter_id": "c1"})
        await mcp.call_tool("counter_add", {"counter_id": "c2"})
        await until(lambda: seen)
        assert seen == ["notifications/resources/updated"]
        with pytest.warns(MCPDeprecationWarning), pytest.raises(MCPError, match="there is no resource asms://other"):
            await mcp.subscribe_resource("asms://other")


async def test_who_listens_hears_of_changes_also_of_what_was_not_there_yet(tmp_path: Path) -> None:
    async with (
        doors(tmp_path, COUNTER) as found,
        found.mcp(MODERN) as mcp,
        mcp.listen(resource_subscriptions=["asms://counter/c1"]) as news,
    ):
        heard = aiter(news)
        for _ in range(2):
            await mcp.call_tool("counter_add", {"counter_id": "c1"})
            assert (await anext(heard)).uri == "asms://counter/c1"


# --- who may, and what is handed out ------------------------------------------------------------------------------


@ERAS
async def test_read_only_hands_out_queries_alone_and_refuses_the_rest(found: Doors, mode: str) -> None:
    async with found.mcp(mode, query="?read_only=true") as mcp:
        tools = (await mcp.list_tools()).tools
        assert {"counter_get", "counter_read"} <= {tool.name for tool in tools}
        assert all(tool.annotations.read_only_hint for tool in tools)
        refusal = error_of(await mcp.call_tool("counter_add", {"counter_id": "c1"}))
        assert (refusal["code"], refusal["details"]["reason"]) == ("FORBIDDEN", "READ_ONLY")


@ERAS
async def test_only_some_domains_are_handed_out_when_they_are_named(found: Doors, mode: str) -> None:
    async with found.mcp(mode, query="?only=gateway,model") as mcp:
        assert {tool.name.split("_")[0] for tool in (await mcp.list_tools()).tools} == {"gateway"}
        assert (await mcp.list_resource_templates()).resource_templates == []
        refusal = error_of(await mcp.call_tool("counter_get", {"counter_id": "c1"}))
        assert refusal["details"]["reason"] == "NOT_OFFERED"
        with pytest.raises(MCPError) as refused:
            await mcp.read_resource("asms://counter/c1")
        assert refused.value.data["details"]["reason"] == "NOT_OFFERED"


async def test_a_mode_that_is_none_is_refused(found: Doors) -> None:
    async with httpx2.AsyncClient() as http:
        reply = await http.post(f"{found.url}/mcp?read_only=perhaps", json=HELLO, headers=HEADERS)
        assert reply.status_code == 400
        assert reply.json()["error"]["details"]["reason"] == "NO_SUCH_MODE"


@ERAS
async def test_keys_and_scopes_are_those_of_every_door(tmp_path: Path, mode: str) -> None:
    async with doors(tmp_path, COUNTER, AIMA_GATEWAY_AUTH="required") as found:
        reader, writer = await found.key("reader", "*:low"), await found.key("writer", "counter:medium")
        data = {"counter_id": "c1"}
        for key in ("", reader):
            async with found.mcp(mode, key=key) as mcp:
                refusal = error_of(await mcp.call_tool("counter_add", data))
                assert refusal == await found.error_over_http("counter.add", data, key)
        async with found.mcp(mode, key=writer) as mcp:
            assert (await mcp.call_tool("counter_add", data)).structured_content == {"total": 1}
            assert {tool.name.split("_")[0] for tool in (await mcp.list_tools()).tools} == {"counter"}
            page = (await mcp.call_tool("counter_log")).structured_content
            assert page["events"][0]["principal"] == "writer"
        async with httpx2.AsyncClient(headers=bearer("aima_no_key")) as http:
            assert (await http.post(f"{found.url}/mcp", json=HELLO, headers=HEADERS)).status_code == 401


async def test_a_session_is_there_only_for_the_key_that_began_it(tmp_path: Path) -> None:
    async with doors(tmp_path, COUNTER) as found:
        one, other = await found.key("one", "*:medium"), await found.key("other", "*:medium")
        ask = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
        async with httpx2.AsyncClient(base_url=found.url, headers=HEADERS) as http:
            begun = await http.post("/mcp", json=HELLO, headers=bearer(one))
            session = {"Mcp-Session-Id": begun.headers["mcp-session-id"]}
            assert (await http.post("/mcp", json=ask, headers=session | bearer(one))).status_code == 200
            for key in (other, ""):
                for method in ("GET", "POST", "DELETE"):
                    stolen = await http.request(
                        method, "/mcp", json=ask if method == "POST" else None, headers=session | bearer(key)
                    )
                    assert stolen.status_code == 404, (method, stolen.text)
            assert (await http.delete("/mcp", headers=session | bearer(one))).status_code == 200
            assert (await http.post("/mcp", json=ask, headers=session | bearer(one))).status_code == 404


async def test_a_revoked_key_ends_what_its_session_may(tmp_path: Path) -> None:
    async with doors(tmp_path, COUNTER) as found:
        key = await found.key("one", "*:medium")
        async with httpx2.AsyncClient(base_url=found.url, headers=HEADERS | bearer(key)) as http:
            begun = await http.post("/mcp", json=HELLO)
            await found.bus.ask("gateway.revoke_key", {"key_id": f"key-{key.split('_')[1]}"}, timeout=10)
            ask = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
            session = {"Mcp-Session-Id": begun.headers["mcp-session-id"]}
            assert (await http.post("/mcp", json=ask, headers=session)).status_code == 401


async def test_of_one_owners_sessions_the_idlest_gives_way_and_no_others(tmp_path: Path) -> None:
    async with (
        doors(tmp_path, COUNTER) as found,
        httpx2.AsyncClient(base_url=found.url, headers=HEADERS, timeout=30) as http,
        httpx2.AsyncClient(base_url=found.url, headers=HEADERS | bearer(await found.key("me", "*:low"))) as other,
    ):
        mine = await begin(other)
        sessions = [await begin(http) for _ in range(SESSIONS_EACH)]
        assert (await http.post("/mcp", json=LIST, headers=sessions[0])).status_code == 200
        sessions += [await begin(http)]
        for number, expected in ((0, 200), (1, 404), (2, 200), (-1, 200)):
            assert (await http.post("/mcp", json=LIST, headers=sessions[number])).status_code == expected
        assert (await other.post("/mcp", json=LIST, headers=mine)).status_code == 200


async def test_a_session_that_its_client_has_ended_counts_no_more(tmp_path: Path) -> None:
    async with (
        doors(tmp_path, COUNTER) as found,
        httpx2.AsyncClient(base_url=found.url, headers=HEADERS, timeout=30) as http,
    ):
        first = await begin(http)
        for _ in range(SESSIONS_EACH):
            assert (await http.delete("/mcp", headers=await begin(http))).status_code == 200
        assert (await http.post("/mcp", json=LIST, headers=first)).status_code == 200


async def test_who_uses_all_its_sessions_at_once_is_refused_another_and_nobody_else_is(tmp_path: Path) -> None:
    async with (
        doors(tmp_path, COUNTER) as found,
        contextlib.AsyncExitStack() as streams,
        httpx2.AsyncClient(
            base_url=found.url, headers=HEADERS, timeout=30, limits=httpx2.Limits(max_connections=None)
        ) as http,
        httpx2.AsyncClient(base_url=found.url, headers=HEADERS | bearer(await found.key("me", "*:low"))) as other,
    ):
        for _ in range(SESSIONS_EACH):
            stream = http.stream("GET", "/mcp", headers=await begin(http))
            assert (await streams.enter_async_context(stream)).status_code == 200
        assert too_many(await http.post("/mcp", json=HELLO)) == "TOO_MANY_SESSIONS"
        await begin(other)
        await streams.aclose()
        await until(lambda: _begins(http))


async def _begins(http: httpx2.AsyncClient) -> bool:
    return (await http.post("/mcp", json=HELLO)).status_code == 200


async def test_who_listens_too_often_is_refused_and_nobody_else_is(tmp_path: Path) -> None:
    method = "subscriptions/listen"
    params = {"notifications": {"toolsListChanged": True}, "_meta": META}
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    headers = HEADERS | {"MCP-Protocol-Version": MODERN, "Mcp-Method": method}
    async with (
        doors(tmp_path, COUNTER) as found,
        contextlib.AsyncExitStack() as streams,
        httpx2.AsyncClient(
            base_url=found.url, headers=headers, timeout=30, limits=httpx2.Limits(max_connections=None)
        ) as http,
    ):
        key = bearer(await found.key("me", "*:low"))
        for _ in range(STREAMS_EACH):
            stream = http.stream("POST", "/mcp", json=body)
            assert (await streams.enter_async_context(stream)).status_code == 200
        assert too_many(await http.post("/mcp", json=body)) == "TOO_MANY_STREAMS"
        async with http.stream("POST", "/mcp", json=body, headers=key) as other:
            assert other.status_code == 200


async def test_somebody_without_a_key_begins_no_session_where_nothing_is_open(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]
) -> None:
    environ = {"AIMA_GATEWAY_AUTH": "required", "AIMA_GATEWAY_OPEN_QUERIES": "false", "AIMA_API_KEYS": "me:sesame"}
    async with gateway(tmp_path / "data", nats, free_port(), **environ) as site:
        refused = await site.post("/mcp", HELLO, headers=HEADERS)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "UNAUTHORIZED")
        assert (await site.post("/mcp", HELLO, headers=HEADERS | bearer("sesame"))).status_code == 200


async def test_a_page_elsewhere_that_was_given_our_address_is_refused(found: Doors) -> None:
    async with httpx2.AsyncClient() as http:
        reply = await http.post(f"{found.url}/mcp", json=HELLO, headers=HEADERS | {"Host": "evil.example"})
        assert reply.status_code == 421


async def test_a_body_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with doors(tmp_path, AIMA_GATEWAY_BODY_LIMIT="2000") as found, httpx2.AsyncClient() as http:
        reply = await http.post(f"{found.url}/mcp", content=b"x" * 3000, headers=HEADERS)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_the_program_in_the_document_runs(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    async with doors(tmp_path, shelf(model_view("small"))) as found:
        given = program.replace("http://127.0.0.1:9090", found.url).replace("model_list", "model_get")
        given = given.replace('{"limit": 10}', '{"model_id": "small"}')
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", given, stdout=asyncio.subprocess.PIPE)
        out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    assert "model_get - Model: get" in out.decode()
    assert "'name': 'small'" in out.decode()


async def test_the_gateway_ends_while_clients_are_connected(tmp_path: Path) -> None:
    connected, over = asyncio.Semaphore(0), asyncio.Event()

    async def in_a_session(found: Doors) -> None:
        async with found.mcp(SESSIONS) as mcp:
            await mcp.list_tools()
            connected.release()
            await over.wait()

    async def listening(found: Doors) -> None:
        async with found.mcp(MODERN) as mcp, mcp.listen(tools_list_changed=True) as news:
            connected.release()
            assert [event async for event in news] == []  # it is told that the stream has ended

    async with asyncio.TaskGroup() as clients:
        async with asyncio.timeout(15), doors(tmp_path, COUNTER) as found:  # less than open streams would hold it up
            for client in (in_a_session, listening):
                clients.create_task(client(found))
                await connected.acquire()
        over.set()
