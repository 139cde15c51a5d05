"""Generates the gateway's OpenAPI 3.1 document (https://spec.openapis.org/oas/v3.1.1) from the units on the bus. Pure.

Each route of a unit is one operation of the document. Only a unit's first route has examples. Definitions (`$defs`) in
the JSON Schemas of units become components of the document. The units of a domain share these components.
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
)  # error codes that any unit can return
_ABOUT = """\
Every operation of AIMA is a unit. A unit is either a command, which has effects, or a query, which has none. Each \
unit has its own routes. `/api/v2/execute` calls any unit. A successful response is `{success, data, meta}`; an error \
is `{success, error, meta}`."""
_HEADERS = {
    "Idempotency-Key": (
        "A repeated request with the same key changes nothing and gets the first request's answer.",
        {"type": "string"},
    ),
    "Aima-Timeout": (
        "Seconds until the request ends with the error TIMEOUT. Default: the unit's own timeout.",
        {"type": "number", "exclusiveMinimum": 0},
    ),
    "Aima-Dry-Run": ("Change nothing. The data of the answer is a Plan.", {"type": "boolean"}),
    "Aima-Expected-Version": (
        "Refuse the command unless the stream that it changes has this version.",
        {"type": "integer", "minimum": 0},
    ),
}


def document(units: Mapping[str, UnitInfo], policy: Policy, version: str) -> Json:
    """Return the OpenAPI document for these units. `policy` decides which units require a key."""
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
            "schemas": {**schemas.components, **openapi_fixed.SCHEMAS},
            "parameters": {
                name: {"name": name, "in": "header", "description": about, "schema": schema}
                for name, (about, schema) in _HEADERS.items()
            },
            "responses": {
                **{f"Error{status}": _error_response(codes) for status, codes in _by_status(_ALWAYS)},
                "Error": _error_response(
                    ["The gateway refused the request because of its method, media type or host."]
                ),
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
    fields = {name: schemas.of(unit, schema) for name, schema in routes.fields_of(unit).items()}
    inputs = {name: schema for name, schema in fields.items() if name != route.ident}
    required = [name for name in _required(unit) if name in inputs]
    parameters: list[Json] = []
    if route.ident:
        example = next((each[route.ident] for each in examples if route.ident in each), None)
        parameters.append(
            {"name": "id", "in": "path", "required": True, "schema": fields[route.ident], **_example(example)}
        )
    body: Json = {}
    if route.method in ("GET", "DELETE"):
        parameters += [_in_query(name, schema, name in required, examples) for name, schema in inputs.items()]
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
        "x-aima-shown": number == 0,  # a unit's other routes are equivalent
    }


def _in_query(name: str, schema: Any, required: bool, examples: Sequence[Json]) -> Json:
    example = next((each[name] for each in examples if name in each), None)
    parameter = {"name": name, "in": "query", "required": required}
    if _is_object(schema):
        return {**parameter, "content": {"application/json": {"schema": schema, **_example(example)}}}
    return {**parameter, "schema": schema, **_example(example)}


def _is_object(schema: Any) -> bool:
    """Whether a field accepts an object. In a query string, an object must be written as JSON."""
    if not isinstance(schema, dict):
        return True
    options = [schema, *schema.get("anyOf", ()), schema.get("items", {})]
    return any(isinstance(each, dict) and (each.get("type") == "object" or "$ref" in each) for each in options)


def _body(fields: Mapping[str, Any], required: Sequence[str], examples: Sequence[Json]) -> Json:
    schema: Json = {"type": "object", "properties": dict(fields), "additionalProperties": False}
    if required:
        schema["required"] = list(required)
    values = {
        f"example {number}": {"value": {name: value for name, value in each.items() if name in fields}}
        for number, each in enumerate(examples, 1)
    }
    content = {"schema": schema, **({"examples": values} if values else {})}
    return {"required": bool(required), "content": {"application/json": content}}


def _responses(unit: UnitInfo, schemas: Schemas) -> Json:
    data = schemas.root(unit, "output", unit.output)
    if unit.kind == "command":
        data = {"anyOf": [data, {"$ref": "#/components/schemas/Plan"}]}
    answer = {
        "type": "object",
        "required": ["success", "data", "meta"],
        "properties": {
            "success": {"const": True},
            "data": data,
            "meta": {"$ref": "#/components/schemas/Meta"},
        },
    }
    responses: Json = {
        "200": {"description": "The unit's answer.", "content": {"application/json": {"schema": answer}}}
    }
    for status, codes in _by_status((*_ALWAYS, *unit.errors)):
        own = any(code not in _ALWAYS for code in codes)
        responses[str(status)] = _error_response(codes) if own else {"$ref": f"#/components/responses/Error{status}"}
    return {**responses, "default": {"$ref": "#/components/responses/Error"}}


def _by_status(codes: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield each HTTP status with its error codes. Skips unknown codes."""
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        if code in BY_CODE:
            by_status.setdefault(BY_CODE[code].status, []).append(code)
    yield from sorted(by_status.items())


def _error_response(codes: Sequence[str]) -> Json:
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
    names = unit.input.get("required")
    return names if isinstance(names, list) else []
