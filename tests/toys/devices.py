"""A device domain with one processor."""

from __future__ import annotations

from typing import Any

from aima_core.domain import Domain, Outside
from aima_core.units import Query, Success, View
from services.device import units as device
from tests.toys.stateless import Nothing


class _Processor(Outside[Nothing]):
    async def answer(self, query: Query[Any]) -> View:
        one = device.DeviceItem(
            id="test-cpu-0",
            name="Toy",
            vendor="Toy",
            type="cpu",
            node="test",
            memory=10_000,
            memory_free=None,
            cores=2,
            capabilities=[],
            memory_bandwidth=1_000_000,
        )
        return device.DeviceList(items=[one], total=1)


PROCESSOR: Domain[Nothing] = Domain(
    name="device",
    about="One processor.",
    state=Nothing,
    events=(),
    queries=(device.ListDevices,),
    decide=lambda *_: [],
    evolve=lambda *_: None,
    reply=lambda *_: Success(success=True),
    outside=_Processor,
)
