"""Tables: a table has as many columns of an answer as fit, and the important columns first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from aima_core.errors import InvalidRequest, ValidationFailed
from services.cli import shared_options
from services.cli.show import cells, schema, tables
from services.cli.show.console import Format
from services.cli.show.output import document
from tests.cli.described import described, every_unit
from tests.cli.toy import GARDEN

SERVICES: dict[str, Any] = {
    "services": [
        {"id": "svc-a", "kind": "x", "status": "running", "config": {"slots": 2}, "note": None},
        {"id": "svc-b", "kind": "y", "status": "stopped", "config": {}, "note": ""},
    ],
    "total": 2,
}


def table(capsys: pytest.CaptureFixture[str], data: Any, columns: tuple[str, ...] = ()) -> list[list[str]]:
    """Return the words of each line of the written table."""
    document(data, Format.TABLE, columns)
    return [line.split() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("room", "shown"),
    [
        (200, ["id", "text", "status", "extra"]),
        (48, ["id", "text", "status"]),
        (16, ["id", "status"]),
        (1, ["id", "status"]),
    ],
)
def test_columns_that_there_is_no_room_for_are_left_out_the_least_sought_first(room: int, shown: list[str]) -> None:
    assert tables.fitting({"id": 6, "text": 90, "status": 8, "extra": 20}, room) == shown


def test_without_a_choice_all_that_something_stands_in_is_shown_and_what_has_parts_comes_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert table(capsys, SERVICES)[0] == ["id", "kind", "status", "config"]


def test_columns_are_chosen_and_reach_into_objects(capsys: pytest.CaptureFixture[str]) -> None:
    assert table(capsys, SERVICES, ("status", "config.slots")) == [
        ["status", "config.slots"],
        ["running", "2"],
        ["stopped"],
    ]
    assert table(capsys, SERVICES, ("total",)) == [["total"], ["2"]]


def test_of_events_the_data_comes_before_the_envelope(capsys: pytest.CaptureFixture[str]) -> None:
    event = {"id": "e-1", "stream": "a/b", "type": "a.done", "recorded_at": "noon", "data": {"what": "x"}}
    assert table(capsys, {"events": [event]})[0] == ["recorded_at", "type", "data", "id", "stream"]


def test_a_column_that_is_not_there_is_refused_with_the_nearest_and_the_answer_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(
        ValidationFailed, match=r"unknown column stats; known columns: id, kind, status, .* Did you mean status"
    ):
        document(SERVICES, Format.TABLE, ("id", "stats"))
    assert "svc-b" in capsys.readouterr().out


def test_of_an_empty_list_every_column_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert table(capsys, {"services": [], "total": 0}, ("id",)) == [["none"]]


UNITS = {unit.name: unit for unit in every_unit()} | described(GARDEN)


@pytest.mark.parametrize(
    ("unit", "columns"),
    [
        ("service.list", ["id", "config.slots"]),
        ("service.list", ["total"]),
        ("engine.get", ["process_id", "memory_bytes"]),
        ("garden.list", ["nobody", "knows"]),
        ("garden.plant", ["got.count"]),
        ("service.create", []),
    ],
)
def test_columns_that_an_answer_has_or_may_have_are_not_refused_beforehand(unit: str, columns: list[str]) -> None:
    tables.check(columns, UNITS[unit].output)


@pytest.mark.parametrize(
    ("unit", "columns", "said"),
    [
        ("service.create", ["nope"], "--columns: unknown column nope; known columns: service_id."),
        (
            "service.list",
            ["id", "stats"],
            r"unknown column stats; known columns: id, name, .*, services, total\. Did you mean status\?",
        ),
        ("service.list", ["id", "total"], "--columns: no table has all of id, total; known columns: "),
    ],
)
def test_columns_that_no_answer_has_are_refused_beforehand(unit: str, columns: list[str], said: str) -> None:
    with pytest.raises(ValidationFailed, match=said):
        tables.check(columns, UNITS[unit].output)


# --- what stands in a cell ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "column", "text"),
    [
        ({"memory": 25276510208}, "memory", "23.5 GiB"),
        ({"size": 98362432}, "size", "93.8 MiB"),
        ({"memory_bytes": 1000}, "memory_bytes", "1000"),
        ({"memory_bandwidth": 65455858096.0}, "memory_bandwidth", "61.0 GiB/s"),
        ({"size": "1024x1024"}, "size", "1024x1024"),
        ({"memory": {"total": 2**30, "used": 0.0}}, "memory", "total 1.0 GiB  used 0"),
        ({"memory": {"total": 2**30}}, "memory.total", "1.0 GiB"),
        ({"total": 2**31, "reserved": 2**20}, "total", "2.0 GiB"),
        ({"total": 25276510208}, "total", "25276510208"),
        ({"parameters": 134515008}, "parameters", "134515008"),
        ({"rate": 0.06666666666666667}, "rate", "0.06667"),
        ({"rate": 584.61234}, "rate", "584.6"),
        ({"rate": 1234567.8}, "rate", "1234568"),
        ({"rate": 100.0}, "rate", "100"),
        ({"ready": True}, "ready", "true"),
        ({"note": None}, "note", ""),
        ({"words": ["a", "b c"]}, "words", "a, b c"),
        ({"instances": [{"pid": 1}, {"pid": 2}]}, "instances", "2 instances"),
        ({"services": [{"pid": 1}]}, "services", "1 service"),
        ({"metrics": {"rate": 0.123456, "error": None, "left": []}}, "metrics", "rate 0.1235"),
        ({"pools": {"memory": {"total": 2**30, "reserved": 0}}}, "pools", "memory (total 1.0 GiB  reserved 0)"),
        ({"config": {"inner": {"text": "x" * 99}}}, "config", f"inner (text {'x' * 54}…)"),
        ({"vector": [0.123456] * 99}, "vector", f"{'0.1235, ' * 7}0.1…"),
        ({"matrix": [[1, 2], [3]]}, "matrix", "[[1, 2], [3]]"),
    ],
    ids=str,
)
def test_a_cell_is_short_and_its_amounts_have_units(item: dict[str, Any], column: str, text: str) -> None:
    assert cells.column(item, column) == text


def test_programs_get_numbers_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    document({"memory": 25276510208, "rate": 0.06666666666666667}, Format.JSON)
    assert "25276510208" in (told := capsys.readouterr().out)
    assert "0.06666666666666667" in told


def numbers(found: schema.Schema, root: schema.Schema) -> Iterator[tuple[str, str]]:
    """Yield the name and the description of every number in answers of a schema."""
    for each in schema.alternatives(found, root):
        for name, inner in each.get("properties", {}).items():
            if schema.types(inner, root) & {"integer", "number"}:
                yield name, inner.get("description", "")
            yield from numbers(inner, root)
        if "items" in each:
            yield from numbers(each["items"], root)


def test_what_units_say_is_bytes_is_told_so_by_its_name() -> None:
    told = {(name, about) for unit in every_unit() for name, about in numbers(unit.output, unit.output)}
    of_bytes = {name for name, about in told if re.search("bytes(?! per)", about, re.IGNORECASE)}
    assert of_bytes >= {"memory", "memory_bytes", "memory_free", "size"}
    assert {name for name in of_bytes if not cells.is_bytes(name)} == set()


def test_columns_are_refused_where_there_is_no_table() -> None:
    assert shared_options.column_names(" id, config.slots,", Format.TABLE) == ["id", "config.slots"]
    with pytest.raises(InvalidRequest, match="-o json contains every field"):
        shared_options.column_names("id", Format.JSON)
