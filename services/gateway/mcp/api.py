"""Serves the Model Context Protocol with the official SDK. Tools and resources come from the bus.

One server serves all clients of a door. For each request, the door's `FindClient` returns the client: its caller, and
the mode that selects its tools. `streamable_http.py` is the door for HTTP; `aima mcp` is the door for standard input
and output.
Source: https://modelcontextprotocol.io/specification, 2025-11-25 and 2026-07-28.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import mcp_types as types
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from aima_core import VERSION
from aima_core.bus.client import Answer
from aima_core.bus.directory import ResourceInfo, UnitInfo
from aima_core.errors import AimaError, Forbidden, InternalError, InvalidRequest, NotFound, Unauthorized, UnitNotFound
from aima_core.structured_logs import logger
from services.gateway.entrance.dispatch import Caller, Dispatcher
from services.gateway.mcp import prompts as prompts
from services.gateway.mcp import resources as resources
from services.gateway.mcp import tool_options as tool_options
from services.gateway.mcp import tools as tools
from services.gateway.mcp.notifications import Changes, Notifications
from services.gateway.mcp.tools import Mode

_INSTRUCTIONS = (
    "AIMA serves AI models on this machine. Its tools are named domain_action: model_* manages models and their files, "
    "service_* serves a model with one or more replicas, engine_* runs the engine processes behind the replicas, "
    "device_* reports the hardware, resource_* manages reservations of memory, and inference_* sends requests to "
    "served models. Read the current state before you change it. Tools that are marked read-only change nothing. To "
    'see what a command would do, call it with "_aima": {"dry_run": true}: the answer is the plan, and nothing changes.'
    ' To change a thing only if it is still as you read it, pass "_aima": {"expected_version": stream_version}. The '
    "prompts describe the usual tasks step by step."
)


Context = ServerRequestContext[Any, Any]


@dataclass(frozen=True)
class McpClient:
    """A client. `mode` selects its tools, and `session` is the id of its session at the door.

    `disconnected` is done when the client's connection is closed. If it is None, the SDK cancels the client's requests.
    """

    caller: Caller
    mode: Mode
    session: str = ""
    disconnected: asyncio.Future[None] | None = None


FindClient = Callable[[Context], McpClient]


class McpServer:
    """Answers the protocol's requests with units on the bus. `find_client` returns the client that sent a request."""

    def __init__(self, dispatcher: Dispatcher, changes: Changes, find_client: FindClient) -> None:
        self._dispatcher = dispatcher
        self._directory = dispatcher.directory
        self._find_client = find_client
        self.news = Notifications(dispatcher.directory, changes)
        self.server = _Server(
            "aima",
            version=VERSION,
            title="AIMA",
            instructions=_INSTRUCTIONS,
            get_tool_input_schema=lambda _: None,  # no unit reads a part of its input from a header
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_templates,
            on_read_resource=self._read_resource,
            on_subscribe_resource=self._subscribe,
            on_unsubscribe_resource=self._unsubscribe,
            on_subscriptions_listen=self._listen,
            on_list_prompts=self._list_prompts,
            on_get_prompt=self._get_prompt,
            on_completion=self._complete,
        )
        self.server.middleware.append(_as_protocol_errors)
        self.server.add_notification_handler("notifications/initialized", types.NotificationParams, self._serve_session)
        # the SDK would log session ids and message texts; `_as_protocol_errors` logs exceptions instead
        logging.getLogger("mcp").setLevel(logging.CRITICAL)

    # --- tools ----------------------------------------------------------------------------------------------

    async def _list_tools(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        listed, next_cursor = tools.page(self._offered(ctx), params.cursor if params else None)
        return types.ListToolsResult(tools=listed, next_cursor=next_cursor)

    async def _call_tool(self, ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        unit = await self._unit(params.name)
        client = self._find_client(ctx)
        try:
            client.mode.admit(unit)
            tool_options.check_params(ctx.params or {})
            arguments = dict(params.arguments or {})
            caller = tool_options.from_arguments(tool_options.from_meta(client.caller, ctx.meta), unit, arguments)
            answer = await self._ask(ctx, caller, unit, arguments)
            return tools.result(unit, answer.data, answer.meta)
        except AimaError as error:
            return tools.refusal_of(error)

    async def _unit(self, name: str) -> UnitInfo:
        """Return the unit of a tool. Searches the bus again for an unknown tool. Raises UnitNotFound."""
        unit = tools.find(name, self._directory.units)
        if unit is None:
            with contextlib.suppress(UnitNotFound):
                await self._directory.find(name)
            unit = tools.find(name, self._directory.units)
        if unit is None:
            raise tools.no_such_tool(name, self._directory.units)
        return unit

    async def _ask(self, ctx: Context, caller: Caller, unit: UnitInfo, data: Mapping[str, Any]) -> Answer:
        """Call a unit and report its progress. If the client leaves, the unit's work is cancelled."""
        tools.check(data)
        progress, disconnected = tools.Progress(), self._find_client(ctx).disconnected
        with anyio.CancelScope() as scope:
            if disconnected:
                disconnected.add_done_callback(lambda _: scope.cancel())
            async with contextlib.aclosing(self._dispatcher.stream(caller, unit.name, data)) as parts:
                async for part in parts:
                    if isinstance(part, Answer):
                        return part
                    if report := progress.of(part):
                        await ctx.session.report_progress(*report)
        raise InternalError(f"{unit.name} ended without an answer")

    def _offered(self, ctx: Context) -> dict[str, UnitInfo]:
        client = self._find_client(ctx)
        return tools.offered(self._directory.units, client.caller.principal, client.mode)

    # --- resources ------------------------------------------------------------------------------------------

    async def _list_resources(
        self,
        ctx: Context,
        params: types.PaginatedRequestParams | None,  # noqa: ARG002 (the SDK's signature; one page has all resources)
    ) -> types.ListResourcesResult:
        return types.ListResourcesResult(resources=resources.fixed(self._readable(ctx)))

    async def _list_templates(
        self,
        ctx: Context,
        params: types.PaginatedRequestParams | None,  # noqa: ARG002 (as above)
    ) -> types.ListResourceTemplatesResult:
        return types.ListResourceTemplatesResult(resource_templates=resources.templates(self._readable(ctx)))

    async def _read_resource(self, ctx: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        unit, caller = await self._reader(ctx, params.uri)
        caller = tool_options.from_meta(caller, ctx.meta)
        answer = await self._ask(ctx, caller, unit, {"uri": params.uri})
        return resources.contents(params.uri, answer.data["data"])

    async def _subscribe(self, ctx: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
        await self._reader(ctx, params.uri)
        await self.news.subscribe(self._find_client(ctx).session, params.uri)
        return types.EmptyResult()

    async def _unsubscribe(self, ctx: Context, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        self.news.unsubscribe(self._find_client(ctx).session, params.uri)
        return types.EmptyResult()

    async def _listen(
        self, ctx: Context, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        uris = params.notifications.resource_subscriptions or []
        for uri in uris:
            await self._reader(ctx, uri)
        async with self.news.watching(uris):
            return await self.news.listen(ctx, params)

    async def _serve_session(self, ctx: Context, params: types.NotificationParams) -> None:  # noqa: ARG002 (as above)
        """Send a session its notifications. The SDK cancels this task when the session ends."""
        await self.news.serve_session(self._find_client(ctx).session, ctx.session)

    async def _reader(self, ctx: Context, uri: str) -> tuple[UnitInfo, Caller]:
        """Return the unit that reads an address, and the caller. Raises NotFound, Forbidden, Unauthorized."""
        resource = self._directory.resource_of(uri)
        if resource is None:
            await self._directory.look()
            resource = self._directory.resource_of(uri)
        if resource is None:
            raise NotFound(
                f"there is no resource {uri[:200]}; resources/list and resources/templates/list return the addresses",
                reason="RESOURCE_NOT_FOUND",
                uri=uri[:200],
            )
        client = self._find_client(ctx)
        unit = await self._dispatcher.permitted(client.caller, f"{resource.domain}.read", {"uri": uri})
        client.mode.admit(unit)
        return unit, client.caller

    def _readable(self, ctx: Context) -> list[ResourceInfo]:
        readers = {unit.domain for unit in self._offered(ctx).values() if unit.action == "read"}
        return [resource for resource in self._directory.resources if resource.domain in readers]

    # --- prompts --------------------------------------------------------------------------------------------

    async def _list_prompts(
        self,
        ctx: Context,  # noqa: ARG002 (as above)
        params: types.PaginatedRequestParams | None,  # noqa: ARG002 (as above)
    ) -> types.ListPromptsResult:
        return types.ListPromptsResult(prompts=prompts.listed())

    async def _get_prompt(self, ctx: Context, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        return prompts.render(params.name, params.arguments or {}, self._offered(ctx))

    async def _complete(self, ctx: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
        """Complete an id. Returns no ids if the client may not list them, or if their domain is not on the bus."""
        unit = self._directory.units.get(resources.lister(params, self._directory.resources))
        client, listed = self._find_client(ctx), {}
        if unit and client.mode.offers(unit):
            with contextlib.suppress(AimaError):
                listed = (await self._ask(ctx, client.caller, unit, {"limit": resources.LISTED})).data
        return types.CompleteResult(completion=resources.completion(params.argument.value, listed))


class _Server(Server[Any]):
    """The SDK's server. It announces to clients that its lists of tools and resources can change."""

    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
    ) -> InitializationOptions:
        """Return the options that announce the server's capabilities to a client."""
        changing = notification_options or NotificationOptions(tools_changed=True, resources_changed=True)
        return super().create_initialization_options(changing, experimental_capabilities, extensions)


async def _as_protocol_errors(ctx: Context, call_next: CallNext) -> HandlerResult:
    """Turn exceptions into errors of the protocol, with AIMA's error body as data. Details of a bug are only logged."""
    try:
        return await call_next(ctx)
    except (MCPError, ValidationError):
        raise
    except AimaError as error:
        raise MCPError(_code(error), error.message, error.body()) from None
    except Exception:
        logger.error("an MCP request failed with an unexpected error", method=ctx.method, exc_info=True)
        internal = InternalError("internal error")
        raise MCPError(types.INTERNAL_ERROR, internal.message, internal.body()) from None


def _code(error: AimaError) -> int:
    match error:
        case Unauthorized() | Forbidden():
            return types.INVALID_REQUEST
        case InvalidRequest() | NotFound():
            return types.INVALID_PARAMS
    return types.INTERNAL_ERROR
