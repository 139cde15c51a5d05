"""The flags of a schema, their descriptions, and the input that is read from flags."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from aima_core.bus.directory import UnitInfo
from aima_core.errors import ValidationFailed
from services.cli.door.door import DoorAddress
from services.cli.show import schema
from services.cli.units import flags, unit_command
from services.gateway.rest.routes import ident_of
from tests.cli.described import described, every_unit
from tests.cli.toy import GARDEN

UNITS = described(GARDEN)
PLANT = UNITS["garden.plant"]


def read(*words: str, unit: UnitInfo = PLANT, ident: str = "garden_id") -> dict[str, Any]:
    """Return the input for the words after `aima garden plant`."""
    command = unit_command.command(unit, ident, DoorAddress())
    context = command.make_context("plant", list(words))
    found = flags.flags_of(unit)
    return flags.read(found, unit_command.typed(found, ident, context.params))


@pytest.mark.parametrize(
    ("words", "spelt"),
    [
        (["g-1"], {}),
        (["--garden-id", "g-1"], {}),
        (["--garden_id=g-1"], {}),
        (["g-1", "--count", "3", "--weight", "0.5"], {"count": 3, "weight": 0.5}),
        (["g-1", "--weight", "null"], {"weight": None}),
        (["g-1", "--water", "--colour", "green"], {"water": True, "colour": "green"}),
        (["g-1", "--no-water"], {"water": False}),
        (["g-1", "--tags", "a", "--tags", "b c"], {"tags": ["a", "b c"]}),
        (["g-1", "--tags", '["a", "b"]', "--tags", "c"], {"tags": ["a", "b", "c"]}),
        (["g-1", "--numbers", "1", "--numbers", "2"], {"numbers": [1, 2]}),
        (["g-1", "--either", "a"], {"either": "a"}),
        (["g-1", "--either", "a", "--either", "b"], {"either": ["a", "b"]}),
        (["g-1", "--either", '["a"]'], {"either": ["a"]}),
        (["g-1", "--soil", '{"depth": 3}', "--soil.kind-of", "sand"], {"soil": {"depth": 3, "kind_of": "sand"}}),
        (["g-1", "--soil.kind_of=clay", "--soil", "depth=4"], {"soil": {"kind_of": "clay", "depth": 4}}),
        (["g-1", "--free.a.b", "1", "--free.c=x"], {"free": {"a": {"b": 1}, "c": "x"}}),
        (["g-1", "--timeout", "2", "--key", "k"], {"timeout": 2, "key": "k"}),
        (["g-1", "--field-url", "u", "--output", "o", "--columns", "3"], {"url": "u", "output": "o", "columns": 3}),
    ],
)
def test_flags_spell_the_input(words: list[str], spelt: dict[str, Any]) -> None:
    assert read(*words) == {"garden_id": "g-1"} | spelt


@pytest.mark.parametrize(
    ("words", "field", "said"),
    [
        ([], "garden_id", "--garden-id is required: Which"),
        (["x"], "garden_id", "--garden-id: expected a text such as g-1 (^g-[0-9]+$)"),
        (["g-1", "--count", "many"], "count", "--count: expected a whole number from 0 to 10, not many"),
        (["g-1", "--count", "11"], "count", "--count: expected a whole number from 0 to 10, not 11"),
        (["g-1", "--count", "1.5"], "count", "--count: expected a whole number from 0 to 10, not 1.5"),
        (["g-1", "--weight", "0"], "weight", "--weight: expected a number, above 0, not 0"),
        (["g-1", "--colour", "gren"], "colour", "--colour: expected one of red, green, not gren"),
        (["g-1", "--numbers", "1", "--numbers", "x"], "numbers.1", "--numbers.1: expected a whole number"),
        (["g-1", *["--tags", "a"] * 4], "tags", "--tags: expected a list of at most 3, each a text"),
        (["g-1", "--tags", '["a"'], "tags", "--tags: expected JSON"),
        (["g-1", "--soil", "deep"], "soil", "--soil: expected a JSON object with depth, kind_of, or key=value"),
        (["g-1", "--soil.depth", "0"], "soil.depth", "--soil.depth: expected a whole number from 1 to 100"),
        (["g-1", "--soil.kind-of", "mud"], "soil.kind_of", "--soil.kind_of: expected one of clay, sand"),
        (["g-1", "--free.a", "1", "--free.a.b", "2"], "free", "--free: expected a to be an object"),
    ],
)
def test_what_is_not_right_is_named_with_its_flag_and_what_was_expected(
    words: list[str], field: str, said: str
) -> None:
    with pytest.raises(ValidationFailed) as caught:
        read(*words)
    assert said in caught.value.message
    assert [fault["field"] for fault in caught.value.details["fields"]] == [field]


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ValidationFailed) as caught:
        read("--count", "x", "--colour", "blue")
    assert [fault["field"] for fault in caught.value.details["fields"]] == ["garden_id", "count", "colour"]


def test_the_refusal_of_a_unit_is_told_with_the_flags_that_were_typed() -> None:
    fields = [{"field": "soil.depth", "expected": "Input should be odd"}, {"field": "elsewhere", "expected": "x"}]
    told = flags.named(ValidationFailed("garden.plant: ...", fields=fields), flags.flags_of(PLANT))
    assert told.message == "--soil.depth: Input should be odd"


@pytest.mark.parametrize(
    ("found", "short", "expected"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 100}, "integer 1..100", "a whole number from 1 to 100"),
        ({"type": "integer", "minimum": 0, "maximum": 2**63 - 1}, "integer >= 0", "a whole number, at least 0"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 2}, "number > 0 <= 2", "a number, above 0 and at most 2"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text", "a text"),
        ({"enum": ["a", "b"], "type": "string"}, "a|b", "one of a, b"),
        ({"const": "a"}, "a", "a"),
        ({"type": "array", "items": {"$ref": "#/$defs/Word"}}, "list of text", "a list, each a text of at least 2"),
        ({"$ref": "#/$defs/Thing"}, "object", "a JSON object with size"),
        ({"anyOf": [{"type": "string"}, {"type": "boolean"}]}, "text or true|false", "a text, or true or false"),
        ({}, "anything", "anything"),
    ],
)
def test_a_field_is_described_in_words(found: dict[str, Any], short: str, expected: str) -> None:
    root = {
        "$defs": {"Word": {"type": "string", "minLength": 2}, "Thing": {"type": "object", "properties": {"size": {}}}}
    }
    assert schema.short(found, root) == short
    assert schema.expected(found, root).startswith(expected)


def test_a_pattern_that_python_does_not_know_is_left_to_the_unit() -> None:
    assert not list(schema.faults("x", {"type": "string", "pattern": r"\p{L}+"}, {}, "name"))


@pytest.mark.parametrize("unit", every_unit(), ids=lambda unit: unit.name)
def test_every_example_of_every_unit_can_be_typed_and_means_the_same(unit: UnitInfo) -> None:
    ident = ident_of(unit.domain, {other.name: other for other in every_unit() if other.domain == unit.domain})
    about = ident if ident in unit.input.get("properties", {}) else ""
    for given in unit.examples:
        words = shlex.split(unit_command.example(unit, given, about))
        assert words[:3] == ["aima", unit.domain, unit.action.replace("_", "-")]
        assert read(*words[3:], unit=unit, ident=about) == given


@pytest.mark.parametrize("given", PLANT.examples, ids=str)
def test_every_kind_of_field_can_be_typed_and_means_the_same(given: dict[str, Any]) -> None:
    words = shlex.split(unit_command.example(PLANT, given, "garden_id"))
    assert read(*words[3:]) == given
