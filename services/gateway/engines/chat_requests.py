"""Makes the engine request for a chat, for the doors that translate the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from aima_engines.kinds.request_bodies import streaming_body
from aima_engines.kinds.request_kinds import CHAT
from aima_engines.kinds.tool_choice import with_tools
from services.gateway.engines.proxying import EngineRequest
from services.gateway.entrance.quotas import estimate

_encode = msgspec.json.encode


def chat_request(model: str, body: Mapping[str, Any], *, whole: bool, wait: float | None = None) -> EngineRequest:
    """Return the engine request for a chat. `body` is the body of a chat completion, without the model's name.

    The engine streams the answer even with `whole`, because every engine stops a stream when the client leaves. Without
    a stream, some engines compute the rest of the answer after the client has left. Raises ValidationFailed for a tool
    choice that cannot be kept.
    """
    body = with_tools(body)
    return EngineRequest(
        CHAT,
        model,
        streaming_body(body),
        types=CHAT.types_for(body),
        tokens=estimate(_encode(body), body.get("max_tokens")),
        tools=bool(body.get("tools")),
        wait=wait,
        whole=whole,
    )
