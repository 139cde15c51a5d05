"""Formats errors for each door: in AIMA's own envelope, or in the format of the OpenAI, Anthropic or Ollama API. Pure.

Sources: the chapters on errors in the references of these APIs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from aima_core.errors import AimaError, InvalidRequest

_OPENAI_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error"} | {
    404: "invalid_request_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error"} | {
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

_encode = msgspec.json.Encoder(enc_hook=str).encode


# codes that OpenAI's clients act on, by reason; any other reason is its own code
_OPENAI_CODES = {
    **dict.fromkeys(("KEY_NEEDED", "KEY_UNKNOWN", "KEY_EXPIRED"), "invalid_api_key"),
    "QUOTA_EXCEEDED": "insufficient_quota",
    "TOO_MANY_REQUESTS": "rate_limit_exceeded",
}


class HttpRefusal(InvalidRequest):
    """A refusal because of the request's path, method, media type or host. It has its own HTTP status."""

    def __init__(self, status: int, message: str, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message, reason=reason)
        self.http_status = status
        self.headers = dict(headers or {})


def no_such_path(path: str) -> HttpRefusal:
    """Return the refusal of a path that does not exist."""
    return HttpRefusal(404, f"the path {path} does not exist; /openapi.json lists all paths", "NO_SUCH_PATH")


def status_of(error: AimaError) -> int:
    """Return the HTTP status of an error."""
    return error.http_status if isinstance(error, HttpRefusal) else error.status


def is_foreign(path: str) -> bool:
    """Whether a path belongs to the OpenAI, Anthropic or Ollama API."""
    ollama = path == "/" or (path.startswith("/api/") and not path.startswith("/api/v2") and path.count("/") == 2)
    return ollama or path.startswith("/v1/") or path == "/rerank"


def body_of(error: AimaError, path: str, request_id: str) -> dict[str, Any]:
    """Return the body of an error, in the format of the API that has this path."""
    if path.startswith("/v1/messages"):
        kind = _ANTHROPIC_TYPES.get(status_of(error), "invalid_request_error" if error.status < 500 else "api_error")
        body = {"type": kind, "message": error.message, "details": error.body()}
        return {"type": "error", "error": body, "request_id": request_id}
    if path.startswith("/v1/") or path == "/rerank":
        fields = error.details.get("fields") or [{}]
        return {
            "error": {
                "message": error.message,
                "type": _OPENAI_TYPES.get(
                    status_of(error), "invalid_request_error" if error.status < 500 else "server_error"
                ),
                "param": fields[0].get("field") or ("model" if error.reason == "MODEL_NOT_FOUND" else None),
                "code": _OPENAI_CODES.get(error.reason, error.reason.lower()),
                "details": error.body(),
            }
        }
    ollama = path.count("/") == 2 or path.startswith("/api/blobs/")
    if path.startswith("/api/") and not path.startswith("/api/v2") and ollama:
        return {"error": error.message, "details": error.body()}
    return {"success": False, "error": error.body(), "meta": {"request_id": request_id}}


def failure(error: AimaError, path: str, request_id: str) -> Response:
    """Return the response for an error, with Retry-After and WWW-Authenticate if the error needs these headers."""
    headers = dict(error.headers) if isinstance(error, HttpRefusal) else {}
    if isinstance(retry := error.details.get("retry_after"), int | float):
        headers["Retry-After"] = str(max(1, round(retry)))
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="aima"'
    return json(body_of(error, path, request_id), status=status_of(error), headers=headers)


def json(data: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response. `data` is a value to encode, or bytes that are already JSON."""
    content = data if isinstance(data, bytes) else _encode(data)
    return Response(content, status, headers, "application/json")
