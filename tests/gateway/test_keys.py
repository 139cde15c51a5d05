"""Keys: how they are made and end, what they may use, and that nothing of one is another's."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aima_core.nats_server import NatsServer
from aima_core.testing import until
from tests.gateway.conftest import Site, gateway, listening

ADMIN = {"Authorization": "Bearer admin-secret"}


async def _made(site: Site, name: str, **fields: Any) -> dict[str, Any]:
    response = await site.post("/api/v2/gateways/create_key", {"name": name, **fields}, headers=ADMIN)
    assert response.status_code == 200, response.text
    made: dict[str, Any] = response.json()["data"]
    return made


def _shown(made: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {made['key']}"}


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
    for place, text in places.items():
        for secret in secrets:
            assert secret not in text, place


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
