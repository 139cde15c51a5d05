"""Serves `/openapi.json`, and `/docs`, a page that shows the document. The page loads nothing from other hosts."""

from __future__ import annotations

from importlib.resources import files

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aima_core import VERSION
from aima_core.bus.directory import Directory
from services.gateway.entrance.access import Policy
from services.gateway.entrance.error_bodies import json
from services.gateway.entrance.paths import fixed_path
from services.gateway.rest import openapi

_PAGE = "pages/docs.html"
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';"
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Documents:
    """Serves the OpenAPI document. Generates the document again when the units on the bus have changed."""

    def __init__(self, directory: Directory, policy: Policy) -> None:
        self._directory = directory
        self._policy = policy
        self._version = -1
        self._document = b""

    def routes(self) -> list[Route]:
        return [fixed_path("/openapi.json", {"GET": self.openapi}), fixed_path("/docs", {"GET": self.page})]

    async def openapi(self, request: Request) -> Response:  # noqa: ARG002 (Starlette's signature)
        """Return the OpenAPI document."""
        if self._version != self._directory.version:
            self._version = self._directory.version
            document = openapi.document(self._directory.units, self._policy, VERSION)
            self._document = msgspec.json.encode(document)
        return json(self._document)

    async def page(self, request: Request) -> Response:  # noqa: ARG002 (Starlette's signature)
        """Return the page that shows the OpenAPI document."""
        text = files("services.gateway").joinpath(_PAGE).read_text("utf-8")
        return Response(text, headers=_SAFE, media_type="text/html")
