"""Gets each request its replica: at once, when it is its turn, or not at all, and then says when to come back."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from aima_core.domain import Context, Parts
from aima_core.errors import AimaError, NotFound, Timeout, Unavailable, ValidationFailed
from services.inference import internal as i
from services.inference import units as u
from services.inference.outside.admission import QUEUE_FULL, Admission, Services
from services.inference.outside.refusals import Refusals
from services.inference.outside.wakeups import Wakeups
from services.inference.rules.routing import BUSY, LOADING, choose, fitting, hopeful, sleeper
from services.inference.rules.state import Pool, Route
from services.model import units as model

_TICK = 1.0  # seconds; a breaker's time passes without an event
_CATCH_UP = 2.0  # seconds that a peer gets to say what it knows
_AVOIDED = 0.5  # seconds in which a request does not go back to the only replica, which has just failed it
_TELL = 2.0  # seconds between the parts that say what is waited for
_LATE = 0.05  # seconds before its deadline from which a request that is called off counts as late: clocks differ


@dataclass(frozen=True)
class PlacementRequest:
    """A request that wants a replica. `timeout` tells how many seconds it may take from the moment it has one.

    `deadline` in Unix seconds; with `wait` it waits until then, with `queue` unless the model is loading.
    """

    model: str
    types: tuple[str, ...]
    timeout: Callable[[], float]
    deadline: float
    wait: bool
    holder: str = ""
    needs_tools: bool = False
    queue: bool = False
    probe: bool = False

    def late(self) -> bool:
        """Whether its time is up: if not, who calls it off is its caller."""
        return time.time() >= self.deadline - _LATE

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


@dataclass
class _Placed:
    """A request on its way. `waits`: in a line, or it has been told to; not while it tries."""

    asked: PlacementRequest
    services: Services
    begin: Callable[[], i.BeginRequest]
    waits: bool


class Placement:
    """Requests on their way to a replica."""

    def __init__(self, context: Context[Pool]) -> None:
        self._context = context
        self.admission = Admission(context.settings.queue)
        self._waking = Wakeups(context.peers, context.node, self.admission, self._pool)
        self._beginning: Counter[Services] = Counter()  # requests that are decided and being committed
        self._refusals = Refusals(context, self.admission, self._waking)
        self._finishing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wake nobody any more, and record what is not recorded yet."""
        await self._waking.close()
        await asyncio.gather(*self._finishing, return_exceptions=True)
        await self._refusals.record()

    async def place(
        self, asked: PlacementRequest, number: int, parts: Parts, *, avoid: str = ""
    ) -> tuple[u.RequestStarted, Route]:
        """Return the request as it has begun, and its replica. `avoid` is the one that has just failed it.

        Raises Unavailable with BUSY, LOADING or QUEUE_FULL and `retry_after` when it shall come back later.
        """
        if asked.probe and not any(pool.routes for pool in self._fitting(asked)):
            raise Unavailable(f"nothing is at hand for {asked.model}", reason=BUSY)
        await self.known(asked.model, wait=asked.wait)
        services = frozenset(pool.service_id for pool in self._fitting(asked))
        one = _Placed(asked, services, self._begin(asked, avoid), self.admission.ahead(services))
        try:
            return await self._place(one, number, parts, again=bool(avoid))
        except asyncio.CancelledError:
            if one.waits and asked.late():  # a caller who has gone has not been refused
                self._refusals.count(services)
            raise
        except (NotFound, ValidationFailed):
            raise
        except AimaError as refusal:
            if one.waits and not asked.probe:
                self._refusals.count(services)
            if asked.probe or refusal.reason not in (BUSY, LOADING, QUEUE_FULL):
                raise
            beginning = sum(count for others, count in self._beginning.items() if others & services)
            pools = self._fitting(asked)
            raise await self._refusals.explained(refusal, asked.model, services, pools, beginning) from None

    async def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for what has to be done even if whoever waits is cancelled once more."""
        task = asyncio.create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        await asyncio.shield(task)

    def unwoken(self, asked: PlacementRequest) -> AimaError | None:
        """Return why the service that a request needs is not woken; None when that is not what it waits for."""
        pools = self._fitting(asked)
        return self._waking.refusal(pools) if sleeper(pools) else None

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
            model.present(await self._context.peers.call(model.GetModel(model_id=name), timeout=_CATCH_UP))

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
            await self._refusals.record()

    # --- one request ----------------------------------------------------------------------------------------

    async def _place(self, one: _Placed, number: int, parts: Parts, *, again: bool) -> tuple[u.RequestStarted, Route]:
        async def place() -> tuple[u.RequestStarted, Route]:
            waited, one.waits = one.waits, False
            self._beginning[one.services] += 1
            try:
                return await self._started(one.begin())
            except Unavailable as refusal:
                one.waits = waited or refusal.reason in (BUSY, LOADING)
                if refusal.reason == LOADING and (ident := sleeper(self._fitting(one.asked), self._waking.refused())):
                    self._waking.wake(ident)
                raise
            finally:
                self._beginning[one.services] -= 1

        if one.asked.wait or one.asked.queue:
            worth_it = (BUSY, LOADING) if one.asked.wait else (BUSY,)
            with self._telling(one, parts):
                return await self.admission.admit(one.services, place, number, worth_it, again=again)
        if self.admission.ahead(one.services):
            choose(self._context.world, one.begin(), time.time())  # raises what the others wait for
            raise Unavailable(f"others wait for {one.asked.model} already", reason=BUSY)
        return await place()

    @contextlib.contextmanager
    def _telling(self, one: _Placed, parts: Parts) -> Iterator[None]:
        """Tell a caller who wants parts what its request waits for; that one has gone is noticed by that.

        Ends without awaiting anything: a request that has begun must not be lost to a cancellation here.
        """

        async def tell() -> None:
            while True:
                await asyncio.sleep(_TELL)
                await parts.send(
                    {"waiting": {"reason": self._reason(one), "queued": self.admission.longest(one.services)}}
                )

        task = asyncio.create_task(tell()) if parts.requested else None
        try:
            yield
        finally:
            if task:
                task.cancel()

    def _reason(self, one: _Placed) -> str:
        """Return what a request waits for; one for which there is room waits for those before it."""
        try:
            choose(self._context.world, one.begin(), time.time())
        except AimaError as refusal:
            return LOADING if refusal.reason == LOADING else BUSY
        return BUSY

    def _begin(self, asked: PlacementRequest, avoid: str) -> Callable[[], i.BeginRequest]:
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
            await self.finish(self._give_back(begin.request_id, "cancelled"))
            raise
        started = records[0].event
        assert isinstance(started, u.RequestStarted)
        pool = self._pool(started.service_id)
        route = pool.route(started.process_id) if pool else None
        if route is None:
            await self._give_back(begin.request_id, "failed", error_code="ROUTE_GONE")
            raise Unavailable(f"the replica of {begin.model} has just gone", reason=LOADING)
        return started, route

    async def _give_back(self, request_id: str, outcome: u.Outcome, **said: Any) -> None:
        with contextlib.suppress(NotFound):  # it was refused
            await self._context.record(u.Settle(request_id=request_id, outcome=outcome, **said))

    def _fitting(self, asked: PlacementRequest) -> list[Pool]:
        return fitting(self._context.world.values(), asked.model, asked.types)

    def _routes(self, asked: PlacementRequest) -> list[tuple[str, bool]]:
        return [(route.process_id, route.healthy) for pool in self._fitting(asked) for route in pool.routes]

    def _pool(self, service_id: str) -> Pool | None:
        return self._context.world.get(f"inference/{service_id}")
