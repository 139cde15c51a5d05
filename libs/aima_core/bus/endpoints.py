"""Serves the units of one domain on the bus: decodes each request, runs its handler, and encodes the reply.

Every unit is an endpoint of a NATS micro service (NATS's ADR-32). nats-py runs the callbacks of a subscription one
after another, so each callback only starts a task.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.micro import add_service
from nats.micro.request import ERROR_CODE_HEADER, ERROR_HEADER, Request
from nats.micro.service import EndpointConfig, Service, ServiceConfig

from aima_core import call as calls
from aima_core.bus.batches import BatchItem, items_of, replies_of
from aima_core.bus.call_options import canonical, check, honoured
from aima_core.bus.outcomes import Outcome, ReplyStream, encode
from aima_core.bus.payloads import body_of
from aima_core.call import Call, current_call
from aima_core.domain import Domain
from aima_core.errors import (
    AimaError,
    InternalError,
    InvalidRequest,
    PayloadTooLarge,
    RateLimited,
    Timeout,
    Unavailable,
)
from aima_core.structured_logs import logger
from aima_core.units import Unit, parse

_LONGEST_HEADER = 500  # characters of the error message in a reply's header; the body has the whole message
_MOST_AT_ONCE = 10_000  # requests under way in one process; more requests could exhaust the memory of the process

Handle = Callable[[Unit[Any], Call, ReplyStream], Awaitable[Outcome]]
"""Runs one validated request; the reply stream sends its parts."""


class _Meta(msgspec.Struct, omit_defaults=True):
    request_id: str
    duration_ms: float
    trace_id: str
    version: int | None = None
    position: int | None = None


class Endpoints:
    """Serves the units of a domain on the bus."""

    def __init__(self, nc: Nats, domain: Domain[Any], units: tuple[type[Unit[Any]], ...], handle: Handle, node: str):
        self._nc = nc
        self._domain = domain
        self._units = units
        self._handle = handle
        self._node = node
        self._service: Service | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._control = nc.new_inbox()
        """Prefix of the parts' reply subjects. The server reports a part that nobody received to its reply subject."""
        self._by_token: dict[str, asyncio.Task[None]] = {}
        self._last_token = 0
        self._closing = False

    async def open(self, version: str) -> None:
        """Subscribe to the subject of every unit, and to $SRV.PING, INFO and STATS, which describe the units."""
        name = self._domain.name
        resources = [{"uri": resource.uri, "about": resource.about} for resource in self._domain.resources]
        await self._nc.subscribe(f"{self._control}.*", cb=self._on_control)
        self._service = await add_service(
            self._nc,
            ServiceConfig(
                name=name,
                version=version,
                description=self._domain.about,
                metadata={"node": self._node, "resources": encode(resources).decode()},
                queue_group=name,
            ),
        )
        for unit in self._units:
            await self._add(unit, unit.spec.name)
            if self._domain.node_bound or unit.spec.action in ("log", "read"):
                await self._add(unit, f"{unit.spec.name}.{self._node}")
        await self._nc.flush()

    async def close(self, grace: float) -> None:
        """Stop accepting requests. Requests under way get `grace` seconds to finish; then they are cancelled."""
        if self._service:
            with contextlib.suppress(nats.errors.Error, asyncio.TimeoutError):
                await _drain(self._service)
        if self._tasks:
            _, unfinished = await asyncio.wait(self._tasks, timeout=grace)
            self._closing = True
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def _add(self, unit: type[Unit[Any]], subject: str) -> None:
        assert self._service
        await self._service.add_endpoint(
            EndpointConfig(
                name=subject.replace(".", "_"),
                subject=f"aima.{subject}",
                metadata=describe(unit, flow=unit in getattr(self._domain.outside, "flows", ())),
                handler=self._on_request(unit),
            )
        )

    def _on_request(self, unit: type[Unit[Any]]) -> Callable[[Request], Awaitable[None]]:
        """Return the callback of a unit's subscription. The callback starts a task for each request."""

        async def start(request: Request) -> None:
            message: Msg = request._msg
            try:
                message.headers = canonical(message.headers)
            except InvalidRequest as error:
                await self._refuse(message, error)
                return
            if len(self._tasks) >= _MOST_AT_ONCE:
                await self._refuse(message, self._too_many())
                return
            self._last_token += 1
            token = str(self._last_token)
            serve = self._serve_batch if calls.BATCH in message.headers else self._serve
            task = asyncio.create_task(serve(unit, message, token))
            self._tasks.add(task)
            self._by_token[token] = task
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda _: self._by_token.pop(token, None))

        return start

    async def _on_control(self, message: Msg) -> None:
        """Cancel a request if the server reports that nobody received a part of it, because the caller is gone."""
        if (message.headers or {}).get("Status") == "503" and (
            task := self._by_token.get(message.subject.rpartition(".")[2])
        ):
            task.cancel()

    def _too_many(self) -> RateLimited:
        limit = f"the {self._domain.name} process handles at most {_MOST_AT_ONCE} requests at a time"
        return RateLimited(f"{limit}; try again in 1 s", retry_after=1)

    async def _serve_batch(self, unit: type[Unit[Any]], message: Msg, token: str) -> None:
        """Serve each request of a batch like a request in its own message. Replies when all requests are answered."""
        headers = message.headers or {}
        try:
            if not calls.flag(headers, calls.BATCH):
                await self._serve(unit, message, token)
                return
            if not unit.spec.batches:
                raise InvalidRequest(f"{unit.spec.name} does not accept batches", reason="NO_BATCHES")
            items = items_of(message.data, headers)
            if len(self._tasks) + len(items) > _MOST_AT_ONCE:
                raise self._too_many()
        except (InvalidRequest, RateLimited) as error:
            await self._refuse(message, error)
            return
        tasks = [asyncio.create_task(self._serve(unit, item, token)) for item in items]
        for task in tasks:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            await self._publish(message, replies_of(items), {})

    async def _serve(self, unit: type[Unit[Any]], message: Msg | BatchItem, token: str) -> None:
        started_at, fields = time.perf_counter(), unit.model_fields
        call = Call(request_id="", at=time.time(), node=self._node)
        headers: dict[str, str] = {}
        try:
            if isinstance(message, BatchItem):
                message.headers = canonical(message.headers)
                if calls.flag(message.headers, calls.BATCH):
                    raise InvalidRequest("a request in a batch cannot be a batch", header=calls.BATCH)
            call = calls.from_headers(message.headers, node=self._node, default_timeout=unit.spec.timeout)
            check(unit.spec.kind, unit.spec.name, call)
            current_call.set(call)
            command = parse(unit, body_of(message.data, message.headers))
            # checks `fields` first: getattr for a missing field of a pydantic model costs more than parsing the input
            wants_parts = call.parts or ("stream" in fields and bool(command.stream))  # type: ignore[attr-defined]
            replies = ReplyStream(self._nc, message.reply, f"{self._control}.{token}", wants_parts)
            if "timeout" in fields and calls.TIMEOUT not in (message.headers or {}):
                call = msgspec.structs.replace(call, deadline=call.at + _default_timeout(command))
                current_call.set(call)
            async with asyncio.timeout((call.deadline or call.at) - time.time()) as clock:
                outcome = await self._handle(command, call, replies)
            if replies.requested:
                headers = replies.final_headers()
        except AimaError as error:
            await self._refuse(message, error, call, started_at)
            return
        except TimeoutError:
            if clock.expired():
                await self._refuse(message, _deadline_exceeded(unit, call), call, started_at)
                return
            # not the request's deadline: a timeout inside the domain that the domain did not handle, which is a bug
            logger.error("a unit failed unexpectedly", unit=unit.spec.name, exc_info=True)
            await self._refuse(message, InternalError("internal error"), call, started_at)
            return
        except asyncio.CancelledError:
            if self._closing:
                stopping = Unavailable(f"the {self._domain.name} process is stopping; try again", reason="STOPPING")
                await self._refuse(message, stopping, call, started_at)
                raise
            logger.info("request cancelled: its caller is gone", unit=unit.spec.name)
            raise
        except Exception:
            logger.error("a unit failed unexpectedly", unit=unit.spec.name, exc_info=True)
            await self._refuse(message, InternalError("internal error"), call, started_at)
            return
        meta = encode(_meta(call, started_at, outcome.version, outcome.position))
        await self._respond(message, b'{"success":true,"data":%b,"meta":%b}' % (outcome.data, meta), headers)

    async def _refuse(
        self, message: Msg | BatchItem, error: AimaError, call: Call | None = None, started_at: float = 0.0
    ) -> None:
        call = call or Call(request_id="", at=time.time(), node=self._node)
        meta = _meta(call, started_at or time.perf_counter())
        text = error.message.replace("\r", " ").replace("\n", " ")[:_LONGEST_HEADER]
        try:
            body = msgspec.json.encode({"success": False, "error": error.body(), "meta": meta}, enc_hook=repr)
        except (ValueError, OverflowError):  # the cause is a lone surrogate in a file name, or an integer above 64 bits
            logger.error("an error reply cannot be encoded; sent without details", code=error.code, exc_info=True)
            bare = {"code": error.code, "message": text.encode("ascii", "replace").decode(), "details": {}}
            body = msgspec.json.encode({"success": False, "error": bare, "meta": meta})
        await self._respond(
            message,
            body,
            {
                ERROR_CODE_HEADER: str(error.status),
                ERROR_HEADER: text.encode("ascii", "replace").decode(),
                calls.FINAL: "true",
            },
        )

    async def _respond(self, message: Msg | BatchItem, data: bytes, headers: dict[str, str]) -> None:
        if isinstance(message, BatchItem):
            message.answer = data
        else:
            await self._publish(message, data, headers)

    async def _publish(self, message: Msg, data: bytes, headers: dict[str, str]) -> None:
        if not message.reply:
            return
        try:
            await self._nc.publish(message.reply, data, headers=headers or None)
        except nats.errors.MaxPayloadError:
            await self._refuse(message, PayloadTooLarge("the answer is larger than the bus allows"))
        except nats.errors.Error as error:
            logger.warning("a reply could not be sent", error=repr(error))


async def _drain(service: Service) -> None:
    """Unsubscribe from all subjects, discovery first. Waits until all requests that were already sent have arrived.

    The `stop` of nats-py's service drops these requests, so their callers would wait until their deadlines.
    """
    discovery = service._subscriptions.values()
    units = (endpoint._subscription for endpoint in service._endpoints)
    await asyncio.gather(*(subscription.drain() for subscription in (*discovery, *units)))


def _meta(call: Call, started_at: float, version: int | None = None, position: int | None = None) -> _Meta:
    duration_ms = round((time.perf_counter() - started_at) * 1000, 3)
    return _Meta(call.request_id, duration_ms, calls.trace_id(call.trace), version, position)


def _deadline_exceeded(unit: type[Unit[Any]], call: Call) -> Timeout:
    timeout = (call.deadline or call.at) - call.at
    return Timeout(f"{unit.spec.name} did not finish within {round(timeout, 3):g} s")


def _default_timeout(command: Unit[Any]) -> float:
    """Return how many seconds a call without a deadline may take: the unit's timeout, or 5 s more than the input's.

    The longer of the two counts. An input without the field `timeout` has only the unit's timeout.
    """
    own = getattr(command, "timeout", None)
    return max(command.spec.timeout, own + 5.0 if isinstance(own, int | float) else 0.0)


@functools.cache
def describe(unit: type[Unit[Any]], *, flow: bool = False) -> dict[str, str]:
    """Return an endpoint's metadata, which is all that a door needs to offer the unit. ADR-32 requires text values."""
    spec = unit.spec
    return {
        "kind": spec.kind,
        "risk": spec.risk,
        "idempotent": "true" if spec.idempotent else "false",
        "destructive": "true" if spec.destructive else "false",
        "options": ",".join(honoured(spec.kind, flow=flow, stream=spec.stream is not None)),
        "description": unit.description(),
        "input": encode(unit.model_json_schema()).decode(),
        "output": encode(unit.output.model_json_schema(mode="serialization")).decode(),
        "examples": encode(spec.examples).decode(),
        "events": ",".join(event.unit for event in spec.events),
        "errors": ",".join(dict.fromkeys(error.code for error in spec.errors)),
        "timeout": f"{spec.timeout:g}",
    }
