"""What `/metrics` tells of the system: the figures of each domain that is there, and that who asks may read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aima_core.bus.nats_server import NatsServer
from aima_core.domain import Domain, Outside
from aima_core.errors import ExecutionFailed
from aima_core.testing import serving, settings_for, until
from aima_core.units import Query, Success, View
from services.resource.domain import RESOURCE
from tests.core.toy import COUNTER, TALLY
from tests.gateway.conftest import ADMIN, Site, gateway
from tests.gateway.scripted_engines import HELLO, Line, Place, greet, hang_up, place
from tests.toys.stateless import Nothing

CHAT = "/v1/chat/completions"
OF = {"service": "svc-a", "model": "toy"}
SHOWN = {"Authorization": f"Bearer {ADMIN}"}
Labels = frozenset[tuple[str, str]]


async def figures(site: Site, headers: dict[str, str] | None = None) -> dict[str, dict[Labels, float]]:
    """Return what Prometheus makes of a scrape: the values of each name by their labels, of our own names only."""
    answer = await site.get("/metrics", headers=headers)
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, "text/plain")
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            values = found.setdefault(sample.name, {})
            labels = frozenset(sample.labels.items())
            assert labels not in values, sample
            values[labels] = sample.value
    return found


def told(**labels: str) -> Labels:
    """Return the labels of a figure of the service that the tests have."""
    return frozenset((OF | labels).items())


def one(name: str, *values: str) -> set[Labels]:
    """Return the labels of figures that have one label each."""
    return {frozenset({(name, value)}) for value in values}


def of_models(found: dict[str, Any]) -> set[str]:
    """Return the models of which there are figures."""
    return {dict(labels)["model"] for name, by in found.items() if name.startswith("aima_service") for labels in by}


@pytest.fixture
def site(own_site: Site) -> Site:
    """A gateway of its own for each test: what it has done is counted."""
    return own_site


@pytest.fixture
async def here(tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]) -> AsyncIterator[Place]:
    async with place(tmp_path / "data", nats, free_port()) as found:
        yield found


# --- what requests come to ----------------------------------------------------------------------------------------


async def test_what_requests_came_to_and_the_tokens_they_took_are_counted(here: Place) -> None:
    engine = await here.engine()
    assert (await here.site.post(CHAT, {"model": "toy", "messages": HELLO})).status_code == 200
    engine.script = hang_up
    assert (await here.site.post(CHAT, {"model": "toy", "messages": HELLO})).status_code >= 500
    ended = [outcome["kind"] for outcome in await here.outcomes(3)]
    assert sorted(ended) == ["completed", "failed", "failed"]
    found = await figures(here.site)
    assert found["aima_service_requests_total"] == {
        told(outcome="completed"): 1.0,
        told(outcome="failed"): 2.0,
        told(outcome="cancelled"): 0.0,
    }
    assert found["aima_service_tokens_total"] == {told(kind="prompt"): 2.0, told(kind="completion"): 3.0}
    assert found["aima_service_requests_outstanding"] == {told(): 0.0}


async def test_what_is_under_way_and_what_waits_is_told_and_where_it_can_go(here: Place) -> None:
    held = asyncio.Event()

    async def hold(line: Line) -> None:
        await held.wait()
        await greet(line)

    await here.engine(hold, slots=1)
    asking = [asyncio.create_task(here.site.post(CHAT, {"model": "toy", "messages": HELLO})) for _ in range(3)]
    await here.waiting(queued=2, outstanding=1)
    found = await figures(here.site)
    assert found["aima_service_requests_outstanding"] == {told(): 1.0}
    assert found["aima_service_requests_queued"] == {told(): 2.0}
    assert found["aima_service_replicas"] == {told(): 1.0}
    held.set()
    assert [(await answer).status_code for answer in asking] == [200, 200, 200]


# --- memory -------------------------------------------------------------------------------------------------------


async def test_memory_is_told_in_bytes_and_who_holds_it_by_status(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]
) -> None:
    async with gateway(tmp_path / "data", nats, free_port(), RESOURCE) as site:
        asked = {"name": "eng-a", "type": "inference_native", "memory_bytes": 1_000_000}
        await site.ask("resource.allocate", **asked)
        status, found = await site.ask("resource.status"), await figures(site)
    memory, kinds = found["aima_memory_bytes"], ("total", "used", "available", "reserved", "budget")
    assert memory.keys() == one("kind", *kinds)
    fixed = {kind: memory[frozenset({("kind", kind)})] for kind in ("total", "reserved", "budget")}
    assert fixed == {kind: status["memory"][kind] for kind in fixed}
    assert fixed["reserved"] == 1_000_000
    slots = found["aima_resource_slots"]
    assert slots.keys() == one("status", "active", "idle", "preempted")
    assert {labels for labels, count in slots.items() if count} == one("status", "active")


# --- who is there -------------------------------------------------------------------------------------------------


async def test_without_the_domains_that_have_figures_the_gateway_tells_its_own(site: Site) -> None:
    await site.get("/api/v2/units")
    found = await figures(site)
    assert found["aima_domain_up"] == dict.fromkeys(one("domain", "counter", "gateway", "parcel"), 1.0)
    assert found["aima_http_requests_total"][
        frozenset({("route", "/api/v2/units"), ("method", "GET"), ("status", "200")})
    ]
    assert {name for name in found if not name.startswith("aima_http")} == {"aima_domain_up"}


async def test_a_domain_that_has_gone_is_told_to_be_down(site: Site) -> None:
    (tally,) = one("domain", "tally")

    async def up(value: float) -> bool:
        return (await figures(site))["aima_domain_up"].get(tally) == value

    async with serving(TALLY, settings=settings_for(site.folder, site.nats.url, TALLY)):
        await until(lambda: up(1.0))
    await until(lambda: up(0.0))


class Odd(Query[Success], unit="resource.status"):
    """Answer as no resource domain does."""


async def _nothing() -> View:
    await asyncio.Event().wait()
    raise AssertionError


async def _nonsense() -> View:
    return Success(success=True)


async def _refusal() -> View:
    raise ExecutionFailed("the machine cannot be read", reason="NO_MACHINE")


@pytest.mark.parametrize("answering", [_nothing, _nonsense, _refusal])
async def test_a_scrape_goes_without_the_domain_that_does_not_answer_as_it_should(
    answering: Callable[[], Any], tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]
) -> None:
    class Answering(Outside[Nothing]):
        async def answer(self, query: Query[Any]) -> View:
            found: View = await answering()
            return found

    domain: Domain[Nothing] = Domain(
        name="resource",
        about="An odd one.",
        state=Nothing,
        events=(),
        queries=(Odd,),
        decide=lambda *_: [],
        evolve=lambda *_: None,
        reply=lambda *_: Success(success=True),
        outside=Answering,
    )
    async with gateway(tmp_path / "data", nats, free_port(), domain, COUNTER) as site:
        async with asyncio.timeout(10):  # after which Prometheus gives up
            found = await figures(site)
    assert found["aima_domain_up"] == dict.fromkeys(one("domain", "counter", "gateway", "resource"), 1.0)
    assert "aima_memory_bytes" not in found


async def test_while_the_bus_is_away_the_gateway_tells_its_own(here: Place) -> None:
    await here.engine()
    await asyncio.to_thread(here.site.nats.stop)

    async def tells(value: float, models: set[str]) -> bool:
        found = await figures(here.site)
        return set(found["aima_domain_up"].values()) == {value} and of_models(found) == models

    await until(lambda: tells(0.0, set()))
    here.site.nats.launch()
    await until(lambda: tells(1.0, {"toy"}))


# --- who asks -----------------------------------------------------------------------------------------------------


async def test_a_key_sees_the_figures_of_what_it_may_read_and_use(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]
) -> None:
    environ = {"AIMA_GATEWAY_AUTH": "required", "AIMA_API_KEYS": f"admin:{ADMIN}", "AIMA_GATEWAY_OPEN_QUERIES": "false"}
    async with place(tmp_path / "data", nats, free_port(), **environ) as here:
        await here.engine()
        await here.engine(process_id="p1", service_id="svc-b", service_name="b", model_id="other", model_name="Other")
        assert (await here.site.get("/metrics")).status_code == 401
        seen = {
            "all": (SHOWN, {"toy", "other"}),
            "reader": (await here.site.key("reader", "inference:low"), {"toy", "other"}),
            "other domain": (await here.site.key("narrow", "model:high"), set()),
        }
        for number, name in enumerate(("toy", "Toy", "a", "svc-a")):
            key = await here.site.key(f"bound-{number}", "inference:low", models=[name])
            seen[f"bound to {name}"] = (key, {"toy"})
        elsewhere = await here.site.key("elsewhere", "inference:medium", models=["third"])
        seen["bound to another"] = (elsewhere, set())
        for who, (headers, models) in seen.items():
            found = await figures(here.site, headers)
            assert of_models(found) == models, who
            assert one("domain", "inference") <= found["aima_domain_up"].keys(), who
