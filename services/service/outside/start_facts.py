"""Gathers the facts of a start: engine, device, memory of a replica, and the services that have to sleep for it."""

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

_QUERY = 2.0  # seconds that a peer has to answer a query from memory


class StartFacts:
    """Queries the peers for the facts of a start. Changes nothing."""

    def __init__(self, context: Context[Service], memory: MemoryFinder) -> None:
        self._peers = context.peers
        self._memory = memory

    async def of(
        self, service: Service, *, replicas: int, wait: bool, timeout: float, gently: bool = False
    ) -> i.BeginStart:
        """Return the command that starts this many replicas of the service.

        With `gently`, services that were used in the last ten seconds keep their memory. Raises NotFound for an unknown
        model, Conflict if the model is not ready or no engine serves it, and InsufficientResources.
        """
        about, peers = service.about, self._peers
        model_view = await peers.call(model.GetModel(model_id=about.model_id))
        if model_view.status != "ready":
            waiting = f"is {model_view.status}; start the service when the model is ready"
            what = f"has failed: {model_view.error}" if model_view.error else waiting
            raise Conflict(f"{service.id} cannot start: model {model_view.id} {what}", reason="MODEL_NOT_READY")
        engines = await peers.list_all(engine.ListEngines())
        devices = await peers.list_all(device.ListDevices())
        request = SelectionRequest(about.engine, about.device, about.resource_class, about.config, replicas)  # type: ignore[arg-type]
        choice = choose(model_view, engines.items, devices.items, request, await self.speeds(model_view.id))
        features = await peers.call(engine.GetFeatures(name=choice.engine.name), timeout=_QUERY)
        return i.BeginStart(
            service_id=service.id,
            wait=wait,
            timeout=timeout,
            engine=choice.engine.name,
            device=choice.device,
            config=choice.config,
            reason=choice.reason,
            tools=model_view.tools and "tools" in choice.engine.capabilities,
            memory=choice.memory,
            gpu_fraction=choice.gpu_fraction,
            slots=_slots(choice, features),
            cancels_whole=features.cancels_whole,
            makes_room=await self._memory.make_room(
                service, replicas, Need(choice.memory, choice.gpu_fraction), gently=gently
            ),
        )

    async def check(self, model_view: model.ModelView, engine_name: str | None, config: Mapping[str, Any]) -> None:
        """Check the options of a service. Raises ValidationFailed if the named engine refuses them.

        Without `engine_name`, raises ValidationFailed if every engine for the model refuses them.
        """
        names = [engine_name] if engine_name else await self._engines_for(model_view)
        refusals: list[ValidationFailed] = []
        for name in names:
            try:
                await self._peers.call(engine.CheckConfig(name=name, config=dict(config)))
            except ValidationFailed as refusal:
                refusals.append(refusal)
        if names and len(refusals) == len(names):
            raise refusals[0]

    async def _engines_for(self, model_view: model.ModelView) -> list[str]:
        """Return the engines that may serve the model, the preferred one first. Empty until the model is pulled."""
        engines = (await self._peers.list_all(engine.ListEngines(type=model_view.type))).items
        suitable = (item for item in engines if model_view.format in item.formats)
        return [item.name for item in sorted(suitable, key=lambda item: -max(item.preference.values(), default=0))]

    async def speeds(self, model_id: str) -> list[inference.Speed]:
        """Return the measured speeds of a model. Empty if the inference domain does not answer."""
        try:
            return (await self._peers.call(inference.GetSpeeds(model_id=model_id), timeout=_QUERY)).speeds
        except AimaError:
            return []


def _slots(choice: Selection, features: engine.Features) -> int:
    """Return how many requests a replica works on at once."""
    slots = choice.config.get("slots")
    return slots if isinstance(slots, int) else features.max_concurrent
