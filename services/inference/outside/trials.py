"""Sends trial requests to replicas: small requests that show whether a replica answers at all."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from aima_core.call import token
from aima_core.domain import Context
from aima_core.errors import AimaError, NotFound, Timeout, ValidationFailed
from aima_core.units import Command
from aima_engines.engine_http import EngineGone
from aima_engines.kinds.request_kinds import CHAT, EMBED, RERANK
from services.inference import internal as i
from services.inference import units as u
from services.inference.outside.engine_requests import EngineRequests
from services.inference.outside.placement import Placement
from services.inference.outside.placement_request import PlacementRequest
from services.inference.rules.breaker import TRIAL, TRIAL_TYPES
from services.inference.rules.state import Pool, Route, TrySuspect

_TIMEOUT = 20.0  # seconds for a trial; a large model on a slow machine needs a few for its first token
_PATIENCE = 3.0  # seconds that the caller of a failed request waits for the trial
_AGAIN = 5.0  # seconds until the next trial if a trial shows nothing, for example because the replica is full
_HELLO = u.Message(role="user", content="Hi")
_REQUESTS: Mapping[str, Command[Any]] = {
    CHAT.unit: u.Chat(model="any", messages=[_HELLO], max_tokens=1),
    EMBED.unit: u.Embed(model="any", input=["Hi"]),
    RERANK.unit: u.Rerank(model="any", query="Hi", documents=["Hi"]),
}
TRIALS: Mapping[str, Command[Any]] = {
    model_type: _REQUESTS[kind.unit] for kind in (CHAT, EMBED, RERANK) for model_type in kind.types
}
"""The trial request for each type of model in TRIAL_TYPES."""


class _NoParts:
    """Sends no parts, because a trial has no caller that reads them."""

    requested = False

    async def send(self, part: Any) -> None:
        """Do nothing."""


class Trials:
    """The trial requests. At most one trial of a replica runs at a time; its result is shared."""

    def __init__(self, context: Context[Pool], placement: Placement, requests: EngineRequests, holder: str) -> None:
        self._context = context
        self._placement = placement
        self._requests = requests
        self._holder = holder
        self._running: dict[str, asyncio.Task[u.TrialResult]] = {}

    async def close(self) -> None:
        """Cancel the running trials."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def find(self, process_id: str) -> tuple[Pool, Route]:
        """Return a replica and its service. Raises NotFound, and ValidationFailed if the type has no trial request."""
        for pool in self._context.world.values():
            if route := pool.route(process_id):
                if pool.type in TRIAL_TYPES:
                    return pool, route
                raise ValidationFailed(f"models of type {pool.type} have no trial request", reason="NO_TRIAL")
        raise NotFound(f"there is no running replica {process_id}", reason="REPLICA_NOT_FOUND", process_id=process_id)

    def command(self, process_id: str) -> i.BeginRequest:
        """Return the command that starts a trial. Raises the errors of `find`."""
        pool, _ = self.find(process_id)
        return self._request(pool, process_id).command(request_id=f"trial-{token(8)}")

    async def run(self, process_id: str, max_age: float = 0.0) -> u.TrialResult:
        """Send a trial request, or join the one under way. Return its result.

        If the replica has answered a request in the last `max_age` seconds, that answer is the result. Raises the
        errors of `find`, and Unavailable if the replica takes no request now.
        """
        _, route = self.find(process_id)
        if route.answered_at > time.time() - max_age:
            return u.TrialResult(process_id=process_id, answered=True, seconds=0.0, error="")
        task = self._running.get(process_id)
        if task is None:
            task = self._running[process_id] = asyncio.create_task(self._try(process_id))
            task.add_done_callback(lambda _: self._running.pop(process_id, None))
        return await asyncio.shield(task)

    async def answers(self, process_id: str) -> bool:
        """Whether the replica has just answered a request, or answers a trial request within `_PATIENCE` seconds."""
        try:
            async with asyncio.timeout(_PATIENCE):
                return (await self.run(process_id, u.RECENT)).answered
        except (AimaError, TimeoutError):
            return False

    async def perform(self, effect: TrySuspect) -> NoReturn:
        """Send trial requests to a suspect replica until one has a result. The result's event ends the effect."""
        await asyncio.sleep(max(effect.at - time.time(), 0))
        while True:
            with contextlib.suppress(AimaError):
                await self.run(effect.process_id)
            await asyncio.sleep(_AGAIN)

    def _request(self, pool: Pool, process_id: str) -> PlacementRequest:
        return PlacementRequest(
            pool.service_id,
            (),
            lambda: _TIMEOUT,
            time.time() + _TIMEOUT,
            wait=False,
            holder=self._holder,
            probe=True,
            only=process_id,
            client=TRIAL,
        )

    async def _try(self, process_id: str) -> u.TrialResult:
        pool, _ = self.find(process_id)
        request, started_at = self._request(pool, process_id), time.monotonic()
        started, route = await self._placement.begin(self.command(process_id))
        request.process_id, error = process_id, ""
        try:
            async with asyncio.timeout(_TIMEOUT):
                await self._requests.call_engine(request, started, route, TRIALS[pool.type], _NoParts())
        except ValidationFailed:  # the engine refuses the trial request, so it answers
            pass
        except EngineGone:
            error = "the engine closed the connection"
        except TimeoutError:
            error = f"the engine has sent nothing for {_TIMEOUT:g} s"
        except (AimaError, Timeout) as failure:
            error = failure.message
        seconds = round(time.monotonic() - started_at, 3)
        return u.TrialResult(process_id=process_id, answered=not error, seconds=seconds, error=error)
