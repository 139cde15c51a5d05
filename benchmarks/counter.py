"""A small domain to measure the core with: counters that can be added to, each event a row in a read table too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
from pydantic import Field

from aima_core.call import Call
from aima_core.domain import Domain, Outside, World
from aima_core.errors import Conflict, NotFound
from aima_core.store.records import Recorded, Statement
from aima_core.units import Command, Event, Query, Ref, View

MOST = 2**40
UPSERT = "INSERT INTO counters VALUES (?,?) ON CONFLICT (id) DO UPDATE SET total = total + ?"


class Added(Event, unit="counter.added", stream="counter_id", frozen=True, kw_only=True):
    """Something was added."""

    counter_id: str
    amount: int
    note: str = ""


CounterId = Annotated[str, Ref("counter"), Field(description="Which.")]


class Total(View):
    """What a counter stands at."""

    total: int


class Add(
    Command[Total],
    unit="counter.add",
    stream="counter_id",
    errors=(Conflict,),
    events=(Added,),
    examples=({"counter_id": "c1"},),
):
    """Add to a counter."""

    counter_id: Annotated[CounterId, Field(pattern="^[a-z0-9]{1,20}$")]
    amount: int = Field(1, ge=1, le=1000, description="How much.")
    note: str = Field("", max_length=200, description="Why.")


class Peek(Query[Total], unit="counter.peek", errors=(NotFound,), examples=({"counter_id": "c1"},)):
    """Return a counter's total from memory."""

    counter_id: CounterId


class Get(Query[Total], unit="counter.get", errors=(NotFound,), examples=({"counter_id": "c1"},)):
    """Return a counter's total from the read table."""

    counter_id: CounterId


class Counter(msgspec.Struct, frozen=True):
    """A counter."""

    total: int = 0


def decide(world: World[Counter], command: Command[Any], _: Call) -> list[Event]:
    """Return what happens."""
    assert isinstance(command, Add)
    counter = world.get(f"counter/{command.counter_id}")
    if counter and counter.total + command.amount > MOST:
        raise Conflict("the counter is full")
    return [Added(counter_id=command.counter_id, amount=command.amount, note=command.note)]


def evolve(counter: Counter | None, event: Added) -> Counter:
    """Return the counter after the event."""
    return Counter((counter.total if counter else 0) + event.amount)


def reply(world: World[Counter], command: Command[Any], _: Sequence[Event]) -> View:
    """Return the command's answer."""
    assert isinstance(command, Add)
    return Total(total=world[f"counter/{command.counter_id}"].total)


def project(recorded: Recorded) -> Iterable[Statement]:
    """Yield how the event changes the read table."""
    event = recorded.event
    assert isinstance(event, Added)
    yield UPSERT, (event.counter_id, event.amount, event.amount)


class CounterOutside(Outside[Counter]):
    """Answers the queries."""

    async def answer(self, query: Query[Any]) -> View:
        """Answer from memory or from the read table."""
        match query:
            case Peek(counter_id=ident):
                counter = self.context.world.get(f"counter/{ident}")
                if counter:
                    return Total(total=counter.total)
            case Get(counter_id=ident):
                rows = await self.context.read.rows("SELECT total FROM counters WHERE id = ?", (ident,))
                if rows:
                    return Total(total=rows[0]["total"])
            case _:
                return await super().answer(query)
        raise NotFound(f"there is no counter {ident}")


TABLES = {"counters": "CREATE TABLE counters (id TEXT PRIMARY KEY, total INTEGER) WITHOUT ROWID"}

COUNTER = Domain(
    name="counter",
    about="Counters, to measure the core with.",
    state=Counter,
    events=(Added,),
    commands=(Add,),
    queries=(Peek, Get),
    decide=decide,
    evolve=evolve,
    reply=reply,
    tables=TABLES,
    project=project,
    outside=CounterOutside,
)
