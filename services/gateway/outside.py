"""The code of the gateway that awaits: it opens the doors, creates keys and answers queries about keys."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, assert_never

from starlette.types import ASGIApp

import services
from aima_core.bus.directory import Directory
from aima_core.call import Call, timestamp
from aima_core.domain import Context, Outside, Parts
from aima_core.domain_names import names_in
from aima_core.errors import Conflict, Unauthorized, ValidationFailed
from aima_core.structured_logs import logger
from aima_core.units import View
from services.gateway import internal as i
from services.gateway import units as u
from services.gateway import views
from services.gateway.anthropic.api import Anthropic
from services.gateway.decider import Prepared
from services.gateway.engines.proxying import Proxy
from services.gateway.entrance.access import PREFIX, Policy, check_scopes, hash_of, static_keys
from services.gateway.entrance.app import assemble
from services.gateway.entrance.dispatch import Dispatcher
from services.gateway.entrance.gate import hosts_of
from services.gateway.entrance.metrics import Metrics
from services.gateway.entrance.quotas import Quotas
from services.gateway.entrance.rate_limits import RateLimiter
from services.gateway.entrance.server import Http, Listening, listen
from services.gateway.events.stream import EventStream, EventTail
from services.gateway.monitoring.health import HealthApi
from services.gateway.monitoring.scraping import Scraping
from services.gateway.ollama.api import Ollama
from services.gateway.ollama.library import OllamaLibrary
from services.gateway.openai.api import OpenAI
from services.gateway.openai.media import Media
from services.gateway.openai.responses import Responses
from services.gateway.rest.api import RestApi
from services.gateway.rest.documents import Documents
from services.gateway.rest.operations import Operations
from services.gateway.rest.resources import ResourceApi, Watching
from services.gateway.settings import GatewaySettings, host_of, local
from services.gateway.state import Key

if TYPE_CHECKING:
    from services.gateway.grpc.api import GrpcDoor

_URL = "gateway.url"  # file in the data folder with the gateway's URL


class GatewayOutside(Outside[Key]):
    """Opens the doors, creates keys, and answers queries about keys."""

    flows = (u.CreateKey,)

    def __init__(self, context: Context[Key]) -> None:
        super().__init__(context)
        self._url = context.folder.parent / _URL
        self._directory = Directory(context.peers.client.nc)
        self._tail = EventTail(context.peers.client.nc)
        self._watching = Watching(context.peers.client.nc)
        self._open = contextlib.AsyncExitStack()
        self._grpc: GrpcDoor | None = None

    async def open(self) -> None:
        """Settle reservations of an earlier run, read the units on the bus, and open the doors."""
        await self._settle_all()
        await self._directory.open()
        self._open.push_async_callback(self._directory.close)
        listening = listen(self.context.settings)
        self._policy = policy_of(self.context.settings, listening)
        server = Http(self._app(listening), listening, self.context.settings, self._proxy.abort)
        await self._mcp.open()
        await server.open()
        self._open.push_async_callback(server.close)
        if self._grpc:
            await self._grpc.open()
            self._open.push_async_callback(self._grpc.close)
        self._open.push_async_callback(self._mcp.close)  # must close before the server, which waits for MCP's streams
        self._open.callback(self._tail.close)
        self._open.callback(self._watching.close)
        self._url.write_text(f"{listening.url}\n")
        self._open.callback(self._url.unlink, missing_ok=True)
        logger.info("doors open", url=listening.url)

    async def close(self) -> None:
        """Finish the requests under way, then close the doors."""
        await self._open.aclose()

    def background(self) -> Iterable[Callable[[], Coroutine[Any, Any, None]]]:
        return (self._directory.run, self._tail.run, self._tail.wake, self._watching.run)

    async def prepare(self, command: u.Commands, call: Call) -> Prepared:  # noqa: ARG002 (the core's)
        """Return the command to decide. `gateway.create_key` is a flow, so it comes here only in a dry run."""
        match command:
            case u.CreateKey():
                await self._check(command)
                return _record(command, hash_="")
            case u.RevokeKey():
                return command
            case _:
                assert_never(command)

    async def flow(self, command: u.CreateKey, call: Call, parts: Parts) -> u.NewKey:  # noqa: ARG002 (the core's)
        """Create a key. Only the answer contains the secret: no log, event or file may contain it."""
        await self._check(command)
        secret = secrets.token_urlsafe(32)
        (record,) = await self.context.record(_record(command, hash_of(secret)))
        assert isinstance(record.event, u.KeyCreated)
        key_id = record.event.key_id
        expires_at = timestamp(record.event.expires_at) if record.event.expires_at else None
        key = f"{PREFIX}{key_id.removeprefix('key-')}_{secret}"
        return u.NewKey(key_id=key_id, key=key, expires_at=expires_at, stream_version=record.version)

    async def answer(self, query: u.Queries) -> View:
        match query:
            case u.ListKeys():
                return views.keys(self.context.world, query, time.time())
            case u.Identify(key=token):
                principal = self._policy.identify(token, self.context.world, time.time())
                if not principal.known:
                    raise Unauthorized(
                        "the key is unknown; create one with: aima keys create NAME", reason="KEY_UNKNOWN"
                    )
                return u.Identity(
                    name=principal.name,
                    key_id=principal.key_id,
                    scopes=list(principal.scopes),
                    models=list(principal.models),
                )
            case _:
                assert_never(query)

    def _app(self, listening: Listening) -> ASGIApp:
        from services.gateway.mcp.streamable_http import (
            McpDoor,  # imported here, because other processes should not spend half a second on the import of its SDK
        )

        settings, metrics = self.context.settings, Metrics()
        quotas = Quotas(self._reserve, self._settle)
        self._open.push_async_callback(quotas.close)
        dispatcher = Dispatcher(self.context.peers.client, self._directory, self._policy, quotas)
        operations = Operations(dispatcher)
        self._open.push_async_callback(operations.close)
        self._proxy = proxy = Proxy(dispatcher, quotas, wait=settings.wait)
        self._open.push_async_callback(proxy.close)
        self._mcp = McpDoor(dispatcher, self._watching.changes, settings.body_limit)
        rest_api = RestApi(dispatcher, operations, settings.body_limit)
        library = OllamaLibrary(dispatcher, settings.body_limit)
        routes = [
            *Scraping(metrics.registry, dispatcher).routes(),
            self._mcp.route(),
            *OpenAI(dispatcher, proxy, settings.body_limit).routes(),
            *Responses(proxy, settings.body_limit).routes(),
            *Media(dispatcher, proxy, settings.body_limit, settings.upload_limit).routes(),
            *Anthropic(proxy, settings.body_limit).routes(),
            *library.routes(),
            *Ollama(proxy, library.unload, settings.body_limit).routes(),
            *HealthApi(self.context.peers.client.nc, self._directory).routes(),
            *Documents(self._directory, self._policy).routes(),
            *EventStream(self._tail, self._policy, metrics).routes(),
            *ResourceApi(dispatcher, self._watching, metrics, rest_api.rest).routes(),
            *rest_api.routes(),
        ]
        limiter, hosts = RateLimiter(settings.requests_per_minute), hosts_of(listening.host, settings.hosts)
        if settings.grpc_addr:
            self._grpc = _grpc_door(
                dispatcher, self._policy, self.context.world, limiter, self._watching.changes, settings
            )
        return assemble(routes, settings, self._policy, self.context.world, limiter, hosts, metrics)

    async def _check(self, command: u.CreateKey) -> None:
        """Check the name and the scopes of a new key.

        Raises Conflict if a key in the settings has the same name, and ValidationFailed if a scope's domain does not
        exist.
        """
        if command.name in self._policy.static.values():
            raise Conflict(
                f"the setting gateway.api_keys already has a key named {command.name}; choose another name",
                reason="NAME_TAKEN",
            )
        own = names_in(services)  # valid even while their process is down
        try:
            check_scopes(command.scopes, [*own, *self._directory.domains])
        except ValidationFailed:
            await self._directory.look()  # a domain may have just appeared on the bus
            check_scopes(command.scopes, [*own, *self._directory.domains])

    async def _reserve(self, key_id: str, request_id: str, tokens: int) -> None:
        await self.context.record(i.ReserveTokens(key_id=key_id, request_id=request_id, tokens=tokens))

    async def _settle(self, key_id: str, request_id: str, tokens: int) -> None:
        await self.context.record(i.SettleTokens(key_id=key_id, request_id=request_id, tokens=tokens))

    async def _settle_all(self) -> None:
        """Settle the reservations of an earlier run as fully used, because the numbers of used tokens are lost."""
        for key in list(self.context.world.values()):
            for request_id, tokens in key.reserved.items():
                await self.context.record(i.SettleTokens(key_id=key.id, request_id=request_id, tokens=tokens))


def _grpc_door(*parts: Any) -> GrpcDoor:
    """Return the gRPC door. Raises ValidationFailed if the extra `grpc` is not installed."""
    try:
        from services.gateway.grpc.api import GrpcDoor
    except ImportError as error:
        raise ValidationFailed(
            f"gateway.grpc_addr needs the extra `grpc` ({error.name} is not installed): pip install 'aima[grpc]'",
            reason="BAD_CONFIG",
            key="gateway.grpc_addr",
        ) from None
    return GrpcDoor(*parts)


def policy_of(settings: GatewaySettings, listening: Listening) -> Policy:
    """Return the access policy. With `auth = "auto"`, commands need a key if other machines can reach any door."""
    local_only = listening.local and (not settings.grpc_addr or local(host_of(settings.grpc_addr)))
    return Policy(
        required=settings.auth == "required" or (settings.auth == "auto" and not local_only),
        open_queries=settings.open_queries,
        static=static_keys(key.get_secret_value() for key in settings.api_keys),
    )


def _record(command: u.CreateKey, hash_: str) -> i.RecordKey:
    return i.RecordKey(
        key_id=f"key-{secrets.token_hex(4)}",
        name=command.name,
        hash=hash_,
        scopes=tuple(command.scopes),
        models=tuple(command.models),
        expires_in=command.expires_in,
        requests_per_minute=command.requests_per_minute,
        tokens_per_day=command.tokens_per_day,
    )
