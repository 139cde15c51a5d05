"""OpenAI's Responses API, on top of chat completions. Nothing is stored: an answer is told once.

Requests become chat completions (`responses_requests.py`), answers become responses (`responses_answers.py`).
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.gateway.engines import chat_completion
from services.gateway.engines.proxying import Carried, Carrier
from services.gateway.engines.translation import Streamed, Whole
from services.gateway.entrance import bodies
from services.gateway.entrance.disconnects import patient
from services.gateway.entrance.paths import door
from services.gateway.openai import responses_answers as answers
from services.gateway.openai import responses_requests as requests


class Responses:
    """The route of the Responses API."""

    def __init__(self, carrier: Carrier, body_limit: int) -> None:
        self._carrier = carrier
        self._limit = body_limit

    def routes(self) -> list[Route]:
        """Return the route."""
        return [door("/v1/responses", {"POST": self.respond})]

    async def respond(self, request: Request) -> Response:
        """Let a model take its turn."""
        asked = bodies.decode(await bodies.read_json(request, self._limit), requests.ResponsesRequest)
        requests.check(asked)
        patience = patient(request)
        job = chat_completion.job(asked.model, requests.completion(asked), whole=not asked.stream, wait=patience.wait)
        if asked.stream:
            return Streamed(self._carrier, patience.caller, job, answers.Events(asked))

        async def tell(carried: Carried) -> dict[str, Any]:
            return answers.whole(asked, await chat_completion.whole(carried))

        return Whole(self._carrier, patience.caller, job, tell)
