"""Faults that are planted in the domains' real code, each of which a run has to find out."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from aima_core.domain import Commands, Context, Domain
from aima_core.store.records import Recorded
from aima_core.units import Command
from services.engine import internal as ei
from services.engine import units as engine
from services.engine.domain import ENGINE
from services.engine.outside.adapter import EngineOutside
from services.engine.outside.instances import Instances
from services.engine.rules import state as es
from services.inference.domain import INFERENCE
from services.inference.outside.adapter import InferenceOutside
from services.inference.rules.state import Sweep
from services.resource.domain import RESOURCE
from services.service import internal as si
from services.service.domain import SERVICE
from services.service.outside.adapter import ServiceOutside
from services.service.rules import todo

T = TypeVar("T")


class Unending(EngineOutside):
    """Says that a program is gone that lives on."""

    async def perform(self, effect: Any) -> Commands:
        if isinstance(effect, es.End):
            return [ei.RecordGone(process_id=effect.process_id, run=effect.run)]
        return await super().perform(effect)


class Silent(EngineOutside):
    """Never says that a program is gone."""

    async def perform(self, effect: Any) -> Commands:
        done = await super().perform(effect)
        return [] if isinstance(effect, es.End) else done


class Blind(EngineOutside):
    """Does not notice that a program has died."""

    async def perform(self, effect: Any) -> Commands:
        if isinstance(effect, es.Watch):
            await asyncio.Event().wait()
        return await super().perform(effect)


class Unwhole(EngineOutside):
    """Lets a stop cut a start in two."""

    class _Instances(Instances):
        async def _uninterrupted(self, _: engine.StartRequested, step: Coroutine[Any, Any, T]) -> T:
            return await step

    def __init__(self, context: Context[Any], **more: Any) -> None:
        super().__init__(context, **more)
        self.instances = self._Instances(context, self._host)


class Unseen(EngineOutside):
    """Leaves it to asyncio to complain of what a start was refused with that was called off meanwhile."""

    class _Instances(Instances):
        def _forget(self, process_id: str, task: asyncio.Task[Any]) -> None:
            self._unfinished.get(process_id, set()).discard(task)

    def __init__(self, context: Context[Any], **more: Any) -> None:
        super().__init__(context, **more)
        self.instances = self._Instances(context, self._host)


class Hasty(ServiceOutside):
    """Takes a replica for gone that has only been asked to end."""

    async def perform(self, effect: Any) -> Commands:
        if isinstance(effect, todo.EndReplica):
            return [si.RecordReplicaEnded(service_id=effect.service_id, process_id=effect.process_id)]
        return await super().perform(effect)


class Timeless(ServiceOutside):
    """Knows no deadlines."""

    async def perform(self, effect: Any) -> Commands:
        if isinstance(effect, todo.Expire | todo.ExpireReplica):
            await asyncio.Event().wait()
        return await super().perform(effect)


class Unswept(InferenceOutside):
    """Never gives up a lease that nobody settles."""

    async def perform(self, effect: Any) -> Commands:
        if isinstance(effect, Sweep):
            await asyncio.Event().wait()
        return await super().perform(effect)


def forgetful(recorded: Recorded) -> Iterable[Command[Any]]:
    """Lose the news of an engine that has ended."""
    return () if isinstance(recorded.event, engine.EngineStopped) else RESOURCE.react(recorded)


FAULTS: Mapping[str, Domain[Any]] = {
    "unending": replace(ENGINE, outside=Unending),
    "silent": replace(ENGINE, outside=Silent),
    "blind": replace(ENGINE, outside=Blind),
    "unwhole": replace(ENGINE, outside=Unwhole),
    "unseen": replace(ENGINE, outside=Unseen),
    "hasty": replace(SERVICE, outside=Hasty),
    "timeless": replace(SERVICE, outside=Timeless),
    "unswept": replace(INFERENCE, outside=Unswept),
    "forgetful": replace(RESOURCE, react=forgetful),
}
"""By name: the domain with a fault in it."""
