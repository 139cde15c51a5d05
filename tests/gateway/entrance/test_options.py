"""No door ignores an option: one that is misspelt or in the wrong place is refused, and nothing is executed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import httpx2
import pytest
from mcp import Client as McpClient
from mcp.client.streamable_http import streamable_http_client
from openai import AsyncOpenAI

from aima_core.bus import nats_server
from aima_core.errors import AimaError
from aima_core.process.dry_run import PLAN_SCHEMA
from services.gateway.grpc.api import SERVICE
from services.gateway.grpc.proto import gateway_pb2 as pb
from tests.core.bus.test_options import CASES, FOREIGN
from tests.gateway.conftest import Site, bus, gateway, in_background, visit

ADD = "/api/v2/counters/c1/add"
EXECUTE = {"unit": "counter.add", "input": {"counter_id": "c1"}}
TOOL = {"counter_id": "c1"}
# over HTTP, other systems use these names, too
SHARED = ("timeout", "x-timeout", "deadline", "principal", "x-principal")
HEADERS = [name for name, _ in CASES if name.lower() not in SHARED]
FIELDS = HEADERS
GRPC: dict[str, str] = {}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A gateway with the gRPC door, beside the toys, which no test of this module changes."""
    folder = tmp_path_factory.mktemp("options")
    GRPC["address"] = f"127.0.0.1:{nats_server.free_port()}"
    environ = {"AIMA_GATEWAY_GRPC_ADDR": GRPC["address"]}
    with bus(folder) as server:
        opening = gateway(folder / "data", server, nats_server.free_port(), **environ)
        with in_background(opening) as site:
            yield site


@pytest.fixture
async def door(running: Site) -> AsyncIterator[Site]:
    async with visit(running) as site:
        yield site
        assert (await site.ask("counter.log"))["events"] == []
        assert (await site.ask("parcel.log"))["events"] == []


async def refused(site: Site, path: str, status: int = 400, method: str = "POST", **more: Any) -> Any:
    """Return the error body of a refused request."""
    response = await site.http.request(method, path, **more)
    assert response.status_code == status, (path, more, response.text)
    return response.json()["error"]


# --- HTTP ---------------------------------------------------------------------------------------------------------

FOREIGN_PATHS = [
    *(("POST", path) for path in ("/v1/chat/completions", "/v1/embeddings", "/v1/messages", "/rerank", "/api/chat")),
    *(("POST", "/api/pull"), ("DELETE", "/api/delete"), ("DELETE", "/api/v2/operations/op-1"), ("GET", "/v1/models")),
]


@pytest.mark.parametrize("path", [ADD, "/api/v2/command/counter.add", "/api/counter/add", "/api/v2/execute", "/mcp"])
async def test_a_misspelt_header_is_refused_at_our_own_doors(door: Site, path: str) -> None:
    body = EXECUTE if path.endswith("execute") else TOOL
    for name in HEADERS:
        error = await refused(door, path, json=body, headers={name: "true"})
        assert (error["code"], error["details"]["reason"]) == ("INVALID_REQUEST", "UNKNOWN_OPTION"), name


async def test_the_doors_of_other_apis_refuse_misspelt_and_unsupported_options(door: Site) -> None:
    for method, path in FOREIGN_PATHS:
        for name in ("Aima-Dryrun", "Dry-Run", "aima_expected_version", "X-Idempotency-Key", "Aima-Principal"):
            await refused(door, path, method=method, headers={name: "true"})
        for name, value in (("aima-dry-run", "true"), ("Aima-Expected-Version", "1"), ("AIMA-IDEMPOTENCY-KEY", "k")):
            error = await refused(door, path, method=method, headers={name: value})
            assert "does not honour" in str(error), (path, error)
        for name in ("dry_run", "dryRun", "expected_version", "idempotency_key", "Aima-Dry-Run"):
            error = await refused(door, path, method=method, params={name: "true"})
            assert "query string" in str(error), (path, error)


async def test_the_headers_that_clients_and_proxies_send_are_accepted(door: Site) -> None:
    others = [name for name in FOREIGN if name not in ("Content-Length", "X-Api-Key")]
    response = await door.get("/api/v2/counters/log", headers=dict.fromkeys(others, "1"))
    assert response.status_code == 200, response.text
    async with AsyncOpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(Exception, match="there is no unit"):  # the client sends an Idempotency-Key
            await client.embeddings.create(model="none", input="x", extra_headers={"Idempotency-Key": "k"})


@pytest.mark.parametrize("path", [ADD, "/api/v2/command/counter.add", "/api/counter/add", "/api/v2/execute", "/mcp"])
async def test_an_option_in_the_query_string_is_refused(door: Site, path: str) -> None:
    body = EXECUTE if path.endswith("execute") else TOOL
    for name in FIELDS:
        error = await refused(door, path, params={name: "true"}, json=body)
        assert error["details"]["reason"] == "UNKNOWN_OPTION", name
    if path.endswith("execute"):
        assert (await refused(door, path, params={"preview": "1"}, json=body))["details"]["reason"] == "NO_QUERY"


async def test_an_option_in_the_wrong_place_of_a_body_is_refused(door: Site) -> None:
    for name in FIELDS:
        for body in (
            EXECUTE | {name: True},
            EXECUTE | {"options": {name.replace("_", "-"): True}},
            EXECUTE | {"input": TOOL | {name: True}},
        ):
            assert (await refused(door, "/api/v2/execute", json=body))["code"].startswith(("VALID", "INVALID")), body
        assert (await refused(door, ADD, json={name: True}))["details"]["reason"] == "UNKNOWN_OPTION", name
    error = await refused(door, "/api/v2/execute", json=EXECUTE | {"dryrun": True})
    assert "options.dry_run" in error["message"]


@pytest.mark.parametrize(
    ("headers", "options"),
    [
        ([("Aima-Dry-Run", "true"), ("Aima-Dry-Run", "false")], {}),
        ([("Idempotency-Key", "a"), ("Aima-Idempotency-Key", "b")], {}),
        ([("Aima-Dry-Run", "true")], {"dry_run": False}),
        ([("Aima-Expected-Version", "1")], {"expected_version": 0}),
        ([("Idempotency-Key", "a")], {"idempotency_key": "b"}),
        ([("Aima-Timeout", "1")], {"timeout": 2}),
    ],
)
async def test_an_option_with_two_values_is_refused(door: Site, headers: Any, options: Any) -> None:
    error = await refused(door, "/api/v2/execute", json=EXECUTE | {"options": options}, headers=headers)
    assert error["details"]["reason"] == "SET_TWICE"


@pytest.mark.parametrize("name", ["If-Match", "if-unmodified-since"])
async def test_a_condition_of_http_is_refused_because_no_path_honours_it(door: Site, name: str) -> None:
    error = await refused(door, ADD, json={}, headers={name: "1"})
    assert "use Aima-Expected-Version" in error["message"]


@pytest.mark.parametrize("name", ["Aima-Parts", "Aima-Batch", "Aima-Principal"])
async def test_headers_of_the_bus_alone_are_refused(door: Site, name: str) -> None:
    assert (await refused(door, ADD, json={}, headers={name: "x"}))["details"]["reason"] == "UNKNOWN_OPTION"


async def test_an_option_that_a_query_does_not_honour_is_refused(door: Site) -> None:
    for name, value, reason in (("Idempotency-Key", "k", "NOT_HONOURED"), ("Aima-Expected-Version", "1", "NO_STREAM")):
        error = await refused(door, "/api/v2/counters/log", method="GET", headers={name: value})
        assert error["details"]["reason"] == reason


async def test_a_dry_run_answers_with_the_declared_plan(door: Site) -> None:
    document = (await door.get("/openapi.json")).json()
    assert document["components"]["schemas"]["Plan"] == PLAN_SCHEMA
    add = document["paths"]["/api/v2/counters/{id}/add"]["post"]["responses"]["200"]["content"]["application/json"]
    assert {"$ref": "#/components/schemas/Plan"} in add["schema"]["properties"]["data"]["anyOf"]
    for name in ("Aima-Dry-Run", "aima-dry-run", "AIMA-DRY-RUN"):
        plan = (await door.post(ADD, {}, headers={name: "true"})).json()["data"]
        assert plan.keys() == set(PLAN_SCHEMA["required"])
        assert [event["type"] for event in plan["events"]] == ["counter.added"]


# --- MCP ----------------------------------------------------------------------------------------------------------


async def test_an_option_of_a_tool_call_in_the_wrong_place_is_refused(door: Site) -> None:
    async with httpx2.AsyncClient(timeout=30) as http:
        transport = streamable_http_client(f"{door.url}/mcp", http_client=http)
        async with McpClient(transport) as mcp:
            for name in [name for name, _ in CASES]:
                for arguments, meta in (
                    (TOOL, {name: True}),
                    (TOOL, {"aima": {name.replace("_", "-"): True}}),
                    (TOOL | {"_aima": {name.replace("_", "-"): True}}, {}),
                    (TOOL | {name: True}, {}),
                ):
                    result = await mcp.call_tool("counter_add", arguments, meta=meta)
                    assert result.is_error, (arguments, meta, result)
            torn = await mcp.call_tool(
                "counter_add", TOOL | {"_aima": {"dry_run": False}}, meta={"aima": {"dry_run": True}}
            )
            assert json.loads(torn.content[0].text)["details"]["reason"] == "SET_TWICE"
            near = await mcp.call_tool("counter_add", TOOL, meta={"dry_run": True})
            assert "_meta.aima.dry_run" in near.content[0].text


async def test_an_option_beside_the_arguments_of_a_tool_call_is_refused(door: Site) -> None:
    """The SDK drops unknown parameters, so the client of the SDK cannot send them."""
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    begin = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    }
    first = await door.post("/mcp", _rpc("initialize", begin), headers=headers)
    session = headers | {"Mcp-Session-Id": first.headers["mcp-session-id"]}
    for name in ("dry_run", "dryRun", "_aima", "options.dry_run", "expectedVersion"):
        call = {"name": "counter_add", "arguments": TOOL, name: True}
        response = await door.post("/mcp", _rpc("tools/call", call), headers=session)
        assert "is not an option of AIMA" in response.text, (name, response.text)


def _rpc(method: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


async def test_a_model_previews_a_command_with_the_argument_of_the_tool(door: Site) -> None:
    async with httpx2.AsyncClient(timeout=30) as http:
        transport = streamable_http_client(f"{door.url}/mcp", http_client=http)
        async with McpClient(transport) as mcp:
            tools = {tool.name: tool for tool in (await mcp.list_tools()).tools}
            assert "dry_run" in tools["counter_add"].input_schema["properties"]["_aima"]["properties"]
            assert "_aima" in (mcp.instructions or "")
            planned = await mcp.call_tool("counter_add", TOOL | {"_aima": {"dry_run": True}})
            assert [event["type"] for event in planned.structured_content["events"]] == ["counter.added"]
            late = await mcp.call_tool("counter_add", TOOL | {"_aima": {"expected_version": 3}})
            assert json.loads(late.content[0].text)["details"]["reason"] == "VERSION_CONFLICT"


# --- gRPC ---------------------------------------------------------------------------------------------------------


async def test_an_option_in_the_metadata_follows_the_same_rules(door: Site) -> None:
    async with grpc.aio.insecure_channel(GRPC["address"]) as channel:
        execute = channel.unary_unary(
            f"/{SERVICE}/Execute", lambda message: message.SerializeToString(), pb.ExecuteReply.FromString
        )
        request = pb.ExecuteRequest(unit="counter.add", input=TOOL)
        names = [name.lower() for name in HEADERS]
        for name in (*names, "aima-dry-run-bin", "aima-principal", "aima-parts"):
            value = b"true" if name.endswith("-bin") else "true"
            assert (await _grpc_error(execute, request, ((name, value),)))["code"] == "INVALID_REQUEST", name
        for pairs in ((("aima-dry-run", "true"), ("aima-dry-run", "false")), (("aima-dry-run", "yes"),)):
            assert (await _grpc_error(execute, request, pairs))["code"] == "INVALID_REQUEST"
        later = pb.ExecuteRequest.FromString(request.SerializeToString() + b"\x22\x02\x48\x01")  # options: field 9 is 1
        assert (await _grpc_error(execute, later, ()))["details"]["reason"] == "UNKNOWN_FIELD"
        planned = await execute(request, metadata=(("aima-dry-run", "true"),))
        assert planned.data["events"][0]["type"] == "counter.added"


async def _grpc_error(execute: Any, request: Any, metadata: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await execute(request, metadata=metadata)
    return json.loads(dict(error.value.trailing_metadata())["aima-error-bin"])


# --- keys and rights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer nonsense"},
        {"Authorization": "Bearer aima_1_wrong"},
        {"Authorization": "aima_1_wrong"},
        {"Authorization": "Token nonsense"},
        {"x-api-key": "nonsense"},
        {"Authorization": "Basic eDp5", "x-api-key": "nonsense"},
        {"api-key": "AIMA_1_wrong"},
    ],
)
async def test_a_wrong_key_is_never_taken_as_no_key_at_our_own_doors(door: Site, headers: dict[str, str]) -> None:
    for path in (ADD, "/api/v2/execute", "/mcp"):
        error = await refused(door, path, 401, json=EXECUTE, headers=headers)
        assert error["code"] == "UNAUTHORIZED"


async def test_clients_of_other_apis_may_send_any_key_that_is_not_one_of_ours(door: Site) -> None:
    for key in ("ollama", "sk-no-key", "none"):
        response = await door.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert response.json()["error"]["code"] == "unit_not_found"  # the toys have no models
    for headers in ({"Authorization": "Bearer aima_1_wrong"}, {"Authorization": "Aima_1_wrong"}):
        assert (await door.get("/v1/models", headers=headers)).status_code == 401


async def test_a_dry_run_needs_only_the_rights_of_a_reader(locked: Site) -> None:
    reader = await locked.key("reader", "counter:low", "parcel:low", "gateway:low")
    dry = {"Aima-Dry-Run": "true"}
    assert (await locked.post(ADD, {}, headers=reader)).status_code == 403
    planned = await locked.post(ADD, {}, headers=reader | dry)
    assert [event["type"] for event in planned.json()["data"]["events"]] == ["counter.added"]
    options = {"options": {"dry_run": True}}
    assert (await locked.post("/api/v2/execute", EXECUTE | options, headers=reader)).status_code == 200
    assert (
        await locked.post("/api/v2/execute", EXECUTE, headers=reader | {"Aima-Dry-Run": "false"})
    ).status_code == 403
    burned = await locked.post("/api/v2/parcels/p/burn", {}, headers=reader | dry)
    assert burned.status_code not in (401, 403), burned.text
    # who may not read the events of the gateway may not plan its commands, whose events they are
    create = await locked.post("/api/v2/gateways/create_key", {"name": "x"}, headers=reader | dry)
    assert create.status_code == 403
    other = await locked.key("other", "parcel:low")
    assert (await locked.post(ADD, {}, headers=other | dry)).status_code == 403
    assert (await locked.ask("counter.log"))["events"] == []


async def test_each_api_key_has_its_own_idempotency_keys(locked: Site) -> None:
    totals = []
    for name in ("ann", "bob"):
        key = await locked.key(name, "counter:medium")
        for _ in range(2):
            answer = await locked.post(ADD, {}, headers=key | {"Idempotency-Key": "same"})
            totals.append(answer.json()["data"]["total"])
    assert totals == [1, 1, 2, 2]


async def test_the_bus_itself_follows_the_same_rules(door: Site) -> None:
    with pytest.raises(AimaError, match="did you mean Aima-Dry-Run"):
        await door.client.ask("counter.add", TOOL, timeout=5, headers={"Aima-Dryrun": "true"})
