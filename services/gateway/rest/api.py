"""The HTTP paths that call units: `/api/v2/execute`, `/command/{unit}`, `/query/{unit}`, and the REST routes.

`routes.py` derives the REST routes from the units.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from aima_core.bus.call_options import OPTIONS
from aima_core.bus.client import Answer
from aima_core.bus.directory import DomainInfo, UnitInfo
from aima_core.errors import AimaError, InvalidRequest, NotFound, ValidationFailed
from aima_core.text_input import read_query
from services.gateway.entrance import bodies
from services.gateway.entrance.disconnects import cancel_on_disconnect
from services.gateway.entrance.dispatch import Caller, Dispatcher
from services.gateway.entrance.error_bodies import body_of, json
from services.gateway.entrance.gate import caller_of
from services.gateway.entrance.options import Options, refuse_in_body, refuse_in_query, with_options
from services.gateway.entrance.paths import fixed_path, fixed_path_any_method
from services.gateway.events import sse
from services.gateway.rest import routes
from services.gateway.rest.operations import Operations
from services.gateway.rest.routes import RouteMatch

PREFIX = "/api/v2"
_LONGEST_NAME = 100  # characters of a unit's name; suggesting similar names takes too long for longer names
_QUICK = 30.0  # seconds; if a unit has a longer timeout, a client that leaves cancels its request


class Execute(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/api/v2/execute`."""

    unit: Annotated[str, msgspec.Meta(min_length=1, max_length=_LONGEST_NAME)]
    type: Literal["command", "query"] | None = None
    input: dict[str, Any] = {}
    options: Options = msgspec.field(default_factory=Options)


class RestApi:
    """The routes to the units."""

    def __init__(self, dispatcher: Dispatcher, operations: Operations, body_limit: int) -> None:
        self._dispatcher = dispatcher
        self._operations = operations
        self._limit = body_limit
        self._units: routes.Units = {}
        self._table = routes.Table(self._units)

    def routes(self) -> list[Route]:
        """Return the routes. The last two match every remaining path, so they must stay last."""
        return [
            fixed_path(f"{PREFIX}/execute", {"POST": self.execute}, calls_unit=True),
            fixed_path(f"{PREFIX}/command/{{unit}}", {"POST": self.named}, calls_unit=True),
            fixed_path(f"{PREFIX}/query/{{unit}}", {"GET": self.named, "POST": self.named}, calls_unit=True),
            fixed_path(f"{PREFIX}/units", {"GET": self.units}),
            fixed_path(f"{PREFIX}/schema/{{unit}}", {"GET": self.schema}),
            *self._operations.routes(),
            fixed_path_any_method(f"{PREFIX}/{{path:path}}", self.rest),
            fixed_path_any_method("/api/{domain}/{action}", self.alias),
        ]

    async def execute(self, request: Request) -> Response:
        """Call the unit that the body names."""
        if request.query_params:
            refuse_in_query(request.query_params)
            raise InvalidRequest(
                f"{PREFIX}/execute has no query string; put the input into the body", reason="NO_QUERY"
            )
        data = await bodies.read_object(request, self._limit)
        refuse_in_body(data, Execute.__struct_fields__, Options.__struct_fields__, "options.")
        body = bodies.convert(data, Execute)
        unit = await self._dispatcher.directory.find(body.unit)
        if body.type not in (None, unit.kind):
            raise InvalidRequest(
                f"{unit.name} is a {unit.kind}, not a {body.type}", reason="WRONG_TYPE", unit=unit.name
            )
        return await self._ask(request, unit, body.input, body.options)

    async def named(self, request: Request) -> Response:
        """Call the unit that the path names."""
        kind = request.url.path.removeprefix(PREFIX).split("/")[1]
        unit = await self._unit(request)
        if kind != unit.kind:
            raise InvalidRequest(f"{unit.name} is a {unit.kind}, not a {kind}", reason="WRONG_TYPE", unit=unit.name)
        return await self._ask(request, unit, await self._input(request, unit, {}))

    async def rest(self, request: Request) -> Response:
        """Call the unit whose REST route has the request's method and path."""
        return await self._ask_matched(request, bodies.segments_of(request, PREFIX))

    async def alias(self, request: Request) -> Response:
        """Call a unit by domain and action: `/api/model/list` calls `model.list`."""
        return await self._ask_matched(request, bodies.segments_of(request, "/api"))

    async def units(self, request: Request) -> Response:
        """List the units on the bus that the caller may call. `full=true` groups them by domain, with all fields."""
        domain = request.query_params.get("domain")
        if request.query_params.get("full") == "true":
            return json({"domains": await self._domains(caller_of(request.state), domain)})
        visible = [
            unit
            for unit in self._dispatcher.directory.units.values()
            if domain in (None, unit.domain) and self._visible(caller_of(request.state), unit)
        ]
        return json(
            {"units": [_brief(unit, self._dispatcher.directory.units) for unit in visible], "total": len(visible)}
        )

    async def schema(self, request: Request) -> Response:
        """Describe one unit with its JSON Schemas."""
        return json(await self._unit(request))

    # --- one request ----------------------------------------------------------------------------------------

    async def _unit(self, request: Request) -> UnitInfo:
        return await self._dispatcher.directory.find(request.path_params["unit"][:_LONGEST_NAME])

    def _resolve(self, method: str, segments: list[str]) -> RouteMatch:
        if self._units is not self._dispatcher.directory.units:
            self._units = self._dispatcher.directory.units
            self._table = routes.Table(self._units)
        return self._table.resolve(method, segments)

    async def _ask_matched(self, request: Request, segments: list[str]) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        match = self._resolve(method, segments)
        if match.unit is None and not match.allowed:
            await self._dispatcher.directory.look()  # a domain may have started just now
            match = self._resolve(method, segments)
        if match.unit is None:
            if not match.allowed:
                raise NotFound(f"there is nothing at {request.url.path}; {PREFIX}/units lists the units")
            raise HTTPException(405, headers={"Allow": ", ".join(_allow(match.allowed))})
        return await self._ask(request, match.unit, await self._input(request, match.unit, match.path_input))

    async def _input(self, request: Request, unit: UnitInfo, path_input: Mapping[str, Any]) -> dict[str, Any]:
        """Merge path, query string and body into the input of a unit.

        Raises ValidationFailed if a field has two different values.
        """
        pairs, fields = bodies.query_of(request), routes.fields_of(unit)
        refuse_in_query([name for name, _ in pairs], fields)
        in_query = read_query(pairs, unit.input)
        data = await bodies.read_object(request, self._limit)
        refuse_in_body(data, fields, OPTIONS, "the header ")
        in_path = read_query(list(path_input.items()), unit.input)
        for source, fields in (("query string", in_query), ("path", in_path)):
            for name, value in fields.items():
                if data.setdefault(name, value) != value:
                    fault = {"field": name, "expected": f"the same value as in the {source}, or no value"}
                    raise ValidationFailed(
                        f"{name}: the {source} has another value than the rest of the request", fields=[fault]
                    )
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
            return json(await self._dispatcher.envelope(caller, unit.name, data))
        return await self._ask_cancellably(request, caller, unit.name, data)

    async def _ask_cancellably(self, request: Request, caller: Caller, name: str, data: Mapping[str, Any]) -> Response:
        """Return the unit's answer. Cancels the request if the client leaves before the answer."""
        answers: list[Response] = []

        async def ask() -> None:
            async for part in self._dispatcher.stream(caller, name, data):
                if isinstance(part, Answer):
                    answers.append(json({"success": True, "data": part.data, "meta": part.meta}))

        await cancel_on_disconnect(request.receive, ask())
        if not answers:
            raise ClientDisconnect
        return answers[0]

    async def _stream(self, caller: Caller, name: str, data: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """Yield the parts of an answer, then its result or error, as server-sent events.

        Raises an error that comes before the first part.
        """
        started = False
        try:
            async with contextlib.aclosing(self._dispatcher.stream(caller, name, data)) as parts:
                async for part in parts:
                    started = True
                    if isinstance(part, Answer):
                        yield sse.event({"success": True, "data": part.data, "meta": part.meta}, kind="result")
                    else:
                        yield sse.event(part, kind="part")
        except AimaError as error:
            if not started:
                raise
            yield sse.event(body_of(error, PREFIX, caller.request_id), kind="error")

    async def _domains(self, caller: Caller, name: str | None) -> list[DomainInfo]:
        """Return the domains that answer on the bus. Each lists only the units that the caller may call."""
        directory = self._dispatcher.directory
        if name and name not in directory.domains:
            await directory.look()  # the domain may have started just now
        away = directory.away()
        return [
            msgspec.structs.replace(
                info, units={key: unit for key, unit in info.units.items() if self._visible(caller, unit)}
            )
            for info in directory.domains.values()
            if name in (None, info.name) and info.name not in away
        ]

    def _visible(self, caller: Caller, unit: UnitInfo) -> bool:
        principal = caller.principal
        return not principal.known or principal.reaches(unit.domain, unit.risk)


def _allow(methods: frozenset[str]) -> list[str]:
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


def _brief(unit: UnitInfo, units: routes.Units) -> dict[str, Any]:
    route = next(routes.routes(unit, units))
    return {
        "unit": unit.name,
        "kind": unit.kind,
        "risk": unit.risk,
        "summary": unit.summary,
        "route": f"{route.method} {PREFIX}{route.path}",
    }
