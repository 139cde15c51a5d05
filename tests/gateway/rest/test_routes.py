"""The rule of the REST routes, as tables and as properties that hold for all our domains and for any other."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aima_core.bus.directory import UnitInfo
from aima_core.standard_units import units_of
from services.cli import domains
from services.gateway.rest import routes


def units_of_all() -> dict[str, UnitInfo]:
    """Return every unit of every domain of ours, as the bus describes them."""
    found: dict[str, UnitInfo] = {}
    for name in domains.names():
        domain = domains.load(name)
        for unit in (*domain.units, *units_of(name, "asms://x", domain.log_risk)):
            schema = unit.model_json_schema()
            found[unit.spec.name] = UnitInfo(
                name=unit.spec.name, kind=unit.spec.kind, risk=unit.spec.risk, input=schema, timeout=unit.spec.timeout
            )
    return found


ALL = units_of_all()
TABLE = routes.Table(ALL)


def _unit(name: str, kind: str, *fields: str, required: tuple[str, ...] = ()) -> UnitInfo:
    properties = {field: {"type": "string"} for field in fields}
    return UnitInfo(
        name=name, kind=kind, risk="low", input={"properties": properties, "required": list(required or fields)}
    )


def _made(*units: UnitInfo) -> dict[str, UnitInfo]:
    return {unit.name: unit for unit in units}


@pytest.mark.parametrize(
    ("request_line", "unit", "given"),
    [
        ("GET services", "service.list", {}),
        ("POST services", "service.create", {}),
        ("GET services/svc-1", "service.get", {"service_id": "svc-1"}),
        ("DELETE services/svc-1", "service.delete", {"service_id": "svc-1"}),
        ("POST services/svc-1/start", "service.start", {"service_id": "svc-1"}),
        ("GET services/svc-1/status", "service.status", {"service_id": "svc-1"}),
        ("POST services/svc-1/status", "service.status", {"service_id": "svc-1"}),
        ("GET services/recommend", "service.recommend", {}),
        ("POST services/start", "service.start", {}),
        ("GET service/svc-1", "service.get", {"service_id": "svc-1"}),
        ("GET models/search", "model.search", {}),
        ("POST models/pull", "model.pull", {}),
        ("GET models/a b/é", None, {}),
        ("GET engines/llamacpp", "engine.get", {"name": "llamacpp"}),
        ("GET devices/box-gpu-0/metrics", "device.metrics", {"device_id": "box-gpu-0"}),
        ("POST inference/chat", "inference.chat", {}),
        ("GET inference/models", "inference.models", {}),
        ("GET services/log", "service.log", {}),
        ("GET services/read", "service.read", {}),
        ("GET services//start", None, {}),
        ("GET services/svc-1/start/now", None, {}),
        ("GET nothing", None, {}),
        ("GET services/", None, {}),
    ],
)
def test_a_request_means_a_unit(request_line: str, unit: str | None, given: dict[str, str]) -> None:
    method, _, path = request_line.partition(" ")
    found = TABLE.resolve(method, path.split("/"))
    assert (found.unit and found.unit.name) == unit
    assert dict(found.path_input) == given


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "services", {"GET", "POST"}),
        ("DELETE", "services", {"GET", "POST"}),
        ("POST", "services/svc-1", {"GET", "DELETE"}),
        ("GET", "services/svc-1/start", {"POST"}),
        ("GET", "services/start", {"POST"}),
        ("PATCH", "models/search", {"GET", "POST"}),
    ],
)
def test_a_method_that_means_nothing_there_is_told_those_that_do(method: str, path: str, allowed: set[str]) -> None:
    found = TABLE.resolve(method, path.split("/"))
    assert found.unit is None
    assert found.allowed == allowed


def test_every_unit_of_ours_has_a_route_and_every_route_leads_back_to_its_unit() -> None:
    for unit in ALL.values():
        found = list(routes.routes(unit, ALL))
        assert found, unit.name
        for route in found:
            segments = route.path.replace("{id}", "an-id").split("/")[1:]
            resolved = TABLE.resolve(route.method, segments)
            assert resolved.unit == unit, (route.method, route.path)
            assert dict(resolved.path_input) == ({route.ident: "an-id"} if route.ident else {})


def test_no_two_units_of_ours_share_a_route() -> None:
    seen: dict[tuple[str, str], str] = {}
    for unit in ALL.values():
        for route in routes.routes(unit, ALL):
            assert seen.setdefault((route.method, route.path), unit.name) == unit.name


def test_a_fixed_path_wins_over_an_id_whatever_comes_first() -> None:
    units = [
        _unit("box.get", "query", "box_id"),
        _unit("box.search", "query", "words"),
        _unit("box.delete", "command", "box_id"),
    ]
    for order in (units, units[::-1]):
        table = routes.Table(_made(*order))
        assert table.resolve("GET", ["boxs", "search"]).unit == units[1]
        assert table.resolve("GET", ["boxs", "other"]).unit == units[0]
        assert table.resolve("DELETE", ["boxs", "search"]).allowed == {"GET", "POST"}


def test_a_command_is_never_behind_get() -> None:
    named = _made(_unit("box.list", "command"), _unit("box.get", "command", "box_id"), _unit("box.open", "command"))
    for unit in (*named.values(), *(unit for unit in ALL.values() if unit.kind == "command")):
        for route in routes.routes(unit, ALL | named):
            assert route.method != "GET", unit.name


def test_a_domain_without_a_thing_of_its_own_has_its_paths_in_the_singular() -> None:
    table = routes.Table(_made(_unit("weather.today", "query"), _unit("weather.list", "query")))
    assert table.resolve("GET", ["weather", "today"]).unit
    assert table.resolve("GET", ["weather"]).unit
    assert routes.collection_of("weather", _made(_unit("weather.today", "query"))) == "weather"


@pytest.mark.parametrize("schema", [{"properties": 5}, {"properties": [], "required": 3}, {"required": [1]}, {}])
def test_whatever_a_stranger_writes_into_its_schema_has_routes(schema: dict[str, Any]) -> None:
    unit = UnitInfo(name="odd.get", kind="query", risk="low", input=schema)
    assert routes.Table({"odd.get": unit}).resolve("GET", ["odd", "get"]).unit == unit


NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
FIELDS = st.lists(st.sampled_from(["a_id", "b_id", "box_id", "name", "limit"]), max_size=3, unique=True)


@st.composite
def domains_of_strangers(draw: st.DrawFn) -> dict[str, UnitInfo]:
    """Draw domains that somebody else might write."""
    found = {}
    for domain in draw(st.lists(st.sampled_from(["box", "boxs", "a", "weather"]), min_size=1, unique=True)):
        actions = draw(st.sets(st.sampled_from(["get", "list", "create", "delete"]) | NAMES, min_size=1, max_size=6))
        for action in sorted(actions):
            name = f"{domain}.{action}"
            found[name] = _unit(name, draw(st.sampled_from(["command", "query"])), *draw(FIELDS))
    return found


@given(domains_of_strangers())
def test_of_any_domains_every_unit_can_be_reached_by_a_route_of_its_own(units: dict[str, UnitInfo]) -> None:
    table = routes.Table(units)
    for unit in units.values():
        fixed = [route for route in routes.routes(unit, units) if not route.ident]
        reached = [table.resolve(route.method, route.path.split("/")[1:]).unit for route in fixed]
        # `boxs` may be the plural of one domain and the name of another: then the name wins
        shadowed = routes.collection_of(unit.domain, units) in {other.domain for other in units.values()} - {
            unit.domain
        }
        assert shadowed or unit in reached
