"""Sends typed requests from one domain to another."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from nats.aio.client import Client as Nats

from aima_core import call as calls
from aima_core.bus.client import Client
from aima_core.bus.pages import all_pages
from aima_core.call import Call, current_call
from aima_core.errors import Timeout
from aima_core.units import Out, Unit


class Peers:
    """Sends typed requests to other domains on behalf of the current call."""

    def __init__(self, nc: Nats, node: str) -> None:
        self.client = Client(nc)
        self._node = node

    async def call(self, unit: Unit[Out], *, key: str = "", timeout: float | None = None) -> Out:
        """Send a request and return its answer. Raises the same errors as `Client.ask`.

        To retry without a second effect, pass the same idempotency `key` again. The request ends after `timeout`
        seconds (default: the unit's own timeout), or at the current call's deadline if that is earlier.
        """
        parent = current_call.get() or calls.fresh(self._node)
        seconds = _remaining(parent, timeout or unit.spec.timeout)
        answer = await self.client.ask(
            unit.spec.name,
            unit.model_dump_json(exclude_unset=True).encode(),
            timeout=seconds,
            headers=calls.to_headers(parent, timeout=seconds, idempotency_key=key),
        )
        return unit.output.model_validate(answer.data)  # type: ignore[return-value]  # output is the Out of this unit

    async def list_all(self, query: Unit[Out], *, timeout: float | None = None) -> Out:
        """Send a list query page by page; return its answer with all items. Raises the same errors as `Client.ask`."""

        async def ask(data: Mapping[str, Any]) -> dict[str, Any]:
            page = await self.call(query.model_validate(data), timeout=timeout)
            return {name: getattr(page, name) for name in type(page).model_fields}

        whole = await all_pages(ask, query.model_dump(exclude_unset=True))
        return query.output.model_validate(whole)  # type: ignore[return-value]  # output is the Out of this unit


def _remaining(parent: Call, timeout: float) -> float:
    if parent.deadline is None:
        return timeout
    remaining = parent.deadline - time.time()
    if remaining <= 0:
        raise Timeout("the deadline of the request has passed")
    return min(remaining, timeout)
