"""Units over HTTP: `/api/v2/execute`, `/command/{unit}`, `/query/{unit}`, and REST by the rule of `routes.py`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from aima_core.bus.client import Answer
from aima_core.bus.directory import DomainInfo, UnitInfo
from aima_core.errors import AimaError, InvalidRequest, NotFound, ValidationFailed
from aima_core.text_input import read_query
from services.gateway.entrance import bodies
from services.gateway.entrance.disconnects import cancel_on_disconnect
from services.gateway.entrance.dispatch import Caller, Dispatcher
from services.gateway.entrance.error_bodies import body_of, json
from services.gateway.entrance.gate import caller_of
from services.gateway.entrance.options import Options, with_options
from services.gateway.entrance.paths import fixed_path, fixed_path_any_method
from services.gateway.events import sse
from services.gateway.rest import routes
from services.gateway.rest.operations import Operations
from services.gateway.rest.routes import RouteMatch

PREFIX = "/api/v2"
_LONGEST_NAME = 100  # characters of a unit's name; looking for the nearest to a longer one costs more than it is worth
_QUICK = 30.0  # seconds: work that may take longer is given up when who asked for it has gone


class Execute(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/api/v2/execute`."""

    unit: Annotated[str, msgspec.Meta(min_length=1, max_length=_LONGEST_NAME)]
    type: Literal["command", "query"] | None = None
    input: dict[str, Any] = {}
    options: Options = msgspec.field(default_factory=Options)


class RestApi:
    """The doors of our own."""

    def __init__(self, asking: Dispatcher, operations: Operations, body_limit: int) -> None:
        self._asking = asking
        self._operations = operations
        self._limit = body_limit
        self._units: routes.Units = {}
        self._table = routes.Table(self._units)

    def routes(self) -> list[Route]:
        """Return the routes; the last ones take whatever the others leave."""
        return [
            fixed_path(f"{PREFIX}/execute", {"POST": self.execute}),
            fixed_path(f"{PREFIX}/command/{{unit}}", {"POST": self.named}),
            fixed_path(f"{PREFIX}/query/{{unit}}", {"GET": self.named, "POST": self.named}),
            fixed_path(f"{PREFIX}/units", {"GET": self.units}),
            fixed_path(f"{PREFIX}/schema/{{unit}}", {"GET": self.schema}),
            *self._operations.routes(),
            fixed_path_any_method(f"{PREFIX}/{{path:path}}", self.rest),
            fixed_path_any_method("/api/{domain}/{action}", self.alias),
        ]

    async def execute(self, request: Request) -> Response:
        """Ask the unit that the body names."""
        asked = bodies.convert(await bodies.read_object(request, self._limit), Execute)
        unit = await self._asking.directory.find(asked.unit)
        if asked.type not in (None, unit.kind):
            raise InvalidRequest(
                f"{unit.name} is a {unit.kind}, not a {asked.type}", reason="WRONG_TYPE", unit=unit.name
            )
        return await self._ask(request, unit, asked.input, asked.options)

    async def named(self, request: Request) -> Response:
        """Ask the unit that the path names."""
        kind = request.url.path.removeprefix(PREFIX).split("/")[1]
        unit = await self._unit(request)
        if kind != unit.kind:
            raise InvalidRequest(f"{unit.name} is a {unit.kind}, not a {kind}", reason="WRONG_TYPE", unit=unit.name)
        return await self._ask(request, unit, await self._input(request, unit, {}))

    async def rest(self, request: Request) -> Response:
        """Ask the unit that method and path mean together."""
        return await self._found(request, bodies.segments_of(request, PREFIX))

    async def alias(self, request: Request) -> Response:
        """Ask a unit by domain and action: `/api/model/list`."""
        return await self._found(request, bodies.segments_of(request, "/api"))

    async def units(self, request: Request) -> Response:
        """List the units that are on the bus, as far as the caller may ask them; `full`: all that they say."""
        domain = request.query_params.get("domain")
        if request.query_params.get("full") == "true":
            return json({"domains": await self._domains(caller_of(request.state), domain)})
        found = [
            unit
            for unit in self._asking.directory.units.values()
            if domain in (None, unit.domain) and self._visible(caller_of(request.state), unit)
        ]
        return json({"units": [_brief(unit, self._asking.directory.units) for unit in found], "total": len(found)})

    async def schema(self, request: Request) -> Response:
        """Describe one unit with its JSON Schemas."""
        return json(await self._unit(request))

    # --- one request ----------------------------------------------------------------------------------------

    async def _unit(self, request: Request) -> UnitInfo:
        return await self._asking.directory.find(request.path_params["unit"][:_LONGEST_NAME])

    def _resolve(self, method: str, segments: list[str]) -> RouteMatch:
        if self._units is not self._asking.directory.units:
            self._units = self._asking.directory.units
            self._table = routes.Table(self._units)
        return self._table.resolve(method, segments)

    async def _found(self, request: Request, segments: list[str]) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        found = self._resolve(method, segments)
        if found.unit is None and not found.allowed:
            await self._asking.directory.look()  # a domain may have come this very moment
            found = self._resolve(method, segments)
        if found.unit is None:
            if not found.allowed:
                raise NotFound(f"there is nothing at {request.url.path}; {PREFIX}/units lists what there is")
            raise HTTPException(405, headers={"Allow": ", ".join(_allow(found.allowed))})
        return await self._ask(request, found.unit, await self._input(request, found.unit, found.given))

    async def _input(self, request: Request, unit: UnitInfo, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the unit's input: query string and body, and what stands in the path, which nothing contradicts."""
        asked = read_query(bodies.query_of(request), unit.input)
        data = await bodies.read_object(request, self._limit)
        inside = read_query(list(given.items()), unit.input)
        for where, told in (("query string", asked), ("path", inside)):
            for name, value in told.items():
                if data.setdefault(name, value) != value:
                    fault = {"field": name, "expected": f"what the {where} says, or nothing"}
                    raise ValidationFailed(f"{name}: the {where} says something else", fields=[fault])
        return data

    async def _ask(
        self, request: Request, unit: UnitInfo, data: Mapping[str, Any], options: Options | None = None
    ) -> Response:
        options = options or Options()
        caller = with_options(caller_of(request.state), options)
        if options.asynchronous:
            return await self._operations.begin(caller, unit.name, data)
        if options.stream or "text/event-stream" in request.headers.get("accept", ""):
            return await sse.answer_once_begun(self._stream(caller, unit.name, data))
        if unit.timeout <= _QUICK:
            return json(await self._asking.envelope(caller, unit.name, data))
        return await self._patiently(request, caller, unit.name, data)

    async def _patiently(self, request: Request, caller: Caller, name: str, data: Mapping[str, Any]) -> Response:
        """Answer when the unit has; asked with parts, it learns that nobody waits any more, and gives up."""
        answers: list[Response] = []

        async def ask() -> None:
            async for part in self._asking.stream(caller, name, data):
                if isinstance(part, Answer):
                    answers.append(json({"success": True, "data": part.data, "meta": part.meta}))

        await cancel_on_disconnect(request.receive, ask())
        if not answers:
            raise ClientDisconnect
        return answers[0]

    async def _stream(self, caller: Caller, name: str, data: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """Yield the parts of an answer and then the answer, or its error, as server-sent events."""
        begun = False
        try:
            async with contextlib.aclosing(self._asking.stream(caller, name, data)) as parts:
                async for part in parts:
                    begun = True
                    if isinstance(part, Answer):
                        yield sse.event({"success": True, "data": part.data, "meta": part.meta}, kind="result")
                    else:
                        yield sse.event(part, kind="part")
        except AimaError as error:
            if not begun:
                raise
            yield sse.event(body_of(error, PREFIX, caller.request_id), kind="error")

    async def _domains(self, caller: Caller, name: str | None) -> list[DomainInfo]:
        """Return the domains that answer, with those of their units that the caller may ask."""
        directory = self._asking.directory
        if name and name not in directory.domains:
            await directory.look()  # it may have come this very moment
        away = directory.away()
        return [
            msgspec.structs.replace(
                info, units={key: unit for key, unit in info.units.items() if self._visible(caller, unit)}
            )
            for info in directory.domains.values()
            if name in (None, info.name) and info.name not in away
        ]

    def _visible(self, caller: Caller, unit: UnitInfo) -> bool:
        who = caller.principal
        return not who.known or who.reaches(unit.domain, unit.risk)


def _allow(methods: frozenset[str]) -> list[str]:
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


def _brief(unit: UnitInfo, units: routes.Units) -> dict[str, Any]:
    first = next(routes.routes(unit, units))
    return {
        "unit": unit.name,
        "kind": unit.kind,
        "risk": unit.risk,
        "summary": unit.summary,
        "route": f"{first.method} {PREFIX}{first.path}",
    }
