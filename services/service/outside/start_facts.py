"""What deciding a start needs to know from outside: the engine and the device, what they take, who makes room."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aima_core.domain import Context
from aima_core.errors import AimaError, Conflict, ValidationFailed
from services.device import units as device
from services.engine import units as engine
from services.inference import units as inference
from services.model import units as model
from services.service import internal as i
from services.service.outside.memory import MemoryFinder, Need
from services.service.rules.selection import Selection, SelectionRequest, choose
from services.service.rules.state import Service

_ASK = 2.0  # seconds for a question that a peer answers from memory


class StartFacts:
    """Looks things up; changes nothing."""

    def __init__(self, context: Context[Service], room: MemoryFinder) -> None:
        self._peers = context.peers
        self._room = room

    async def of(
        self, service: Service, *, replicas: int, wait: bool, timeout: float, gently: bool = False
    ) -> i.BeginStart:
        """Return the start of a service with all that is to be decided. Raises what speaks against it."""
        about, peers = service.about, self._peers
        found = await peers.call(model.GetModel(model_id=about.model_id))
        if found.status != "ready":
            raise Conflict(
                f"model {found.id} is {found.status}: {found.error or 'wait until it is ready'}",
                reason="MODEL_NOT_READY",
            )
        engines = await peers.call(engine.ListEngines(type=found.type, limit=1000))
        devices = await peers.call(device.ListDevices(limit=1000))
        wish = SelectionRequest(about.engine, about.device, about.resource_class, about.config, replicas)  # type: ignore[arg-type]
        choice = choose(found, engines.items, devices.items, wish, await self.speeds(found.id))
        features = await peers.call(engine.GetFeatures(name=choice.engine.name), timeout=_ASK)
        return i.BeginStart(
            service_id=service.id,
            wait=wait,
            timeout=timeout,
            engine=choice.engine.name,
            device=choice.device,
            config=choice.config,
            reason=choice.reason,
            tools=found.tools and "tools" in choice.engine.capabilities,
            memory=choice.memory,
            gpu_fraction=choice.gpu_fraction,
            slots=_slots(choice, features),
            cancels_whole=features.cancels_whole,
            makes_room=await self._room.made(
                service, replicas, Need(choice.memory, choice.gpu_fraction), gently=gently
            ),
        )

    async def check(self, found: model.ModelView, name: str | None, config: Mapping[str, Any]) -> None:
        """Raise ValidationFailed for a config that the engine of this name does not take, or without one none does."""
        names = [name] if name else await self._serving(found)
        refusals: list[ValidationFailed] = []
        for one in names:
            try:
                await self._peers.call(engine.CheckConfig(name=one, config=dict(config)))
            except ValidationFailed as refusal:
                refusals.append(refusal)
        if names and len(refusals) == len(names):
            raise refusals[0]

    async def _serving(self, found: model.ModelView) -> list[str]:
        """Return the engines that may serve a model, the most preferred first; none before its files are here."""
        engines = (await self._peers.call(engine.ListEngines(type=found.type, limit=1000))).items
        fit = (each for each in engines if found.format in each.formats)
        return [each.name for each in sorted(fit, key=lambda each: -max(each.preference.values(), default=0))]

    async def speeds(self, model_id: str) -> list[inference.Speed]:
        """Return what was measured of a model; nothing when nobody can tell."""
        try:
            return (await self._peers.call(inference.GetSpeeds(model_id=model_id), timeout=_ASK)).speeds
        except AimaError:
            return []


def _slots(choice: Selection, features: engine.Features) -> int:
    """Return how many requests a replica works on at once."""
    slots = choice.config.get("slots")
    return slots if isinstance(slots, int) else features.max_concurrent
