"""Serves Anthropic's API: messages and token counts. `openai/api.py` serves `/v1/models`.

Source: the Anthropic API reference. `requests.py` converts requests to chat completions; `answers.py` converts answers
to messages. The gateway stores neither requests nor answers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aima_core.errors import ValidationFailed
from aima_engines.chat_deltas import joined
from aima_engines.decoding import decoded
from aima_engines.engine_errors import bad_answer
from aima_engines.kinds.request_bodies import body_for_model
from aima_engines.kinds.request_kinds import CHAT
from services.gateway.anthropic import answers as answers
from services.gateway.anthropic import requests as requests
from services.gateway.engines.chat_requests import chat_request
from services.gateway.engines.proxying import ProxiedAnswer, Proxy
from services.gateway.engines.translation import TranslatedStream, TranslatedWhole, until_disconnect
from services.gateway.entrance import bodies
from services.gateway.entrance.disconnects import waiting_caller
from services.gateway.entrance.error_bodies import json
from services.gateway.entrance.paths import fixed_path
from services.gateway.entrance.quotas import TokenEstimate

_COUNT = f"{CHAT.path}/input_tokens"  # llama.cpp's path that counts the tokens of a chat's prompt
_UNKNOWN_PATH = (404, 405, 501)  # statuses of an engine that cannot count tokens


class TokenCount(msgspec.Struct):
    """An engine's answer to a request for a token count."""

    input_tokens: int


class Anthropic:
    """The routes of Anthropic's API."""

    def __init__(self, proxy: Proxy, body_limit: int) -> None:
        self._proxy = proxy
        self._limit = body_limit

    def routes(self) -> list[Route]:
        return [
            fixed_path("/v1/messages", {"POST": self.messages}),
            fixed_path("/v1/messages/count_tokens", {"POST": self.count}),
        ]

    async def messages(self, request: Request) -> Response:
        body = bodies.decode(await bodies.read_json(request, self._limit), requests.MessagesRequest)
        waiting = waiting_caller(request)
        engine_request = chat_request(body.model, requests.completion(body), whole=not body.stream, wait=waiting.wait)
        stops = body.stop_sequences or ()
        if body.stream:
            return TranslatedStream(
                self._proxy, waiting.caller, engine_request, answers.MessageEvents(body.model, stops)
            )

        async def translate(proxied: ProxiedAnswer) -> dict[str, Any]:
            return answers.message(body.model, await joined(proxied), stops)

        return TranslatedWhole(self._proxy, waiting.caller, engine_request, translate)

    async def count(self, request: Request) -> Response:
        """Return the engine's count of a prompt's tokens. Raises ValidationFailed if the engine cannot count tokens."""
        body = bodies.decode(await bodies.read_json(request, self._limit), requests.CountRequest)
        waiting = waiting_caller(request)
        prompt = requests.prompt(body)
        engine_request = replace(
            chat_request(body.model, prompt, whole=True, wait=waiting.wait),
            path=_COUNT,
            make=body_for_model(prompt),
            tokens=TokenEstimate(),
        )

        async def count_tokens() -> TokenCount:
            async with self._proxy.forward(waiting.caller, engine_request) as proxied:
                return _read(await proxied.whole())

        try:
            return json(await until_disconnect(request, count_tokens()))
        except ValidationFailed as error:
            if error.details.get("status") not in _UNKNOWN_PATH:
                raise
            raise ValidationFailed(
                f"the engine that serves {body.model} cannot count tokens", reason="NOT_SUPPORTED", model=body.model
            ) from None


def _read(body: bytes) -> TokenCount:
    count = decoded(msgspec.json.Decoder(TokenCount).decode, body)
    if count is None:
        raise bad_answer()
    return count
