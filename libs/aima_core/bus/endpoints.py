"""The server side of the bus: the micro endpoints of one domain and what happens to a message on its way in and out.

The bus client runs the callbacks of a subscription one after another, so a callback only hands over to a task.
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
from aima_core.bus.connection import check_size
from aima_core.bus.outcomes import Outcome, ReplyStream, encode
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

_MOST_FIELDS = 1000  # of an input; each unknown one costs the validator an error of its own
_LONGEST_HEADER = 500  # characters of the error text in a reply's header; the whole of it is in the body
_MOST_AT_ONCE = 10_000  # requests under way in one process; beyond it memory, not time, would run out

Handle = Callable[[Unit[Any], Call, ReplyStream], Awaitable[Outcome]]


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
        self._by_token: dict[str, asyncio.Task[None]] = {}
        self._tokens = 0
        self._closing = False

    async def open(self, version: str) -> None:
        """Subscribe every unit, describe each in its metadata, and answer $SRV.PING, INFO and STATS (ADR-32)."""
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
        """Take no more requests; let those under way finish for `grace` seconds, then cancel them."""
        if self._service:
            with contextlib.suppress(nats.errors.Error, asyncio.TimeoutError):
                await _drain(self._service)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=grace)
            self._closing = True
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _add(self, unit: type[Unit[Any]], subject: str) -> None:
        assert self._service
        await self._service.add_endpoint(
            EndpointConfig(
                name=subject.replace(".", "_"),
                subject=f"aima.{subject}",
                metadata=describe(unit),
                handler=self._taker(unit),
            )
        )

    def _taker(self, unit: type[Unit[Any]]) -> Callable[[Request], Awaitable[None]]:
        async def take(request: Request) -> None:
            message: Msg = request._msg
            if len(self._tasks) >= _MOST_AT_ONCE:
                await self._refuse(message, RateLimited("too many requests at once", retry_after=1))
                return
            self._tokens += 1
            token = str(self._tokens)
            serve = self._serve_batch if calls.BATCH in (message.headers or {}) else self._serve
            task = asyncio.create_task(serve(unit, message, token))
            self._tasks.add(task)
            self._by_token[token] = task
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda _: self._by_token.pop(token, None))

        return take

    async def _on_control(self, message: Msg) -> None:
        """The server says that a part found nobody: the caller is gone, so is the reason to go on."""
        if (message.headers or {}).get("Status") == "503" and (
            task := self._by_token.get(message.subject.rpartition(".")[2])
        ):
            task.cancel()

    async def _serve_batch(self, unit: type[Unit[Any]], message: Msg, token: str) -> None:
        """Serve each request that a message holds as if it had come alone; answer when the last of them is answered."""
        headers = message.headers or {}
        try:
            if not calls.flag(headers, calls.BATCH):
                await self._serve(unit, message, token)
                return
            if not unit.spec.batches:
                raise InvalidRequest(f"{unit.spec.name} is asked one by one", reason="NO_BATCHES")
            items = items_of(message.data, headers)
            if len(self._tasks) + len(items) > _MOST_AT_ONCE:
                raise RateLimited("too many requests at once", retry_after=1)
        except (InvalidRequest, RateLimited) as error:
            await self._refuse(message, error)
            return
        serving = [asyncio.create_task(self._serve(unit, item, token)) for item in items]
        for task in serving:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.gather(*serving, return_exceptions=True)
        finally:
            await self._publish(message, replies_of(items), {})

    async def _serve(self, unit: type[Unit[Any]], message: Msg | BatchItem, token: str) -> None:
        begun, fields = time.perf_counter(), unit.model_fields
        call = Call(request_id="", at=time.time(), node=self._node)
        headers: dict[str, str] = {}
        try:
            call = calls.from_headers(message.headers, node=self._node, default_timeout=unit.spec.timeout)
            current_call.set(call)
            command = parse(unit, _body(message))
            # asking a pydantic model for a field that it has not costs more than parsing its input
            wanted = call.parts or ("stream" in fields and bool(command.stream))  # type: ignore[attr-defined]
            replies = ReplyStream(self._nc, message.reply, f"{self._control}.{token}", wanted)
            if "timeout" in fields and calls.TIMEOUT not in (message.headers or {}):
                call = msgspec.structs.replace(call, deadline=call.at + _patience(command))
                current_call.set(call)
            async with asyncio.timeout((call.deadline or call.at) - time.time()) as clock:
                outcome = await self._handle(command, call, replies)
            if replies.requested:
                headers = replies.final_headers()
        except AimaError as error:
            await self._refuse(message, error, call, begun)
            return
        except TimeoutError:
            late = clock.expired()
            if not late:
                logger.error("unit broke", unit=unit.spec.name, exc_info=True)  # a time limit of the domain's own
            told = Timeout(f"{unit.spec.name} took longer than asked") if late else InternalError("internal error")
            await self._refuse(message, told, call, begun)
            return
        except asyncio.CancelledError:
            if self._closing:
                gone = Unavailable(f"the {self._domain.name} process is ending; ask again", reason="STOPPING")
                await self._refuse(message, gone, call, begun)
                raise
            logger.info("the caller has gone", unit=unit.spec.name)
            raise
        except Exception:
            logger.error("unit broke", unit=unit.spec.name, exc_info=True)
            await self._refuse(message, InternalError("internal error"), call, begun)
            return
        meta = encode(_meta(call, begun, outcome.version, outcome.position))
        await self._respond(message, b'{"success":true,"data":%b,"meta":%b}' % (outcome.data, meta), headers)

    async def _refuse(
        self, message: Msg | BatchItem, error: AimaError, call: Call | None = None, begun: float = 0.0
    ) -> None:
        call = call or Call(request_id="", at=time.time(), node=self._node)
        meta = _meta(call, begun or time.perf_counter())
        text = error.message.replace("\r", " ").replace("\n", " ")[:_LONGEST_HEADER]
        try:
            body = msgspec.json.encode({"success": False, "error": error.body(), "meta": meta}, enc_hook=repr)
        except (ValueError, OverflowError):  # half a surrogate of a file's name, a number beyond 64 bits
            logger.error("a refusal cannot be encoded", code=error.code, exc_info=True)
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
            await self._refuse(message, PayloadTooLarge("the answer is larger than the bus carries"))
        except nats.errors.Error as error:
            logger.warning("reply lost", error=repr(error))


async def _drain(service: Service) -> None:
    """Unsubscribe everything, what tells of the service first, and take the requests that are on their way.

    The service's own `stop` throws those away, and whoever asked waits in vain until the deadline.
    """
    told, units = service._subscriptions.values(), (endpoint._subscription for endpoint in service._endpoints)
    await asyncio.gather(*(subscription.drain() for subscription in (*told, *units)))


def _meta(call: Call, begun: float, version: int | None = None, position: int | None = None) -> _Meta:
    took = round((time.perf_counter() - begun) * 1000, 3)
    return _Meta(call.request_id, took, calls.trace_id(call.trace), version, position)


def _body(message: Msg | BatchItem) -> bytes:
    """Return the message's input as JSON; raise for what is too large or not decodable."""
    data: bytes = message.data
    check_size(data)
    if not data:
        return b"{}"
    if "msgpack" in (message.headers or {}).get(calls.CONTENT_TYPE, ""):
        try:
            data = msgspec.json.encode(msgspec.msgpack.decode(data))
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
            raise InvalidRequest("the payload is not msgpack", reason="NOT_DECODABLE") from error
    try:
        found = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the payload is not a JSON object: {error}", reason="NOT_DECODABLE") from None
    if len(found) > _MOST_FIELDS:
        raise InvalidRequest(f"the input has {len(found)} fields; no unit has that many", reason="TOO_MANY_FIELDS")
    return data


def _patience(command: Unit[Any]) -> float:
    """Return the seconds that a call without a deadline of its own may take: its input's timeout counts."""
    own = getattr(command, "timeout", None)
    return max(command.spec.timeout, own + 5.0 if isinstance(own, int | float) else 0.0)


@functools.cache
def describe(unit: type[Unit[Any]]) -> dict[str, str]:
    """Return an endpoint's metadata: all that a door needs to offer the unit. Values are text, as ADR-32 asks."""
    spec = unit.spec
    return {
        "kind": spec.kind,
        "risk": spec.risk,
        "description": unit.description(),
        "input": encode(unit.model_json_schema()).decode(),
        "output": encode(unit.output.model_json_schema(mode="serialization")).decode(),
        "examples": encode(spec.examples).decode(),
        "events": ",".join(event.unit for event in spec.events),
        "errors": ",".join(dict.fromkeys(error.code for error in spec.errors)),
        "timeout": f"{spec.timeout:g}",
    }
