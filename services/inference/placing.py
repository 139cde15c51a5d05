"""Gets each request its replica: at once, when it is its turn, or not at all, and then says when to come back."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aima_core.domain import Context
from aima_core.errors import AimaError, NotFound, Timeout, Unavailable
from services.inference import internal as i
from services.inference import units as u
from services.inference.admission import QUEUE_FULL, Admission, Services
from services.inference.routing import BUSY, LOADING, choose, fitting, hopeful, sleeper
from services.inference.state import Pool, Route
from services.inference.waking import Waking
from services.model import units as model
from services.service import units as service

_TICK = 1.0  # seconds; a breaker's time passes without an event
_CATCH_UP = 2.0  # seconds that a peer gets to say what it knows
_GLANCE = 1.0  # seconds that the service domain gets to tell how far a start is
_AVOIDED = 0.5  # seconds in which a request does not go back to the only replica, which has just failed it


@dataclass(frozen=True)
class Asked:
    """A request that wants a replica. `timeout` tells how many seconds it may take from now on."""

    model: str
    types: tuple[str, ...]
    timeout: Callable[[], float]
    wait: bool
    holder: str = ""
    needs_tools: bool = False

    def begin(self, *, request_id: str = "", avoid: str = "", strictly: bool = False) -> i.BeginRequest:
        """Return the command that gives it one."""
        return i.BeginRequest(
            model=self.model,
            types=self.types,
            timeout=self.timeout(),
            request_id=request_id,
            holder=self.holder,
            avoid=avoid,
            strictly=strictly,
            needs_tools=self.needs_tools,
        )


class Placing:
    """Requests on their way to a replica."""

    def __init__(self, context: Context[Pool]) -> None:
        self._context = context
        self.admission = Admission(context.settings.queue)
        self._waking = Waking(context.peers, context.node, self.admission, self._asleep)
        self._beginning: Counter[Services] = Counter()  # requests that are decided and being committed
        self._refused: Counter[str] = Counter()

    async def close(self) -> None:
        """Wake nobody any more, and record what is not recorded yet."""
        await self._waking.close()
        await self._record_refused()

    async def place(self, asked: Asked, number: int, *, avoid: str = "") -> tuple[u.RequestStarted, Route]:
        """Return the request as it has begun, and its replica. `avoid` is the one that has just failed it.

        Raises Unavailable with BUSY, LOADING or QUEUE_FULL and `retry_after` when it shall come back later.
        """
        await self.known(asked.model, wait=asked.wait)
        pools = self._fitting(asked)
        services, begin = frozenset(pool.service_id for pool in pools), self._begin(asked, avoid)

        async def place() -> tuple[u.RequestStarted, Route]:
            self._beginning[services] += 1
            try:
                return await self._started(begin())
            except Unavailable as refusal:
                if refusal.reason == LOADING and (ident := sleeper(self._fitting(asked))):
                    self._waking.wake(ident)
                raise
            finally:
                self._beginning[services] -= 1

        try:
            if asked.wait:
                return await self.admission.admit(services, place, number, again=bool(avoid))
            if self.admission.ahead(services):
                choose(self._context.world, begin(), time.time())  # raises what the others wait for
                raise Unavailable(f"others wait for {asked.model} already", reason=BUSY)
            return await place()
        except Unavailable as refusal:
            if refusal.reason not in (BUSY, LOADING, QUEUE_FULL):
                raise
            raise await self._turned_away(asked, services, refusal) from None

    async def known(self, name: str, *, wait: bool) -> None:
        """Take in what the service domain has said until now; raise NotFound for a name that still means nothing.

        Whoever has just been told that a service runs may ask it at once. A peer that is silent knows nothing better.
        """
        pools = [pool for pool in self._context.world.values() if pool.serves(name)]
        if any(pool.routes or (wait and hopeful(pool)) for pool in pools):
            return
        with contextlib.suppress(Unavailable, Timeout, TimeoutError):
            async with asyncio.timeout(_CATCH_UP):
                await self._context.caught_up("service")
        if any(pool.serves(name) for pool in self._context.world.values()):
            return
        with contextlib.suppress(Unavailable, Timeout):
            await self._context.peers.call(model.GetModel(model_id=name), timeout=_CATCH_UP)

    async def watch(self) -> None:
        """Wake those who wait as things change."""
        with self._context.news() as news:
            while True:
                for record in await news.get():
                    match record.event:
                        case u.RequestCompleted(service_id=ident) | u.RequestFailed(service_id=ident):
                            self.admission.ended(ident)
                        case u.ServiceRemoved(service_id=ident):
                            self.admission.forget(ident)
                self._waking.changed()
                self.admission.wake()

    async def tick(self) -> None:
        """Wake them also when nothing happens, and record how many were turned away."""
        while True:
            await asyncio.sleep(_TICK)
            self.admission.wake()
            await self._record_refused()

    # --- one request ----------------------------------------------------------------------------------------

    def _begin(self, asked: Asked, avoid: str) -> Callable[[], i.BeginRequest]:
        """Return what makes the command of each try: for a moment strict about what to avoid, unless that is gone."""
        routes, strictly = self._routes(asked), bool(avoid)

        def relent() -> None:
            nonlocal strictly
            strictly = False
            self.admission.wake()

        if avoid:
            asyncio.get_running_loop().call_later(_AVOIDED, relent)

        def begin() -> i.BeginRequest:
            ident = f"req-{secrets.token_hex(8)}"
            return asked.begin(request_id=ident, avoid=avoid, strictly=strictly and self._routes(asked) == routes)

        return begin

    async def _started(self, begin: i.BeginRequest) -> tuple[u.RequestStarted, Route]:
        try:
            records = await self._context.record(begin)
        except asyncio.CancelledError:
            # it may be under way by now, and nobody else would hear of it
            back = asyncio.create_task(self._give_back(begin.request_id, "cancelled"))
            await asyncio.shield(back)
            raise
        started = records[0].event
        assert isinstance(started, u.RequestStarted)
        pool = self._context.world.get(started.stream)
        route = pool.route(started.process_id) if pool else None
        if route is None:
            await self._give_back(begin.request_id, "failed", error_code="ROUTE_GONE")
            raise Unavailable(f"the replica of {begin.model} has just gone", reason=LOADING)
        return started, route

    async def _give_back(self, request_id: str, outcome: u.Outcome, **said: Any) -> None:
        with contextlib.suppress(NotFound):  # it was refused
            await self._context.record(u.Settle(request_id=request_id, outcome=outcome, **said))

    def _fitting(self, asked: Asked) -> list[Pool]:
        return fitting(self._context.world.values(), asked.model, asked.types)

    def _routes(self, asked: Asked) -> list[tuple[str, bool]]:
        return [(route.process_id, route.healthy) for pool in self._fitting(asked) for route in pool.routes]

    def _asleep(self, service_id: str) -> bool:
        pool = self._context.world.get(f"inference/{service_id}")
        return pool is not None and pool.phase == "asleep"

    # --- turning away ---------------------------------------------------------------------------------------

    async def _turned_away(self, asked: Asked, services: Services, refusal: Unavailable) -> Unavailable:
        """Count a refusal, and return it with what helps to come back."""
        self._refused[min(services)] += 1
        pools = self._fitting(asked)
        details: dict[str, Any] = {
            "retry_after": self.admission.retry_after(services),
            "queued": max(self.admission.queued(ident) for ident in services),
            "outstanding": sum(len(pool.requests) for pool in pools)
            + sum(count for others, count in self._beginning.items() if others & services),
        }
        if refusal.reason == LOADING:
            details |= await self._progress(pools)
        return Unavailable(refusal.message, reason=refusal.reason, model=asked.model, **details)

    async def _progress(self, pools: list[Pool]) -> dict[str, Any]:
        """Tell how far a service is on its way, as well as that can be learned quickly; `progress` in percent."""
        pool = next((pool for pool in pools if pool.phase == "starting"), pools[0]) if pools else None
        told: dict[str, Any] = {"phase": pool.phase if pool else "stopped", "progress": None, "message": ""}
        if pool is None:
            return told
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

    async def _record_refused(self) -> None:
        for ident in list(self._refused):
            await self._context.record(i.RecordRefused(service_id=ident, count=self._refused.pop(ident)))
