"""Gathers the facts of a recommendation: the model, engines, devices, free memory and measured speeds."""

from __future__ import annotations

from aima_core.domain import Context
from aima_core.errors import Conflict, InsufficientResources
from services.device import units as device
from services.engine import units as engine
from services.model import units as model
from services.resource import units as resource
from services.service import units as u
from services.service.outside.start_facts import StartFacts
from services.service.rules.recommendation import Expected, Plan, expect, recommend
from services.service.rules.resource_table import RESOURCE_TABLE
from services.service.rules.selection import SelectionRequest, choose
from services.service.rules.state import Service

_QUERY = 2.0  # seconds that a peer has to answer a query from memory


class RecommendationFacts:
    """Answers `service.recommend`."""

    def __init__(self, context: Context[Service], facts: StartFacts) -> None:
        self._peers = context.peers
        self._facts = facts

    async def recommend(self, model_id: str, hint: u.Hint) -> u.Recommendation:
        """Return a recommendation for a model. Raises NotFound if it is unknown, or Conflict if no engine serves it."""
        peers = self._peers
        model_view = model.present(await peers.call(model.GetModel(model_id=model_id)))
        engines = (await peers.list_all(engine.ListEngines())).items
        devices = (await peers.list_all(device.ListDevices())).items
        budget = await peers.call(resource.GetBudget(), timeout=_QUERY)
        speeds = await self._facts.speeds(model_view.id)
        plans: list[tuple[Plan, Expected]] = []
        refusal: Conflict | InsufficientResources | None = None
        for name in RESOURCE_TABLE:
            for kind in ("gpu", "cpu"):
                request = SelectionRequest("", kind, name, {}, 1)  # type: ignore[arg-type]  # the keys are the classes
                try:
                    choice = choose(model_view, engines, devices, request)
                except (Conflict, InsufficientResources) as error:
                    refusal = error
                    continue
                plans.append((Plan(name, choice), expect(model_view, choice, devices, speeds)))  # type: ignore[arg-type]
        if not plans:
            raise refusal or Conflict(f"no engine serves model {model_view.id}", reason="NO_ENGINE")
        pool = budget.pools["memory"]
        gpus = sum(1 for item in devices if item.type == "gpu")
        return recommend(hint, plans, int(pool.available), gpus)
