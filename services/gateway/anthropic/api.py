"""Anthropic's API: messages, and the counting of their tokens. Its list of models is `/v1/models`, as OpenAI's.

Source: the Anthropic API reference. Requests become chat completions (`requests.py`), answers become messages
(`answers.py`); nothing of either is kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aima_core.errors import ValidationFailed
from services.gateway.anthropic import answers as answers
from services.gateway.anthropic import requests as requests
from services.gateway.engines import chat_completion
from services.gateway.engines.engine_errors import bad_answer
from services.gateway.engines.proxying import ProxiedAnswer, Proxy
from services.gateway.engines.sse_parser import decoded
from services.gateway.engines.translation import TranslatedStream, TranslatedWhole, until_disconnect
from services.gateway.entrance import bodies
from services.gateway.entrance.disconnects import waiting_caller
from services.gateway.entrance.error_bodies import json
from services.gateway.entrance.paths import fixed_path
from services.gateway.entrance.quotas import TokenEstimate

_COUNT = f"{chat_completion.PATH}/input_tokens"  # of llama.cpp: what a chat completion's prompt comes to
_UNKNOWN = (404, 405, 501)  # statuses of an engine that has no such path


class Counted(msgspec.Struct):
    """What an engine says that it has counted."""

    input_tokens: int


class Anthropic:
    """The routes of Anthropic's API."""

    def __init__(self, proxy: Proxy, body_limit: int) -> None:
        self._proxy = proxy
        self._limit = body_limit

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            fixed_path("/v1/messages", {"POST": self.messages}),
            fixed_path("/v1/messages/count_tokens", {"POST": self.count}),
        ]

    async def messages(self, request: Request) -> Response:
        """Let a model take its turn."""
        asked = bodies.decode(await bodies.read_json(request, self._limit), requests.MessagesRequest)
        patience = waiting_caller(request)
        job = chat_completion.chat_request(
            asked.model, requests.completion(asked), whole=not asked.stream, wait=patience.wait
        )
        stops = asked.stop_sequences or ()
        if asked.stream:
            return TranslatedStream(self._proxy, patience.caller, job, answers.MessageEvents(asked.model, stops))

        async def tell(carried: ProxiedAnswer) -> dict[str, Any]:
            return answers.message(asked.model, await chat_completion.joined(carried), stops)

        return TranslatedWhole(self._proxy, patience.caller, job, tell)

    async def count(self, request: Request) -> Response:
        """Count the tokens of a prompt: the engine does, or nobody."""
        asked = bodies.decode(await bodies.read_json(request, self._limit), requests.CountRequest)
        patience = waiting_caller(request)
        prompt = requests.prompt(asked)
        job = replace(
            chat_completion.chat_request(asked.model, prompt, whole=True, wait=patience.wait),
            path=_COUNT,
            make=chat_completion.body_for_model(prompt),
            tokens=TokenEstimate(),
        )

        async def ask() -> Counted:
            async with self._proxy.forward(patience.caller, job) as carried:
                return _read(await carried.whole())

        try:
            return json(await until_disconnect(request, ask()))
        except ValidationFailed as error:
            if error.details.get("status") not in _UNKNOWN:
                raise
            raise ValidationFailed(
                f"the engine that serves {asked.model} does not count tokens", reason="NOT_SUPPORTED", model=asked.model
            ) from None


def _read(body: bytes) -> Counted:
    counted = decoded(msgspec.json.Decoder(Counted).decode, body)
    if counted is None:
        raise bad_answer()
    return counted
