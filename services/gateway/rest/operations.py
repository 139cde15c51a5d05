"""An operation runs a request with `options.async` in the background. Clients can follow and cancel an operation.

Operations exist only in memory and end with the gateway process. The events that units record are permanent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aima_core.bus.client import Answer
from aima_core.call import timestamp, token
from aima_core.errors import AimaError, InternalError, NotFound, RateLimited
from aima_core.process.effects import end
from aima_core.structured_logs import logger
from services.gateway.entrance.dispatch import Caller, Dispatcher
from services.gateway.entrance.error_bodies import json
from services.gateway.entrance.gate import caller_of
from services.gateway.entrance.paths import fixed_path
from services.gateway.events import sse

_BASE = "/api/v2/operations"
_KEPT = 3600.0  # seconds that an ended operation can still be read
_MOST = 1000  # operations of one caller, running and ended; a new one replaces the one that ended first

Status = Literal["running", "completed", "failed", "cancelled"]


class Operation:
    """An operation of one caller, and its state."""

    def __init__(self, owner: str, unit: str) -> None:
        self.id = f"op-{token(8)}"
        self.owner = owner
        self.unit = unit
        self.status: Status = "running"
        self.started_at = time.time()
        self.ended_at: float | None = None
        self.progress: Any = None
        self.result: Any = None
        self.error: dict[str, Any] | None = None
        self.task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def view(self) -> dict[str, Any]:
        """Return the view of the operation."""
        return {
            "operation_id": self.id,
            "unit": self.unit,
            "status": self.status,
            "started_at": timestamp(self.started_at),
            "ended_at": timestamp(self.ended_at) if self.ended_at else None,
            "progress": self.progress,
            "result": self.result,
            "error": self.error,
        }

    def changed(self) -> None:
        """Wake the clients that follow the operation."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def views(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the operation's current view, then a view after each change, until the operation has ended."""
        while True:
            changed = self._changed
            yield self.view()
            if self.status != "running":
                return
            await changed.wait()


class Operations:
    """The operations of all callers. A caller can access only its own operations."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._all: dict[str, Operation] = {}

    def routes(self) -> list[Route]:
        return [
            fixed_path(_BASE, {"GET": self.list}),
            fixed_path(f"{_BASE}/{{id}}", {"GET": self.get, "DELETE": self.cancel}),
            fixed_path(f"{_BASE}/{{id}}/events", {"GET": self.follow}),
        ]

    async def begin(self, caller: Caller, unit: str, data: Mapping[str, Any]) -> Response:
        """Start an operation, and answer with status 202 and its address in `Location`.

        Raises RateLimited if the caller has too many running operations.
        """
        await self._dispatcher.permitted(caller, unit, data)
        self._make_room(caller.owner)
        operation = Operation(caller.owner, unit)
        self._all[operation.id] = operation
        operation.task = asyncio.create_task(self._run(operation, caller, data))
        location = f"{_BASE}/{operation.id}"
        return json({"success": True, "data": operation.view()}, status=202, headers={"Location": location})

    async def list(self, request: Request) -> Response:
        """List the caller's operations."""
        owner = caller_of(request.state).owner
        own = [operation.view() for operation in self._all.values() if operation.owner == owner]
        return json({"success": True, "data": {"operations": own, "total": len(own)}})

    async def get(self, request: Request) -> Response:
        return json({"success": True, "data": self._get(request).view()})

    async def follow(self, request: Request) -> Response:
        """Send the operation's view after each change, as server-sent events, until the operation has ended."""
        operation = self._get(request)

        async def events() -> AsyncIterator[bytes]:
            async for view in operation.views():
                yield sse.event(view, kind=view["status"])

        return await sse.answer(events(), caller_of(request.state).valid)

    async def cancel(self, request: Request) -> Response:
        """Cancel an operation. Idempotent: an ended operation does not change."""
        operation = self._get(request)
        if operation.task and operation.status == "running":
            await end([operation.task])
        return json({"success": True, "data": operation.view()})

    async def close(self) -> None:
        """Cancel all operations."""
        await end(operation.task for operation in self._all.values() if operation.task)

    async def _run(self, operation: Operation, caller: Caller, data: Mapping[str, Any]) -> None:
        status: Status = "failed"
        try:
            async for part in self._dispatcher.stream(caller, operation.unit, data):
                if isinstance(part, Answer):
                    operation.result, status = part.data, "completed"
                else:
                    operation.progress = part
                    operation.changed()
        except asyncio.CancelledError:
            status = "cancelled"
        except AimaError as error:
            operation.error = error.body()
        except Exception:
            logger.error("an operation failed with an unexpected error", unit=operation.unit, exc_info=True)
            operation.error = InternalError("internal error").body()
        operation.status, operation.ended_at = status, time.time()
        operation.changed()

    def _get(self, request: Request) -> Operation:
        ident = request.path_params["id"]
        operation = self._all.get(ident)
        if operation is None or operation.owner != caller_of(request.state).owner:
            raise NotFound(
                f"there is no operation {ident}; an operation is deleted an hour after its end,"
                " and when the gateway stops",
                reason="OPERATION_NOT_FOUND",
                operation_id=ident,
            )
        return operation

    def _make_room(self, owner: str) -> None:
        oldest = time.time() - _KEPT
        self._all = {
            ident: operation
            for ident, operation in self._all.items()
            if operation.ended_at is None or operation.ended_at > oldest
        }
        own = [operation for operation in self._all.values() if operation.owner == owner]
        if len(own) >= _MOST:
            ended = [operation for operation in own if operation.ended_at is not None]
            if not ended:
                raise RateLimited(
                    f"{_MOST} operations of this caller are running; wait for one to end, or cancel one",
                    reason="TOO_MANY_OPERATIONS",
                    retry_after=10,
                )
            del self._all[min(ended, key=lambda operation: operation.ended_at or 0.0).id]
