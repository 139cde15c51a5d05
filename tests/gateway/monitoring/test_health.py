"""How the gateway says that it serves, and what it lacks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from aima_core.bus.nats_server import NatsServer
from aima_core.testing import serving, settings_for, until
from tests.core.toy import TALLY
from tests.gateway.conftest import Site, gateway


@pytest.fixture
def site(own_site: Site) -> Site:
    """A gateway of its own for each test: what is on its bus comes and goes."""
    return own_site


async def test_a_gateway_with_all_that_it_needs_is_ready(site: Site) -> None:
    for path in ("/health", "/api/v2/health", "/api/v2/health?ready=true"):
        response = await site.get(path)
        assert (response.status_code, response.json()["status"]) == (200, "ok")
    told = (await site.get("/api/v2/health")).json()
    names = ("bus", "jetstream", "counter", "gateway", "parcel")
    assert told["dependencies"] == dict.fromkeys(names, "ok")
    assert told["missing"] == []


async def test_a_domain_that_has_gone_is_named_and_one_that_comes_back_is_not(site: Site) -> None:
    async with serving(TALLY, settings=settings_for(site.folder, site.nats.url, TALLY)):
        await until(lambda: _is_missing(site, "tally", False))
    await until(lambda: _is_missing(site, "tally", True))
    ready = await site.get("/api/v2/health?ready=true")
    assert ready.status_code == 503
    error = ready.json()["error"]
    assert (error["code"], error["details"]["reason"], error["details"]["missing"]) == (
        "UNAVAILABLE",
        "NOT_READY",
        ["tally"],
    )
    loose = await site.get("/api/v2/health")
    assert (loose.status_code, loose.json()["status"]) == (200, "degraded")
    async with serving(TALLY, settings=settings_for(site.folder, site.nats.url, TALLY)):
        await until(lambda: _is_missing(site, "tally", False))


async def _is_missing(site: Site, name: str, missing: bool) -> bool:
    told = (await site.get("/api/v2/health")).json()
    return told["dependencies"].get(name) == ("missing" if missing else "ok")


async def test_without_the_bus_the_gateway_lives_and_is_not_ready(site: Site) -> None:
    await asyncio.to_thread(site.nats.stop)
    await until(lambda: _is_missing(site, "bus", True))
    ready = await site.get("/api/v2/health?ready=true")
    assert ready.status_code == 503
    assert {"bus", "jetstream"} <= set(ready.json()["error"]["details"]["missing"])
    assert (await site.get("/health")).json() == {"status": "ok"}
    refused = await site.post("/api/v2/counters/c1/add", {}, headers={"Aima-Timeout": "1"})
    assert refused.status_code in (503, 504)
    site.nats.launch()
    await until(lambda: _is_ready(site))


async def _is_ready(site: Site) -> bool:
    return (await site.get("/api/v2/health?ready=true")).status_code == 200


@pytest.mark.parametrize("query", ["ready=perhaps", "read=true"])
async def test_a_question_that_makes_no_sense_is_refused(site: Site, query: str) -> None:
    response = await site.get(f"/api/v2/health?{query}")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "VALIDATION_ERROR")


async def test_health_needs_no_key(tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]) -> None:
    environ = {"AIMA_GATEWAY_AUTH": "required", "AIMA_GATEWAY_OPEN_QUERIES": "false"}
    async with gateway(tmp_path / "data", nats, free_port(), **environ) as site:
        for path in ("/health", "/api/v2/health?ready=true", "/openapi.json", "/docs"):
            assert (await site.get(path, headers={"Authorization": "Bearer nonsense"})).status_code == 200
