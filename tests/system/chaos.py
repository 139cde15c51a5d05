"""Chaos: three services of two replicas each under load, while whatever runs is killed at random. `make chaos`.

    python -m tests.system.chaos [--seconds 300] [--seed 7]

The real engine, the real model, the system as a user starts it. At the end every acknowledged command must still be
true, every request must have come to an end within its deadline, every service must run again, and what is reserved
must be what runs. Prints the figures; exits with 1 when one of these does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from aima_core.errors import AimaError
from aima_core.testing import until
from tests.stand_ins import weights
from tests.system.harness import ALL, System, assert_logs_hold, system

SERVICES, REPLICAS, CLIENTS = 3, 2, 6
DEADLINE = 20.0  # seconds that a request may take, and is told so
GRACE = 3.0  # seconds beyond it within which its error has to be there
REST = 90.0  # seconds in which everything has to be well again after the last kill
PAUSE = (0.5, 3.0)  # seconds between kills


@dataclass
class Figures:
    """What has happened. `deadline`: seconds that a request may take, and is told so."""

    deadline: float = DEADLINE
    kills: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    hung: int = 0
    slowest: float = 0.0
    acknowledged: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    restarts: int = 0
    recovered_after: float = 0.0
    events: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return them for a person."""
        answered = self.requests["answered"]
        total = sum(self.requests.values())
        refused = {code: count for code, count in sorted(self.requests.items()) if code != "answered"}
        return [
            f"killed:                {sum(self.kills.values())} processes: {dict(sorted(self.kills.items()))}",
            f"requests:              {total}, of them answered {answered}, typed errors {refused or 'none'}",
            f"hung requests:         {self.hung} (the slowest took {self.slowest:.1f} s of {self.deadline:g} s)",
            f"acknowledged commands: {len(self.acknowledged)}, lost {len(self.lost)}",
            f"replicas restarted:    {self.restarts}",
            f"all well again after:  {self.recovered_after:.1f} s",
            f"events in the logs:    {self.events}",
        ]


async def run(
    data: Path,
    model: Path,
    seconds: float,
    seed: int,
    pause: tuple[float, float] = PAUSE,
    deadline: float = DEADLINE,
) -> Figures:
    """Hurt a system for so many seconds and hold it against the truth; raise AssertionError where it does not hold."""
    figures, chance = Figures(deadline=deadline), random.Random(seed)
    async with system(data) as aima:
        imported = await aima.ask("model.import", path=str(model), name="small")
        running = {}
        for number in range(SERVICES):
            created = await aima.ask(
                "service.create",
                model_id=imported["model_id"],
                name=f"chaos {number}",
                replicas=REPLICAS,
                resource_class="small",
                config={"threads": 1},
            )
            running[created["service_id"]] = REPLICAS
        await asyncio.gather(*(aima.ask("service.start", service_id=service_id) for service_id in running))
        await aima.assert_true(running)
        over = asyncio.Event()
        work = [asyncio.create_task(_ask(aima, list(running), over, figures, chance)) for _ in range(CLIENTS)]
        work.append(asyncio.create_task(_command(aima, imported["model_id"], over, figures)))
        await _kill(aima, seconds, pause, figures, chance)
        over.set()
        await asyncio.gather(*work)
        begun = time.monotonic()
        await until(lambda: _well(aima, running), within=REST, every=0.2)
        figures.recovered_after = time.monotonic() - begun
        await aima.assert_true(running)
        await _still_there(aima, figures)
        for service_id in running:
            shown = await aima.soon("service.status", service_id=service_id)
            figures.restarts += sum(replica["restarts"] for replica in shown["replicas"])
            await aima.soon("service.stop", service_id=service_id)
        await aima.assert_true(dict.fromkeys(running, 0))
    figures.events = await assert_logs_hold(data)
    assert not figures.hung, f"{figures.hung} requests have hung"
    assert not figures.lost, f"acknowledged and not there: {figures.lost}"
    assert figures.requests["answered"], "nothing was answered"
    return figures


async def _well(aima: System, running: dict[str, int]) -> bool:
    with contextlib.suppress(AimaError):
        listed = (await aima.ask("service.list", timeout=5, status="running"))["services"]
        return {service["id"] for service in listed} == set(running)
    return False


async def _ask(aima: System, services: list[str], over: asyncio.Event, figures: Figures, chance: random.Random) -> None:
    """Ask one question after the other, as one client."""
    while not over.is_set():
        messages = [{"role": "user", "content": "Say a word."}]
        begun = time.monotonic()
        try:
            async with asyncio.timeout(figures.deadline + GRACE):
                model = chance.choice(services)
                await aima.ask("inference.chat", timeout=figures.deadline, model=model, messages=messages, max_tokens=8)
            outcome = "answered"
        except AimaError as error:
            outcome = error.code
        except TimeoutError:
            outcome, figures.hung = "HUNG", figures.hung + 1
        figures.requests[outcome] += 1
        figures.slowest = max(figures.slowest, time.monotonic() - begun)
        if outcome != "answered":
            await asyncio.sleep(0.2)  # a client that backs off, as they do


async def _command(aima: System, model_id: str, over: asyncio.Event, figures: Figures) -> None:
    """Give commands to two domains and remember which were acknowledged."""
    number = 0
    while not over.is_set():
        number += 1
        for unit, field_, given in (
            ("service.create", "service_id", {"model_id": model_id, "name": f"kept {number}"}),
            ("model.create", "model_id", {"name": f"kept {number}", "type": "llm"}),
        ):
            with contextlib.suppress(AimaError):
                done = await aima.ask(unit, timeout=5, **given)
                figures.acknowledged[done[field_]] = unit
        await asyncio.sleep(0.1)


async def _kill(
    aima: System, seconds: float, pause: tuple[float, float], figures: Figures, chance: random.Random
) -> None:
    """Kill engines, domains and the bus, one or several at once."""
    until_ = time.monotonic() + seconds
    while time.monotonic() < until_:
        await asyncio.sleep(chance.uniform(*pause))
        engines, domains = list(aima.engines().items()), [name for name in ALL if name in aima.pids()]
        kind = chance.choices(("engine", "domain", "nats-server", "several"), (5, 5, 1, 1))[0]
        if kind in ("engine", "several") and engines:
            _, process = chance.choice(engines)
            with contextlib.suppress(psutil.Error):
                process.kill()
                figures.kills["engine process"] += 1
        victims = {"domain": 1, "several": 3}.get(kind, 0)
        chosen = chance.sample(domains, min(victims, len(domains)))
        for name in [*chosen, *(["nats-server"] if kind == "nats-server" else [])]:
            with contextlib.suppress(KeyError, ProcessLookupError):  # it is just being restarted
                aima.kill([name])
                figures.kills[name] += 1


async def _still_there(aima: System, figures: Figures) -> None:
    """Note every acknowledged command that is not true."""
    for ident, unit in figures.acknowledged.items():
        domain, _, _ = unit.partition(".")
        try:
            await aima.soon(f"{domain}.get", **{f"{domain}_id": ident})
        except AimaError:
            figures.lost.append(ident)


def main() -> int:
    """Run it as a command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="how long to kill")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000), help="of what is killed")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="aima-chaos-"))
    print(f"chaos for {given.seconds:g} s, seed {given.seed}", flush=True)
    try:
        figures = asyncio.run(run(folder / "data", weights.smollm2(), given.seconds, given.seed))
    except AssertionError as error:
        print(f"FAILED: {error}\nthe logs are in {folder}", flush=True)
        return 1
    print("\n".join([*figures.lines(), "passed: nothing lost, orphaned, hung or untrue"]), flush=True)
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
