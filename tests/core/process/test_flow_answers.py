"""The answers of flows with an idempotency key: each flow runs once, also when many keys are in use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from aima_core.bus.outcomes import Outcome
from aima_core.errors import Unavailable
from aima_core.process import idempotency
from aima_core.process.idempotency import FlowAnswers


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> FlowAnswers:
    monkeypatch.setattr(idempotency, "_MOST_FLOW_ANSWERS", 3)
    return FlowAnswers()


Run = Callable[[], Coroutine[None, None, Outcome]]


def counted(runs: list[str], name: str, gate: asyncio.Event | None = None) -> Run:
    async def run() -> Outcome:
        runs.append(name)
        if gate:
            await gate.wait()
        return Outcome(name.encode())

    return run


async def test_a_finished_answer_makes_room_and_a_running_flow_keeps_its_key(answers: FlowAnswers) -> None:
    runs: list[str] = []
    gate = asyncio.Event()
    slow = asyncio.create_task(answers.get("slow", b"", counted(runs, "slow", gate)))
    await asyncio.sleep(0)
    for name in ("a", "b", "c", "d"):
        await answers.get(name, b"", counted(runs, name))
    again = asyncio.create_task(answers.get("slow", b"", counted(runs, "slow")))
    gate.set()
    assert await slow == await again
    assert runs == ["slow", "a", "b", "c", "d"]


async def test_if_all_flows_run_another_key_is_refused(answers: FlowAnswers) -> None:
    gate, runs = asyncio.Event(), list[str]()
    tasks = [asyncio.create_task(answers.get(str(n), b"", counted(runs, str(n), gate))) for n in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="idempotency key are running"):
        await answers.get("another", b"", counted(runs, "another"))
    gate.set()
    await asyncio.gather(*tasks)
    assert (await answers.get("another", b"", counted(runs, "another"))).data == b"another"
