"""A domain of a few lines, to try the core with: counters that can be added to, and a slow kind of addition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, assert_never

import asyncio

import msgspec
from pydantic import Field

from aima_core.call import Call
from aima_core.domain import Domain, Effect, Outside, Parts, World
from aima_core.errors import Conflict, NotFound
from aima_core.log import Recorded, Statement
from aima_core.units import Command, Event, Query, Resource, Success, View


class Added(Event, unit="counter.added", stream="counter_id", frozen=True, kw_only=True):
    """Something was added."""

    counter_id: str
    amount: int


class GrowthAsked(Event, unit="counter.growth_asked", stream="counter_id", frozen=True, kw_only=True):
    """The counter shall grow outside."""

    counter_id: str


class Grown(Event, unit="counter.grown", stream="counter_id", frozen=True, kw_only=True):
    """It has grown."""

    counter_id: str


class Total(View):
    """What a counter stands at."""

    total: int


class Add(
    Command[Total],
    unit="counter.add",
    stream="counter_id",
    errors=(Conflict,),
    events=(Added,),
    examples=({"counter_id": "c1", "amount": 2},),
):
    """Add to a counter. It may not go beyond a million."""

    counter_id: str = Field(description="Which.", pattern="^[a-z0-9]{1,20}$")
    amount: int = Field(1, ge=1, le=1000, description="How much.")


class Grow(Command[Total], unit="counter.grow", stream="counter_id", events=(GrowthAsked, Grown)):
    """Let a counter grow by what the world does; answers when it has."""

    counter_id: str = Field(description="Which.")


class Hum(Command[Success], unit="counter.hum"):
    """Hum for a while, in parts."""

    stream: bool = True
    times: int = 3


class RecordGrown(Command[Success], unit="counter.record_grown", stream="counter_id"):
    """It has grown."""

    counter_id: str


class Get(Query[Total], unit="counter.get", errors=(NotFound,), examples=({"counter_id": "c1"},)):
    """Return a counter's total."""

    counter_id: str = Field(description="Which.")


class Counter(msgspec.Struct, frozen=True):
    id: str
    total: int = 0
    growing: bool = False


class GrowOutside(Effect, frozen=True):
    counter_id: str


def decide(world: World[Counter], command: Command[Any], call: Call) -> list[Event]:
    match command:
        case Add(counter_id=ident, amount=amount):
            counter = world.get(f"counter/{ident}", Counter(ident))
            if counter.total + amount > 1_000_000:
                raise Conflict("a counter ends at a million", reason="TOO_MUCH")
            return [Added(counter_id=ident, amount=amount)]
        case Grow(counter_id=ident):
            growing = world.get(f"counter/{ident}", Counter(ident)).growing
            return [] if growing else [GrowthAsked(counter_id=ident)]
        case RecordGrown(counter_id=ident):
            counter = world.get(f"counter/{ident}", Counter(ident))
            return [Grown(counter_id=ident)] if counter.growing else []
    raise TypeError(command)


def evolve(counter: Counter | None, event: Added | GrowthAsked | Grown) -> Counter | None:
    counter = counter or Counter(event.counter_id)
    match event:
        case Added():
            return msgspec.structs.replace(counter, total=counter.total + event.amount)
        case GrowthAsked():
            return msgspec.structs.replace(counter, growing=True)
        case Grown():
            return msgspec.structs.replace(counter, growing=False, total=counter.total + 100)
        case _:
            assert_never(event)


def todo(counter: Counter) -> Iterable[Effect]:
    return [GrowOutside(counter.id)] if counter.growing else []


def reply(world: Mapping[str, Counter], command: Command[Any], events: Sequence[Event]) -> View | None:
    counter = world.get(f"counter/{command.counter_id}")
    if isinstance(command, Grow) and counter and counter.growing:
        return None
    return Total(total=counter.total if counter else 0)


def project(recorded: Recorded) -> Iterable[Statement]:
    event = recorded.event
    amount = event.amount if isinstance(event, Added) else 100 if isinstance(event, Grown) else 0
    yield (
        "INSERT INTO counters VALUES (?,?,?) ON CONFLICT (id) DO UPDATE SET total = total + ?, changed = ?",
        (event.counter_id, amount, recorded.position, amount, recorded.position),
    )


class Grower(Outside[Counter]):
    """The world outside of the counters: a gate that tests open."""

    flows = (Hum,)
    gate = asyncio.Event()
    cancelled = asyncio.Event()

    async def perform(self, effect: Any) -> Iterable[Command[Any]]:
        await self.gate.wait()
        return [RecordGrown(counter_id=effect.counter_id)]

    async def flow(self, command: Command[Any], call: Call, parts: Parts) -> View:
        try:
            for number in range(command.times):
                await parts.send({"hum": number})
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Success()

    async def answer(self, query: Query[Any]) -> View:
        rows = await self.context.read.rows("SELECT total FROM counters WHERE id = ?", (query.counter_id,))
        if not rows:
            raise NotFound(f"there is no counter {query.counter_id}", reason="COUNTER_NOT_FOUND")
        return Total(total=rows[0]["total"])


COUNTER = Domain(
    name="counter",
    about="Counters, to try the core with.",
    state=Counter,
    events=(Added, GrowthAsked, Grown),
    commands=(Add, Grow, Hum),
    internal=(RecordGrown,),
    queries=(Get,),
    resources=(
        Resource(
            uri="asms://counter/{id}",
            about="One counter.",
            query=lambda ident: Get(counter_id=ident or ""),
            touched=lambda event: [event.counter_id],
        ),
    ),
    decide=decide,
    evolve=evolve,
    todo=todo,
    reply=reply,
    tables={"counters": "CREATE TABLE counters (id TEXT PRIMARY KEY, total INTEGER, changed INTEGER)"},
    project=project,
    outside=Grower,
)
