"""Counts the requests that get no replica, and explains each refusal: when and how the caller can try again."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from aima_core.domain import Context
from aima_core.errors import AimaError, Unavailable
from services.inference import internal as i
from services.inference.outside.admission import QUEUE_FULL, Admission, Services
from services.inference.outside.wakeups import Wakeups
from services.inference.rules.routing import LOADING, sleeper
from services.inference.rules.state import Pool
from services.service import units as service

_STATUS_TIMEOUT = 1.0  # seconds for the service domain to report the progress of a start
_HOW_TO_WAIT = "wait for a replica with wait: true (over HTTP: Prefer: wait=60)"


class Refusals:
    """Counts and explains refusals."""

    def __init__(self, context: Context[Pool], admission: Admission, wakeups: Wakeups) -> None:
        self._context = context
        self._admission = admission
        self._wakeups = wakeups
        self._counts: Counter[str] = Counter()

    def count(self, services: Services) -> None:
        """Count one refused request, for the first of the services that could have served it."""
        self._counts.update(sorted(services)[:1])

    async def record(self) -> None:
        """Record the refusals counted since the last call."""
        for ident in list(self._counts):
            await self._context.record(i.RecordRefused(service_id=ident, count=self._counts.pop(ident)))

    async def explained(
        self, refusal: AimaError, model: str, services: Services, pools: Sequence[Pool], starting: int
    ) -> Unavailable:
        """Return the refusal with `retry_after` and the queue's length. With reason LOADING, adds the start's progress.

        `starting` is the number of requests that have a replica, but whose start is not committed yet.
        """
        queued = self._admission.longest(services)
        details: dict[str, Any] = {
            "retry_after": refusal.details.get("retry_after") or self._admission.retry_after(services),
            "queued": queued,
            "outstanding": sum(len(pool.requests) for pool in pools) + starting,
        }
        message = refusal.message
        if refusal.reason == LOADING:
            progress = await self._progress(pools)
            details |= progress
            if progress["message"]:
                percent = "" if progress["progress"] is None else f"{progress['progress']:.0f} %: "
                message += f" ({percent}{progress['message']})"
        if queued and refusal.reason != QUEUE_FULL:
            message += f"; requests waiting: {queued}"
        message += f"; ask again in {details['retry_after']} s"
        if refusal.reason != QUEUE_FULL:
            message += f", or {_HOW_TO_WAIT}"
        return Unavailable(message, reason=refusal.reason, model=model, **details)

    async def _progress(self, pools: Sequence[Pool]) -> dict[str, Any]:
        """Return phase, progress (in percent) and message of a start.

        If the service domain does not answer, `progress` is None and `message` is empty.
        """
        pool = next((pool for pool in pools if pool.phase == "starting"), pools[0]) if pools else None
        progress: dict[str, Any] = {"phase": pool.phase if pool else "stopped", "progress": None, "message": ""}
        if pool is None:
            return progress
        if sleeper(pools):
            await self._wakeups.answered(pools)
            if refused := self._wakeups.refusal(pools):
                return progress | {"message": refused[1].message}
        with contextlib.suppress(AimaError):
            status = await self._context.peers.call(
                service.GetStatus(service_id=pool.service_id), timeout=_STATUS_TIMEOUT
            )
            progress["message"] = status.summary
            if status.replicas:
                first = max(status.replicas, key=lambda replica: replica.progress)
                progress |= {
                    "phase": first.phase or pool.phase,
                    "progress": first.progress,
                    "message": first.message or status.summary,
                }
        return progress
