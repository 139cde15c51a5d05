"""Long work that nobody waits for at the door: `options.async` gives an id that can be followed and cancelled.

In memory, for as long as the gateway lives; the events of the units are what is remembered.
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
_KEPT = 3600.0  # seconds that one which has ended can be looked at
_MOST = 1000  # of one caller, those kept included; the oldest ended one gives way

Status = Literal["running", "completed", "failed", "cancelled"]


class Operation:
    """One piece of work and what is known of it."""

    def __init__(self, owner: str, unit: str) -> None:
        self.id = f"op-{token(8)}"
        self.owner = owner
        self.unit = unit
        self.status: Status = "running"
        self.begun = time.time()
        self.ended: float | None = None
        self.progress: Any = None
        self.result: Any = None
        self.error: dict[str, Any] | None = None
        self.task: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()

    def view(self) -> dict[str, Any]:
        """Return it as it is shown."""
        return {
            "operation_id": self.id,
            "unit": self.unit,
            "status": self.status,
            "started_at": timestamp(self.begun),
            "ended_at": timestamp(self.ended) if self.ended else None,
            "progress": self.progress,
            "result": self.result,
            "error": self.error,
        }

    def moved(self) -> None:
        """Tell those who follow that there is news."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def news(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what is known now and whenever it changes, until it has ended."""
        while True:
            moved = self._moved
            yield self.view()
            if self.status != "running":
                return
            await moved.wait()


class Operations:
    """The operations of all callers; each sees its own."""

    def __init__(self, asking: Dispatcher) -> None:
        self._asking = asking
        self._all: dict[str, Operation] = {}

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            fixed_path(_BASE, {"GET": self.list}),
            fixed_path(f"{_BASE}/{{id}}", {"GET": self.get, "DELETE": self.cancel}),
            fixed_path(f"{_BASE}/{{id}}/events", {"GET": self.follow}),
        ]

    async def begin(self, caller: Caller, unit: str, data: Mapping[str, Any]) -> Response:
        """Begin to ask a unit; answer with where to look."""
        await self._asking.permitted(caller, unit, data)
        self._make_room(caller.owner)
        operation = Operation(caller.owner, unit)
        self._all[operation.id] = operation
        operation.task = asyncio.create_task(self._run(operation, caller, data))
        where = f"{_BASE}/{operation.id}"
        return json({"success": True, "data": operation.view()}, status=202, headers={"Location": where})

    async def list(self, request: Request) -> Response:
        """List the caller's operations."""
        owner = caller_of(request.state).owner
        own = [operation.view() for operation in self._all.values() if operation.owner == owner]
        return json({"success": True, "data": {"operations": own, "total": len(own)}})

    async def get(self, request: Request) -> Response:
        """Show one."""
        return json({"success": True, "data": self._own(request).view()})

    async def follow(self, request: Request) -> Response:
        """Tell how one goes on, until it has ended."""
        operation = self._own(request)

        async def events() -> AsyncIterator[bytes]:
            async for view in operation.news():
                yield sse.event(view, kind=view["status"])

        return await sse.answer(events(), caller_of(request.state).valid)

    async def cancel(self, request: Request) -> Response:
        """Stop asking; nothing happens to one that has ended."""
        operation = self._own(request)
        if operation.task and operation.status == "running":
            await end([operation.task])
        return json({"success": True, "data": operation.view()})

    async def close(self) -> None:
        """Cancel all of them."""
        await end(operation.task for operation in self._all.values() if operation.task)

    async def _run(self, operation: Operation, caller: Caller, data: Mapping[str, Any]) -> None:
        status: Status = "failed"
        try:
            async for part in self._asking.stream(caller, operation.unit, data):
                if isinstance(part, Answer):
                    operation.result, status = part.data, "completed"
                else:
                    operation.progress = part
                    operation.moved()
        except asyncio.CancelledError:
            status = "cancelled"
        except AimaError as error:
            operation.error = error.body()
        except Exception:
            logger.error("an operation broke", unit=operation.unit, exc_info=True)
            operation.error = InternalError("internal error").body()
        operation.status, operation.ended = status, time.time()
        operation.moved()

    def _own(self, request: Request) -> Operation:
        ident = request.path_params["id"]
        operation = self._all.get(ident)
        if operation is None or operation.owner != caller_of(request.state).owner:
            raise NotFound(f"there is no operation {ident}", reason="OPERATION_NOT_FOUND", operation_id=ident)
        return operation

    def _make_room(self, owner: str) -> None:
        late = time.time() - _KEPT
        self._all = {k: o for k, o in self._all.items() if o.ended is None or o.ended > late}
        own = [operation for operation in self._all.values() if operation.owner == owner]
        if len(own) >= _MOST:
            ended = [operation for operation in own if operation.ended is not None]
            if not ended:
                raise RateLimited(f"{_MOST} operations run already", reason="TOO_MANY_OPERATIONS", retry_after=10)
            del self._all[min(ended, key=lambda operation: operation.ended or 0.0).id]
