"""Keys: how they are made and end, what they may use, and that nothing of one is another's."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import services
from aima_core.bus.nats_server import NatsServer
from aima_core.domain_names import names_in
from aima_core.testing import serving, settings_for, until
from services.resource.domain import RESOURCE
from tests.core.toy import COUNTER
from tests.gateway.conftest import Site, gateway, listening
from tests.gateway.mcp.fixtures import Doors
from tests.gateway.scripted_engines import HELLO, Place, place
from tests.gateway.toy import PARCEL

PARCELS = {"name": "parcels", "scopes": ["parcel:low"]}
ADMIN = {"Authorization": "Bearer admin-secret"}


async def _made(site: Site, name: str, **fields: Any) -> dict[str, Any]:
    response = await site.post("/api/v2/gateways/create_key", {"name": name, **fields}, headers=ADMIN)
    assert response.status_code == 200, response.text
    made: dict[str, Any] = response.json()["data"]
    return made


def _shown(made: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {made['key']}"}


@pytest.fixture
def site(own_site: Site) -> Site:
    """A gateway of its own for each test: keys and events are counted."""
    return own_site


async def test_a_key_is_made_listed_used_and_revoked(locked: Site) -> None:
    made = await _made(locked, "ci", scopes=["counter:medium"], models=["llm-a"], expires_in=3600, tokens_per_day=5)
    (listed,) = (await locked.get("/api/v2/gateways/list_keys", headers=ADMIN)).json()["data"]["keys"]
    assert made["key"].startswith(f"aima_{made['key_id'].removeprefix('key-')}_")
    assert {name: listed[name] for name in ("id", "name", "scopes", "models", "expired", "tokens_per_day")} == {
        "id": made["key_id"],
        "name": "ci",
        "scopes": ["counter:medium"],
        "models": ["llm-a"],
        "expired": False,
        "tokens_per_day": 5,
    }
    assert (await locked.post("/api/v2/counters/c1/add", {}, headers=_shown(made))).status_code == 200
    revoked = await locked.post("/api/v2/gateways/revoke_key", {"key_id": made["key_id"]}, headers=ADMIN)
    assert revoked.status_code == 200
    refused = await locked.post("/api/v2/counters/c1/add", {}, headers=_shown(made))
    assert (refused.status_code, refused.json()["error"]["details"]["reason"]) == (401, "KEY_UNKNOWN")
    assert (await locked.get("/api/v2/parcels/p/echo", headers=_shown(made))).status_code == 401


async def test_two_keys_have_two_names_and_a_name_can_be_taken_again(locked: Site) -> None:
    made = await _made(locked, "ci")
    again = await locked.post("/api/v2/gateways/create_key", {"name": "ci"}, headers=ADMIN)
    assert (again.status_code, again.json()["error"]["details"]["reason"]) == (409, "NAME_TAKEN")
    await locked.post("/api/v2/gateways/revoke_key", {"key_id": made["key_id"]}, headers=ADMIN)
    assert (await _made(locked, "ci"))["key_id"] != made["key_id"]


async def test_a_new_key_under_the_name_of_a_revoked_one_goes_on_as_the_same(locked: Site) -> None:
    made = await _made(locked, "ci", scopes=["counter:medium"])
    await locked.post("/api/v2/counters/c1/add", {}, headers=_shown(made))
    await locked.post("/api/v2/gateways/revoke_key", {"key_id": made["key_id"]}, headers=ADMIN)
    for name, told in (("ci", "ci"), ("other", "")):
        headers = _shown(await _made(locked, name, scopes=["counter:low"]))
        (event,) = (await locked.get("/api/v2/counters/log", headers=headers)).json()["data"]["events"]
        assert event["principal"] == told


async def test_the_name_of_a_key_in_the_settings_is_taken(locked: Site) -> None:
    for more in ({}, {"Aima-Dry-Run": "true"}):
        refused = await locked.post("/api/v2/gateways/create_key", {"name": "admin"}, headers=ADMIN | more)
        assert (refused.status_code, refused.json()["error"]["details"]["reason"]) == (409, "NAME_TAKEN")
    assert (await locked.ask("gateway.list_keys"))["total"] == 0


@pytest.mark.parametrize("more", [{}, {"Aima-Dry-Run": "true"}])
async def test_a_scope_of_a_domain_that_there_is_not_is_refused_with_the_nearest(
    locked: Site, more: dict[str, str]
) -> None:
    asked = {"name": "ci", "scopes": ["*:low", "modle:medium", "counter:low", "xyz:high"]}
    refused = await locked.post("/api/v2/gateways/create_key", asked, headers=ADMIN | more)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "VALIDATION_ERROR")
    said = "scopes.1: there is no domain modle; did you mean model?; scopes.3: there is no domain xyz"
    assert error["message"] == said
    known = ", ".join(sorted({*names_in(services), "counter", "parcel", "*"}))
    assert error["details"]["fields"] == [
        {"field": field, "expected": f"a scope with one of the domains {known}"} for field in ("scopes.1", "scopes.3")
    ]
    assert (await locked.ask("gateway.list_keys"))["total"] == 0


async def test_a_key_is_made_for_our_own_domains_though_they_are_down_and_for_any_that_has_just_come(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]
) -> None:
    environ = {"AIMA_GATEWAY_AUTH": "required", "AIMA_API_KEYS": "admin:admin-secret"}
    async with gateway(tmp_path / "data", nats, free_port(), COUNTER, **environ) as site:
        await _made(site, "ours", scopes=["engine:low", "service:high"])
        assert (await site.post("/api/v2/gateways/create_key", PARCELS, headers=ADMIN)).status_code == 400
        async with serving(PARCEL, settings=settings_for(tmp_path / "other", nats.url, PARCEL)):
            assert (await site.post("/api/v2/gateways/create_key", PARCELS, headers=ADMIN)).status_code == 200


async def test_a_key_that_has_expired_is_refused(locked: Site) -> None:
    made = await _made(locked, "brief", expires_in=0.05)

    async def refused() -> bool:
        response = await locked.get("/api/v2/parcels/p/echo", headers=_shown(made))
        return response.status_code == 401 and response.json()["error"]["details"]["reason"] == "KEY_EXPIRED"

    await until(refused)
    (listed,) = (await locked.get("/api/v2/gateways/list_keys", headers=ADMIN)).json()["data"]["keys"]
    assert listed["expired"] is True


async def test_the_secret_of_a_key_is_kept_nowhere(locked: Site, capfd: pytest.CaptureFixture[str]) -> None:
    answers = [
        await locked.post("/api/v2/gateways/create_key", {"name": "one"}, headers=ADMIN | {"Idempotency-Key": "k"}),
        await locked.post("/api/v2/gateways/create_key", {"name": "one"}, headers=ADMIN | {"Idempotency-Key": "k"}),
        await locked.post("/api/v2/gateways/create_key", {"name": "two"}, headers=ADMIN),
    ]
    keys = [response.json()["data"]["key"] for response in answers]
    assert keys[0] == keys[1] != keys[2]
    secrets = {key.rpartition("_")[2] if key.count("_") == 2 else key.split("_", 2)[2] for key in keys}
    await locked.get("/api/v2/parcels/p/echo", headers={"Authorization": f"Bearer {keys[0]}"})
    await locked.get("/api/v2/parcels/p/echo", headers={"Authorization": f"Bearer {keys[0]}x"})
    events = (await locked.ask("gateway.log"))["events"]
    assert len(events) == 2
    replies = sqlite3.connect(locked.folder / "gateway" / "log.db")
    told = [str(row) for table in _tables(replies) for row in replies.execute(f"SELECT * FROM {table}")]
    replies.close()
    places = {
        "events": json.dumps(events),
        "tables": "".join(told),
        "output": "".join(capfd.readouterr()),
        **{
            str(file): file.read_bytes().decode("latin-1") for file in locked.folder.parent.rglob("*") if file.is_file()
        },
    }
    for where, text in places.items():
        for secret in secrets:
            assert secret not in text, where


def _tables(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]


async def test_a_dry_run_makes_no_key(locked: Site) -> None:
    planned = await locked.post(
        "/api/v2/gateways/create_key", {"name": "one"}, headers=ADMIN | {"Aima-Dry-Run": "true"}
    )
    assert planned.json()["data"]["events"][0]["type"] == "gateway.key_created"
    assert (await locked.ask("gateway.list_keys"))["total"] == 0


async def test_keys_outlive_the_gateway(tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]) -> None:
    environ = {"AIMA_GATEWAY_AUTH": "required", "AIMA_API_KEYS": "admin:admin-secret"}
    async with gateway(tmp_path / "data", nats, free_port(), **environ) as site:
        made = await _made(site, "ci", scopes=["counter:medium"])
    async with gateway(tmp_path / "data", nats, free_port(), **environ) as site:
        assert (await site.post("/api/v2/counters/c1/add", {}, headers=_shown(made))).status_code == 200


# --- two tenants --------------------------------------------------------------------------------------------------


async def test_one_tenant_sees_and_ends_no_work_of_another(locked: Site) -> None:
    one, other = [_shown(await _made(locked, name, scopes=["parcel:medium"])) for name in ("one", "other")]
    asked = {"unit": "parcel.carry", "input": {"parcel_id": "p"}, "options": {"async": True}}
    where = (await locked.post("/api/v2/execute", asked, headers=one)).headers["location"]
    for headers in (other, {}, ADMIN):
        assert (await locked.get("/api/v2/operations", headers=headers)).json()["data"]["total"] == 0
        for method, path in (("GET", where), ("DELETE", where), ("GET", f"{where}/events")):
            refused = await locked.http.request(method, path, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert (await locked.get(where, headers=one)).json()["data"]["status"] == "running"


async def test_the_idempotency_keys_of_two_tenants_do_not_meet(locked: Site) -> None:
    one, other = [await _made(locked, name, scopes=["counter:medium"]) for name in ("one", "other")]
    same = {"Idempotency-Key": "same"}
    totals = []
    for headers in (_shown(one), _shown(other), _shown(one), _shown(other), ADMIN):
        response = await locked.post("/api/v2/counters/c1/add", {"amount": 1}, headers=headers | same)
        totals.append(response.json()["data"]["total"])
    assert totals == [1, 2, 1, 2, 3]
    # nor is one met by somebody who writes the other's id before it
    forged = {"Idempotency-Key": f"{one['key_id']}/same"}
    response = await locked.post("/api/v2/counters/c1/add", {"amount": 1}, headers=_shown(other) | forged)
    assert response.json()["data"]["total"] == 4


async def test_nobody_meets_a_tenants_idempotency_key(site: Site) -> None:
    made = await site.ask("gateway.create_key", name="one", scopes=["counter:medium"])
    same = {"Idempotency-Key": "same"}
    await site.post("/api/v2/counters/c1/add", {}, headers=_shown(made) | same)
    forged = await site.post("/api/v2/counters/c1/add", {}, headers={"Idempotency-Key": f"{made['key_id']}/same"})
    assert forged.json()["data"]["total"] == 2


async def test_a_keys_own_rate_counts_for_it_alone(locked: Site) -> None:
    slow = _shown(await _made(locked, "slow", requests_per_minute=12))
    quick = _shown(await _made(locked, "quick"))
    statuses = [(await locked.get("/api/v2/parcels/p/echo", headers=slow)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert (await locked.get("/api/v2/parcels/p/echo", headers=quick)).status_code == 200


async def test_a_stream_ends_with_the_key_that_opened_it(locked: Site) -> None:
    made = await _made(locked, "ci", scopes=["counter:medium"])
    async with listening(locked, "/api/v2/events", headers=_shown(made)) as heard:
        await locked.post("/api/v2/counters/c1/add", {}, headers=ADMIN)
        assert (await heard()).kind == "counter.added"
        await locked.post("/api/v2/gateways/revoke_key", {"key_id": made["key_id"]}, headers=ADMIN)
        await locked.post("/api/v2/counters/c1/add", {}, headers=ADMIN)
        assert await heard() is None


# --- what one tenant learns of another from what happens ----------------------------------------------------------

Look = Callable[[Site, dict[str, str]], Awaitable[list[dict[str, Any]]]]


async def _by_execute(site: Site, headers: dict[str, str]) -> list[dict[str, Any]]:
    response = await site.post("/api/v2/execute", {"unit": "inference.log"}, headers=headers)
    return list(response.json()["data"]["events"])


async def _by_stream(site: Site, headers: dict[str, str]) -> list[dict[str, Any]]:
    asked = {"unit": "inference.log", "options": {"stream": True}}
    response = await site.post("/api/v2/execute", asked, headers=headers)
    (line,) = [line for line in response.text.splitlines() if line.startswith("data: ")]
    return list(json.loads(line.removeprefix("data: "))["data"]["events"])


async def _by_operation(site: Site, headers: dict[str, str]) -> list[dict[str, Any]]:
    asked = {"unit": "inference.log", "options": {"async": True}}
    where = (await site.post("/api/v2/execute", asked, headers=headers)).headers["location"]

    async def ended() -> Any:
        return (await site.get(where, headers=headers)).json()["data"]["result"]

    return list((await until(ended))["events"])


async def _by_rest(site: Site, headers: dict[str, str]) -> list[dict[str, Any]]:
    return list((await site.get("/api/v2/inference/log", headers=headers)).json()["data"]["events"])


async def _by_mcp(site: Site, headers: dict[str, str]) -> list[dict[str, Any]]:
    key = headers.get("Authorization", "").removeprefix("Bearer ")
    async with Doors(site.url, site.nats.url, site.client, site.folder).mcp(key=key) as mcp:
        answer = await mcp.call_tool("inference_log")  # the client holds it against the schema
    (text,) = answer.content
    assert json.loads(text.text) == answer.structured_content
    return list(answer.structured_content["events"])


async def _by_events(site: Site, headers: dict[str, str]) -> list[dict[str, Any]]:
    last = (await site.ask("inference.log"))["position"]
    async with listening(site, "/api/v2/events?domain=inference&after=0", headers=headers) as heard:
        return [(await heard()).data for _ in range(last)]


LOOKS: tuple[Look, ...] = (_by_execute, _by_stream, _by_operation, _by_rest, _by_mcp, _by_events)


async def _asked_by(here: Place, *names: str) -> dict[str, dict[str, str]]:
    """Let tenants of these names each ask a model; return what shows their keys, when all of it has happened."""
    tenants = {name: await here.site.key(name, "inference:medium") for name in names}
    for name, headers in tenants.items():
        body = {"model": "toy", "messages": HELLO}
        response = await here.site.post(
            "/v1/chat/completions", body, headers=headers | {"X-Request-Id": f"of-{name}", "traceparent": TRACES[name]}
        )
        assert response.status_code == 200, response.text
    await here.outcomes(len(names))
    return tenants


TRACES = {name: f"00-{digit * 32}-{digit * 16}-01" for name, digit in (("acme", "a"), ("bolt", "b"))}


async def _tells_of(here: Place, name: str) -> set[str]:
    """Return all that tells of a tenant or of its requests, as it stands in the whole log."""
    own = [event for event in (await here.site.ask("inference.log"))["events"] if event["principal"] == name]
    assert [event["type"] for event in own] == ["inference.request_started", "inference.request_completed"]
    assert own[0]["data"]["owner"] == name
    requests = {event["data"]["request_id"] for event in own}
    return {name, TRACES[name][3:35], f"of-{name}", *requests, *(event["request_id"] for event in own)}


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.__name__)
async def test_one_tenant_learns_neither_the_name_nor_the_requests_of_another(
    look: Look, tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]
) -> None:
    environ = {"AIMA_GATEWAY_AUTH": "required", "AIMA_API_KEYS": "admin:admin-secret"}
    async with place(tmp_path / "data", nats, free_port(), **environ) as here:
        await here.engine()
        tenants = await _asked_by(here, "acme", "bolt")
        of_acme, of_bolt = [await _tells_of(here, name) for name in tenants]
        operator = await here.site.key("operator", "inference:high")
        whole = (await here.site.ask("inference.log"))["events"]
        sees = {
            "acme": (tenants["acme"], of_acme, of_bolt),
            "bolt": (tenants["bolt"], of_bolt, of_acme),
            "nobody": ({}, set(), of_acme | of_bolt),
            "reader": (await here.site.key("reader", "*:low"), set(), of_acme | of_bolt),
            "operator": (operator, of_acme | of_bolt, set()),
            "admin": (ADMIN, of_acme | of_bolt, set()),
        }
        for who, (headers, told, untold) in sees.items():
            events = await look(here.site, headers)
            text = json.dumps(events)
            assert all(each in text for each in told), who
            assert not any(each in text for each in untold), who
            assert [event["type"] for event in events] == [event["type"] for event in whole]
            assert [event["data"].keys() for event in events] == [event["data"].keys() for event in whole]
            own = [event for event in whole if event["principal"] == who]
            assert [event for event in events if event["principal"] == who] == own
        assert await look(here.site, ADMIN) == whole


async def test_parts_of_a_tenants_command_tell_nothing_of_who_else_did_something(locked: Site) -> None:
    one, other, operator = [
        await locked.key(name, scope)
        for name, scope in (("one", "counter:medium"), ("other", "counter:medium"), ("keeper", "counter:high"))
    ]
    for counter, headers, principals in (("c1", one, ["", "one", ""]), ("c2", operator, ["other", "one", ""])):
        asked = {"unit": "counter.grow", "input": {"counter_id": counter}, "options": {"async": True}}
        where = (await locked.post("/api/v2/execute", asked, headers=headers)).headers["location"]
        async with listening(locked, f"{where}/events", headers=headers) as heard:
            await until(lambda stream=f"counter/{counter}": _happened(locked, stream))
            parts = [(await heard()).data["progress"]]
            for adding in (other, one):
                await locked.post(f"/api/v2/counters/{counter}/add", {}, headers=adding | {"X-Request-Id": "added"})
                parts.append((await heard()).data["progress"])
            (locked.folder / "counter" / "gate").write_text("")
            while (told := (await heard()).data)["status"] == "running":
                pass
            parts.append(told["progress"])
        (locked.folder / "counter" / "gate").unlink()
        assert [part["principal"] for part in parts[1:]] == principals
        assert [part["request_id"] == "added" for part in parts[1:3]] == [bool(name) for name in principals[:2]]


async def _happened(site: Site, stream: str) -> bool:
    return bool((await site.ask("counter.log", stream=stream))["events"])


async def test_where_nobody_needs_a_key_nobody_sees_less_but_a_key_does(site: Site) -> None:
    one, other = [await site.key(name, "counter:medium") for name in ("one", "other")]
    await site.post("/api/v2/counters/c1/add", {}, headers=one | {"X-Request-Id": "of-one"})
    for headers, sees in (({}, "one"), (one, "one"), (other, "")):
        (event,) = (await site.get("/api/v2/counters/log", headers=headers)).json()["data"]["events"]
        async with listening(site, "/api/v2/events?after=0&domain=counter", headers=headers) as heard:
            told = (await heard()).data
        assert told == event
        assert (event["principal"], event["request_id"]) == (sees, "of-one" if sees else "")


# --- what one tenant learns of another from what is held ----------------------------------------------------------

SLOTS = "asms://resource/allocations"


async def _owners_by_execute(site: Site, headers: dict[str, str]) -> Any:
    response = await site.post("/api/v2/execute", {"unit": "resource.allocations"}, headers=headers)
    return response.json()["data"]["allocations"]


async def _owners_by_stream(site: Site, headers: dict[str, str]) -> Any:
    asked = {"unit": "resource.status", "options": {"stream": True}}
    response = await site.post("/api/v2/execute", asked, headers=headers)
    (line,) = [line for line in response.text.splitlines() if line.startswith("data: ")]
    return json.loads(line.removeprefix("data: "))["data"]["slots"]


async def _owners_by_rest(site: Site, headers: dict[str, str]) -> Any:
    return (await site.get("/api/v2/resource/status", headers=headers)).json()["data"]["slots"]


async def _owners_by_reading(site: Site, headers: dict[str, str]) -> Any:
    return (await site.get(f"/api/v2/resource/{SLOTS}", headers=headers)).json()["data"]["data"]["allocations"]


async def _owners_by_tool(site: Site, headers: dict[str, str]) -> Any:
    key = headers.get("Authorization", "").removeprefix("Bearer ")
    async with Doors(site.url, site.nats.url, site.client, site.folder).mcp(key=key) as mcp:
        return (await mcp.call_tool("resource_allocations")).structured_content["allocations"]


async def _owners_by_mcp_resource(site: Site, headers: dict[str, str]) -> Any:
    key = headers.get("Authorization", "").removeprefix("Bearer ")
    async with Doors(site.url, site.nats.url, site.client, site.folder).mcp(key=key) as mcp:
        (content,) = (await mcp.read_resource(SLOTS)).contents
    return json.loads(content.text)["allocations"]


async def _owners_by_watching(site: Site, headers: dict[str, str]) -> Any:
    async with listening(site, f"/api/v2/resource/{SLOTS}/watch", headers=headers) as heard:
        while (told := (await heard()).data)["total"] < 2:  # watchers are told after the fact
            pass
    return told["allocations"]


OWNERS: tuple[Look, ...] = (
    _owners_by_execute,
    _owners_by_stream,
    _owners_by_rest,
    _owners_by_reading,
    _owners_by_tool,
    _owners_by_mcp_resource,
    _owners_by_watching,
)


@pytest.mark.parametrize("auth", ["required", "off"])
async def test_a_tenant_finds_itself_among_the_owners_of_slots_and_nobody_else(
    auth: str, tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]
) -> None:
    environ = {"AIMA_GATEWAY_AUTH": auth, "AIMA_API_KEYS": "admin:admin-secret"}
    async with gateway(tmp_path / "data", nats, free_port(), RESOURCE, **environ) as site:
        tenants = {name: await site.key(name, "resource:medium") for name in ("acme", "bolt")}
        for name, headers in tenants.items():
            slot = {"name": f"of-{name}", "type": "inference_native", "memory_bytes": 0}
            held = await site.post("/api/v2/command/resource.allocate", slot, headers=headers)
            assert held.status_code == 200, held.text
        whole = (await site.ask("resource.allocations"))["allocations"]
        assert {slot["name"]: slot["owner"] for slot in whole} == {"of-acme": "acme", "of-bolt": "bolt"}
        sees = [
            (tenants["acme"], {"acme"}),
            (tenants["bolt"], {"bolt"}),
            (await site.key("reader", "*:low"), set()),
            (await site.key("operator", "resource:high"), {"acme", "bolt"}),
            (ADMIN, {"acme", "bolt"}),
            ({}, set() if auth == "required" else {"acme", "bolt"}),
        ]
        for headers, names in sees:
            seen = [slot | {"owner": slot["owner"] if slot["owner"] in names else ""} for slot in whole]
            for look in OWNERS:
                assert await look(site, headers) == seen, look.__name__
