"""Units over HTTP: `/api/v2/execute`, `/command/{unit}`, `/query/{unit}`, and REST by the rule of `rest.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aima_core import call as calls
from aima_core.bus import Answer
from aima_core.directory import UnitInfo
from aima_core.errors import AimaError, InvalidRequest, NotFound, ValidationFailed
from aima_core.words import read_query
from services.gateway import bodies, rest, sse
from services.gateway.answers import HttpRefusal, body_of, json
from services.gateway.asking import Asking, Caller, own_key, read_timeout
from services.gateway.gate import caller_of
from services.gateway.operations import Operations

PREFIX = "/api/v2"
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"]


class Options(msgspec.Struct, forbid_unknown_fields=True, rename={"asynchronous": "async"}):
    """How a unit is to be asked."""

    timeout: Annotated[float, msgspec.Meta(gt=0, le=86_400)] | None = None
    asynchronous: bool = False
    stream: bool = False
    dry_run: bool = False
    trace_id: Annotated[str, msgspec.Meta(pattern=r"^(?!0{32})[0-9a-f]{32}$")] | None = None
    idempotency_key: Annotated[str, msgspec.Meta(min_length=1, max_length=120)] | None = None
    expected_version: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None


class Execute(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/api/v2/execute`."""

    unit: str
    type: Literal["command", "query"] | None = None
    input: dict[str, Any] = {}
    options: Options = msgspec.field(default_factory=Options)


class Native:
    """The doors of our own."""

    def __init__(self, asking: Asking, operations: Operations, body_limit: int) -> None:
        self._asking = asking
        self._operations = operations
        self._limit = body_limit

    def routes(self) -> list[Route]:
        """Return the routes; the last ones take whatever the others leave."""
        return [
            Route(f"{PREFIX}/execute", self.execute, methods=["POST"]),
            Route(f"{PREFIX}/command/{{unit}}", self.named, methods=["POST"]),
            Route(f"{PREFIX}/query/{{unit}}", self.named, methods=["GET", "POST"]),
            Route(f"{PREFIX}/units", self.units, methods=["GET"]),
            Route(f"{PREFIX}/schema/{{unit}}", self.schema, methods=["GET"]),
            *self._operations.routes(),
            Route(f"{PREFIX}/{{path:path}}", self.rest, methods=_METHODS),
            Route("/api/{domain}/{action}", self.alias, methods=_METHODS),
        ]

    async def execute(self, request: Request) -> Response:
        """Ask the unit that the body names."""
        asked = _execute(await bodies.read_object(request, self._limit))
        unit = await self._asking.directory.find(asked.unit)
        if asked.type not in (None, unit.kind):
            raise InvalidRequest(
                f"{unit.name} is a {unit.kind}, not a {asked.type}", reason="WRONG_TYPE", unit=unit.name
            )
        return await self._ask(request, unit, asked.input, asked.options)

    async def named(self, request: Request) -> Response:
        """Ask the unit that the path names."""
        kind = request.url.path.removeprefix(PREFIX).split("/")[1]
        unit = await self._asking.directory.find(request.path_params["unit"])
        if kind != unit.kind:
            raise InvalidRequest(f"{unit.name} is a {unit.kind}, not a {kind}", reason="WRONG_TYPE", unit=unit.name)
        return await self._ask(request, unit, await self._input(request, unit, {}))

    async def rest(self, request: Request) -> Response:
        """Ask the unit that method and path mean together."""
        segments = request.path_params["path"].split("/")
        return await self._found(request, segments)

    async def alias(self, request: Request) -> Response:
        """Ask a unit by domain and action: `/api/model/list`."""
        return await self._found(request, [request.path_params["domain"], request.path_params["action"]])

    async def units(self, request: Request) -> Response:
        """List the units that are on the bus, as far as the caller may ask them."""
        domain = request.query_params.get("domain")
        found = [
            unit
            for unit in self._asking.directory.units.values()
            if domain in (None, unit.domain) and self._visible(caller_of(request.state), unit)
        ]
        return json({"units": [_brief(unit, self._asking.directory.units) for unit in found], "total": len(found)})

    async def schema(self, request: Request) -> Response:
        """Describe one unit with its JSON Schemas."""
        return json(await self._asking.directory.find(request.path_params["unit"]))

    # --- one request ----------------------------------------------------------------------------------------

    async def _found(self, request: Request, segments: list[str]) -> Response:
        directory = self._asking.directory
        method = "GET" if request.method == "HEAD" else request.method
        found = rest.resolve(method, segments, directory.units)
        if found.unit is None and not found.allowed:
            await directory.look()  # a domain may have come this very moment
            found = rest.resolve(method, segments, directory.units)
        if found.unit is None:
            if not found.allowed:
                raise NotFound(f"there is nothing at {request.url.path}; {PREFIX}/units lists what there is")
            allow = ", ".join(sorted(found.allowed | {"OPTIONS"} | ({"HEAD"} if "GET" in found.allowed else set())))
            if method == "OPTIONS":
                return Response(status_code=204, headers={"Allow": allow})
            raise HttpRefusal(405, f"{request.url.path} takes {allow}", "METHOD_NOT_ALLOWED", {"Allow": allow})
        return await self._ask(request, found.unit, await self._input(request, found.unit, found.given))

    async def _input(self, request: Request, unit: UnitInfo, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the unit's input: query string and body, and what stands in the path, which nothing contradicts."""
        data = {
            **read_query(request.query_params.multi_items(), unit.input),
            **await bodies.read_object(request, self._limit),
        }
        for name, value in given.items():
            if data.get(name, value) != value:
                told = {"field": name, "expected": f"{value}, as in the path"}
                raise ValidationFailed(f"{name}: the path says {value}, the input something else", fields=[told])
        return {**data, **given}

    async def _ask(
        self, request: Request, unit: UnitInfo, data: Mapping[str, Any], options: Options | None = None
    ) -> Response:
        options = options or Options()
        caller = _with(caller_of(request.state), options)
        if options.asynchronous:
            return await self._operations.begin(caller, unit.name, data)
        if options.stream or "text/event-stream" in request.headers.get("accept", ""):
            return await sse.answer(self._stream(caller, unit.name, data))
        return json(await self._asking.envelope(caller, unit.name, data))

    async def _stream(self, caller: Caller, name: str, data: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """Yield the parts of an answer and then the answer, or its error, as server-sent events."""
        try:
            async for part in self._asking.stream(caller, name, data):
                if isinstance(part, Answer):
                    yield sse.event({"success": True, "data": part.data, "meta": part.meta}, kind="result")
                else:
                    yield sse.event(part, kind="part")
        except AimaError as error:
            yield sse.event(body_of(error, PREFIX, caller.request_id), kind="error")

    def _visible(self, caller: Caller, unit: UnitInfo) -> bool:
        who = caller.principal
        return not who.known or who.reaches(unit.domain, unit.risk)


def _execute(body: dict[str, Any]) -> Execute:
    try:
        return msgspec.convert(body, Execute)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$")
        field = where.strip("`.") or (text.split("`")[1] if "`" in text else "body")
        raise ValidationFailed(f"{field}: {text}", fields=[{"field": field, "expected": text}]) from None


def _with(caller: Caller, options: Options) -> Caller:
    """Return the caller with what the options of a body say; they come before the headers."""
    headers = dict(caller.headers)
    if options.dry_run:
        headers[calls.DRY_RUN] = "true"
    if options.trace_id:
        headers[calls.TRACEPARENT] = f"00-{options.trace_id}-{calls.token(8)}-01"
    if options.idempotency_key:
        headers[calls.IDEMPOTENCY_KEY] = own_key(caller.principal, options.idempotency_key)
    if options.expected_version is not None:
        headers[calls.EXPECTED_VERSION] = str(options.expected_version)
    timeout = read_timeout(str(options.timeout)) if options.timeout else caller.timeout
    return replace(caller, headers=headers, timeout=timeout)


def _brief(unit: UnitInfo, units: rest.Units) -> dict[str, Any]:
    first = next(rest.routes(unit, units))
    return {
        "unit": unit.name,
        "kind": unit.kind,
        "risk": unit.risk,
        "summary": unit.summary,
        "route": f"{first.method} {PREFIX}{first.path}",
    }
