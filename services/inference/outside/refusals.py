"""What becomes of requests that get no replica: they are counted, and each is told what helps to come back."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from aima_core.domain import Context
from aima_core.errors import AimaError, Unavailable
from services.inference import internal as i
from services.inference.outside.admission import Admission, Services
from services.inference.outside.wakeups import Wakeups
from services.inference.rules.routing import LOADING, sleeper
from services.inference.rules.state import Pool
from services.service import units as service

_GLANCE = 1.0  # seconds that the service domain gets to tell how far a start is


class Refusals:
    """Counts and explains refusals."""

    def __init__(self, context: Context[Pool], admission: Admission, waking: Wakeups) -> None:
        self._context = context
        self._admission = admission
        self._waking = waking
        self._counts: Counter[str] = Counter()

    def count(self, services: Services) -> None:
        """Count a request that meant these services, with one of them."""
        self._counts.update(sorted(services)[:1])

    async def record(self) -> None:
        """Record how many there were since the last time."""
        for ident in list(self._counts):
            await self._context.record(i.RecordRefused(service_id=ident, count=self._counts.pop(ident)))

    async def explained(
        self, refusal: AimaError, model: str, services: Services, pools: Sequence[Pool], beginning: int
    ) -> Unavailable:
        """Return a refusal with what helps to come back. `beginning`: requests that are about to be under way."""
        details: dict[str, Any] = {
            "retry_after": self._admission.retry_after(services),
            "queued": self._admission.longest(services),
            "outstanding": sum(len(pool.requests) for pool in pools) + beginning,
        }
        if refusal.reason == LOADING:
            details |= await self._progress(pools)
        return Unavailable(refusal.message, reason=refusal.reason, model=model, **details)

    async def _progress(self, pools: Sequence[Pool]) -> dict[str, Any]:
        """Tell how far a service is on its way, as well as that can be learned quickly; `progress` in percent."""
        pool = next((pool for pool in pools if pool.phase == "starting"), pools[0]) if pools else None
        told: dict[str, Any] = {"phase": pool.phase if pool else "stopped", "progress": None, "message": ""}
        if pool is None:
            return told
        if sleeper(pools):
            await self._waking.answered(pools)
            if refusal := self._waking.refusal(pools):
                return told | {"message": refusal.message}
        with contextlib.suppress(AimaError):
            status = await self._context.peers.call(service.GetStatus(service_id=pool.service_id), timeout=_GLANCE)
            told["message"] = status.summary
            if status.replicas:
                first = max(status.replicas, key=lambda replica: replica.progress)
                told |= {
                    "phase": first.phase or pool.phase,
                    "progress": first.progress,
                    "message": first.message or status.summary,
                }
        return told
