"""Every unit at every door: the same answer, the same refusal, and the same answer to who may ask."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from aima_core.bus.directory import Directory, UnitInfo
from aima_core.errors import AimaError
from services.gateway.entrance.access import NOBODY, Policy, Principal
from services.gateway.rest import routes
from tests.system.harness import System, system

Told = dict[str, Any]
"""`{"data": ...}` or `{"error": {code, message, details}}`."""
Door = Callable[[UnitInfo, Mapping[str, Any]], Awaitable[Told]]

VOLATILE = (
    "resource.can_allocate",
    *("device.metrics", "device.list", "device.detect", "device.info", "device.read"),
    *("resource.status", "resource.read", "model.search"),
)
"""What they tell is another in each moment; of these only the shape has to be the same."""


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[System]:
    async with system(tmp_path / "data") as found:
        yield found


async def units_of(running: System) -> dict[str, UnitInfo]:
    directory = Directory(running.client.nc)
    await directory.open()
    await directory.close()
    return dict(directory.units)


# --- the doors ----------------------------------------------------------------------------------------------------


def url_of(running: System) -> str:
    return f"http://{running.environ['AIMA_GATEWAY_ADDR']}"


def told(envelope: dict[str, Any]) -> Told:
    return {"data": envelope["data"]} if envelope["success"] else {"error": envelope["error"]}


def executing(http: httpx2.AsyncClient) -> Door:
    async def ask(unit: UnitInfo, data: Mapping[str, Any]) -> Told:
        reply = await http.post("/api/v2/execute", json={"unit": unit.name, "type": unit.kind, "input": data})
        return told(reply.json())

    return ask


def routing(http: httpx2.AsyncClient, units: Mapping[str, UnitInfo]) -> Door:
    async def ask(unit: UnitInfo, data: Mapping[str, Any]) -> Told:
        route = next(route for route in routes.routes(unit, units) if not route.ident or route.ident in data)
        given = dict(data)
        path = route.path.replace("{id}", str(given.pop(route.ident, "x")))
        reply = await http.request(route.method, f"/api/v2{path}", json=given)
        return told(reply.json())

    return ask


def calling(session: ClientSession) -> Door:
    async def ask(unit: UnitInfo, data: Mapping[str, Any]) -> Told:
        result = await session.call_tool(unit.name.replace(".", "_"), dict(data))
        if result.is_error:
            return {"error": json.loads(result.content[0].text)}  # type: ignore[union-attr]
        return {"data": result.structured_content}

    return ask


def requesting(running: System) -> Door:
    """The bus itself, and with it the command line, which tests/cli holds against HTTP."""

    async def ask(unit: UnitInfo, data: Mapping[str, Any]) -> Told:
        try:
            return {"data": await running.ask(unit.name, **data)}
        except AimaError as error:
            return {"error": error.body()}

    return ask


@contextlib.asynccontextmanager
async def talking(running: System, key: str = "") -> AsyncIterator[tuple[httpx2.AsyncClient, ClientSession]]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        httpx2.AsyncClient(base_url=url_of(running), headers=headers, timeout=30) as http,
        httpx2.AsyncClient(headers=headers, timeout=30) as carrying,
        streamable_http_client(f"{url_of(running)}/mcp", http_client=carrying) as streams,
        ClientSession(streams[0], streams[1]) as session,
    ):
        await session.initialize()
        yield http, session


# --- the same everywhere ------------------------------------------------------------------------------------------


def shape(value: Any) -> Any:
    """Return what stays the same of something that is another in each moment: the names in it."""
    match value:
        case dict():
            return {key: shape(one) for key, one in value.items()}
        case list():
            return [shape(one) for one in value[:1]]
    return "value"


def comparable(unit: UnitInfo, found: Told) -> Told:
    if "error" in found:
        details = {key: value for key, value in found["error"]["details"].items() if key != "retry_after"}
        return {"error": found["error"] | {"details": details}}
    return shape(found) if unit.name in VOLATILE else found


@pytest.mark.timeout(300)
async def test_every_unit_gives_the_same_answer_and_the_same_refusal_at_every_door(running: System) -> None:
    units = await units_of(running)
    asked: list[tuple[UnitInfo, dict[str, Any]]] = []
    for unit in units.values():
        asked.append((unit, {"nonsense": 1}))
        if unit.kind == "query":
            asked += [(unit, example) for example in unit.examples[:1]]
        elif routes.ident_of(unit.domain, units) in unit.input.get("required", ()):
            asked += [(unit, example) for example in unit.examples[:1]]  # about something that is not there
    key = (await running.ask("gateway.create_key", name="all", scopes=["*:high"]))["key"]
    async with talking(running, key) as (http, session):
        doors = {
            "bus": requesting(running),
            "execute": executing(http),
            "rest": routing(http, units),
            "mcp": calling(session),
        }

        async def one(unit: UnitInfo, data: dict[str, Any]) -> list[str]:
            answers = {name: comparable(unit, await door(unit, data)) for name, door in doors.items()}
            first = answers["bus"]
            assert first.get("error", {}).get("code") != "INTERNAL_ERROR", f"{unit.name} {data}"
            return [
                f"{unit.name} {data}: {name}: {answer} instead of {first}"
                for name, answer in answers.items()
                if answer != first
            ]

        different = [line for unit, data in asked for line in await one(unit, data)]
    assert not different, "\n".join(different)


# --- who may ------------------------------------------------------------------------------------------------------

KEYS: dict[str, list[str]] = {
    "all": ["*:high"],
    "everyday": ["*:medium"],
    "reader": ["*:low"],
    "inference": ["inference:medium"],
    "services": ["service:high", "model:low"],
}


def expected(policy: Policy, who: Principal, unit: UnitInfo) -> str:
    try:
        policy.permit(who, unit)
    except AimaError as error:
        return error.code
    return "VALIDATION_ERROR"


@pytest.mark.parametrize("auth", ["off", "required"])
async def test_who_may_ask_is_the_same_for_every_unit_at_every_door(tmp_path: Path, auth: str) -> None:
    running = System(tmp_path / "data", {"AIMA_GATEWAY_AUTH": auth})
    await running.start()
    try:
        units = await units_of(running)
        policy = Policy(required=auth == "required")
        people = {"nobody": ("", NOBODY)}
        for name, scopes in KEYS.items():
            made = await running.ask("gateway.create_key", name=name, scopes=scopes)
            people[name] = (made["key"], Principal(name=name, key_id=made["key_id"], scopes=tuple(scopes)))
        wrong = []
        for name, (key, who) in people.items():
            async with talking(running, key) as (http, session):
                doors = {"execute": executing(http), "rest": routing(http, units), "mcp": calling(session)}
                for unit in units.values():
                    for where, door in doors.items():
                        code = (await door(unit, {"nonsense": 1}))["error"]["code"]
                        if code != expected(policy, who, unit):
                            wrong.append(f"{name} {unit.name} at {where}: {code}")
        assert not wrong, "\n".join(wrong)
    finally:
        await running.stop()
