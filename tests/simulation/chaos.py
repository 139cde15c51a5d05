"""Draws what happens next: what callers ask, what programs, machine and processes suffer, how much time passes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from services.resource import units as resource
from services.service.rules import state as ss
from tests.simulation.models import ADDON, ENGINE_NAME, NEEDS
from tests.simulation.programs import GIB, OUT_OF_MEMORY, Program
from tests.simulation.site import Site

T = TypeVar("T")
APPS = ("app-1", "app-2")
"""Who has memory that no engine holds."""
_LOSS, _DEADLY = 0.002, 0.002  # shares of messages that are lost, of commits that a process does not survive
_PAUSES, _OFTEN = (0.001, 0.02, 0.1, 1, 5, 20), (4, 6, 6, 6, 2, 1)  # seconds from one thing to the next
_GATEWAY = "gateway-0a1b2c3d"
_KILLED = -9  # exit code


class Chaos:
    """What goes on at a site."""

    def __init__(self, site: Site) -> None:
        self.site, self.rng, self.machine = site, site.rng, site.machine
        self._leases: list[str] = []
        self._steps: list[tuple[float, Callable[[], None]]] = [
            (60, self.call),
            (2.0, self.kill_process),
            (1.5, self.stop_process),
            (4, self.kill_program),
            (2, self.freeze),
            (3, self.thaw),
            (1.5, self.stick),
            (1.5, self.fill_memory),
            (0.5, self.lose_package),
            (0.3, self.reboot),
        ]

    async def step(self) -> None:
        """Let one thing happen, and some time pass."""
        self.site.bus.loss, self.site.deadly, self.machine.kind = _LOSS, _DEADLY, False
        self._drawn(self._steps)()
        await asyncio.sleep(self.rng.choices(_PAUSES, _OFTEN)[0])

    def _drawn(self, weighted: Sequence[tuple[float, T]]) -> T:
        return self.rng.choices([one for _, one in weighted], [weight for weight, _ in weighted])[0]

    # --- what goes wrong ------------------------------------------------------------------------------------------

    def kill_process(self) -> None:
        self.site.kill(self.rng.choice(list(self.site.domains)))

    def stop_process(self) -> None:
        self.site.stop(self.rng.choice(list(self.site.domains)))

    def kill_program(self) -> None:
        if program := self._program("killed"):
            self.machine.end(program, _KILLED, self.rng.choice(("", "", "", OUT_OF_MEMORY)))

    def freeze(self) -> None:
        if program := self._program("frozen"):
            program.frozen = True

    def thaw(self) -> None:
        if program := self._one([one for one in self.machine.programs.values() if one.frozen and not one.stuck]):
            self.site.tell("thawed", program.instance)
            self.machine.thaw(program)

    def stick(self) -> None:
        if program := self._program("stuck"):
            program.frozen = program.stuck = True
            if owner := program.notes["service"]:
                self.site.callers.ask("service.stop", service_id=owner)

    def fill_memory(self) -> None:
        self.machine.taken = self.rng.choice((0, 0, 0, 0, 8 * GIB, 30 * GIB))

    def lose_package(self) -> None:
        self.machine.packages.clear()

    def reboot(self) -> None:
        self.site.tell("reboot", "")
        self.site.reboot()

    def _program(self, what: str) -> Program | None:
        if program := self._one(list(self.machine.programs.values())):
            self.site.tell(what, program.instance)
        return program

    def _one(self, candidates: list[T]) -> T | None:
        return self.rng.choice(candidates) if candidates else None

    # --- what callers ask -----------------------------------------------------------------------------------------

    def call(self) -> None:
        """Ask one of the domains for something."""
        rng, name = self.rng, self.rng.choice(list(NEEDS))
        ident = f"svc-{name}"
        service: ss.Service | None = self.site.states("service").get(f"service/{ident}")
        if service is None:
            self._create(name)
            return
        ask, insist = self.site.callers.ask, self.site.callers.insist
        timeout = rng.choice((5.0, 30.0, 60.0))
        starts = partial(ask, "service.start", timeout, service_id=ident, wait=rng.random() < 0.5, timeout=timeout)
        calls: list[tuple[float, Callable[[], None]]] = [
            (8, starts),
            (2, lambda: self._change_of_mind(starts, ident)),
            (1.2, lambda: ask("service.stop", service_id=ident, force=rng.random() < 0.3)),
            (0.5, lambda: insist("service.stop", service_id=ident)),
            (5, lambda: ask("service.scale", service_id=ident, replicas=rng.choice((0, 1, 1, 2, 2, 3)))),
            (0.5, lambda: insist("service.scale", service_id=ident, replicas=rng.choice((1, 2)))),
            (0.7, lambda: ask("service.delete", service_id=ident)),
            (0.3, lambda: self._create(name)),
            (1.2, self._start_engine),
            (0.8, lambda: ask("engine.stop", name=self._instance(), force=rng.random() < 0.3, timeout=5)),
            (1, lambda: ask("engine.restart", 60, name=self._instance())),
            (0.3, lambda: ask("engine.install", 60, name=rng.choice((ENGINE_NAME, ADDON)))),
            (1, self._allocate),
            (1, lambda: ask("resource.release", slot_id=resource.slot_of(rng.choice(APPS)))),
            (6, lambda: self._lease(name)),
            (3, self._settle),
            (4, lambda: self._chat(name)),
            (1, self._renew),
            (2, lambda: self._leave(name)),
            (1, lambda: ask("service.get", service_id=ident)),
            (0.5, lambda: ask("service.status", service_id=ident)),
            (0.5, lambda: ask("service.recommend", model_id=name)),
        ]
        self._drawn(calls)()

    def _change_of_mind(self, starts: Callable[[], None], ident: str) -> None:
        """Start a service and stop it while it starts, at whichever step of it."""
        starts()
        stops = partial(self.site.callers.ask, "service.stop", service_id=ident)
        self.site.loop.call_later(self.rng.choice((0.03, 0.1, 0.3, 1)) * self.rng.random(), stops)

    def _create(self, name: str) -> None:
        rng = self.rng
        autoscale = rng.choice((None, None, {"min": 0, "max": 3, "target_concurrency": 2.0}))
        data: dict[str, Any] = {
            "model_id": name,
            "name": name,
            "replicas": rng.choice((1, 1, 2, 3)),
            "persistent": rng.random() < 0.4,
            "device": NEEDS[name].device,
            "idle_timeout": rng.choice((0, 20)),
            "priority": rng.choice((3, 5, 7)),
        }
        data |= {"autoscale": autoscale} if autoscale else {}
        data |= {"port": port} if (port := rng.choice((None, None, None, None, 9_010, 9_011))) else {}
        rng.choice((self.site.callers.ask, self.site.callers.insist))("service.create", **data)

    def _start_engine(self) -> None:
        rng, states = self.rng, self.site.states("engine").values()
        there = [instance.id for instance in states if instance.start and not instance.start.service_id]
        data: dict[str, Any] = {
            "name": ENGINE_NAME,
            "model_id": rng.choice(("a", "b")),
            "process_id": rng.choice([*there[:2], f"eng-toy-{rng.randrange(10**6)}"]),
            "priority": rng.choice((3, 6)),
            "timeout": 30,
        }
        data |= {"port": 9_012} if rng.random() < 0.25 else {}
        if rng.random() < 0.3:  # in the name of a service that knows nothing of it, or is not there
            data |= {"service_id": f"svc-{rng.choice(list(NEEDS))}", "process_id": f"stray-{rng.randrange(10**6)}"}
        rng.choice((self.site.callers.ask, self.site.callers.insist))("engine.start", 40, **data)

    def _instance(self) -> str:
        there = [instance.id for instance in self.site.states("engine").values() if instance.start]
        return self.rng.choice(there) if there and self.rng.random() < 0.95 else ENGINE_NAME

    def _allocate(self) -> None:
        memory = self.machine.memory * self.rng.choice((20, 40, 60)) // 100
        data: dict[str, Any] = {"type": "system_service", "memory_bytes": memory, "priority": 8}
        self.site.callers.ask("resource.allocate", name=self.rng.choice(APPS), **data)

    def _lease(self, name: str) -> None:
        data: dict[str, Any] = {"model": name, "timeout": self.rng.choice((5, 30)), "wait": self.rng.random() < 0.3}
        data |= {"holder": _GATEWAY} if self.rng.random() < 0.5 else {}
        self.site.callers.ask("inference.lease", 10, lambda lease: self._leases.append(lease["request_id"]), **data)

    def _settle(self) -> None:
        if not self._leases:
            return
        request = self._leases.pop(self.rng.randrange(len(self._leases)))
        outcome = self.rng.choice(("completed", "failed", "cancelled"))
        self.site.callers.ask("inference.settle", request_id=request, outcome=outcome)

    def _chat(self, name: str) -> None:
        messages = [{"role": "user", "content": "hello"}]
        self.site.callers.ask("inference.chat", self.rng.choice((2, 20)), model=name, messages=messages)

    def _renew(self) -> None:
        if request := self._one(self._leases):
            self.site.callers.ask("inference.renew", request_id=request, timeout=self.rng.choice((5, 30)))

    def _leave(self, name: str) -> None:
        leave, after = self.site.callers.leave, self.rng.choice((0.01, 0.3, 3, 20))
        if self.rng.random() < 0.5:
            leave("inference.lease", after, model=name, timeout=30, wait=True)
        else:
            leave("inference.chat", after, model=name, messages=[{"role": "user", "content": "hello"}], stream=True)
