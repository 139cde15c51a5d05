"""Describes the fixed paths as operations of the OpenAPI document. A fixed path belongs to no unit. Pure."""

from __future__ import annotations

import re
from typing import Any

from aima_core.errors import BY_CODE
from aima_core.process.dry_run import PLAN_SCHEMA
from services.gateway.entrance.paths import FixedPath
from services.gateway.rest.openapi_schemas import Json

_IN_A_PATH = re.compile(r"\{([a-z]+)\}")
_ANY_INPUT = {"type": "object", "description": "The unit's input."}
_STREAMS = ("/events", "/watch")  # a path with one of these endings answers with server-sent events


def operation(fixed: FixedPath) -> Json:
    """Return the OpenAPI operation that describes a fixed path."""
    name = re.sub(r"[^a-z0-9]+", "_", f"{fixed.method.lower()}{fixed.path.lower()}").strip("_")
    media = "text/event-stream" if fixed.path.endswith(_STREAMS) else "application/json"
    media = "text/html" if fixed.path == "/docs" else "text/plain" if fixed.path == "/metrics" else media
    in_path = [
        {"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}
        for parameter in _IN_A_PATH.findall(fixed.path)
    ]
    parameters = [*in_path, *_PARAMETERS.get((fixed.method, fixed.path), ())]
    body = _BODIES.get(fixed.path, {"type": "object"}) if fixed.method == "POST" else None
    return {
        "operationId": name,
        "summary": fixed.summary,
        "tags": [fixed.tag],
        **({"parameters": parameters} if parameters else {}),
        **({"requestBody": {"content": {"application/json": {"schema": body}}}} if body else {}),
        "responses": {
            "200": {"description": "The response.", "content": {media: {}}},
            "default": {"description": "An error, in the format of this API."},
        },
    }


def _query(name: str, about: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "description": about, "schema": schema}


_TEXTS = {"type": "array", "items": {"type": "string"}}
_NUMBER = {"type": "integer", "minimum": 0}

_PARAMETERS: dict[tuple[str, str], tuple[Json, ...]] = {
    ("GET", "/api/v2/events"): (
        _query("domain", "Only events of these domains; repeatable.", _TEXTS),
        _query("type", "Only events of these types, such as `service.started` or `service.*`; repeatable.", _TEXTS),
        _query("stream", "Only events of this stream, such as `service/svc-1`.", {"type": "string"}),
        _query(
            "after",
            "Begin after the event with this `id`. 0 begins with the first stored event.",
            _NUMBER,
        ),
        _query(
            "since",
            "Begin at this time, such as `2026-01-31T12:00:00Z`, or this long ago, such as `10m`.",
            {"type": "string"},
        ),
        _query(
            "last_event_id",
            "The `id` of the last event that the client received. The header Last-Event-ID overrides it.",
            _NUMBER,
        ),
    ),
    ("GET", "/api/v2/health"): (
        _query("ready", "Answer with 503 if the bus, JetStream or a domain is missing.", {"type": "boolean"}),
    ),
    ("GET", "/api/v2/units"): (_query("domain", "Only units of this domain.", {"type": "string"}),),
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
                    "async": {
                        "type": "boolean",
                        "description": "Return an operation at once. The caller can follow and cancel the operation.",
                    },
                    "stream": {
                        "type": "boolean",
                        "description": "Send the parts of the answer, then the result, as server-sent events.",
                    },
                    "dry_run": {
                        "type": "boolean",
                        "description": "Change nothing. The data of the answer is a Plan.",
                    },
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
    "Plan": PLAN_SCHEMA,
    "Meta": {
        "type": "object",
        "required": ["request_id"],
        "properties": {
            "request_id": {"type": "string"},
            "duration_ms": {"type": "number"},
            "trace_id": {"type": "string"},
            "version": {"type": "integer", "description": "Version of the stream that the command changed."},
            "position": {"type": "integer", "description": "The answer reflects the domain's log up to this position."},
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
                    "details": {
                        "type": "object",
                        "description": "`reason` is the exact cause. The other members describe the cause.",
                    },
                },
            },
            "meta": {"$ref": "#/components/schemas/Meta"},
        },
    },
}
