"""The formats and the types of models are listed once, in the model domain; everything else uses that list.

A list is several of the names together: the items of a tuple, list, set or `Literal`, the keys of a dict, alternatives
joined by `|` in a text, the constants of a class. A name on its own is no list: a reader names its format, a table says
which type follows from a word in a header, a request kind names the types that answer it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml

from aima_core.units import Unit
from aima_engines.kinds.request_kinds import KINDS
from services.cli import domains
from services.engine.manifests.manifest_schema import Manifest
from services.model import units as model

ROOT = Path(__file__).parents[1]
CODE = sorted(file for folder in ("libs", "services") for file in (ROOT / folder).rglob("*.py"))
TYPES: tuple[str, ...] = get_args(model.ModelType)
OWNERS = {
    "formats": ROOT / "services/model/headers/format_table.py",
    "types": ROOT / "services/model/units.py",
}
NAMES = {
    "formats": (model.KNOWN_FORMATS, 2),
    "types": (TYPES, 4),
}  # so many of them together are a list; a few types are those that one thing serves


def lists(source: str, names: Collection[str], least: int) -> list[int]:
    """Return the lines at which a source lists at least so many of the names."""
    return [
        line
        for line, texts in _groups(ast.parse(source))
        if len({text.removeprefix(".").lower() for text in texts} & set(names)) >= least
    ]


def _groups(tree: ast.AST) -> Iterator[tuple[int, list[str]]]:
    """Yield what stands together, with its line; `Literal["a", "b"]` is a tuple within a subscript."""
    for node in ast.walk(tree):
        match node:
            case ast.Tuple(elts=items) | ast.List(elts=items) | ast.Set(elts=items):
                yield node.lineno, _texts(items)
            case ast.Dict(keys=keys):
                yield node.lineno, _texts(key for key in keys if key)
            case ast.Constant(value=str(text)) if "|" in text:
                yield node.lineno, re.findall(r"[\w-]+", text)
            case ast.ClassDef(body=body):
                yield node.lineno, _texts(line.value for line in body if isinstance(line, ast.Assign))


def _texts(nodes: Collection[ast.AST] | Iterator[ast.AST]) -> list[str]:
    """Return the texts among the nodes; a row of a table begins with its name."""
    first = (node.args[0] if isinstance(node, ast.Call) and node.args else node for node in nodes)
    return [node.value for node in first if isinstance(node, ast.Constant) and isinstance(node.value, str)]


@pytest.mark.parametrize("what", NAMES)
def test_the_list_is_in_one_place(what: str) -> None:
    names, least = NAMES[what]
    places = [str(file.relative_to(ROOT)) for file in CODE if lists(file.read_text(), names, least)]
    assert places == [str(OWNERS[what].relative_to(ROOT))]


@pytest.mark.parametrize(
    "source",
    [
        'Format = Literal["gguf", "safetensors"]',
        'WEIGHTS = (".gguf", ".onnx")',
        'READERS = {"gguf": 1, "e5s": 2}',
        'TABLE = [Row("gguf", 1), Row("onnx", 2)]',
        'class Format(StrEnum):\n    A = "gguf"\n    B = "onnx"',
        'PATTERN = "gguf|safetensors"',
    ],
)
def test_a_second_list_is_found(source: str) -> None:
    assert lists(source, model.KNOWN_FORMATS, 2) == [1]


def test_one_name_alone_is_no_list() -> None:
    assert lists('ModelFile(format="gguf", type="llm")\nTYPES = {"whisper": "asr", "clip": "vlm"}', TYPES, 2) == []


def test_every_schema_that_lists_types_lists_them_all() -> None:
    schemas = [Manifest.model_json_schema()]
    for name in domains.names():
        units: tuple[type[Unit], ...] = domains.load(name).units
        schemas += [unit.model_json_schema() for unit in units]
    enumerations = [set(found) for schema in schemas for found in _enumerations(schema)]
    of_types = [found for found in enumerations if len(found & set(TYPES)) > 1]
    assert len(of_types) >= 5  # of the model domain's units alone
    assert all(found == set(TYPES) for found in of_types)


def _enumerations(schema: object) -> Iterator[list[str]]:
    match schema:
        case {"enum": list(values), **rest}:
            yield values
            yield from _enumerations(rest)
        case dict():
            for part in schema.values():
                yield from _enumerations(part)
        case list():
            for part in schema:
                yield from _enumerations(part)


def test_every_type_has_a_kind_of_request_and_no_kind_another_type() -> None:
    """The client for engines knows no domain, so its table names the types on its own."""
    assert {kind for request in KINDS.values() for kind in request.types} == set(TYPES)


def test_the_manifests_of_the_product_name_known_formats() -> None:
    """An unknown name is an opaque format, so a typo in a manifest would go unnoticed."""
    for file in (ROOT / "services/engine/manifests").glob("*.yaml"):
        assert set(yaml.safe_load(file.read_text())["formats"]) <= set(model.KNOWN_FORMATS), file.name
