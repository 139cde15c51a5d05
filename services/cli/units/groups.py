"""`aima` itself: its own commands, and behind them a command for each domain that is on the bus.

The bus is asked only for what is not a command of our own, and for `aima --help`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from aima_core import call as calls
from aima_core.bus.directory import DomainInfo
from aima_core.errors import AimaError, InvalidRequest, NotFound
from aima_core.suggestions import nearest
from services.cli import domains
from services.cli.door.door import DoorAddress, down
from services.cli.door.opening import open_door
from services.cli.units import unit_command
from services.gateway.rest.routes import ident_of

_BRIEFLY = 0.3  # seconds that the bus gets to answer where its answer is not what was asked for
_ASKED = 5.0  # seconds that a gateway gets to refuse
_PANEL = "Domains on the bus"


class DomainGroup(TyperGroup):
    """A domain: a command for each of its units, made when it is asked for."""

    info: DomainInfo
    reach: DoorAddress

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 (typer's signature)
        """Return the actions."""
        return sorted(unit.action.replace("_", "-") for unit in self.info.units.values())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of an action; dashes and underscores are the same."""
        name = f"{self.info.name}.{cmd_name.replace('-', '_')}"
        unit = self.info.units.get(name)
        if unit is None:
            if self.reach.url and not ctx.resilient_parsing:
                _say_why(self.reach, name)
            return refuse(ctx, cmd_name, self.list_commands(ctx))
        return unit_command.command(unit, ident_of(self.info.name, self.info.units), self.reach)


class Aima(TyperGroup):
    """The root of all commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return our own commands, and the domains if the bus answers soon."""
        own = super().list_commands(ctx)
        with contextlib.suppress(AimaError):
            found = ctx.meta[_PANEL] = _look(replace(_reach(ctx), wait=_BRIEFLY))
            return own + [name.replace("_", "-") for name in found if name not in own]
        return own

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the words name; what else they say is in the context no more, and names the door."""
        ctx.args = args
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command of our own, or a domain's."""
        if own := super().get_command(ctx, cmd_name):
            return own
        reach, name = _reach(ctx), cmd_name.replace("-", "_")
        if ctx.resilient_parsing:
            return domain_group(_quietly(ctx, reach, name), reach)
        known = super().list_commands(ctx)
        try:
            if info := _known(ctx, reach, name):
                return domain_group(info, reach)
            known += _look(reach)
        except AimaError:
            if name in domains.names():
                raise
        if name in domains.names() and name not in known:
            raise down(name)
        return refuse(ctx, cmd_name, [*known, *domains.names()])


def domain_group(info: DomainInfo, reach: DoorAddress) -> DomainGroup:
    """Return the command of a domain."""
    beyond = f"\n\nThe key reaches none of its units; that needs a scope such as {info.name}:low."
    app = typer.Typer(
        name=info.name.replace("_", "-"),
        cls=DomainGroup,
        help=escape(info.about) + (beyond if reach.url and reach.api_key and not info.units else ""),
        add_completion=False,
        invoke_without_command=True,
        rich_markup_mode="rich",
        rich_help_panel=_PANEL,
        subcommand_metavar="ACTION [ID] [FLAGS]...",
        pretty_exceptions_enable=False,
    )
    app.callback()(_actions)
    group = typer.main.get_group(app)
    assert isinstance(group, DomainGroup)
    group.info, group.reach, group.rich_help_panel = info, reach, _PANEL
    return group


def refuse(ctx: Any, name: str, known: Iterable[str]) -> None:
    """Fail with the nearest names that there are; a shell that completes has no use for them."""
    if ctx.resilient_parsing or name.startswith("-"):
        return
    near = nearest(name.replace("_", "-"), dict.fromkeys(known))
    hint = f" Did you mean {' or '.join(repr(each) for each in near)}?" if near else ""
    ctx.fail(f"No such command {name!r}.{hint}")


def _actions(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def _known(ctx: Any, reach: DoorAddress, name: str) -> DomainInfo | None:
    """Return a domain; what `--help` has just listed is not asked for again."""
    listed: Mapping[str, DomainInfo] = ctx.meta.get(_PANEL, {})
    return listed.get(name) or _look(reach, name).get(name)


def _say_why(reach: DoorAddress, name: str) -> None:
    """Raise the refusal of a unit that a key does not reach: a gateway does not list it, and says why when asked."""

    async def ask() -> None:
        async with open_door(reach) as door:
            await door.ask(name, {}, timeout=_ASKED, headers={calls.DRY_RUN: "true"})

    with contextlib.suppress(NotFound, InvalidRequest):  # who may is looked at before the input is
        asyncio.run(ask())


def _quietly(ctx: Any, reach: DoorAddress, name: str) -> DomainInfo:
    """Return a domain for a shell that completes; one without units when nobody tells of it soon."""
    with contextlib.suppress(AimaError):
        if info := _known(ctx, replace(reach, wait=_BRIEFLY), name):
            return info
    return DomainInfo(id="", name=name, version="", about="", node="", units={}, resources=[])


def _look(reach: DoorAddress, name: str = "") -> Mapping[str, DomainInfo]:
    async def look() -> Mapping[str, DomainInfo]:
        async with open_door(reach) as door:
            return await door.domains(name)

    return asyncio.run(look())


def _reach(ctx: Any) -> DoorAddress:
    """Return the door that the command line names, wherever in it: the commands behind it are there to be made."""
    given = {name: ctx.params.get(name) or "" for name in ("url", "api_key")}
    words: Sequence[str] = ctx.args
    for index, word in enumerate(words):
        if word == "--":
            break
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name in given:
            given[name] = value if equals else next(iter(words[index + 1 : index + 2]), "")
    config: Path | None = ctx.params.get("config")
    return DoorAddress(given["url"], given["api_key"], config)
