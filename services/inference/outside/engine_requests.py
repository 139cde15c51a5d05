"""Sends requests to engines: places a request, calls the engine, and settles the request even after an error."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from aima_core.domain import Context, Parts
from aima_core.errors import AimaError, ExecutionFailed, NotFound, Unavailable, ValidationFailed
from aima_core.units import Command, View
from aima_engines.engine_answer import Engine
from aima_engines.engine_client import EngineClient
from aima_engines.engine_errors import bad_answer
from aima_engines.engine_http import MOST_LOST, EngineGone
from aima_engines.kinds.request_kinds import DIALECT, KINDS, RequestKind
from services.inference import units as u
from services.inference.outside.placement import Placement
from services.inference.outside.placement_request import PlacementRequest
from services.inference.rules.breaker import TRIAL
from services.inference.rules.state import Pool, Route

REQUEST_KINDS: Mapping[type[Command[Any]], RequestKind] = {
    unit: KINDS[unit.spec.name]
    for unit in (
        u.Chat,
        u.Complete,
        u.Embed,
        u.Transcribe,
        u.Synthesize,
        u.GenerateImage,
        u.GenerateVideo,
        u.Rerank,
        u.Detect,
    )
}
CANCELLED: Mapping[str, Any] = {"outcome": "cancelled", "error": "the caller left, or the deadline passed"}
_NOT_PASSED_ON = {"model", "stream", "wait"}  # fields of a unit that the engine's request does not have
_TRIES = 3  # maximum number of attempts of a request
# Seconds. A timeout counts against the replica only if its engine has sent nothing for this time. If the timeout comes
# earlier, the caller's deadline was too short. The first value is for streams, whose first token comes soon.
_SILENT, _SILENT_WHOLE = 5.0, 60.0


def fields_of(command: Command[Any]) -> dict[str, Any]:
    """Return the fields to send to the engine. Omits fields that the caller has not set."""
    return command.model_dump(exclude_unset=True, exclude_none=True, exclude=_NOT_PASSED_ON)


class EngineRequests:
    """Sends requests to engines, and settles requests."""

    def __init__(self, context: Context[Pool], placement: Placement, client: EngineClient) -> None:
        self._context = context
        self._placement = placement
        self._client = client

    def close(self) -> None:
        self._client.close()

    def engine(self, route: Route, *, whole: bool = True) -> Engine:
        """Return a replica's engine for one request. With `whole`, the answer is not streamed."""
        return Engine(self._client, route.endpoint, route.served_model, whole=whole)

    async def run(self, request: PlacementRequest, command: Command[Any], parts: Parts) -> View:
        """Place the request, call the engine, and settle the request.

        If the engine closes the connection, tries another replica, unless the caller already has a part of the answer.
        Raises Unavailable (ENGINE_GONE) after three attempts.
        """
        number, avoid, lost = self._placement.admission.number(), "", 0
        for attempt in range(1, _TRIES + 1):
            lease, route = await self._placement.place(request, number, parts, avoid=avoid)
            try:
                return await self.call_engine(request, lease, route, command, parts)
            except EngineGone as gone:
                lost += gone.sent
                if (gone.begun and parts.requested) or attempt == _TRIES or lost == MOST_LOST:
                    after = "" if attempt == 1 else f", on attempt {attempt}"
                    raise Unavailable(
                        f"replica {lease.process_id} closed the connection in the middle of the request{after}",
                        reason="ENGINE_GONE",
                        begun=gone.begun,
                    ) from None
                avoid = lease.process_id
        raise AssertionError("the last attempt returns or raises")

    async def settle(self, lease: u.RequestStarted, outcome: u.Outcome, **fields: Any) -> None:
        """Record the result of a request. Does nothing if the lease has expired."""
        with contextlib.suppress(NotFound):
            await self._context.record(u.Settle(request_id=lease.request_id, outcome=outcome, **fields))

    async def call_engine(
        self, request: PlacementRequest, lease: u.RequestStarted, route: Route, command: Command[Any], parts: Parts
    ) -> View:
        """Call the engine of a placed request, and settle also after an error.

        Raises EngineGone if the engine closes the connection.
        """
        started_at, engine = time.monotonic(), self.engine(route, whole=not parts.requested)
        try:
            if route.dialect != DIALECT:
                raise ExecutionFailed(
                    f"{command.spec.name} is not implemented for engines of the dialect {route.dialect}",
                    reason="NO_DIALECT",
                )
            answer, engine_answer = await REQUEST_KINDS[type(command)].run(engine, fields_of(command), parts.send)
            view = _view(command, answer, lease)
            usage = u.TokensUsed(
                prompt_tokens=engine_answer.usage.prompt_tokens, completion_tokens=engine_answer.usage.completion_tokens
            )
        except asyncio.CancelledError:
            silent = request.timed_out() and not engine.answered
            patience = 0.0 if request.client == TRIAL else _SILENT if parts.requested else _SILENT_WHOLE
            result = _no_answer(time.monotonic() - started_at, patience) if silent else CANCELLED
            await self._placement.finish(self.settle(lease, **result))
            raise
        except EngineGone as gone:
            await self.settle(lease, "failed", error=str(gone), error_code=gone.code)
            raise
        except AimaError as error:
            await self.settle(lease, "failed", error=error.reason, error_code=_code(error))
            raise
        except Exception:
            await self.settle(lease, "failed", error="INTERNAL_ERROR", error_code="INTERNAL_ERROR")
            raise
        await self.settle(lease, "completed", usage=usage, time_to_first_token=engine_answer.first)
        return view


def _view(command: Command[Any], answer: Mapping[str, Any], lease: u.RequestStarted) -> View:
    """Convert an engine's answer to the unit's reply. Raises ExecutionFailed if a value in the answer is invalid."""
    identity = {"model": lease.model, "id": lease.request_id} if isinstance(command, u.Chat) else {}
    try:
        return command.output.model_validate({**answer, **identity})
    except ValidationError:
        raise bad_answer() from None


def _no_answer(seconds: float, patience: float) -> dict[str, Any]:
    """Return the settlement of a request that reached its deadline after `seconds` without any data from its engine.

    The failure counts against the replica only if `seconds` is at least `patience`.
    """
    code = "NO_ANSWER" if seconds >= patience else "TIMEOUT"
    return {"outcome": "failed", "error": "the engine sent nothing before the deadline", "error_code": code}


def _code(error: AimaError) -> str:
    """Return the code to record for an error: ENGINE_REFUSED for an invalid request, otherwise the error's reason."""
    return "ENGINE_REFUSED" if isinstance(error, ValidationFailed) else error.reason
