"""The OpenAPI document is valid, says what there is, and nothing that it allows makes the gateway stumble."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema
from openapi_spec_validator import validate

from aima_core.bus.directory import UnitInfo
from aima_core.bus.nats_server import NatsServer
from aima_core.testing import serving, settings_for
from services.cli import domains
from services.gateway.entrance.access import Policy
from services.gateway.entrance.paths import DOORS
from services.gateway.rest import openapi, routes
from tests.core.toy import TALLY
from tests.gateway.conftest import Site, gateway
from tests.gateway.rest.test_routes import ALL
from tests.gateway.toy import PARCEL

OPEN = Policy(required=False)
REAL = tuple(domains.load(name) for name in domains.names() if name != "gateway")
Json = dict[str, Any]


def _document(*units: UnitInfo, policy: Policy = OPEN) -> Json:
    return openapi.document({unit.name: unit for unit in units} or ALL, policy, "1")


def _operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_the_document_of_all_our_units_is_valid() -> None:
    validate(_document())


def test_every_route_of_every_unit_and_every_fixed_path_is_in_it() -> None:
    found = {(method, path) for method, path, _ in _operations(_document())}
    wanted = {(route.method, f"/api/v2{route.path}") for unit in ALL.values() for route in routes.routes(unit, ALL)}
    assert found == wanted | {(door.method, door.path) for door in DOORS}


def test_operations_have_ids_of_their_own() -> None:
    idents = [operation["operationId"] for *_, operation in _operations(_document())]
    assert len(idents) == len(set(idents))


def test_a_definition_that_two_units_mean_differently_stands_there_twice() -> None:
    def unit(name: str, kind: str) -> UnitInfo:
        size = {"type": kind, "description": "A size."}
        schema = {"properties": {"size": {"$ref": "#/$defs/Size"}}, "$defs": {"Size": size}}
        return UnitInfo(name=name, kind="query", risk="low", input=schema, output=schema)

    document = _document(unit("box.one", "string"), unit("box.two", "integer"), unit("box.three", "string"))
    validate(document)
    schemas = document["components"]["schemas"]
    assert {name: schemas[name]["type"] for name in ("box.Size", "box.two.Size")} == {
        "box.Size": "string",
        "box.two.Size": "integer",
    }
    assert "box.three.Size" not in schemas


def test_definitions_that_contain_themselves_end() -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#/$defs/Tree"}, "right": {"$ref": "#/$defs/Nowhere"}}}
    schema = {"properties": {"tree": {"$ref": "#/$defs/Tree"}}, "$defs": {"Tree": tree}}
    document = _document(UnitInfo(name="box.grow", kind="command", risk="low", input=schema, output=schema))
    validate(document)
    left = document["components"]["schemas"]["box.Tree"]["properties"]
    assert left == {"left": {"$ref": "#/components/schemas/box.Tree"}, "right": {}}


def test_what_needs_a_key_says_so() -> None:
    units = [
        UnitInfo(name="box.look", kind="query", risk="low"),
        UnitInfo(name="box.open", kind="command", risk="medium"),
        UnitInfo(name="box.burn", kind="command", risk="high"),
    ]

    def locked(policy: Policy) -> set[str]:
        document = _document(*units, policy=policy)
        return {op["x-aima-unit"] for *_, op in _operations(document) if "x-aima-unit" in op and "security" in op}

    assert locked(OPEN) == {"box.burn"}
    assert locked(Policy(required=True)) == {"box.burn", "box.open"}
    assert locked(Policy(required=True, open_queries=False)) == {"box.burn", "box.open", "box.look"}


async def test_a_domain_that_comes_appears_at_every_native_door_without_a_restart(own_site: Site) -> None:
    before = (await own_site.get("/openapi.json")).json()
    assert not any("/toll" in path or "tally" in path for path in before["paths"])
    assert (await own_site.get("/api/v2/tally/log")).status_code == 404
    async with serving(TALLY, settings=settings_for(own_site.folder, own_site.nats.url, TALLY)):
        assert (await own_site.get("/api/v2/tally/log")).status_code == 200  # whoever asks by name need not wait
        after = (await own_site.get("/openapi.json")).json()
        assert "/api/v2/tally/log" in after["paths"]
        listed = (await own_site.get("/api/v2/units?domain=tally")).json()["units"]
        assert {unit["unit"] for unit in listed} == {"tally.log", "tally.read"}
        assert (await own_site.post("/api/v2/execute", {"unit": "tally.log"})).status_code == 200


async def test_every_fixed_path_is_there_and_every_path_that_is_there_is_listed(site: Site) -> None:
    for door in DOORS:
        path = door.path.replace("{uri}", "counter/c1")
        for name in ("{unit}", "{id}", "{model}"):
            path = path.replace(name, "x")
        response = await site.http.request("OPTIONS", path)
        assert response.status_code != 404, door.path
        if response.status_code == 204 and "{uri}" not in door.path:
            assert door.method in response.headers["allow"], door.path


async def test_the_page_loads_nothing_from_elsewhere(site: Site) -> None:
    response = await site.get("/docs")
    assert response.status_code == 200
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "http://" not in response.text
    assert "https://" not in response.text


# --- whatever it allows ------------------------------------------------------------------------------------------


@pytest.fixture
async def everything(tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]) -> AsyncIterator[Site]:
    """A gateway beside all our domains and a toy."""
    async with gateway(tmp_path / "data", nats, free_port(), *REAL, PARCEL) as site:
        yield site


# what would leave this machine, or start programs on it, even when only planned
_NOT_TRIED = frozenset({"model.search", "model.pull", "model.import", "engine.install", "engine.start"})
_VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
_ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | _VALUES, st.lists, max_leaves=5)


def _text(value: Any) -> str:
    """Return a value as it stands in a query string."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _bundled(schema: Any, document: Json) -> Json:
    """Return a schema with those components that it refers to."""
    text, found = json.dumps(schema), {}
    left = set(re.findall(r"#/components/schemas/([^\"]+)", text))
    while left:
        name = left.pop()
        found[name] = document["components"]["schemas"][name]
        left |= set(re.findall(r"#/components/schemas/([^\"]+)", json.dumps(found[name]))) - set(found)
    return {**schema, "components": {"schemas": found}}


def _values(schema: Any, document: Json, depth: int = 3) -> st.SearchStrategy[Any]:
    """Return the values that a schema allows; hypothesis-jsonschema draws all but objects, which it cannot any more."""
    if not isinstance(schema, dict) or depth < 0:
        return _ANYTHING
    if reference := schema.get("$ref"):
        return _values(document["components"]["schemas"][reference.rpartition("/")[2]], document, depth)
    if options := schema.get("anyOf"):
        return st.one_of([_values(option, document, depth) for option in options])
    if schema.get("type") == "object":
        fields = {name: _values(field, document, depth - 1) for name, field in schema.get("properties", {}).items()}
        required = {name: fields.pop(name) for name in schema.get("required", ()) if name in fields}
        drawn = st.fixed_dictionaries(required, optional=fields)
        return drawn if fields or required else st.dictionaries(_VALUES, _ANYTHING, max_size=3)
    if schema.get("type") == "array":
        return st.lists(_values(schema.get("items", {}), document, depth - 1), max_size=4)
    return from_schema(schema) if schema else _ANYTHING


def _requests(document: Json, operation: Json, path: str, draw: Any) -> tuple[str, list[tuple[str, str]], Any]:
    """Draw a path, a query string and a body that the document allows, or nearly so."""
    query = []
    for parameter in operation.get("parameters", ()):
        if "$ref" in parameter:
            continue
        schema = parameter.get("schema") or parameter["content"]["application/json"]["schema"]
        value = draw(_values(schema, document) | _VALUES)
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", quote(_text(value), safe="") or "x")
        elif parameter["required"] or draw(st.booleans()):
            several = value if isinstance(value, list) and draw(st.booleans()) else [value]
            query += [(parameter["name"], _text(each)) for each in several]
    body = None
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        body = draw(_values(schema, document) | st.dictionaries(_VALUES, _ANYTHING, max_size=3))
    return path, query, body


async def test_nothing_that_the_document_allows_breaks_the_gateway(everything: Site) -> None:
    document = (await everything.get("/openapi.json")).json()
    for method, path, operation in _operations(document):
        if operation.get("x-aima-unit", "model.pull") in _NOT_TRIED:
            continue
        for where, query, body in _drawn(document, operation, path):
            planned = {"Aima-Dry-Run": "true"} if operation.get("x-aima-kind") == "command" else {}
            asked = {"params": query, "json": body, "headers": {"Aima-Timeout": "10"} | planned}
            _check(await everything.http.request(method, where, **asked), operation, document)
    assert (await everything.get("/health")).status_code == 200


def _drawn(document: Json, operation: Json, path: str) -> list[Any]:
    """Draw requests first: while it draws, hypothesis has all random numbers of the process repeat themselves."""
    drawn: list[Any] = []

    @settings(max_examples=5, suppress_health_check=list(HealthCheck), database=None)
    @given(st.data())
    def draw(data: st.DataObject) -> None:
        drawn.append(_requests(document, operation, path, data.draw))

    draw()
    return drawn


def _check(response: httpx2.Response, operation: Json, document: Json) -> None:
    """An answer is as the document says, a refusal declared; a fault of ours is neither."""
    told = response.json()
    status = response.status_code
    assert status < 500 or status in (503, 504) or told["error"]["code"] == "EXECUTION_FAILED", told
    assert str(status) in operation["responses"] or status in (404, 405, 415), (status, told)
    if status >= 400:
        _valid(told, {"$ref": "#/components/schemas/Refusal"}, document)
    else:
        _valid(told, operation["responses"]["200"]["content"]["application/json"]["schema"], document)


def _valid(told: Any, schema: Mapping[str, Any], document: Json) -> None:
    jsonschema.validate(told, _bundled(dict(schema), document), cls=jsonschema.Draft202012Validator)
