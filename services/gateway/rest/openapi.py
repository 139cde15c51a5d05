"""The doors in OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.1), made from what is on the bus. Pure.

Every unit stands under each of its routes, the one to show first with its examples. What its JSON Schemas define is
moved to the components of the document, once where units of a domain share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from aima_core.bus.directory import UnitInfo
from aima_core.errors import BY_CODE, Unauthorized
from services.gateway.entrance.access import NOBODY, Policy
from services.gateway.entrance.paths import DOORS
from services.gateway.rest import openapi_fixed, routes
from services.gateway.rest.openapi_schemas import Json, Schemas

PREFIX = "/api/v2"
_ALWAYS = (
    "INVALID_REQUEST",
    "VALIDATION_ERROR",
    "UNAUTHORIZED",
    "FORBIDDEN",
    "UNIT_NOT_FOUND",
    "PAYLOAD_TOO_LARGE",
    "RATE_LIMITED",
    "INTERNAL_ERROR",
    "UNAVAILABLE",
    "TIMEOUT",
)  # what any unit may refuse with at a door
_ABOUT = """\
Everything that can be asked is an atomic unit: a command has effects, a query has none. Each has routes of its own,
and goes through `/api/v2/execute` as well. Answers are `{success, data, meta}`, refusals `{success, error, meta}`."""
_HEADERS = {
    "Idempotency-Key": ("A repeat with the same key gets the first answer and changes nothing.", {"type": "string"}),
    "Aima-Timeout": ("Seconds until the work is given up.", {"type": "number", "exclusiveMinimum": 0}),
    "Aima-Dry-Run": ("Decide only: the answer says what would be recorded.", {"type": "boolean"}),
    "Aima-Expected-Version": ("Refuse if what it is about is at another version.", {"type": "integer", "minimum": 0}),
}


def document(units: Mapping[str, UnitInfo], policy: Policy, version: str) -> Json:
    """Return the document."""
    schemas = Schemas()
    paths: dict[str, Json] = {}
    for unit in units.values():
        for number, route in enumerate(routes.routes(unit, units)):
            about = _operation(route, number, schemas, policy)
            paths.setdefault(f"{PREFIX}{route.path}", {})[route.method.lower()] = about
    for door in DOORS:
        paths.setdefault(door.path, {})[door.method.lower()] = openapi_fixed.operation(door)
    tags = [*(unit.domain for unit in units.values()), *(door.tag for door in DOORS)]
    return {
        "openapi": "3.1.0",
        "info": {"title": "AIMA", "version": version, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "security": [{}, {"bearer": []}, {"apiKey": []}],
        "tags": [{"name": tag} for tag in dict.fromkeys(tags)],
        "paths": paths,
        "components": {
            "schemas": {**schemas.found, **openapi_fixed.SCHEMAS},
            "parameters": {
                name: {"name": name, "in": "header", "description": about, "schema": schema}
                for name, (about, schema) in _HEADERS.items()
            },
            "responses": {
                **{f"Error{status}": _refusal(codes) for status, codes in _by_status(_ALWAYS)},
                "Error": _refusal(["What HTTP itself refuses: a method, a media type, a host."]),
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "aima keys create NAME"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


# --- one route ----------------------------------------------------------------------------------------------------


def _operation(route: routes.Route, number: int, schemas: Schemas, policy: Policy) -> Json:
    unit = route.unit
    examples = unit.examples if number == 0 else []
    fields = {name: schemas.of(unit, found) for name, found in routes.fields_of(unit).items()}
    inputs = {name: found for name, found in fields.items() if name != route.ident}
    required = [name for name in _required(unit) if name in inputs]
    parameters: list[Json] = []
    if route.ident:
        example = next((each[route.ident] for each in examples if route.ident in each), None)
        parameters.append(
            {"name": "id", "in": "path", "required": True, "schema": fields[route.ident], **_example(example)}
        )
    body: Json = {}
    if route.method in ("GET", "DELETE"):
        parameters += [_in_query(name, found, name in required, examples) for name, found in inputs.items()]
    elif inputs:
        body = {"requestBody": _body(inputs, required, examples)}
    if unit.kind == "command":
        parameters += [{"$ref": f"#/components/parameters/{name}"} for name in _HEADERS]
    return {
        "operationId": f"{unit.name}.{number}" if number else unit.name,
        "summary": unit.summary,
        "description": _description(unit),
        "tags": [unit.domain],
        **({"security": [{"bearer": []}, {"apiKey": []}]} if _needs_a_key(unit, policy) else {}),
        **({"parameters": parameters} if parameters else {}),
        **body,
        "responses": _responses(unit, schemas),
        "x-aima-unit": unit.name,
        "x-aima-kind": unit.kind,
        "x-aima-risk": unit.risk,
        "x-aima-shown": number == 0,  # the others mean the same
    }


def _in_query(name: str, schema: Any, required: bool, examples: Sequence[Json]) -> Json:
    example = next((each[name] for each in examples if name in each), None)
    about = {"name": name, "in": "query", "required": required}
    if _is_object(schema):
        return {**about, "content": {"application/json": {"schema": schema, **_example(example)}}}
    return {**about, "schema": schema, **_example(example)}


def _is_object(schema: Any) -> bool:
    """Whether a field takes an object, which a query string holds as JSON."""
    if not isinstance(schema, dict):
        return True
    options = [schema, *schema.get("anyOf", ()), schema.get("items", {})]
    return any(isinstance(each, dict) and (each.get("type") == "object" or "$ref" in each) for each in options)


def _body(fields: Mapping[str, Any], required: Sequence[str], examples: Sequence[Json]) -> Json:
    schema: Json = {"type": "object", "properties": dict(fields), "additionalProperties": False}
    if required:
        schema["required"] = list(required)
    shown = {
        f"example {number}": {"value": {name: value for name, value in each.items() if name in fields}}
        for number, each in enumerate(examples, 1)
    }
    content = {"schema": schema, **({"examples": shown} if shown else {})}
    return {"required": bool(required), "content": {"application/json": content}}


def _responses(unit: UnitInfo, schemas: Schemas) -> Json:
    answer = {
        "type": "object",
        "required": ["success", "data", "meta"],
        "properties": {
            "success": {"const": True},
            "data": schemas.root(unit, "output", unit.output),
            "meta": {"$ref": "#/components/schemas/Meta"},
        },
    }
    found: Json = {"200": {"description": "The answer.", "content": {"application/json": {"schema": answer}}}}
    for status, codes in _by_status((*_ALWAYS, *unit.errors)):
        own = any(code not in _ALWAYS for code in codes)
        found[str(status)] = _refusal(codes) if own else {"$ref": f"#/components/responses/Error{status}"}
    return {**found, "default": {"$ref": "#/components/responses/Error"}}


def _by_status(codes: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield each status with the codes that have it; codes that nobody here knows are left out."""
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        if code in BY_CODE:
            by_status.setdefault(BY_CODE[code].status, []).append(code)
    yield from sorted(by_status.items())


def _refusal(codes: Sequence[str]) -> Json:
    schema = {"$ref": "#/components/schemas/Refusal"}
    return {"description": ", ".join(codes), "content": {"application/json": {"schema": schema}}}


def _description(unit: UnitInfo) -> str:
    events = f"\n\nRecords {', '.join(f'`{event}`' for event in unit.events)}." if unit.events else ""
    return f"{unit.description}\n\n`{unit.name}`, a {unit.kind} of {unit.risk} risk.{events}"


def _needs_a_key(unit: UnitInfo, policy: Policy) -> bool:
    try:
        policy.permit(NOBODY, unit)
    except Unauthorized:
        return True
    return False


def _example(value: Any) -> Json:
    return {} if value is None else {"example": value}


def _required(unit: UnitInfo) -> list[str]:
    found = unit.input.get("required")
    return found if isinstance(found, list) else []
