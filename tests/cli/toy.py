"""A domain of the tests whose fields are called what options of every command are called, and are of every kind."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, Field

from aima_core.domain import Domain, Outside, Parts
from aima_core.units import Command, Query, Success, View


class Nothing(msgspec.Struct, frozen=True):
    """What a domain remembers that remembers nothing."""


class Soil(BaseModel):
    """What a bed is filled with."""

    depth: int = Field(10, ge=1, le=100, description="Centimetres.")
    kind_of: Literal["clay", "sand"] = Field("clay", description="What it is.")


class Planted(View):
    """What reached the garden."""

    got: dict[str, Any]


class Beds(View):
    """The beds that there are."""

    beds: list[dict[str, str]]


class Plant(
    Query[Planted],
    unit="garden.plant",
    examples=(
        {"garden_id": "g-1", "count": 2, "tags": ["a b", "c"], "soil": {"depth": 3}},
        {"garden_id": "g-2", "either": ["x", "y"], "water": False, "timeout": 3.5, "key": "k", "url": "u"},
    ),
):
    """Tell what was asked."""

    garden_id: str = Field(description="Which.", pattern="^g-[0-9]+$", examples=["g-1"])
    count: int = Field(1, ge=0, le=10, description="How many.")
    weight: float | None = Field(None, gt=0, description="Grams.")
    water: bool = Field(True, description="Whether to.")
    colour: Literal["red", "green"] = Field("red", description="Which.")
    tags: list[str] = Field([], max_length=3, description="Words.")
    numbers: list[int] | None = Field(None, description="Numbers.")
    either: str | list[str] = Field("", description="A text, or several.")
    soil: Soil | None = Field(None, description="In which.")
    free: dict[str, Any] = Field({}, description="Anything.")
    timeout: float = Field(1.0, description="Of its own.")
    key: str = Field("", description="Of its own.")
    url: str = Field("", description="Of its own.")
    output: str = Field("", description="Of its own.")
    columns: int = Field(0, description="Of its own.")


class ListBeds(Query[Beds], unit="garden.list"):
    """List the beds."""


class Burn(Command[Success], unit="garden.burn", risk="high", examples=({"garden_id": "g-1"},)):
    """Burn everything down."""

    garden_id: str = Field(description="Which.")


class Dig(Command[Success], unit="garden.dig", timeout=600):
    """Dig until somebody stops it."""

    silent: bool = Field(False, description="Whether to tell nothing of it.")


class Check(Query[Success], unit="garden.check_all"):
    """Refuse what only the unit itself can refuse."""

    even: int = Field(0, multiple_of=2, description="An even number.")


class _Gardener(Outside[Nothing]):
    flows = (Burn, Dig)

    async def flow(self, command: Any, call: Any, parts: Parts) -> View:
        for step in range(100_000):
            if isinstance(command, Burn):
                break
            if not command.silent:
                await parts.send({"progress": step / 1000, "status": "digging"})
            await asyncio.sleep(0.01)
        return Success(success=True)

    async def answer(self, query: Query[Any]) -> View:
        if isinstance(query, ListBeds):
            return Beds(beds=[{"id": "g-1", "status": "green"}, {"id": "g-2", "status": "bare"}])
        return (
            Planted(got=query.model_dump(mode="json", exclude_unset=True))
            if isinstance(query, Plant)
            else Success(success=True)
        )


GARDEN: Domain[Nothing] = Domain(
    name="garden",
    about="Gardens, to try the command line with.",
    state=Nothing,
    events=(),
    commands=(Burn, Dig),
    queries=(Plant, ListBeds, Check),
    decide=lambda *_: [],
    evolve=lambda *_: None,
    reply=lambda *_: Success(success=True),
    outside=_Gardener,
)
