"""What of an answer stands in a table: as much as there is room for, what people look for first."""

from __future__ import annotations

from typing import Any

import pytest

from aima_core.errors import InvalidRequest, ValidationFailed
from services.cli import options, tables
from services.cli.show import Format, document

SERVICES: dict[str, Any] = {
    "services": [
        {"id": "svc-a", "kind": "x", "status": "running", "config": {"slots": 2}, "note": None},
        {"id": "svc-b", "kind": "y", "status": "stopped", "config": {}, "note": ""},
    ],
    "total": 2,
}


def table(capsys: pytest.CaptureFixture[str], data: Any, columns: tuple[str, ...] = ()) -> list[list[str]]:
    """Return the words of each line of the table that is written."""
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
    with pytest.raises(ValidationFailed, match=r"no stats among id, kind, status, .* Did you mean status"):
        document(SERVICES, Format.TABLE, ("id", "stats"))
    assert "svc-b" in capsys.readouterr().out


def test_columns_are_refused_where_there_is_no_table() -> None:
    assert options.listed(" id, config.slots,", Format.TABLE) == ["id", "config.slots"]
    with pytest.raises(InvalidRequest, match="-o json has everything"):
        options.listed("id", Format.JSON)
