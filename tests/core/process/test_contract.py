"""What the core enforces for every domain: ids for names, replies of the declared type, versions of streams."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from aima_core.bus.nats_server import NatsServer
from aima_core.domain import Domain
from aima_core.errors import NotFound
from aima_core.stream_fields import with_versions
from aima_core.testing import until
from aima_core.units import Command, Query, Ref, StreamVersion, Success, View
from tests.core.conftest import talking
from tests.core.toy import COUNTER, CounterId, Get, Grower, Hum, Total

KEY = "Aima-Idempotency-Key"
EXPECTED = "Aima-Expected-Version"


# --- references ---------------------------------------------------------------------------------------------------


async def test_a_name_is_replaced_before_the_version_is_compared(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        await bare.ask("counter.add", counter_id="c1", amount=9)
        refused = await bare.ask("counter.add", {EXPECTED: "0"}, counter_id="biggest")
        assert refused["error"]["details"]["stream"] == "counter/c1"
        dry = await bare.ask("counter.add", {EXPECTED: "1", "Aima-Dry-Run": "true"}, counter_id="biggest")
        assert dry["data"]["events"][0]["stream"] == "counter/c1"
        added = await bare.ask("counter.add", {EXPECTED: "1"}, counter_id="biggest")
        assert (added["data"], added["meta"]["version"]) == ({"total": 10}, 2)
        assert (await bare.ask("counter.get", counter_id="biggest"))["data"] == {"total": 10}
        read = await bare.ask("counter.read", uri="asms://counter/biggest")
        assert read["data"] == {"uri": "asms://counter/biggest", "data": {"total": 10}}


async def test_a_key_belongs_to_the_request_as_it_was_sent(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        await bare.ask("counter.add", counter_id="c1", amount=9)
        first = await bare.ask("counter.add", {KEY: "k", EXPECTED: "1"}, counter_id="biggest")
        await bare.ask("counter.add", counter_id="c2", amount=100)
        again = await bare.ask("counter.add", {KEY: "k", EXPECTED: "1"}, counter_id="biggest")
        assert again["data"] == first["data"] == {"total": 10}  # although another counter has the name now
        by_id = await bare.ask("counter.add", {KEY: "k"}, counter_id="c1")
        assert by_id["error"]["details"]["reason"] == "KEY_REUSED"


class Swap(Command[Success], unit="counter.swap", stream="counter_id"):
    """Its id is no reference."""

    counter_id: str


class Merge(Command[Success], unit="counter.merge"):
    """One of its fields is named as the ids of the domain are, and is no reference."""

    counter_id: str
    into: CounterId


class Pile(Command[Success], unit="counter.pile", stream="pile_id"):
    """It has no such field."""


class Gather(Query[Success], unit="counter.gather"):
    """References in lists and in unions."""

    counters: list[CounterId]
    maybe: CounterId | None = None
    bound: Annotated[CounterId | None, Field(description="Which.")] = None
    service: Annotated[str, Ref("service")] = ""


@pytest.mark.parametrize("unit", [Swap, Merge, Pile])
def test_a_domain_with_an_id_that_is_no_reference_is_refused(unit: type[Command[Any]]) -> None:
    with pytest.raises(TypeError, match=f"{unit.spec.name}.*(Ref|no field)"):
        replace(COUNTER, commands=(*COUNTER.commands, unit))


def test_references_are_also_those_in_lists_and_unions_but_not_those_to_other_domains() -> None:
    assert Gather.spec.references == ("counters", "maybe", "bound")


# --- replies ------------------------------------------------------------------------------------------------------


class Mistaken(Grower):
    async def flow(self, command: Any, call: Any, parts: Any) -> View:
        return Total(total=1)

    async def answer(self, query: Any) -> View:
        return Success()


MISTAKEN: Domain[Any] = replace(COUNTER, outside=Mistaken, reply=lambda *_: Success())


@pytest.mark.parametrize(
    ("unit", "data", "declared", "actual"),
    [
        ("counter.add", {"counter_id": "c1"}, "Total", "Success"),
        ("counter.hum", {}, "Success", "Total"),
        ("counter.get", {"counter_id": "c1"}, "Total", "Success"),
        ("counter.read", {"uri": "asms://counter/c1"}, "Total", "Success"),
    ],
)
@pytest.mark.parametrize("headers", [{}, {KEY: "k"}])
async def test_a_reply_of_another_type_is_a_bug_and_none_of_it_is_sent(
    tmp_path: Path,
    shared_nats: NatsServer,
    caplog: pytest.LogCaptureFixture,
    unit: str,
    data: dict[str, Any],
    declared: str,
    actual: str,
    headers: dict[str, str],
) -> None:
    async with talking(tmp_path, shared_nats, MISTAKEN) as bare:
        if unit in ("counter.get", "counter.read"):
            headers = {}  # a query has no idempotency key
        with caplog.at_level(logging.ERROR, "aima"):
            reply = await bare.raw(unit, json.dumps(data).encode(), headers)
        assert (reply["success"], reply["error"]["code"]) == (False, "INTERNAL_ERROR")
        assert "data" not in reply
    errors = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert any(f"declares {declared}, but its reply is {actual}" in error for error in errors)


# --- versions -----------------------------------------------------------------------------------------------------


class CounterView(View, stream="id"):
    """A counter."""

    id: str
    total: int
    stream_version: StreamVersion = None


class Counters(View):
    """All counters."""

    counters: list[CounterView]


class Look(Query[CounterView], unit="counter.look", errors=(NotFound,), examples=({"counter_id": "c1"},)):
    """Return a counter; while the file `stall` is in the world outside, only after it has been read."""

    counter_id: CounterId


class List(Query[Counters], unit="counter.list"):
    """Return the counters."""


class Looker(Grower):
    async def answer(self, query: Any) -> View:
        if isinstance(query, List):
            return Counters(counters=[CounterView(id=c.id, total=c.total) for c in self.context.world.values()])
        if isinstance(query, Look):
            counter = self.context.world[f"counter/{query.counter_id}"]
            self.did(f"looked at {counter.id}")
            await until(lambda: not (self.folder / "stall").exists())
            return CounterView(id=counter.id, total=counter.total)
        return await super().answer(query)


LOOKED_AT = replace(COUNTER, queries=(Get, Look, List), outside=Looker)


async def test_a_view_shows_the_version_of_its_stream(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats, LOOKED_AT) as bare:
        for counter_id in ("c1", "c2", "c1"):
            await bare.ask("counter.add", counter_id=counter_id)
        looked = await bare.ask("counter.look", counter_id="c1")
        assert looked["data"] == {"id": "c1", "total": 2, "stream_version": 2}
        assert looked["meta"]["version"] == 2
        listed = (await bare.ask("counter.list"))["data"]["counters"]
        assert [(view["id"], view["stream_version"]) for view in listed] == [("c1", 2), ("c2", 1)]


async def test_a_version_is_never_newer_than_the_content_beside_it(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats, LOOKED_AT) as bare:
        await bare.ask("counter.add", counter_id="c1")
        bare.outside("stall")
        look = asyncio.create_task(bare.ask("counter.look", counter_id="c1"))
        await until(lambda: bare.world() == ["looked at c1"])
        await bare.ask("counter.add", counter_id="c1", amount=5)
        (tmp_path / "counter" / "stall").unlink()
        assert (await look)["data"] == {"id": "c1", "total": 1, "stream_version": 1}
        assert (await bare.ask("counter.look", counter_id="c1"))["data"]["stream_version"] == 2


async def test_a_flow_is_refused_on_a_version_that_has_passed(tmp_path: Path, shared_nats: NatsServer) -> None:
    class HumAt(Command[Success], unit="counter.hum_at", stream="counter_id"):
        """Hum to a counter."""

        counter_id: CounterId
        times: int = 0

    class Hummer(Grower):
        flows = (Hum, HumAt)

    domain = replace(COUNTER, commands=(*COUNTER.commands, HumAt), outside=Hummer)
    async with talking(tmp_path, shared_nats, domain) as bare:
        await bare.ask("counter.add", counter_id="c1")
        refused = await bare.ask("counter.hum_at", {EXPECTED: "0"}, counter_id="biggest")
        assert refused["error"]["details"]["reason"] == "VERSION_CONFLICT"
        accepted = await bare.ask("counter.hum_at", {EXPECTED: "1"}, counter_id="biggest")
        assert (accepted["data"], accepted["meta"]["version"]) == ({"success": True}, 1)


def test_a_view_with_a_stream_needs_a_version_and_a_version_needs_a_stream() -> None:
    with pytest.raises(TypeError, match="NoVersion needs"):

        class NoVersion(View, stream="id"):
            id: str

    with pytest.raises(TypeError, match="NoStream needs"):

        class NoStream(View):
            stream_version: StreamVersion = None

    with pytest.raises(TypeError, match="NoField needs"):

        class NoField(View, stream="id"):
            stream_version: StreamVersion = None


def test_a_version_that_a_domain_has_set_stays_and_one_in_a_list_or_a_dict_is_set() -> None:
    class Pair(View):
        by_name: dict[str, CounterView]
        both: tuple[CounterView, CounterView]

    old, new = CounterView(id="c1", total=1, stream_version=1), CounterView(id="c1", total=2)
    shown = with_versions(Pair(by_name={"x": new}, both=(old, new)), "counter", {"counter/c1": 7}.__getitem__)
    assert [view.stream_version for view in (shown.by_name["x"], *shown.both)] == [7, 1, 7]
    assert new.stream_version is None
