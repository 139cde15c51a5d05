"""Gives each request a replica at once, or after a wait in a queue. Otherwise, refuses the request and says why."""

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
from services.inference.outside.placement_request import PlacementRequest
from services.inference.outside.refusals import Refusals
from services.inference.outside.wakeups import Wakeups
from services.inference.rules import crashes
from services.inference.rules.routing import BUSY, LOADING, choose, fitting, hopeful, serving, sleeper
from services.inference.rules.state import Pool, Route
from services.model import units as model

_TICK = 1.0  # seconds between two tries without an event; no event reports that a breaker's pause is over
_CATCH_UP = 2.0  # seconds to wait for a peer's latest events or answer
_AVOIDED = 0.5  # seconds for which a request avoids the replica that has just failed it
_WAITING_PARTS = 2.0  # seconds between two parts that tell the caller why the request waits


@dataclass
class _Attempt:
    """One placement of a request. `waits` is true while the request waits in a queue, and false while it tries."""

    request: PlacementRequest
    services: Services
    command: Callable[[], i.BeginRequest]
    waits: bool


class Placement:
    """Places requests on replicas."""

    def __init__(self, context: Context[Pool]) -> None:
        self._context = context
        self.admission = Admission(context.settings.queue)
        self._wakeups = Wakeups(context.peers, context.node, self.admission, self._pool)
        self._starting: Counter[Services] = Counter()  # requests whose start is being committed
        self._refusals = Refusals(context, self.admission, self._wakeups)
        self._finishing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stop waking services, and record the outstanding settlements and refusals."""
        await self._wakeups.close()
        await asyncio.gather(*self._finishing, return_exceptions=True)
        await self._refusals.record()

    async def place(
        self, request: PlacementRequest, number: int, parts: Parts, *, avoid: str = ""
    ) -> tuple[u.RequestStarted, Route]:
        """Return the started request and its replica. `avoid` is the id of a replica that has just failed the request.

        Raises Unavailable (QUEUE_FULL, or a reason of OBSTACLES) with `retry_after` if the caller should try again.
        """
        request.process_id = ""
        if request.probe and not any(pool.routes for pool in self._fitting(request)):
            raise Unavailable(f"no replica for {request.model} is running", reason=BUSY)
        request.model = await self.known_name(request.model, wait=request.wait)
        if avoid:
            await self._ensure_harmless(request, avoid)
        services = frozenset(pool.service_id for pool in self._fitting(request))
        attempt = _Attempt(
            request, services, self._command_factory(request, avoid), waits=self.admission.ahead(services)
        )
        try:
            placed = await self._place(attempt, number, parts, again=bool(avoid))
        except asyncio.CancelledError:
            if attempt.waits and request.timed_out():  # otherwise the caller has left, which is not a refusal
                self._refusals.count(services)
            raise
        except (NotFound, ValidationFailed):
            raise
        except AimaError as refusal:
            if attempt.waits and not request.probe:
                self._refusals.count(services)
            if request.probe or refusal.reason not in (*u.OBSTACLES, QUEUE_FULL):
                raise
            starting = sum(count for others, count in self._starting.items() if others & services)
            pools = self._fitting(request)
            raise await self._refusals.explained(refusal, request.model, services, pools, starting) from None
        request.process_id = placed[0].process_id
        return placed

    async def begin(self, command: i.BeginRequest) -> tuple[u.RequestStarted, Route]:
        """Start a request on a replica at once, ahead of the queue. Raises the refusals of `choose`."""
        try:
            records = await self._context.record(command)
        except asyncio.CancelledError:
            # the start may be committed, and no other code knows the request's id
            await self.finish(self._give_back(command.request_id, "cancelled"))
            raise
        started = records[0].event
        assert isinstance(started, u.RequestStarted)
        pool = self._pool(started.service_id)
        route = pool.route(started.process_id) if pool else None
        if route is None:
            await self._give_back(command.request_id, "failed", error_code="ROUTE_GONE")
            raise Unavailable(f"the replica {started.process_id} of {command.model} has just ended", reason=LOADING)
        return started, route

    async def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work that must complete. The work continues if the caller is cancelled, and `close` waits for it."""
        task = asyncio.create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        await asyncio.shield(task)

    def obstacle(self, request: PlacementRequest) -> str:
        """Return why the request has no replica."""
        pools = self._fitting(request)
        if sleeper(pools) and (refused := self._wakeups.refusal(pools)):
            service_id, refusal = refused
            return f"service {service_id} cannot be woken: {refusal.message}"
        try:
            choose(self._context.world, request.command(), time.time())
        except AimaError as refusal:
            return refusal.message
        return f"other requests for {request.model} came first"

    async def known_name(self, name: str, *, wait: bool) -> str:
        """Return a name that the services know. Raises NotFound for an unknown name.

        Catches up with the service domain's events if no replica is known. The model domain knows more names of a
        model, such as that of its repository; for these, returns the model's id.

        A client may use a service as soon as the service domain reports that it runs, even if this domain has not yet
        read that event. If a peer does not answer in time, this domain uses the state that it has.
        """
        world = self._context.world
        if any(pool.routes or (wait and hopeful(pool)) for pool in serving(world.values(), name)):
            return name
        with contextlib.suppress(Unavailable, Timeout, TimeoutError):
            async with asyncio.timeout(_CATCH_UP):
                await self._context.caught_up("service")
        if serving(world.values(), name):
            return name
        with contextlib.suppress(Unavailable, Timeout):
            view = await self._context.peers.call(model.GetModel(model_id=name), timeout=_CATCH_UP)
            if serving(world.values(), model.present(view).id):
                return view.id
        return name

    async def watch(self) -> None:
        """Let queued requests try again after each commit, and count the requests that end."""
        with self._context.news() as news:
            while True:
                for record in await news.get():
                    match record.event:
                        case u.RequestCompleted(service_id=ident) | u.RequestFailed(service_id=ident):
                            self.admission.ended(ident)
                        case u.ServiceRemoved(service_id=ident):
                            self.admission.forget(ident)
                self._wakeups.changed()
                self.admission.wake()

    async def tick(self) -> None:
        """Every second, let queued requests try again and record the latest refusals."""
        while True:
            await asyncio.sleep(_TICK)
            self.admission.wake()
            await self._refusals.record()

    async def _ensure_harmless(self, request: PlacementRequest, process_id: str) -> None:
        """Raise ValidationFailed if the request crashed its replica.

        The replica has just closed the connection. If it has crashed, the event of its end arrives within `_AVOIDED`
        seconds.
        """
        with contextlib.suppress(TimeoutError), self._context.news() as news:
            async with asyncio.timeout(_AVOIDED):
                while any(pool.route(process_id) for pool in self._context.world.values()):
                    await news.get()
        if any(process_id in pool.crashed for pool in self._fitting(request)):
            raise crashes.refusal(process_id)

    # --- one request ----------------------------------------------------------------------------------------

    async def _place(
        self, attempt: _Attempt, number: int, parts: Parts, *, again: bool
    ) -> tuple[u.RequestStarted, Route]:
        request, services = attempt.request, attempt.services

        async def place() -> tuple[u.RequestStarted, Route]:
            waited, attempt.waits = attempt.waits, False
            self._starting[services] += 1
            try:
                return await self.begin(attempt.command())
            except Unavailable as refusal:
                attempt.waits = waited or refusal.reason in u.OBSTACLES
                if refusal.reason == LOADING and (
                    ident := sleeper(self._fitting(request), self._wakeups.refused_services())
                ):
                    self._wakeups.wake(ident)
                raise
            finally:
                self._starting[services] -= 1

        if request.wait or request.queue:
            worth_waiting = u.OBSTACLES if request.wait else (BUSY,)
            with self._waiting_parts(attempt, parts):
                return await self.admission.admit(services, place, number, worth_waiting, again=again)
        if self.admission.ahead(services):
            choose(self._context.world, attempt.command(), time.time())  # raises a refusal if no replica is free
            raise Unavailable(f"other requests for {request.model} came first", reason=BUSY)
        return await place()

    @contextlib.contextmanager
    def _waiting_parts(self, attempt: _Attempt, parts: Parts) -> Iterator[None]:
        """While the block runs, send parts with the reason for the wait. This also detects a caller that has left.

        Does nothing if the caller did not request parts. The end of the block awaits nothing, because a cancellation
        there would lose a request that has just started.
        """

        async def send() -> None:
            while True:
                await asyncio.sleep(_WAITING_PARTS)
                queued = self.admission.longest(attempt.services)
                await parts.send({"waiting": {"reason": self._reason(attempt), "queued": queued}})

        task = asyncio.create_task(send()) if parts.requested else None
        try:
            yield
        finally:
            if task:
                task.cancel()

    def _reason(self, attempt: _Attempt) -> str:
        """Return why a request waits: a reason of OBSTACLES. BUSY if other requests come first."""
        try:
            choose(self._context.world, attempt.command(), time.time())
        except AimaError as refusal:
            return refusal.reason if refusal.reason in u.OBSTACLES else BUSY
        return BUSY

    def _command_factory(self, request: PlacementRequest, avoid: str) -> Callable[[], i.BeginRequest]:
        """Return a function that returns a new command for each try to get a replica.

        For half a second, or until the replicas change, these commands exclude the replica `avoid`.
        """
        routes, strictly = self._routes(request), bool(avoid)

        def relent() -> None:
            nonlocal strictly
            strictly = False
            self.admission.wake()

        if avoid:
            asyncio.get_running_loop().call_later(_AVOIDED, relent)

        def command() -> i.BeginRequest:
            ident = f"req-{secrets.token_hex(8)}"
            return request.command(request_id=ident, avoid=avoid, strictly=strictly and self._routes(request) == routes)

        return command

    async def _give_back(self, request_id: str, outcome: u.Outcome, **fields: Any) -> None:
        with contextlib.suppress(NotFound):  # the request was refused, so it never started
            await self._context.record(u.Settle(request_id=request_id, outcome=outcome, **fields))

    def _fitting(self, request: PlacementRequest) -> list[Pool]:
        return fitting(self._context.world.values(), request.model, request.types)

    def _routes(self, request: PlacementRequest) -> list[tuple[str, bool]]:
        return [(route.process_id, route.healthy) for pool in self._fitting(request) for route in pool.routes]

    def _pool(self, service_id: str) -> Pool | None:
        return self._context.world.get(f"inference/{service_id}")
