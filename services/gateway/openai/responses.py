"""Serves OpenAI's Responses API. The gateway stores no response, so a client cannot retrieve a response later.

`responses_requests.py` converts requests to chat completions; `responses_answers.py` converts answers to responses.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aima_engines.chat_deltas import joined
from services.gateway.engines.chat_requests import chat_request
from services.gateway.engines.proxying import ProxiedAnswer, Proxy
from services.gateway.engines.translation import TranslatedStream, TranslatedWhole
from services.gateway.entrance import bodies
from services.gateway.entrance.disconnects import waiting_caller
from services.gateway.entrance.paths import fixed_path
from services.gateway.openai import responses_answers as answers
from services.gateway.openai import responses_requests as requests


class Responses:
    """The route of the Responses API."""

    def __init__(self, proxy: Proxy, body_limit: int) -> None:
        self._proxy = proxy
        self._limit = body_limit

    def routes(self) -> list[Route]:
        return [fixed_path("/v1/responses", {"POST": self.respond})]

    async def respond(self, request: Request) -> Response:
        body = bodies.decode(await bodies.read_json(request, self._limit), requests.ResponsesRequest)
        requests.check(body)
        waiting = waiting_caller(request)
        engine_request = chat_request(body.model, requests.completion(body), whole=not body.stream, wait=waiting.wait)
        if body.stream:
            return TranslatedStream(self._proxy, waiting.caller, engine_request, answers.ResponseEvents(body))

        async def translate(proxied: ProxiedAnswer) -> dict[str, Any]:
            return answers.whole(body, await joined(proxied))

        return TranslatedWhole(self._proxy, waiting.caller, engine_request, translate)
