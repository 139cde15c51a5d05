"""Units over HTTP: every way in, every way to be refused, and what becomes of work whose client has gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from aima_core.bus.nats_server import NatsServer
from aima_core.errors import BY_CODE
from aima_core.testing import until
from tests.gateway.conftest import Site, gateway, listening


def _error(response: httpx2.Response) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    assert body["success"] is False
    assert body["meta"]["request_id"] == response.headers["aima-request-id"]
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/v2/execute", {"unit": "parcel.echo", "input": {"parcel_id": "p", "count": 3}}),
        ("POST", "/api/v2/execute", {"type": "query", "unit": "parcel.echo", "input": {"parcel_id": "p", "count": 3}}),
        ("POST", "/api/v2/query/parcel.echo", {"parcel_id": "p", "count": 3}),
        ("GET", "/api/v2/query/parcel.echo?parcel_id=p&count=3", None),
        ("GET", "/api/v2/parcels/p/echo?count=3", None),
        ("POST", "/api/v2/parcels/p/echo", {"count": 3}),
        ("POST", "/api/v2/parcels/echo", {"parcel_id": "p", "count": 3}),
        ("GET", "/api/v2/parcels/echo?parcel_id=p&count=3", None),
        ("GET", "/api/v2/parcels/p/echo", {"count": 3}),
        ("POST", "/api/v2/parcels/p/echo?count=3", {"parcel_id": "p"}),
        ("POST", "/api/parcel/echo", {"parcel_id": "p", "count": 3}),
        ("GET", "/api/parcel/echo?parcel_id=p&count=3", None),
    ],
)
async def test_every_way_in_leads_to_the_same_answer(site: Site, method: str, path: str, body: Any) -> None:
    response = await site.http.request(method, path, json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["success"] is True
    assert answer["data"]["got"] == {"parcel_id": "p", "count": 3}
    assert answer["meta"]["request_id"] == response.headers["aima-request-id"]


@pytest.mark.parametrize(
    ("query", "got"),
    [
        ("count=5", {"count": 5}),
        ("weight=1.5", {"weight": 1.5}),
        ("weight=null", {"weight": None}),
        ("fragile=true", {"fragile": True}),
        ("speed=fast", {"speed": "fast"}),
        ("tags=a&tags=b", {"tags": ["a", "b"]}),
        ("tags=7", {"tags": ["7"]}),
        ("tags=%5B%22a%22%5D", {"tags": ["a"]}),
        ("numbers=1&numbers=2", {"numbers": [1, 2]}),
        ("size=%7B%22width%22%3A3%7D", {"size": {"width": 3}}),
        ("note=42", {"note": "42"}),
        ("note=true", {"note": "true"}),
        ("note=", {"note": ""}),
        ("note=a%26b%3D%2Bc+d", {"note": "a&b=+c d"}),
        ("note=%F0%9F%93%A6", {"note": "📦"}),
    ],
)
async def test_a_query_string_is_typed_by_the_schema(site: Site, query: str, got: dict[str, Any]) -> None:
    response = await site.get(f"/api/v2/parcels/p/echo?{query}")
    assert response.status_code == 200, response.text
    assert response.json()["data"]["got"] == {"parcel_id": "p"} | got


@pytest.mark.parametrize(
    ("path", "ident"),
    [
        ("a%2Fb", "a/b"),
        ("a%20b", "a b"),
        ("%C3%A9", "é"),
        ("..%2F..", "../.."),
        ("a%3Fb%23c", "a?b#c"),
        ("a;b,c", "a;b,c"),
        ("a:b@c", "a:b@c"),
        ("%25", "%"),
        ("a+b", "a+b"),
        ("p.1", "p.1"),
    ],
)
async def test_an_id_may_have_any_characters(site: Site, path: str, ident: str) -> None:
    response = await site.get(f"/api/v2/parcels/{path}/echo")
    assert response.status_code == 200, response.text
    assert response.json()["data"]["got"] == {"parcel_id": ident}


DEEP = b'{"parcel_id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
UNUTF8 = b'{"parcel_id": "\xff"}'


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "code"),
    [
        ("GET", "/api/v2/parcels/p/echo?count=x", {}, 400, "VALIDATION_ERROR"),
        ("GET", "/api/v2/parcels/p/echo?count=99999", {}, 400, "VALIDATION_ERROR"),
        ("GET", "/api/v2/parcels/p/echo?count=1&count=2", {}, 400, "VALIDATION_ERROR"),
        ("GET", "/api/v2/parcels/p/echo?unknown=1", {}, 400, "VALIDATION_ERROR"),
        ("GET", "/api/v2/parcels/p/echo?speed=%FF", {}, 400, "INVALID_REQUEST"),
        ("GET", "/api/v2/parcels/%FF/echo", {}, 400, "INVALID_REQUEST"),
        ("GET", "/api/v2/parcels/p/echo?count=" + "%5B" * 15_000, {}, 400, "VALIDATION_ERROR"),
        ("GET", "/api/v2/parcels/p/echo?" + "&".join(f"k{n}=1" for n in range(2000)), {}, 400, "INVALID_REQUEST"),
        ("POST", "/api/v2/parcels/p/echo", {"json": {"parcel_id": "q"}}, 400, "VALIDATION_ERROR"),
        ("POST", "/api/v2/parcels/p/echo?count=1", {"json": {"count": 2}}, 400, "VALIDATION_ERROR"),
        ("POST", "/api/v2/parcels/echo", {"content": b"[1]"}, 400, "INVALID_REQUEST"),
        ("POST", "/api/v2/parcels/echo", {"content": b"{"}, 400, "INVALID_REQUEST"),
        ("POST", "/api/v2/parcels/echo", {"content": DEEP}, 400, "INVALID_REQUEST"),
        ("POST", "/api/v2/parcels/echo", {"content": UNUTF8}, 400, "INVALID_REQUEST"),
        ("POST", "/api/v2/parcels/echo", {"content": b'{"count": 1e999}'}, 400, "INVALID_REQUEST"),
        ("POST", "/api/v2/parcels/echo", {"content": b'{"count": NaN}'}, 400, "INVALID_REQUEST"),
        ("POST", "/api/v2/parcels/echo", {"json": {"parcel_id": "p", "count": 10**40}}, 400, "VALIDATION_ERROR"),
        ("POST", "/api/v2/parcels/echo", {"data": {"parcel_id": "p"}}, 415, "INVALID_REQUEST"),
        ("GET", "/api/v2/parcels/p/refuse?code=X", {"headers": {"Aima-Timeout": "soon"}}, 400, "INVALID_REQUEST"),
        ("GET", "/api/v2/parcels/p/echo", {"headers": {"Aima-Timeout": "-1"}}, 400, "INVALID_REQUEST"),
        ("GET", "/api/v2/parcels/p/echo", {"headers": {"Aima-Timeout": "nan"}}, 400, "INVALID_REQUEST"),
        ("GET", "/api/v2/parcels/p/echo", {"headers": {"X-Request-Id": b"\xff"}}, 400, "INVALID_REQUEST"),
        ("GET", "/api/v2/parcels/p/echo", {"headers": {"Idempotency-Key": b"\xc3\xa9"}}, 400, "INVALID_REQUEST"),
        ("GET", "/api/v2/parcels/p/echo", {"headers": {"Aima-Dry-Run": "perhaps"}}, 400, "INVALID_REQUEST"),
        ("POST", "/api/v2/execute", {"json": {"unit": "parcel.nothing"}}, 404, "UNIT_NOT_FOUND"),
        ("POST", "/api/v2/execute", {"json": {"unit": "x" * 100_000}}, 400, "VALIDATION_ERROR"),
        ("POST", "/api/v2/execute", {"json": {"unit": "a\r\nb"}}, 404, "UNIT_NOT_FOUND"),
        ("POST", "/api/v2/execute", {"json": {}}, 400, "VALIDATION_ERROR"),
        ("POST", "/api/v2/execute", {"json": {"unit": "parcel.echo", "risk": "low"}}, 400, "VALIDATION_ERROR"),
        ("POST", "/api/v2/execute", {"json": {"unit": "parcel.echo", "type": "command"}}, 400, "INVALID_REQUEST"),
        ("POST", "/api/v2/command/parcel.echo", {"json": {}}, 400, "INVALID_REQUEST"),
        ("GET", "/api/v2/query/" + "y" * 20_000, {}, 404, "UNIT_NOT_FOUND"),
        ("GET", "/api/v2/schema/parcel.nothing", {}, 404, "UNIT_NOT_FOUND"),
        ("GET", "/api/v2/nothing", {}, 404, "NOT_FOUND"),
        ("GET", "/api/v2/", {}, 404, "NOT_FOUND"),
        ("GET", "/nothing", {}, 404, "INVALID_REQUEST"),
    ],
)
async def test_what_makes_no_sense_is_refused_and_reaches_no_unit(
    site: Site, method: str, path: str, sent: dict[str, Any], status: int, code: str
) -> None:
    response = await site.http.request(method, path, **sent)
    assert response.status_code == status, response.text
    assert _error(response)["code"] == code


async def test_a_refusal_names_the_fields_that_are_wrong(site: Site) -> None:
    response = await site.post("/api/v2/parcels/echo", {"count": -1, "speed": "warp", "tags": "a"})
    assert {fault["field"] for fault in _error(response)["details"]["fields"]} == {
        "parcel_id",
        "count",
        "speed",
        "tags",
    }
    response = await site.post("/api/v2/execute", {"unit": "parcel.echo", "options": {"timeout": "long"}})
    assert _error(response)["details"]["fields"][0]["field"] == "options.timeout"


async def test_every_code_of_a_unit_has_its_status_and_the_same_body_on_every_path(site: Site) -> None:
    for code, kind in BY_CODE.items():
        ways = [
            await site.get(f"/api/v2/parcels/refuse?code={code}"),
            await site.post("/api/v2/execute", {"unit": "parcel.refuse", "input": {"code": code}}),
            await site.get(f"/api/parcel/refuse?code={code}"),
        ]
        for response in ways:
            assert response.status_code == kind.status
            assert _error(response)["code"] == kind.code
        assert len({json.dumps(response.json()["error"]) for response in ways}) == 1


# --- what HTTP asks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/api/v2/execute", "OPTIONS, POST"),
        ("POST", "/api/v2/units", "GET, HEAD, OPTIONS"),
        ("DELETE", "/api/v2/units", "GET, HEAD, OPTIONS"),
        ("PUT", "/api/v2/operations/op-1", "DELETE, GET, HEAD, OPTIONS"),
        ("POST", "/api/v2/events", "GET, HEAD, OPTIONS"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
        ("PATCH", "/api/v2/parcels/p/echo", "GET, HEAD, OPTIONS, POST"),
        ("GET", "/api/v2/parcels/p/carry", "OPTIONS, POST"),
        ("PROPFIND", "/api/v2/parcels/p/carry", "OPTIONS, POST"),
        ("DELETE", "/api/parcel/echo", "GET, HEAD, OPTIONS, POST"),
        ("DELETE", "/api/v2/resource/parcel/p", "GET, HEAD, OPTIONS"),
    ],
)
async def test_a_method_that_a_path_does_not_take_is_refused_with_those_it_takes(
    site: Site, method: str, path: str, allow: str
) -> None:
    response = await site.http.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allow)
    assert _error(response)["details"]["reason"] == "METHOD_NOT_ALLOWED"
    options = await site.http.request("OPTIONS", path)
    assert (options.status_code, options.headers["allow"], options.content) == (204, allow, b"")


async def test_head_answers_as_get_does_without_a_body(site: Site) -> None:
    for path in ("/health", "/api/v2/units", "/api/v2/parcels/p/echo", "/api/v2/query/parcel.echo?parcel_id=p"):
        full, head = await site.get(path), await site.http.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == full.headers["content-type"]
    streams = await site.http.head("/api/v2/events")
    assert (streams.status_code, streams.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


async def test_a_body_that_says_that_it_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]
) -> None:
    port = free_port()
    async with gateway(tmp_path / "data", nats, port, AIMA_GATEWAY_BODY_LIMIT="2000"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /api/v2/execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(head + b"Content-Length: 10000000\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 413 Request Entity Too Large\r\n"
        writer.close()


async def test_a_body_of_unknown_length_is_refused_as_soon_as_it_is_too_large(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]
) -> None:
    async def endless() -> Any:
        while len(sent) < 10_000:
            sent.append(b"x" * 1000)
            yield sent[-1]
            await asyncio.sleep(0)

    sent: list[bytes] = []
    async with gateway(tmp_path / "data", nats, free_port(), AIMA_GATEWAY_BODY_LIMIT="2000") as site:
        response = await site.http.post(
            "/api/v2/execute", content=endless(), headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 413
        assert _error(response) == {
            "code": "PAYLOAD_TOO_LARGE",
            "message": "the body is larger than the limit of 2000 bytes",
            "details": {"limit": 2000},
        }
        assert (await site.get("/api/v2/parcels/p/echo")).status_code == 200


async def test_a_host_that_is_not_ours_is_refused(site: Site) -> None:
    for host in ("evil.example", "evil.example:9090", "127.0.0.1.evil.example", "localhost.", "[::2]:80"):
        response = await site.get("/api/v2/units", headers={"Host": host})
        assert (response.status_code, _error(response)["details"]["reason"]) == (421, "UNKNOWN_HOST")
    for host in ("localhost", "LOCALHOST:9090", "127.0.0.1:1", "[::1]:9090", "[::1]"):
        assert (await site.get("/health", headers={"Host": host})).status_code == 200


async def test_pages_of_other_origins_are_answered_by_setting_only(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int], site: Site
) -> None:
    asks = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in (await site.get("/health", headers=asks)).headers
    environ = {"AIMA_GATEWAY_CORS_ORIGINS": "https://page.example", "AIMA_GATEWAY_HOSTS": "aima.example"}
    async with gateway(tmp_path / "other", nats, free_port(), **environ) as other:
        before = await other.http.options("/api/v2/execute", headers=asks)
        assert before.headers["access-control-allow-origin"] == "https://page.example"
        refused = await other.post("/api/v2/execute", {}, headers=asks)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (400, "https://page.example")
        stranger = await other.get("/health", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers
        assert (await other.get("/health", headers={"Host": "aima.example"})).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({}, 200),
    ],
    ids=str,
)
async def test_a_page_of_another_origin_changes_nothing(site: Site, headers: dict[str, str], status: int) -> None:
    bodies = {"/api/v2/counters/c1/add": {}, "/api/v2/execute": {"unit": "counter.add", "input": {"counter_id": "c1"}}}
    for path, body in bodies.items():
        answer = await site.post(path, body, headers=headers)
        assert answer.status_code == status
    ours = await site.post("/api/v2/counters/c1/add", {}, headers={"Origin": site.url})
    assert ours.status_code == 200
    assert (await site.get("/api/v2/counters/c1", headers=headers)).status_code == 200


async def test_too_many_requests_are_told_when_to_come_again(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]
) -> None:
    async with gateway(tmp_path / "data", nats, free_port(), AIMA_GATEWAY_REQUESTS_PER_MINUTE="12") as site:
        statuses = [(await site.get("/api/v2/units")).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        refused = await site.get("/api/v2/units", headers={"Authorization": "Bearer aima_00000000_x"})
        assert 1 <= int(refused.headers["retry-after"]) <= 6
        assert _error(refused)["code"] == "RATE_LIMITED"
        assert (await site.get("/health")).status_code == 200


# --- options ----------------------------------------------------------------------------------------------------


async def test_options_of_the_body_and_headers_mean_the_same(own_site: Site) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    add = {"unit": "counter.add", "input": {"counter_id": "c1", "amount": 2}}
    planned = await own_site.post("/api/v2/execute", add | {"options": {"dry_run": True}})
    assert planned.json()["data"]["events"][0]["type"] == "counter.added"
    again = await own_site.post("/api/v2/counters/c1/add", {"amount": 2}, headers={"Aima-Dry-Run": "true"})
    assert again.json()["data"]["events"][0]["data"] == planned.json()["data"]["events"][0]["data"]
    assert (await own_site.get("/api/v2/counters/c1")).status_code == 404

    for _ in range(2):
        once = await own_site.post("/api/v2/execute", add | {"options": {"idempotency_key": "k1", "trace_id": trace}})
        assert once.json()["data"] == {"total": 2}
        assert once.json()["meta"]["trace_id"] == trace
    same = await own_site.post("/api/v2/counters/c1/add", {"amount": 2}, headers={"Idempotency-Key": "k1"})
    assert same.json()["data"] == {"total": 2}

    late = await own_site.post("/api/v2/execute", add | {"options": {"expected_version": 7}})
    assert (late.status_code, _error(late)["details"]["reason"]) == (409, "VERSION_CONFLICT")
    late = await own_site.post("/api/v2/counters/c1/add", {}, headers={"Aima-Expected-Version": "7"})
    assert late.status_code == 409


async def test_a_timeout_ends_in_504_and_the_work_with_it(site: Site) -> None:
    for sent in (
        site.post(
            "/api/v2/execute", {"unit": "parcel.carry", "input": {"parcel_id": "a"}, "options": {"timeout": 0.3}}
        ),
        site.post("/api/v2/parcels/b/carry", {}, headers={"Aima-Timeout": "0.3"}),
    ):
        response = await sent
        assert (response.status_code, _error(response)["code"]) == (504, "TIMEOUT")
    await until(lambda: {"dropped a", "dropped b"} <= set(site.world()))


async def test_parts_come_as_events_and_the_answer_last(site: Site) -> None:
    for way in (
        {"url": "/api/v2/execute", "json": {"unit": "counter.hum", "options": {"stream": True}}},
        {"url": "/api/v2/counters/hum", "json": {}, "headers": {"Accept": "text/event-stream"}},
    ):
        async with site.http.stream("POST", **way) as response:
            kinds = [line.removeprefix("event: ") async for line in response.aiter_lines() if line.startswith("event")]
        assert kinds == ["part", "part", "part", "result"]


async def test_a_stream_that_is_refused_before_it_has_begun_is_an_ordinary_refusal(site: Site) -> None:
    asked = {"unit": "parcel.refuse", "input": {"code": "CONFLICT"}, "options": {"stream": True}}
    response = await site.post("/api/v2/execute", asked)
    assert (response.status_code, _error(response)["code"]) == (409, "CONFLICT")


# --- clients that go away, and work that goes on without ----------------------------------------------------------


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_a_client_that_vanishes_takes_its_work_with_it(own_site: Site, accept: str) -> None:
    host, port = own_site.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /api/v2/parcels/p/carry HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\nContent-Length: 0\r\n\r\n"
    writer.write(head.encode())
    await until(lambda: own_site.world() == ["carries p"])
    writer.close()
    await until(lambda: own_site.world() == ["carries p", "dropped p"])


async def test_a_client_that_vanishes_in_the_middle_of_its_body_leaves_no_trace(
    own_site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    host, port = own_site.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST /api/v2/execute HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100\r\n\r\n{{".encode())
    await writer.drain()
    writer.close()
    metric = 'route="/api/v2/execute",status="499"'
    await until(lambda: _metrics(own_site, metric))
    assert "broke" not in capfd.readouterr().err


async def _metrics(site: Site, text: str) -> bool:
    return text in (await site.get("/metrics")).text


async def test_work_that_nobody_waits_for_can_be_followed_and_cancelled(own_site: Site) -> None:
    asked = {"unit": "parcel.carry", "input": {"parcel_id": "p"}, "options": {"async": True}}
    begun = await own_site.post("/api/v2/execute", asked)
    assert begun.status_code == 202
    where = begun.headers["location"]
    assert begun.json()["data"]["status"] == "running"
    async with listening(own_site, f"{where}/events") as next_event:
        assert (await next_event()).kind == "running"
        await until(lambda: _progress(own_site, where))
        await own_site.http.delete(where)
        last = None
        while told := await next_event():
            last = told
    assert last
    assert (last.kind, last.data["status"]) == ("cancelled", "cancelled")
    await until(lambda: own_site.world()[-1] == "dropped p")
    assert (await own_site.http.delete(where)).json()["data"]["status"] == "cancelled"
    listed = (await own_site.get("/api/v2/operations")).json()["data"]
    assert (listed["total"], listed["operations"][0]["operation_id"]) == (1, where.rpartition("/")[2])


async def _progress(site: Site, where: str) -> bool:
    return (await site.get(where)).json()["data"]["progress"] == {"carried": "p"}


async def test_work_that_has_ended_keeps_its_result_or_its_error(site: Site) -> None:
    begun = [
        await site.post("/api/v2/execute", {"unit": unit, "input": data, "options": {"async": True}})
        for unit, data in (("parcel.echo", {"parcel_id": "p"}), ("parcel.refuse", {"code": "CONFLICT"}))
    ]
    ends = []
    for each in begun:
        where = each.headers["location"]
        await until(lambda where=where: _ended(site, where))
        ends.append((await site.get(where)).json()["data"])
    assert (ends[0]["status"], ends[0]["result"]["got"]) == ("completed", {"parcel_id": "p"})
    assert (ends[1]["status"], ends[1]["error"]["code"]) == ("failed", "CONFLICT")
    assert (await site.get("/api/v2/operations/op-none")).status_code == 404


async def _ended(site: Site, where: str) -> bool:
    return (await site.get(where)).json()["data"]["status"] != "running"


async def test_units_and_schemas_are_listed_as_the_bus_tells_them(site: Site) -> None:
    listed = (await site.get("/api/v2/units?domain=parcel")).json()
    by_name = {unit["unit"]: unit for unit in listed["units"]}
    assert {"parcel.echo", "parcel.carry", "parcel.burn", "parcel.log", "parcel.read"} <= set(by_name)
    assert by_name["parcel.carry"]["route"] == "POST /api/v2/parcels/{id}/carry"
    assert (by_name["parcel.burn"]["risk"], by_name["parcel.burn"]["kind"]) == ("high", "command")
    schema = (await site.get("/api/v2/schema/parcel.echo")).json()
    assert schema["input"]["properties"]["count"]["maximum"] == 1000
    assert schema["examples"][0]["parcel_id"] == "p-1"
