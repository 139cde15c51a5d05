"""Asks the engine domain which engines read which formats."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

from aima_core.bus.pages import all_pages
from aima_core.bus.peers import Peers
from aima_core.errors import AimaError
from services.model import units as u
from services.model.headers.formats import Unrecognised
from services.model.rules.opaque_types import Engines, check_format, opaque_hint, opaque_type

_TIMEOUT = 5.0  # seconds for the engine domain to answer
T = TypeVar("T")
C = TypeVar("C", u.ImportModel, u.PullModel)


class EngineList:
    """Gets the engines of this installation from the engine domain."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def items(self) -> Engines:
        """Return the engines; None if the engine domain does not answer."""
        try:
            items: list[dict[str, Any]] = (await all_pages(self._page))["items"]
        except AimaError:
            return None
        return items

    async def _page(self, data: Mapping[str, Any]) -> dict[str, Any]:
        page: dict[str, Any] = (await self._peers.client.ask("engine.list", data, timeout=_TIMEOUT)).data
        return page

    async def typed(self, command: C) -> C:
        """Return the command. Add the type if the command has an opaque format and no type.

        The added type is the type of model that engines serve in this format. Raises ValidationFailed (TYPE_NEEDED) if
        engines serve no type in this format, or several types. Raises as `check`.
        """
        if command.format is None or not u.is_opaque(command.format):
            return command
        if command.type is not None:
            await self.check(command)
            return command
        return command.model_copy(update={"type": opaque_type(command.format, await self.items())})

    async def check(self, command: u.CreateModel | u.ImportModel | u.PullModel) -> None:
        """Raise ValidationFailed (UNKNOWN_FORMAT) for a format that no engine reads, unless the command accepts it."""
        if command.format is not None and u.is_opaque(command.format) and not command.opaque:
            check_format(command.format, await self.items())

    async def explained(self, inspected: Awaitable[T]) -> T:
        """Return the result of an inspection. Raises the errors of the inspection.

        If the inspection raises Unrecognised, the message gets the list of formats that the installed engines read.
        """
        try:
            return await inspected
        except Unrecognised as refusal:
            message = f"{refusal.message}{opaque_hint(await self.items())}"
            fields = [{"field": "path", "expected": message}]
            raise Unrecognised(message, **{**refusal.details, "fields": fields}) from None
