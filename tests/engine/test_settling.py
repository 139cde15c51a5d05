"""A slot follows what its instance really uses: real processes, the real resource domain, and the rule as a table."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aima_core.bus.client import Client
from aima_core.call import Call
from aima_core.domain import Domain
from aima_core.testing import serving, until
from aima_core.units import Command
from services.engine.domain import ENGINE
from services.engine.outside.adapter import EngineOutside
from services.engine.outside.memory_settlement import SettlementPace, settled
from services.engine.rules.state import InstanceState
from services.resource import units as resource
from services.resource.domain import RESOURCE
from services.resource.outside.adapter import ResourceOutside
from tests.toys.asking import ask, events
from tests.toys.machine import MANIFEST, Machine, machine

MIB = 2**20
NEVER = 3600.0


@pytest.mark.parametrize(
    ("limit", "used", "peak", "due", "expected"),
    [
        # reserved are 1000 bytes
        (1000, 1000, 1000, False, None),
        (1000, 1001, 1001, False, 1051),  # at once
        (1000, 500, 500, False, None),  # not yet
        (1000, 500, 500, True, 525),
        (1000, 100, 900, True, 945),  # by the peak
        (1000, 900, 953, True, None),  # the peak and its margin are more
        (525, 500, 500, True, None),  # lowered already
        (525, 100, 500, True, None),
        (525, 526, 526, True, 552),  # grown later
        (552, 100, 526, True, None),  # never lowered twice
    ],
)
def test_a_slot_is_raised_at_once_and_lowered_once(
    limit: int, used: int, peak: int, due: bool, expected: int | None
) -> None:
    assert settled(limit, 1000, used, peak, due) == expected


@given(st.integers(0, 2000), st.lists(st.tuples(st.integers(1, 2000), st.booleans()), max_size=30))
def test_a_slot_never_says_less_than_is_used_and_goes_down_once_at_most(
    reserved: int, looks: list[tuple[int, bool]]
) -> None:
    limit, peak, lowered = reserved, 0, 0
    for used, due in looks:
        peak = max(peak, used)
        wanted = settled(limit, reserved, used, peak, due)
        if wanted is not None:
            lowered += wanted < limit
            assert (wanted > limit) is (used > limit)
            limit = wanted
        assert limit >= used
        assert settled(limit, reserved, used, peak, due) is None
    assert lowered <= 1


def settling(every: float, lower_after: float, ask_again: float = 0.2) -> Domain[InstanceState]:
    """Return the engine domain, quicker."""
    pace = SettlementPace(every, lower_after, ask_again)
    return replace(ENGINE, outside=lambda context: EngineOutside(context, pace=pace))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Machine]:
    async with machine(tmp_path) as found:
        held = '  hold_mib: {about: MiB., type: int, args: ["--hold-mib={hold_mib}"]}\nhealth:'
        manifest = MANIFEST.replace("name: toy", "name: greedy").replace("health:", held)
        (found.folder / "engine" / "manifests" / "greedy.yaml").write_text(manifest)
        yield found


@contextlib.asynccontextmanager
async def quick(site: Machine, lower_after: float) -> AsyncIterator[Client]:
    engine = settling(0.05, lower_after)
    async with serving(RESOURCE, engine, settings=site.settings(RESOURCE, engine)) as client:
        try:
            yield client
        finally:
            await ask(client, "engine.stop", name="greedy", force=True)


async def start(client: Client, site: Machine, memory: int, hold: int) -> str:
    """Start one instance that holds so many MiB; return its endpoint."""
    asked = {"name": "greedy", "model_path": str(site.weights), "process_id": "eng-a", "memory_bytes": memory}
    started = await ask(client, "engine.start", **asked, config={"hold_mib": hold})
    return str(started["endpoint"])


async def hold(endpoint: str, mib: int) -> None:
    async with httpx2.AsyncClient(base_url=endpoint, trust_env=False) as http:
        assert (await http.post("/hold", json={"mib": mib})).status_code == 200


async def limits(client: Client, slot: str = "slot-eng-a-1") -> list[int]:
    """Return what the slot has said so far, in MiB."""
    found = await events(client, "resource", f"resource/{slot}")
    said = [event["data"].get("memory", event["data"].get("memory_limit", 0)) for event in found]
    return [limit // MIB for limit in said]


async def lowered(client: Client, slot: str = "slot-eng-a-1") -> list[int]:
    """Return what the slot has said when it has been lowered."""

    async def so() -> list[int] | None:
        found = await limits(client, slot)
        return found if len(found) > 1 else None

    found: list[int] = await until(so)
    return found


async def raised(client: Client, least: int, slot: str = "slot-eng-a-1") -> list[int]:
    """Return what the slot has said when it says so much: in one step or several, memory does not grow at once."""

    async def so() -> list[int] | None:
        found = await limits(client, slot)
        return found if found[-1] >= max(least, await used(client)) else None

    found: list[int] = await until(so)
    return found


async def used(client: Client) -> int:
    (instance,) = (await ask(client, "engine.get", name="greedy"))["instances"]
    return int(instance["memory_bytes"]) // MIB


async def test_a_slot_goes_down_to_what_is_used_and_up_with_it_and_a_new_run_has_all_it_asked_for(
    site: Machine,
) -> None:
    async with quick(site, lower_after=0.3) as client:
        endpoint = await start(client, site, memory=400 * MIB, hold=64)
        reserved, settled_at = await lowered(client)
        assert (reserved, await used(client) <= settled_at < 128) == (400, True)
        await hold(endpoint, 200)
        assert (await raised(client, 200))[-1] < 300
        await hold(endpoint, 0)
        await hold(endpoint, 264)
        reserved, *later = await raised(client, 264)
        assert later == sorted(later)  # that it used less meanwhile has lowered nothing
        await ask(client, "engine.restart", name="eng-a")
        reserved, settled_at = await lowered(client, "slot-eng-a-2")
        assert (reserved, settled_at < 128) == (400, True)


async def test_a_slot_that_is_too_small_is_raised_at_once(site: Machine) -> None:
    async with quick(site, lower_after=NEVER) as client:
        await start(client, site, memory=MIB, hold=64)
        reserved, *_, now = await raised(client, 64)
        assert (reserved, now < 128) == (1, True)


async def test_a_slot_that_was_settled_before_a_restart_of_ours_is_not_lowered_again(site: Machine) -> None:
    engine = settling(0.05, 0)
    settings = site.settings(RESOURCE, engine)
    async with serving(RESOURCE, settings=settings):
        async with serving(engine, settings=settings) as client:
            endpoint = await start(client, site, memory=400 * MIB, hold=100)
            await lowered(client)
            await hold(endpoint, 0)
        async with serving(engine, settings=settings) as client:
            await hold(endpoint, 200)
            reserved, *later = await raised(client, 200)
            assert (reserved, later) == (400, sorted(later))
            await ask(client, "engine.stop", name="greedy", force=True)


async def test_a_resource_domain_that_is_away_hears_of_it_when_it_is_back(site: Machine) -> None:
    engine = settling(0.05, NEVER)
    settings = site.settings(RESOURCE, engine)
    async with serving(engine, settings=settings) as client:
        async with serving(RESOURCE, settings=settings):
            endpoint = await start(client, site, memory=100 * MIB, hold=10)
            assert await limits(client) == [100]
        await hold(endpoint, 150)
        async with serving(RESOURCE, settings=settings):
            assert (await raised(client, 150))[-1] < 250
            await ask(client, "engine.stop", name="greedy", force=True)


async def test_a_raise_that_is_refused_is_told_once_and_ends_nothing(
    site: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> int:
        return [record.message for record in caplog.records].count("an instance uses more memory than it has reserved")

    async with quick(site, lower_after=NEVER) as client:
        endpoint = await start(client, site, memory=100 * MIB, hold=10)
        await ask(client, "resource.allocate", name="rest", type="system_service", memory_bytes=1)
        rest = (await ask(client, "resource.budget"))["total"] - 100 * MIB
        await ask(client, "resource.update_slot", slot_id="slot-rest", memory_limit=rest)
        await hold(endpoint, 120)
        await until(told)
        assert await limits(client) == [100]
        await ask(client, "resource.release", slot_id="slot-rest")
        assert (await raised(client, 120))[-1] < 220  # it uses no more than it did: what was refused is asked for again
        assert told() == 1
        (instance,) = (await ask(client, "engine.get", name="greedy"))["instances"]
        assert (instance["status"], instance["health"]) == ("running", "healthy")


async def test_a_raise_that_is_refused_is_asked_for_again_after_a_while_and_not_at_every_look(site: Machine) -> None:
    asked: list[float] = []

    class Noted(ResourceOutside):
        async def prepare(self, command: Command[Any], call: Call) -> Command[Any]:
            if isinstance(command, resource.UpdateSlot):
                asked.append(time.monotonic())
            return await super().prepare(command, call)

    noting, engine = replace(RESOURCE, outside=Noted), settling(0.01, NEVER, ask_again=0.4)
    async with serving(noting, engine, settings=site.settings(noting, engine)) as client:
        endpoint = await start(client, site, memory=100 * MIB, hold=10)
        await ask(client, "resource.allocate", name="rest", type="system_service", memory_bytes=1)
        rest = (await ask(client, "resource.budget"))["total"] - 100 * MIB
        await ask(client, "resource.update_slot", slot_id="slot-rest", memory_limit=rest)
        asked.clear()
        await hold(endpoint, 120)
        await until(lambda: len(asked) == 4)
        assert all(later - earlier >= 0.4 for earlier, later in pairwise(asked))
        assert await limits(client) == [100]
        await ask(client, "engine.stop", name="greedy", force=True)
