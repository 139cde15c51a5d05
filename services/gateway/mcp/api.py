"""The Model Context Protocol: a server of the official SDK whose tools, resources and prompts come from the bus.

One server serves all who come in through a door; who asks, and what they are handed, is found for each request by
what the door says (`Who`). `streamable_http.py` is the door for HTTP, `aima mcp` the one for standard input and output.
Source: https://modelcontextprotocol.io/specification, 2025-11-25 and 2026-07-28.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
from services.gateway.entrance import bodies
from services.gateway.entrance.dispatch import Caller, Dispatcher, caller_from
from services.gateway.entrance.options import Beside, with_options
from services.gateway.mcp import prompts as prompts
from services.gateway.mcp import resources as resources
from services.gateway.mcp import tools as tools
from services.gateway.mcp.notifications import Changes, Notifications
from services.gateway.mcp.tools import Mode

_INSTRUCTIONS = (
    "AIMA runs AI models on this machine. Its tools are the units of its domains, named domain_action: models "
    "(model_*) are served by services (service_*), which engines (engine_*) run on devices (device_*) within the "
    "memory that resource_* knows of; inference_* asks the models that are served. Look before you act: what lists or "
    "gets changes nothing. The prompts tell how to go about the usual tasks."
)

Context = ServerRequestContext[Any, Any]


@dataclass(frozen=True)
class McpClient:
    """Who asks, and what they are handed. `session` names a session among those of a door.

    `gone` is done when nobody can be answered any more; a door whose SDK cancels what goes on then needs none.
    """

    caller: Caller
    mode: Mode
    session: str = ""
    gone: asyncio.Future[None] | None = None


Who = Callable[[Context], McpClient]


class McpServer:
    """What the protocol asks for, answered from the bus."""

    def __init__(self, asking: Dispatcher, changes: Changes, who: Who) -> None:
        self._asking = asking
        self._directory = asking.directory
        self._who = who
        self.news = Notifications(asking.directory, changes)
        self.server = _Server(
            "aima",
            version=VERSION,
            title="AIMA",
            instructions=_INSTRUCTIONS,
            get_tool_input_schema=lambda _: None,  # no unit wants a part of its input in a header
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
        self.server.middleware.append(_contained)
        self.server.add_notification_handler("notifications/initialized", types.NotificationParams, self._attend)
        # the SDK's log would tell sessions' ids and quote messages; what breaks here is logged by `_contained`
        logging.getLogger("mcp").setLevel(logging.CRITICAL)

    # --- tools ----------------------------------------------------------------------------------------------

    async def _list_tools(self, ctx: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        shown, following = tools.page(self._offered(ctx), params.cursor if params else None)
        return types.ListToolsResult(tools=shown, next_cursor=following)

    async def _call_tool(self, ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        unit = await self._unit(params.name)
        visit = self._who(ctx)
        try:
            visit.mode.admit(unit)
            caller = _with_meta(visit.caller, ctx.meta)
            answer = await self._ask(ctx, caller, unit, params.arguments or {})
            return tools.result(unit, answer.data, answer.meta)
        except AimaError as error:
            return tools.refusal_of(error)

    async def _unit(self, name: str) -> UnitInfo:
        """Return the unit of a tool, looking anew for one that is not known."""
        unit = tools.find(name, self._directory.units)
        if unit is None:
            with contextlib.suppress(UnitNotFound):
                await self._directory.find(name)
            unit = tools.find(name, self._directory.units)
        if unit is None:
            raise tools.no_such_tool(name, self._directory.units)
        return unit

    async def _ask(self, ctx: Context, caller: Caller, unit: UnitInfo, data: Mapping[str, Any]) -> Answer:
        """Ask a unit in parts, which tell its progress; when who asked has gone, the unit learns it, and gives up."""
        tools.check(data)
        progress, gone = tools.Progress(), self._who(ctx).gone
        with anyio.CancelScope() as asking:
            if gone:
                gone.add_done_callback(lambda _: asking.cancel())
            async with contextlib.aclosing(self._asking.stream(caller, unit.name, data)) as parts:
                async for part in parts:
                    if isinstance(part, Answer):
                        return part
                    if told := progress.of(part):
                        await ctx.session.report_progress(*told)
        raise InternalError(f"{unit.name} has ended without an answer")

    def _offered(self, ctx: Context) -> dict[str, UnitInfo]:
        visit = self._who(ctx)
        return tools.offered(self._directory.units, visit.caller.principal, visit.mode)

    # --- resources ------------------------------------------------------------------------------------------

    async def _list_resources(
        self,
        ctx: Context,
        params: types.PaginatedRequestParams | None,  # noqa: ARG002 (the SDK's signature; they fit on a page)
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
        answer = await self._ask(ctx, caller, unit, {"uri": params.uri})
        return resources.contents(params.uri, answer.data["data"])

    async def _subscribe(self, ctx: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
        await self._reader(ctx, params.uri)
        await self.news.subscribe(self._who(ctx).session, params.uri)
        return types.EmptyResult()

    async def _unsubscribe(self, ctx: Context, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        self.news.unsubscribe(self._who(ctx).session, params.uri)
        return types.EmptyResult()

    async def _listen(
        self, ctx: Context, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        uris = params.notifications.resource_subscriptions or []
        for uri in uris:
            await self._reader(ctx, uri)
        async with self.news.watching(uris):
            return await self.news.listen(ctx, params)

    async def _attend(self, ctx: Context, params: types.NotificationParams) -> None:  # noqa: ARG002 (as above)
        """Tell a session what changes. It is what the SDK runs this in that ends it with the session."""
        await self.news.attend(self._who(ctx).session, ctx.session)

    async def _reader(self, ctx: Context, uri: str) -> tuple[UnitInfo, Caller]:
        """Return the unit that reads an address, and who asks; raise when it is no address, or not theirs to read."""
        found = self._directory.resource_of(uri)
        if found is None:
            await self._directory.look()
            found = self._directory.resource_of(uri)
        if found is None:
            raise NotFound(f"there is nothing at {uri[:200]}", reason="RESOURCE_NOT_FOUND", uri=uri[:200])
        visit = self._who(ctx)
        unit = await self._asking.permitted(visit.caller, f"{found.domain}.read", {"uri": uri})
        visit.mode.admit(unit)
        return unit, visit.caller

    def _readable(self, ctx: Context) -> list[ResourceInfo]:
        readers = {unit.domain for unit in self._offered(ctx).values() if unit.action == "read"}
        return [each for each in self._directory.resources if each.domain in readers]

    # --- prompts --------------------------------------------------------------------------------------------

    async def _list_prompts(
        self,
        ctx: Context,  # noqa: ARG002 (as above)
        params: types.PaginatedRequestParams | None,  # noqa: ARG002 (as above)
    ) -> types.ListPromptsResult:
        return types.ListPromptsResult(prompts=prompts.listed())

    async def _get_prompt(self, ctx: Context, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        return prompts.told(params.name, params.arguments or {}, self._offered(ctx))

    async def _complete(self, ctx: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
        """Complete an id; what may not be listed, or cannot be now, has no completions."""
        unit = self._directory.units.get(resources.lister(params, self._directory.resources))
        visit, listed = self._who(ctx), {}
        if unit and visit.mode.offers(unit):
            with contextlib.suppress(AimaError):
                listed = (await self._ask(ctx, visit.caller, unit, {"limit": resources.LISTED})).data
        return types.CompleteResult(completion=resources.completion(params.argument.value, listed))


class _Server(Server[Any]):
    """The SDK's server, saying that its lists change."""

    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
    ) -> InitializationOptions:
        """Return what a session is told at its beginning."""
        changing = notification_options or NotificationOptions(tools_changed=True, resources_changed=True)
        return super().create_initialization_options(changing, experimental_capabilities, extensions)


async def _contained(ctx: Context, call_next: CallNext) -> HandlerResult:
    """Turn what goes wrong into the protocol's errors, with our body as their data; a bug shows nothing of itself."""
    try:
        return await call_next(ctx)
    except (MCPError, ValidationError):
        raise
    except AimaError as error:
        raise MCPError(_code(error), error.message, error.body()) from None
    except Exception:
        logger.error("the MCP door broke", method=ctx.method, exc_info=True)
        broke = InternalError("internal error")
        raise MCPError(types.INTERNAL_ERROR, broke.message, broke.body()) from None


def _code(error: AimaError) -> int:
    match error:
        case Unauthorized() | Forbidden():
            return types.INVALID_REQUEST
        case InvalidRequest() | NotFound():
            return types.INVALID_PARAMS
    return types.INTERNAL_ERROR


def _with_meta(caller: Caller, meta: Mapping[str, Any] | None) -> Caller:
    """Return the caller with what a call's `_meta` says: under `aima`, or under the names of our headers.

    Both come before the headers of the request that carries it. Raises ValidationFailed, InvalidRequest.
    """
    said = meta or {}
    given = {name.lower(): str(value) for name, value in said.items()}
    own = caller_from(caller.principal, caller.address, given)
    named = replace(caller, headers={**caller.headers, **own.headers}, timeout=own.timeout or caller.timeout)
    return with_options(named, bodies.convert(said.get("aima", {}), Beside, "_meta.aima"))
