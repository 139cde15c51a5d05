"""Two domains of a few lines, to try the core with.

`counter`: numbers that can be added to, and that the world outside lets grow. The world is the domain's own folder:
a file `gate` lets growth through, `refuse` turns it down, `break` makes it fail, and `world` says line by line what
was done, so that a test can look at it from another process and after a crash.
`tally`: follows the counters and writes down each addition that it hears of, however often it hears of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, assert_never

import msgspec
from pydantic import Field

from aima_core.call import Call
from aima_core.domain import Domain, Effect, Outside, Parts, World
from aima_core.errors import Conflict, ExecutionFailed, NotFound
from aima_core.settings import Section
from aima_core.store.records import Recorded, Statement
from aima_core.units import Command, Event, Query, Ref, Resource, Success, View

# --- counter: contract ------------------------------------------------------------------------------------------


class Added(Event, unit="counter.added", stream="counter_id", frozen=True, kw_only=True):
    """Something was added."""

    counter_id: str
    amount: int
    note: str = ""


class GrowthAsked(Event, unit="counter.growth_asked", stream="counter_id", frozen=True, kw_only=True):
    """The counter shall grow outside."""

    counter_id: str


class Grown(Event, unit="counter.grown", stream="counter_id", frozen=True, kw_only=True):
    """It has grown."""

    counter_id: str


class GrowthRefused(Event, unit="counter.growth_refused", stream="counter_id", frozen=True, kw_only=True):
    """The world did not let it grow."""

    counter_id: str


class GrowthCalledOff(Event, unit="counter.growth_called_off", stream="counter_id", frozen=True, kw_only=True):
    """It need not grow any more."""

    counter_id: str


class Dropped(Event, unit="counter.dropped", stream="counter_id", frozen=True, kw_only=True):
    """The counter is gone."""

    counter_id: str


CounterId = Annotated[str, Ref("counter"), Field(description="Which; or `biggest`.")]
CounterEvent = Added | GrowthAsked | Grown | GrowthRefused | GrowthCalledOff | Dropped


class Total(View):
    """What a counter stands at."""

    total: int


class Add(
    Command[Total],
    unit="counter.add",
    batches=True,
    stream="counter_id",
    errors=(Conflict,),
    events=(Added,),
    examples=({"counter_id": "c1", "amount": 2},),
):
    """Add to a counter. It may not go beyond a million."""

    counter_id: Annotated[CounterId, Field(pattern="^[a-z0-9]{1,20}$")]
    amount: int = Field(1, ge=1, le=1000, description="How much.")
    note: str = Field("", description="Why.")
    weight: float = Field(1.0, description="Changes nothing; a number that has a fraction.")


class AddMeasured(Command[Total], unit="counter.add_measured", stream="counter_id", errors=(NotFound,)):
    """Add what stands in the file `measure` in the world outside."""

    counter_id: CounterId
    amount: int | None = Field(None, description="Left out: what the file says.")


class Grow(
    Command[Total],
    unit="counter.grow",
    batches=True,
    stream="counter_id",
    errors=(ExecutionFailed,),
    events=(GrowthAsked, Grown, GrowthRefused),
    examples=({"counter_id": "c1"},),
):
    """Let a counter grow by what the world does; answers when it has."""

    counter_id: CounterId


class CallOff(Command[Total], unit="counter.call_off", stream="counter_id", examples=({"counter_id": "c1"},)):
    """Stop a counter from growing."""

    counter_id: CounterId


class Drop(Command[Success], unit="counter.drop", stream="counter_id", examples=({"counter_id": "c1"},)):
    """Forget a counter."""

    counter_id: CounterId


class Hum(Command[Success], unit="counter.hum", batches=True):
    """Hum for a while, in parts."""

    stream: bool = False
    times: int = 3


class Break(Command[Success], unit="counter.break"):
    """Run into a bug of ours."""

    secret: str = ""


class RecordGrown(Command[Success], unit="counter.record_grown", stream="counter_id"):
    """It has grown."""

    counter_id: str


class RecordRefused(Command[Success], unit="counter.record_refused", stream="counter_id"):
    """The world did not let it grow."""

    counter_id: str


class Get(Query[Total], unit="counter.get", errors=(NotFound,), examples=({"counter_id": "c1"},)):
    """Return a counter's total."""

    counter_id: CounterId


# --- counter: pure ----------------------------------------------------------------------------------------------


class Counter(msgspec.Struct, frozen=True):
    id: str
    total: int = 0
    growing: bool = False
    refused: bool = False


class GrowOutside(Effect, frozen=True):
    counter_id: str


def resolve(world: World[Counter], text: str) -> str:
    """Return the id that is meant; `biggest` is the name of the counter that stands highest."""
    return max(world.values(), key=lambda counter: counter.total).id if world and text == "biggest" else text


def decide(world: World[Counter], command: Command[Any], call: Call) -> list[Event]:
    match command:
        case Break():
            raise ZeroDivisionError(f"a bug that knows {command.secret}")
        case Hum():
            return []
        case _:
            counter = world.get(f"counter/{command.counter_id}", Counter(command.counter_id))
    match command:
        case Add(amount=amount) | AddMeasured(amount=int(amount)):
            if counter.total + amount > 1_000_000:
                raise Conflict("a counter ends at a million", reason="TOO_MUCH")
            return [Added(counter_id=counter.id, amount=amount, note=getattr(command, "note", ""))]
        case Grow():
            return [] if counter.growing else [GrowthAsked(counter_id=counter.id)]
        case RecordGrown():
            return [Grown(counter_id=counter.id)] if counter.growing else []
        case RecordRefused():
            return [GrowthRefused(counter_id=counter.id)] if counter.growing else []
        case CallOff():
            return [GrowthCalledOff(counter_id=counter.id)] if counter.growing else []
        case Drop():
            return [Dropped(counter_id=counter.id)] if f"counter/{counter.id}" in world else []
    raise TypeError(command)


def evolve(counter: Counter | None, event: CounterEvent) -> Counter | None:
    counter = counter or Counter(event.counter_id)
    match event:
        case Added():
            return msgspec.structs.replace(counter, total=counter.total + event.amount)
        case GrowthAsked():
            return msgspec.structs.replace(counter, growing=True, refused=False)
        case Grown():
            return msgspec.structs.replace(counter, growing=False, total=counter.total + 100)
        case GrowthRefused():
            return msgspec.structs.replace(counter, growing=False, refused=True)
        case GrowthCalledOff():
            return msgspec.structs.replace(counter, growing=False)
        case Dropped():
            return None
        case _:
            assert_never(event)


def todo(counter: Counter) -> Iterable[Effect]:
    return [GrowOutside(counter.id)] if counter.growing else []


def reply(world: Mapping[str, Counter], command: Command[Any], events: Sequence[Event]) -> View | None:
    if isinstance(command, Drop):
        return Success()
    counter = world.get(f"counter/{command.counter_id}", Counter(""))
    if isinstance(command, Grow) and counter.growing:
        return None
    if isinstance(command, Grow) and counter.refused:
        raise ExecutionFailed("the world did not let it grow", reason="REFUSED", counter_id=counter.id)
    return Total(total=counter.total)


def project(recorded: Recorded) -> Iterable[Statement]:
    event = recorded.event
    if isinstance(event, Dropped):
        yield "DELETE FROM counters WHERE id = ?", (event.counter_id,)
        return
    amount = event.amount if isinstance(event, Added) else 100 if isinstance(event, Grown) else 0
    yield (
        "INSERT INTO counters VALUES (?,?,?) ON CONFLICT (id) DO UPDATE SET total = total + ?, changed = ?",
        (event.counter_id, amount, recorded.position, amount, recorded.position),
    )


# --- counter: outside -------------------------------------------------------------------------------------------


class Grower(Outside[Counter]):
    """The world outside of the counters: files in the domain's folder."""

    flows = (Hum,)

    @property
    def folder(self) -> Path:
        return self.context.folder

    def did(self, what: str) -> None:
        with (self.folder / "world").open("a") as file:
            file.write(what + "\n")

    async def prepare(self, command: Command[Any], call: Call) -> Command[Any]:
        if isinstance(command, AddMeasured) and command.amount is None:
            measure = self.folder / "measure"
            if not measure.exists():
                raise NotFound("there is nothing to measure", reason="NOTHING_TO_MEASURE")
            return command.model_copy(update={"amount": int(measure.read_text())})
        return command

    async def perform(self, effect: Any) -> Iterable[Command[Any]]:
        self.did(f"began {effect.counter_id}")
        try:
            while not (self.folder / "gate").exists():
                if (self.folder / "break").exists():
                    raise ExecutionFailed("the world is broken")
                if (self.folder / "refuse").exists():
                    return [RecordRefused(counter_id=effect.counter_id)]
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.did(f"cancelled {effect.counter_id}")
            raise
        self.did(f"grew {effect.counter_id}")
        return [RecordGrown(counter_id=effect.counter_id)]

    async def flow(self, command: Command[Any], call: Call, parts: Parts) -> View:
        self.did("hum began")
        try:
            for number in range(command.times):
                await parts.send({"hum": number})
                await asyncio.sleep(0.002)
        except asyncio.CancelledError:
            self.did("hum cancelled")
            raise
        self.did("hum ended")
        return Success()

    async def answer(self, query: Query[Any]) -> View:
        rows = await self.context.read.rows("SELECT total FROM counters WHERE id = ?", (query.counter_id,))
        if not rows:
            raise NotFound(f"there is no counter {query.counter_id}", reason="COUNTER_NOT_FOUND")
        return Total(total=rows[0]["total"])


class CounterSettings(Section):
    """What can be set about counters."""

    step: int = Field(1, ge=1, description="Not used; something to set.")
    name: str = Field("one", description="Not used; something else to set.")


COUNTER_EVENTS = (Added, GrowthAsked, Grown, GrowthRefused, GrowthCalledOff, Dropped)

COUNTER = Domain(
    name="counter",
    about="Counters, to try the core with.",
    state=Counter,
    events=COUNTER_EVENTS,
    commands=(Add, AddMeasured, Grow, CallOff, Drop, Hum, Break),
    internal=(RecordGrown, RecordRefused),
    queries=(Get,),
    resources=(
        Resource(
            uri="asms://counter/{id}",
            about="One counter.",
            query=lambda ident: Get(counter_id=ident or ""),
            touched=lambda event: [event.counter_id],
        ),
    ),
    resolve=resolve,
    decide=decide,
    evolve=evolve,
    todo=todo,
    reply=reply,
    tables={"counters": "CREATE TABLE counters (id TEXT PRIMARY KEY, total INTEGER, changed INTEGER)"},
    project=project,
    outside=Grower,
    settings=CounterSettings,
)

# --- tally ------------------------------------------------------------------------------------------------------


class Heard(Event, unit="tally.heard", stream="counter_id", frozen=True, kw_only=True):
    """An addition was heard of."""

    counter_id: str
    source: int
    amount: int


class RecordHeard(Command[Success], unit="tally.record_heard", stream="counter_id"):
    """Write down an addition, even one that is there already."""

    counter_id: str
    source: int
    amount: int


class Sum(msgspec.Struct, frozen=True):
    total: int = 0


def react(recorded: Recorded) -> Iterable[Command[Any]]:
    event = recorded.event
    return [RecordHeard(counter_id=event.counter_id, source=recorded.position, amount=event.amount)]


def write_down(world: World[Sum], command: Command[Any], call: Call) -> list[Event]:
    assert isinstance(command, RecordHeard)
    return [Heard(counter_id=command.counter_id, source=command.source, amount=command.amount)]


TALLY = Domain(
    name="tally",
    about="Writes down what is added to the counters.",
    state=Sum,
    events=(Heard,),
    internal=(RecordHeard,),
    decide=write_down,
    evolve=lambda sum_, event: Sum((sum_ or Sum()).total + event.amount),
    reply=lambda *_: Success(),
    follows={"counter": (Added,)},
    react=react,
)
