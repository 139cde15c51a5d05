"""Serves the units over gRPC: Execute, ExecuteStream, WatchResource, health and reflection.

The contract is `proto/gateway.proto`. The door needs the extra `grpc`. The gateway imports this module only to open the
door. `aima up` imports the domains before it forks their processes, and gRPC must not be loaded before a fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
import msgspec
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.unknown_fields import UnknownFieldSet
from grpc import StatusCode
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from aima_core.bus.client import Answer
from aima_core.errors import AimaError, InternalError, InvalidRequest, NotFound, Unauthorized, Unavailable
from aima_core.structured_logs import logger
from services.gateway.entrance import bodies
from services.gateway.entrance.access import NOBODY, Policy, Principal, without_owners
from services.gateway.entrance.dispatch import Caller, Dispatcher, caller_from
from services.gateway.entrance.options import Options, refuse_options, with_options
from services.gateway.entrance.presented_keys import principal_of
from services.gateway.entrance.rate_limits import RateLimiter
from services.gateway.grpc.proto import gateway_pb2 as pb
from services.gateway.settings import GatewaySettings
from services.gateway.state import Key

SERVICE = "aima.v2.Gateway"
_ERROR = "aima-error-bin"
_LARGEST = 16 * 2**20  # bytes of a message
_EXACT = 2.0**53  # up to this number, a float represents every integer exactly
_GRACE = 5.0  # seconds that calls under way get to finish when the gateway ends
_CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    409: StatusCode.FAILED_PRECONDITION,
    413: StatusCode.RESOURCE_EXHAUSTED,
    429: StatusCode.RESOURCE_EXHAUSTED,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}

Context = Any  # grpc.aio.ServicerContext, which has no types
Changes = Callable[[str], AsyncGenerator[bytes]]


class GrpcDoor:
    """The gRPC server. `changes(uri)` yields the current value at an address and each later value, as JSON."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        policy: Policy,
        keys: Mapping[str, Key],
        rates: RateLimiter,
        changes: Changes,
        settings: GatewaySettings,
    ) -> None:
        self._dispatcher = dispatcher
        self._policy = policy
        self._keys = keys
        self._rates = rates
        self._changes = changes
        self._settings = settings
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None

    async def open(self) -> None:
        """Start to serve. Raises Unavailable (PORT_IN_USE) if the server cannot listen on the address."""
        server = grpc.aio.server(
            options=(("grpc.max_receive_message_length", _LARGEST), ("grpc.so_reuseport", 0)),
            maximum_concurrent_rpcs=self._settings.connections,
        )
        handlers = {
            "Execute": grpc.unary_unary_rpc_method_handler(
                _guarded(self.execute), pb.ExecuteRequest.FromString, pb.ExecuteReply.SerializeToString
            ),
            "ExecuteStream": grpc.unary_stream_rpc_method_handler(
                _guarded_stream(self.execute_stream), pb.ExecuteRequest.FromString, pb.Part.SerializeToString
            ),
            "WatchResource": grpc.unary_stream_rpc_method_handler(
                _guarded_stream(self.watch), pb.WatchRequest.FromString, pb.ResourceValue.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        address = self._settings.grpc_addr
        try:
            if self._settings.tls_cert:
                server.add_secure_port(address, _credentials(self._settings))
            else:
                server.add_insecure_port(address)
        except RuntimeError as error:
            raise Unavailable(
                f"the gateway cannot listen on {address} (gateway.grpc_addr): {error}", reason="PORT_IN_USE"
            ) from error
        await server.start()
        self._server = server
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        logger.info("gRPC door open", address=address)

    async def close(self) -> None:
        """Refuse new calls. Waits at most 5 s for calls under way, then cancels them."""
        if self._server:
            await self._health.enter_graceful_shutdown()
            await self._server.stop(_GRACE)

    async def execute(self, request: pb.ExecuteRequest, context: Context) -> pb.ExecuteReply:
        """Call a unit and return its answer. If the gRPC call is cancelled, the unit's work is cancelled, too."""
        caller, data = await self._read(request, context)
        task = asyncio.current_task()
        async with contextlib.aclosing(self._dispatcher.stream(caller, request.unit, data)) as parts:
            async for part in parts:
                if isinstance(part, Answer):
                    return _reply(part)
                # wait_for in nats-py swallows a cancellation that arrives together with a message
                if task and task.cancelling():
                    raise asyncio.CancelledError
        raise InternalError(f"{request.unit} ended without an answer")

    async def execute_stream(self, request: pb.ExecuteRequest, context: Context) -> AsyncGenerator[pb.Part]:
        """Call a unit. Yields the parts of the answer, then the answer."""
        caller, data = await self._read(request, context)
        async with contextlib.aclosing(self._dispatcher.stream(caller, request.unit, data)) as parts:
            async for part in parts:
                yield pb.Part(reply=_reply(part)) if isinstance(part, Answer) else pb.Part(part=_value(part))

    async def watch(self, request: pb.WatchRequest, context: Context) -> AsyncGenerator[pb.ResourceValue]:
        """Yield the current value at an address and each later value.

        Raises NotFound for an unknown address, Unauthorized when the key is no longer valid, and
        Unavailable if JetStream does not answer.
        """
        caller = self._caller(context)
        _refuse_unknown(request)
        refuse_options(caller, "WatchResource")
        resource = self._dispatcher.directory.resource_of(request.uri)
        if resource is None:
            raise NotFound(f"there is no resource {request.uri}", reason="NO_SUCH_RESOURCE", uri=request.uri)
        await self._dispatcher.permitted(caller, f"{resource.domain}.read", {"uri": request.uri})
        sees_all = self._policy.sees_whole(caller.principal, resource.domain)
        async with contextlib.aclosing(self._changes(request.uri)) as values:
            async for value in values:
                if not caller.valid():
                    raise Unauthorized("the key was revoked or has expired", reason="KEY_UNKNOWN")
                current = msgspec.json.decode(value)
                shown = current if sees_all else without_owners(current, caller.principal.name)
                yield pb.ResourceValue(uri=request.uri, value=_value(shown))

    async def _read(self, request: pb.ExecuteRequest, context: Context) -> tuple[Caller, dict[str, Any]]:
        """Return the caller and the unit's input. Raises Unauthorized, RateLimited, UnitNotFound, InvalidRequest."""
        caller = self._caller(context)
        for message in (request, request.options):
            _refuse_unknown(message)
        options = bodies.convert({field.name: value for field, value in request.options.ListFields()}, Options)
        unit = await self._dispatcher.directory.find(request.unit)
        if request.type not in ("", unit.kind):
            raise InvalidRequest(f"{unit.name} is a {unit.kind}, not a {request.type}", reason="WRONG_TYPE")
        caller = with_options(caller, options)
        remaining = context.time_remaining()
        if remaining is not None and caller.timeout is None:
            caller = replace(caller, timeout=max(min(remaining, 86_400.0), 0.001))
        return caller, _input(request.input)

    def _caller(self, context: Context) -> Caller:
        metadata = [
            (name.lower(), value if isinstance(value, str) else "(bytes)")
            for name, value in context.invocation_metadata() or ()
        ]
        address = _host(context.peer())
        try:
            principal = principal_of(metadata, self._policy, self._keys, time.time())
        except Unauthorized:
            self._rates.check(NOBODY, address)  # slows down attempts to guess keys
            raise
        self._rates.check(principal, address)
        return replace(caller_from(principal, address, metadata), valid=partial(self._still_valid, principal))

    def _still_valid(self, principal: Principal) -> bool:
        return self._policy.valid(principal, self._keys, time.time())


def _guarded(work: Callable[[Any, Context], Awaitable[Any]]) -> Callable[[Any, Context], Awaitable[Any]]:
    """Return a method that turns the errors of `work` into gRPC statuses."""

    async def method(request: Any, context: Context) -> Any:
        try:
            return await work(request, context)
        except Exception as error:
            await _abort(context, error)

    return method


def _guarded_stream(
    work: Callable[[Any, Context], AsyncGenerator[Any]],
) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def method(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async with contextlib.aclosing(work(request, context)) as parts:
                async for part in parts:
                    yield part
        except Exception as error:
            await _abort(context, error)

    return method


async def _abort(context: Context, error: Exception) -> None:
    if not isinstance(error, AimaError):
        logger.error("a gRPC call failed with an unexpected error", exc_info=True)
        error = InternalError("internal error")
    body = msgspec.json.encode(error.body(), enc_hook=str)
    await context.abort(_CODES.get(error.status, StatusCode.INTERNAL), error.message, ((_ERROR, body),))


def _refuse_unknown(message: Any) -> None:
    """Raise InvalidRequest for a field of a later release. The field could be an option that AIMA would ignore."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise InvalidRequest(
            f"{message.DESCRIPTOR.name} has no field {unknown[0].field_number} in this release; omit the field",
            reason="UNKNOWN_FIELD",
        )


def _host(peer: str) -> str:
    """Return a peer's IP address. Returns "unix" if the peer has no IP address.

    gRPC writes a peer as `ipv4:127.0.0.1:4711` or `ipv6:%5B::1%5D:4711`.
    """
    kind, _, where = unquote(peer).partition(":")
    return where.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else "unix"


def _input(struct: Struct) -> dict[str, Any]:
    """Return a unit's input. Raises InvalidRequest for a value that JSON does not have, such as NaN."""
    try:
        data: dict[str, Any] = _plain(json_format.MessageToDict(struct))
    except (json_format.Error, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the input is not JSON: {error}", reason="NOT_DECODABLE") from None
    return data


def _plain(value: Any) -> Any:
    """Return a value of a Struct, with whole numbers as integers. In a Struct, every number is a float."""
    match value:
        case float() if value.is_integer() and abs(value) < _EXACT:
            return int(value)
        case dict():
            return {name: _plain(item) for name, item in value.items()}
        case list():
            return [_plain(item) for item in value]
    return value


def _reply(answer: Answer) -> pb.ExecuteReply:
    return pb.ExecuteReply(data=_struct(answer.data), meta=_struct(answer.meta))


def _struct(data: Any) -> Struct:
    struct = Struct()
    struct.update(data or {})
    return struct


def _value(data: Any) -> Value:
    return json_format.ParseDict(data, Value())


def _credentials(settings: GatewaySettings) -> grpc.ServerCredentials:
    with open(settings.tls_key, "rb") as key, open(settings.tls_cert, "rb") as chain:
        return grpc.ssl_server_credentials(((key.read(), chain.read()),))
