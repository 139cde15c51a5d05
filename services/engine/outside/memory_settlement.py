"""Adjusts the memory slot of a running instance to the memory that the instance uses."""

from __future__ import annotations

import asyncio
from typing import NamedTuple, NoReturn

from aima_core.domain import Context
from aima_core.errors import AimaError, InsufficientResources
from aima_core.structured_logs import logger
from services.engine.rules.state import InstanceState
from services.engine.runtimes import Handle, Runtime
from services.resource import units as resource

_MARGIN = 20  # the new limit of a slot is the memory in use plus a twentieth
_PEER_TIMEOUT = 3.0  # seconds; the resource domain replies at once, and the next check repeats a lost request


class SettlementPace(NamedTuple):
    """Times in seconds. `every`: time between two measurements of an instance's memory.

    `lower_after`: time from the first measurement until the limit of a slot may be lowered; it leaves time for the
    first requests. `ask_again`: time from a refused request to raise the limit until the request is repeated.
    """

    every: float
    lower_after: float
    ask_again: float = 60.0


PACE = SettlementPace(every=5.0, lower_after=10.0)


def settled(limit: int, reserved: int, used: int, peak: int, due: bool) -> int | None:
    """Return the new limit of a slot in bytes; None if the limit needs no change. Pure.

    The limit is raised whenever the instance uses more than the limit. The limit is lowered only if it is still the
    reserved amount and `due` is true. When `due` becomes true, llama.cpp has used its whole memory, because it touches
    the weights and the whole cache while it starts. A limit that was raised is never lowered.
    """
    if used > limit:
        return _with_margin(used)
    lowered = _with_margin(peak)
    return lowered if due and limit == reserved and lowered < limit else None


def _with_margin(used: int) -> int:
    return used + used // _MARGIN


async def keep_settled(
    context: Context[InstanceState], runtime: Runtime, instance: InstanceState, pace: SettlementPace
) -> NoReturn:
    """Measure the memory of the instance and adjust its slot, until the task is cancelled.

    The current limit comes from the resource domain, because this function may have changed the limit before a restart
    of AIMA. If a request to raise the limit is refused, it is repeated every `pace.ask_again` seconds, because other
    slots may be released. Only the first refusal is logged.
    """
    assert instance.start
    assert instance.started
    handle = Handle(instance.id, instance.started.pid, instance.started.pid_started_at)
    slot_id = resource.slot_of(f"{instance.id}-{instance.run}")
    clock = asyncio.get_running_loop().time
    started_at, peak, refused_at = clock(), 0, float("-inf")
    warned = False
    limit: int | None = None
    while True:
        used = (await runtime.stats(handle)).memory_bytes
        peak = max(peak, used)
        try:
            limit = await _limit(context, slot_id) if limit is None else limit
            due = clock() - started_at >= pace.lower_after
            target = settled(limit, instance.start.memory, used, peak, due) if limit is not None and used else None
            if target is not None and clock() - refused_at >= pace.ask_again:
                await context.peers.call(
                    resource.UpdateSlot(slot_id=slot_id, memory_limit=target), timeout=_PEER_TIMEOUT
                )
                limit = target
        except InsufficientResources as refusal:
            refused_at = clock()
            if not warned:
                logger.warning(
                    "an instance uses more memory than it has reserved", process_id=instance.id, error=refusal.message
                )
            warned = True
        except AimaError as refusal:
            logger.debug(
                "cannot update the memory slot of an instance; trying again",
                process_id=instance.id,
                error=refusal.message,
            )
        await asyncio.sleep(pace.every)


async def _limit(context: Context[InstanceState], slot_id: str) -> int | None:
    """Return the limit of a slot in bytes; None if the slot does not exist."""
    page = await context.peers.call(resource.ListAllocations(slot_id=slot_id), timeout=_PEER_TIMEOUT)
    return page.allocations[0].memory if page.allocations else None
