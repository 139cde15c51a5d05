"""Bodies of requests to an engine: JSON with the model's name, and forms with a file (RFC 7578)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from aima_engines.engine_answer import EngineBody
from aima_engines.kinds.tool_choice import with_tools

_encode = msgspec.json.encode
_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


def body_for_model(body: Mapping[str, Any]) -> Callable[[str], bytes]:
    """Return a function that takes a model's name and returns the request's body with that name, as JSON."""

    def make(name: str) -> bytes:
        return _encode({**body, "model": name})

    return make


def streaming_body(body: Mapping[str, Any]) -> Callable[[str], bytes]:
    """Like `body_for_model`, but the body requests a stream with the usage at the end."""
    return body_for_model({**body, **_STREAMED})


def json_body(fields: Mapping[str, Any], model: str) -> EngineBody:
    """Return a JSON body with the fields and the model's name."""
    return EngineBody(body_for_model(fields)(model))


def streamed_json_body(fields: Mapping[str, Any], model: str) -> EngineBody:
    """Return a JSON body that requests a stream, even if the caller wants the whole answer at once.

    Every engine stops a stream when the caller leaves. Without a stream, llama.cpp computes the whole answer.
    """
    return EngineBody(streaming_body(fields)(model))


def chat_body(fields: Mapping[str, Any], model: str) -> EngineBody:
    """Return the body of a chat, as `streamed_json_body`. Raises ValidationFailed for an invalid tool choice."""
    return streamed_json_body(with_tools(fields), model)


def form_body(fields: Mapping[str, str], file: bytes, file_name: str) -> EngineBody:
    """Return a form with text fields and one file, in the field `file`."""
    boundary = f"aima-{secrets.token_hex(16)}"
    lines = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{file_name}"\r\n'
    before = "".join([*lines, head, "Content-Type: application/octet-stream\r\n\r\n"])
    content = [before.encode(), file, f"\r\n--{boundary}--\r\n".encode()]
    return EngineBody(
        content, {"Content-Type": f"multipart/form-data; boundary={boundary}", "Accept": "application/json"}
    )
