"""What the OpenAPI document says of the paths that are no unit's. Pure."""

from __future__ import annotations

import re
from typing import Any

from aima_core.errors import BY_CODE
from services.gateway.entrance.paths import FixedPath
from services.gateway.rest.openapi_schemas import Json

_IN_A_PATH = re.compile(r"\{([a-z]+)\}")
_ANY_INPUT = {"type": "object", "description": "The unit's input."}
_STREAMS = ("/events", "/watch")  # ends of paths that answer with server-sent events


def operation(door: FixedPath) -> Json:
    """Return what is said of a door."""
    name = re.sub(r"[^a-z0-9]+", "_", f"{door.method.lower()}{door.path.lower()}").strip("_")
    media = "text/event-stream" if door.path.endswith(_STREAMS) else "application/json"
    media = "text/html" if door.path == "/docs" else "text/plain" if door.path == "/metrics" else media
    inside = [
        {"name": each, "in": "path", "required": True, "schema": {"type": "string"}}
        for each in _IN_A_PATH.findall(door.path)
    ]
    parameters = [*inside, *_PARAMETERS.get((door.method, door.path), ())]
    body = _BODIES.get(door.path, {"type": "object"}) if door.method == "POST" else None
    return {
        "operationId": name,
        "summary": door.summary,
        "tags": [door.tag],
        **({"parameters": parameters} if parameters else {}),
        **({"requestBody": {"content": {"application/json": {"schema": body}}}} if body else {}),
        "responses": {
            "200": {"description": "The answer.", "content": {media: {}}},
            "default": {"description": "A refusal, in the shape that clients of this API know."},
        },
    }


def _query(name: str, about: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "description": about, "schema": schema}


_TEXTS = {"type": "array", "items": {"type": "string"}}
_NUMBER = {"type": "integer", "minimum": 0}

_PARAMETERS: dict[tuple[str, str], tuple[Json, ...]] = {
    ("GET", "/api/v2/events"): (
        _query("domain", "Only of these domains.", _TEXTS),
        _query("type", "Only of these types: `service.started`, `service.*`.", _TEXTS),
        _query("stream", "Only about this: `service/svc-1`.", {"type": "string"}),
        _query("after", "Also those that are kept behind this number, which is an event's id.", _NUMBER),
        _query("since", "Also those since a time, or as long ago: `10m`, `2h`.", {"type": "string"}),
        _query("last_event_id", "The same as the header Last-Event-ID.", _NUMBER),
    ),
    ("GET", "/api/v2/health"): (_query("ready", "503 when anything is missing.", {"type": "boolean"}),),
    ("GET", "/api/v2/units"): (_query("domain", "Only of this domain.", {"type": "string"}),),
}

_BODIES: dict[str, Json] = {
    "/api/v2/execute": {
        "type": "object",
        "required": ["unit"],
        "additionalProperties": False,
        "properties": {
            "unit": {"type": "string", "examples": ["model.list"]},
            "type": {"enum": ["command", "query"]},
            "input": _ANY_INPUT,
            "options": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "timeout": {"type": "number", "exclusiveMinimum": 0, "maximum": 86_400},
                    "async": {"type": "boolean", "description": "Answer at once, with an operation to follow."},
                    "stream": {"type": "boolean", "description": "Answer with server-sent events, parts first."},
                    "dry_run": {"type": "boolean", "description": "Say what would be recorded; record nothing."},
                    "trace_id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
                    "idempotency_key": {"type": "string", "minLength": 1, "maxLength": 120},
                    "expected_version": {"type": "integer", "minimum": 0},
                },
            },
        },
    },
    "/api/v2/command/{unit}": _ANY_INPUT,
    "/api/v2/query/{unit}": _ANY_INPUT,
}

SCHEMAS: dict[str, Any] = {
    "Meta": {
        "type": "object",
        "required": ["request_id"],
        "properties": {
            "request_id": {"type": "string"},
            "duration_ms": {"type": "number"},
            "trace_id": {"type": "string"},
            "version": {"type": "integer", "description": "Of the stream that the command is about."},
            "position": {"type": "integer", "description": "In the domain's log."},
        },
    },
    "Refusal": {
        "type": "object",
        "required": ["success", "error", "meta"],
        "properties": {
            "success": {"const": False},
            "error": {
                "type": "object",
                "required": ["code", "message", "details"],
                "properties": {
                    "code": {"type": "string", "enum": sorted(BY_CODE)},
                    "message": {"type": "string"},
                    "details": {"type": "object", "description": "`reason` says more exactly what is wrong."},
                },
            },
            "meta": {"$ref": "#/components/schemas/Meta"},
        },
    },
}
