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
from services.gateway.engines.proxying import Carried, Carrier
from services.gateway.engines.sse_parser import decoded
from services.gateway.engines.translation import Streamed, Whole, for_client
from services.gateway.entrance import bodies
from services.gateway.entrance.disconnects import patient
from services.gateway.entrance.error_bodies import json
from services.gateway.entrance.paths import door
from services.gateway.entrance.quotas import Estimate

_COUNT = f"{chat_completion.PATH}/input_tokens"  # of llama.cpp: what a chat completion's prompt comes to
_UNKNOWN = (404, 405, 501)  # statuses of an engine that has no such path


class Counted(msgspec.Struct):
    """What an engine says that it has counted."""

    input_tokens: int


class Anthropic:
    """The routes of Anthropic's API."""

    def __init__(self, carrier: Carrier, body_limit: int) -> None:
        self._carrier = carrier
        self._limit = body_limit

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            door("/v1/messages", {"POST": self.messages}),
            door("/v1/messages/count_tokens", {"POST": self.count}),
        ]

    async def messages(self, request: Request) -> Response:
        """Let a model take its turn."""
        asked = bodies.decode(await bodies.read_json(request, self._limit), requests.MessagesRequest)
        patience = patient(request)
        job = chat_completion.job(asked.model, requests.completion(asked), whole=not asked.stream, wait=patience.wait)
        stops = asked.stop_sequences or ()
        if asked.stream:
            return Streamed(self._carrier, patience.caller, job, answers.Events(asked.model, stops))

        async def tell(carried: Carried) -> dict[str, Any]:
            return answers.message(asked.model, await chat_completion.whole(carried), stops)

        return Whole(self._carrier, patience.caller, job, tell)

    async def count(self, request: Request) -> Response:
        """Count the tokens of a prompt: the engine does, or nobody."""
        asked = bodies.decode(await bodies.read_json(request, self._limit), requests.CountRequest)
        patience = patient(request)
        prompt = requests.prompt(asked)
        job = replace(
            chat_completion.job(asked.model, prompt, whole=True, wait=patience.wait),
            path=_COUNT,
            make=chat_completion.named(prompt),
            tokens=Estimate(),
        )

        async def ask() -> Counted:
            async with self._carrier.carry(patience.caller, job) as carried:
                return _read(await carried.whole())

        try:
            return json(await for_client(request, ask()))
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
