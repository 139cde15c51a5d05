"""Memory that changes hands between services: the real system, the real engine, the real model, a tight budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aima_core.errors import AimaError
from aima_core.testing import until
from tests.system.harness import PATIENT, System, system

pytestmark = pytest.mark.timeout(300)

SMALL = {"resource_class": "small", "config": {"threads": 1}}


async def test_memory_goes_to_sleep_to_whoever_needs_it_and_back(tmp_path: Path, smollm2: Path) -> None:
    async with system(tmp_path / "data") as aima:
        model = await aima.ask("model.import", path=str(smollm2), name="small")
        for name, more in (("a", {}), ("b", {}), ("boss", {"priority": 60}), ("kept", {"persistent": True})):
            await aima.ask("service.create", model_id=model["model_id"], name=name, **SMALL, **more)
        await aima.ask("service.start", service_id="svc-a")
        need = await _reserved(aima)
        await _leave_room_for(aima, need, 1)

        # scaled to zero: process, port and memory are gone; a request wakes it
        used = _resident(aima)
        assert used > 50 * 2**20
        await aima.ask("service.scale", service_id="svc-a", replicas=0)
        await until(lambda: not aima.engines(), within=PATIENT)
        assert _resident(aima) == 0
        await until(lambda: _holds(aima, 0), within=PATIENT)
        assert await _summary(aima, "svc-a") == "asleep (scaled to 0); the next request wakes it"
        assert (await _chat(aima, "a"))["content"]
        assert list(aima.engines()) == ["svc-a-r0-2"]

        # with room for one, the service that is idle makes room for the one that is started, and for the one woken
        await aima.ask("service.start", service_id="svc-b")
        assert await _summary(aima, "svc-a") == "asleep (made room for svc-b); the next request wakes it"
        assert list(aima.engines()) == ["svc-b-r0-1"]
        assert (await _chat(aima, "a"))["content"]
        assert await _summary(aima, "svc-b") == "asleep (made room for svc-a); the next request wakes it"
        assert list(aima.engines()) == ["svc-a-r0-3"]
        asked = [e for e in await _history(aima, "svc-b") if e["type"] == "service.stop_requested"]
        assert [event["data"]["made_room_for"] for event in asked] == ["svc-a"]

        # one that is persistent makes room for nobody of its own rank, and says who holds the memory
        await aima.ask("service.stop", service_id="svc-a")
        await aima.ask("service.start", service_id="svc-kept")
        with pytest.raises(AimaError) as refusal:
            await aima.ask("service.start", service_id="svc-b")
        assert refusal.value.code == "INSUFFICIENT_RESOURCES"
        assert refusal.value.details["missing"] > 0
        assert any(holder["name"].startswith("svc-kept-") for holder in refusal.value.details["holders"])

        # but a more important one takes it; it comes back when there is room again
        await aima.ask("service.start", service_id="svc-boss")
        assert list(aima.engines()) == ["svc-boss-r0-1"]
        shown = await aima.ask("service.status", service_id="svc-kept")
        assert (shown["status"], shown["health"]) == ("degraded", "unhealthy")
        assert "PREEMPTED" in shown["summary"] or "INSUFFICIENT" in shown["summary"], shown["summary"]
        await aima.ask("service.stop", service_id="svc-boss")
        await until(lambda: _runs(aima, "svc-kept"), within=PATIENT * 2)
        assert len(aima.engines()) == 1
        await aima.ask("service.stop", service_id="svc-kept")
        await aima.ask("resource.release", slot_id="slot-filler")
        await aima.assert_true(dict.fromkeys(("svc-a", "svc-b", "svc-boss", "svc-kept"), 0))


async def _reserved(aima: System) -> int:
    """Return what the one instance that runs has reserved."""
    (slot,) = (await aima.ask("resource.allocations"))["allocations"]
    return int(slot["memory"])


async def _leave_room_for(aima: System, need: int, count: int) -> None:
    """Reserve memory that nobody preempts, so that there is room for so many instances and a half."""
    budget = await aima.ask("resource.budget")
    filler = int(budget["total"] - (count + 0.5) * need)
    available = (await aima.ask("resource.status"))["memory"]["available"]
    if filler > available:
        pytest.skip("other programs use the memory that this test has to reserve")
    await aima.ask("resource.allocate", name="filler", type="system_service", memory_bytes=filler, priority=100)


async def _holds(aima: System, count: int) -> bool:
    slots = (await aima.ask("resource.allocations"))["allocations"]
    return len([slot for slot in slots if slot["name"] != "filler"]) == count


async def _chat(aima: System, model: str) -> Any:
    messages = [{"role": "user", "content": "Say a word."}]
    return await aima.ask("inference.chat", model=model, messages=messages, max_tokens=4)


async def _summary(aima: System, service_id: str) -> str:
    return str((await aima.ask("service.status", service_id=service_id))["summary"])


async def _history(aima: System, service_id: str) -> list[dict[str, Any]]:
    return list((await aima.ask("service.history", service_id=service_id))["events"])


async def _runs(aima: System, service_id: str) -> bool:
    return bool((await aima.ask("service.get", service_id=service_id))["status"] == "running")


def _resident(aima: System) -> int:
    """Return the bytes that the engines have in memory."""
    return sum(process.memory_info().rss for process in aima.engines().values())
