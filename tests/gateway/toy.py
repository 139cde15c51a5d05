"""A domain of the tests: it tells what reached it, and waits for as long as somebody wants it to."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, Field

from aima_core.call import current_call
from aima_core.domain import Domain, Outside, Parts
from aima_core.errors import BY_CODE
from aima_core.units import Command, Query, Resource, Success, View


class Nothing(msgspec.Struct, frozen=True):
    """What a domain remembers that remembers nothing."""


class Size(BaseModel):
    """How large a parcel is."""

    width: int = Field(1, ge=1, le=100, description="Centimetres.")
    labels: list[str] = Field([], description="What stands on it.")


class Echoed(View):
    """What reached the domain."""

    got: dict[str, Any]
    principal: str
    request_id: str
    trace: str


class Echo(
    Query[Echoed],
    unit="parcel.echo",
    examples=({"parcel_id": "p-1", "count": 2, "tags": ["a", "b"]}, {"parcel_id": "p-2"}),
):
    """Tell what was asked."""

    parcel_id: str = Field(description="Which.", min_length=1, max_length=100)
    count: int = Field(1, ge=0, le=1000, description="How many.")
    weight: float | None = Field(None, description="Kilograms.")
    fragile: bool = Field(False, description="Whether it breaks.")
    speed: Literal["slow", "fast"] = Field("slow", description="How it travels.")
    tags: list[str] = Field([], max_length=20, description="Words.")
    numbers: list[int] | None = Field(None, description="Numbers.")
    size: Size | None = Field(None, description="How large.")
    note: str = Field("", description="Anything.")


class Weigh(Query[Echoed], unit="parcel.weigh", examples=({},)):
    """Tell what was asked of no parcel in particular."""

    unit: Literal["kg", "lb"] = Field("kg", description="Of the weight.")


class ListParcels(Query[Echoed], unit="parcel.list"):
    """Tell what was asked of all."""

    limit: int = Field(100, ge=1, le=1000, description="At most so many.")


class Carry(Command[Success], unit="parcel.carry", timeout=600, examples=({"parcel_id": "p-1"},)):
    """Carry a parcel until it is there, or until nobody waits for it any more."""

    parcel_id: str = Field(description="Which.")


class Refuse(Query[Success], unit="parcel.refuse", errors=tuple(BY_CODE.values()), examples=({"code": "CONFLICT"},)):
    """Refuse with a code."""

    code: str = Field(description="One of the closed list.")


class Burn(Command[Success], unit="parcel.burn", risk="high", examples=({"parcel_id": "p-1"},)):
    """Burn a parcel."""

    parcel_id: str = Field(description="Which.")


class _Post(Outside[Nothing]):
    flows = (Carry, Burn)

    def did(self, what: str) -> None:
        with (self.context.folder / "world").open("a") as file:
            file.write(f"{what}\n")

    async def flow(self, command: Command[Any], call: Any, parts: Parts) -> View:
        if isinstance(command, Burn):
            return Success(success=True)
        assert isinstance(command, Carry)
        self.did(f"carries {command.parcel_id}")
        try:
            while not (self.context.folder / "there").exists():
                await parts.send({"carried": command.parcel_id})
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.did(f"dropped {command.parcel_id}")
            raise
        return Success(success=True)

    async def answer(self, query: Query[Any]) -> View:
        if isinstance(query, Refuse):
            raise BY_CODE.get(query.code, BY_CODE["NOT_FOUND"])(f"refused with {query.code}", reason="AS_ASKED")
        call = current_call.get()
        return Echoed(
            got=query.model_dump(mode="json", exclude_unset=True),
            principal=call.principal if call else "",
            request_id=call.request_id if call else "",
            trace=call.trace if call else "",
        )


PARCEL: Domain[Nothing] = Domain(
    name="parcel",
    about="Parcels, to try the doors with.",
    state=Nothing,
    events=(),
    commands=(Carry, Burn),
    queries=(Echo, Weigh, ListParcels, Refuse),
    resources=(
        Resource(
            uri="asms://parcel/{id}",
            about="One parcel.",
            query=lambda ident: Echo(parcel_id=ident or ""),
            touched=lambda _: [],
        ),
    ),
    decide=lambda *_: [],
    evolve=lambda *_: None,
    reply=lambda *_: Success(success=True),
    outside=_Post,
)
