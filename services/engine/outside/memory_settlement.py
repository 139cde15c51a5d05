"""Settles the slot of a running instance in the resource domain with the memory that it really uses."""

from __future__ import annotations

import asyncio
from typing import NamedTuple, NoReturn

from aima_core.domain import Context
from aima_core.errors import AimaError, InsufficientResources
from aima_core.structured_logs import logger
from services.engine.rules.state import InstanceState
from services.engine.runtimes import Handle, Runtime
from services.resource import units as resource

_MARGIN = 20  # a slot is settled with a twentieth more than is used
_ASK = 3.0  # seconds for the resource domain, which answers at once; one that is away is asked again at the next look


class SettlementPace(NamedTuple):
    """Seconds between two looks, until a slot is lowered, and from a refusal until it is asked for again.

    By the time it is lowered the first requests have come.
    """

    every: float
    lower_after: float
    ask_again: float = 60.0


PACE = SettlementPace(every=5.0, lower_after=10.0)


def settled(limit: int, reserved: int, used: int, peak: int, due: bool) -> int | None:
    """Return the limit that a slot should have, in bytes; None when it is well as it is. Pure.

    It is raised whenever more is used. It is lowered once, when that is `due` and its limit is still what was reserved:
    what llama.cpp uses once it is ready is what it will use, since it touches its weights and its whole cache while it
    starts; an engine that does grow later finds its slot raised again, and never lowered twice.
    """
    if used > limit:
        return _with_margin(used)
    wanted = _with_margin(peak)
    return wanted if due and limit == reserved and wanted < limit else None


def _with_margin(used: int) -> int:
    return used + used // _MARGIN


async def keep_settled(
    context: Context[InstanceState], runtime: Runtime, found: InstanceState, pace: SettlementPace
) -> NoReturn:
    """Look at what the instance uses until we are cancelled.

    What the slot says is asked of the resource domain first: we may have settled it before we were restarted. A raise
    that is refused is told once and asked for again every minute or so: others end, and there is room then.
    """
    assert found.start
    assert found.started
    handle = Handle(found.id, found.started.pid, found.started.pid_started_at)
    slot_id = resource.slot_of(f"{found.id}-{found.run}")
    clock = asyncio.get_running_loop().time
    began, peak, refused_at = clock(), 0, float("-inf")
    told = False
    limit: int | None = None
    while True:
        used = (await runtime.stats(handle)).memory_bytes
        peak = max(peak, used)
        try:
            limit = await _limit(context, slot_id) if limit is None else limit
            due = clock() - began >= pace.lower_after
            wanted = settled(limit, found.start.memory, used, peak, due) if limit is not None and used else None
            if wanted is not None and clock() - refused_at >= pace.ask_again:
                await context.peers.call(resource.UpdateSlot(slot_id=slot_id, memory_limit=wanted), timeout=_ASK)
                limit = wanted
        except InsufficientResources as error:
            refused_at = clock()
            if not told:
                logger.warning("an instance uses more than it may have", process_id=found.id, error=error.message)
            told = True
        except AimaError as error:
            logger.debug("a slot is not settled; trying again", process_id=found.id, error=error.message)
        await asyncio.sleep(pace.every)


async def _limit(context: Context[InstanceState], slot_id: str) -> int | None:
    """Return what the slot says, in bytes; None when there is none."""
    found = await context.peers.call(resource.ListAllocations(slot_id=slot_id), timeout=_ASK)
    return found.allocations[0].memory if found.allocations else None
