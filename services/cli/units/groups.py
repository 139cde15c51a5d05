"""The command groups of the domains on the bus."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from aima_core.bus.directory import DomainInfo, UnitInfo
from aima_core.errors import AimaError, Forbidden, InvalidRequest, NotFound
from aima_core.suggestions import nearest
from services.cli import domains
from services.cli.door.door import DoorAddress, down
from services.cli.door.session import with_door
from services.cli.plain_values import take_plain
from services.cli.show.console import escape
from services.cli.units import unit_command
from services.gateway.rest.routes import ident_of

_BRIEF = 0.3  # seconds to wait for the bus, for help and completion, which work without a bus
_PANEL = "Domains on the bus"


class DomainGroup(TyperGroup):
    """The group of a domain, with a command for each of its units. A command is built when it is used."""

    info: DomainInfo
    address: DoorAddress
    dry_run = False
    """Whether the command line has --dry-run, which needs fewer rights than the command itself."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self.dry_run = "--dry-run" in args
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 (typer's signature)
        return sorted(unit.action.replace("_", "-") for unit in self.info.units.values())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of an action; dashes and underscores are interchangeable."""
        name = f"{self.info.name}.{cmd_name.replace('-', '_')}"
        unit = self.info.units.get(name)
        if unit is None:
            if self.address.url and not ctx.resilient_parsing:
                unit = _unlisted(self.address, name, dry_run=self.dry_run)
            if unit is None:
                return refuse(ctx, cmd_name, self.list_commands(ctx))
        units = {**self.info.units, name: unit}
        return unit_command.command(unit, ident_of(self.info.name, units), self.address)


def listed(ctx: Any) -> list[str]:
    """Return the names of the domains' groups; raise AimaError if the bus does not answer quickly."""
    if _PANEL not in ctx.meta:
        ctx.meta[_PANEL] = {}  # set first: if the bus does not answer, it is not asked again
        ctx.meta[_PANEL] = _fetch(replace(_address(ctx), wait=_BRIEF))
    return [name.replace("_", "-") for name in ctx.meta[_PANEL]]


def find(ctx: Any, word: str, built_in: Sequence[str]) -> DomainGroup | None:
    """Return the group of a domain; refuse a word that is neither a domain nor a built-in command."""
    address, name = _address(ctx), word.replace("-", "_")
    if ctx.resilient_parsing:
        return domain_group(_for_completion(ctx, address, name), address)
    known = list(built_in)
    try:
        if info := _known(ctx, address, name):
            return domain_group(info, address)
        infos = _fetch(address)
        if name in infos:  # the domain has started since the first query
            return domain_group(infos[name], address)
        known += infos
    except AimaError:
        if name in domains.names():
            raise
    if name in domains.names() and name not in known:
        raise down(name)
    refuse(ctx, word, [*known, *domains.names()])
    return None


def domain_group(info: DomainInfo, address: DoorAddress) -> DomainGroup:
    """Return the command group of a domain."""
    beyond = f"\n\nThe API key may call none of this domain's units. The key needs a scope such as {info.name}:low."
    app = typer.Typer(
        name=info.name.replace("_", "-"),
        cls=DomainGroup,
        help=escape(info.about) + (beyond if address.url and address.api_key and not info.units else ""),
        add_completion=False,
        invoke_without_command=True,
        rich_markup_mode="rich",
        rich_help_panel=_PANEL,
        subcommand_metavar="ACTION [ID] [FLAGS]...",
        pretty_exceptions_enable=False,
    )
    app.callback()(_actions)
    group = take_plain(typer.main.get_group(app))
    assert isinstance(group, DomainGroup)
    group.info, group.address, group.rich_help_panel = info, address, _PANEL
    return group


def refuse(ctx: Any, name: str, known: Iterable[str]) -> None:
    """Fail with suggestions for an unknown name. Does nothing for an option, or during shell completion."""
    if ctx.resilient_parsing or name.startswith("-"):
        return
    suggestions = nearest(name.replace("_", "-"), dict.fromkeys(known))
    hint = f" Did you mean {' or '.join(repr(each) for each in suggestions)}?" if suggestions else ""
    ctx.fail(f"No such command {name!r}.{hint}")


def _actions(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def _known(ctx: Any, address: DoorAddress, name: str) -> DomainInfo | None:
    """Return a domain on the bus, or None. Uses the list of domains that `--help` has fetched, if any."""
    listed: Mapping[str, DomainInfo] = ctx.meta.get(_PANEL, {})
    return listed.get(name) or _fetch(address, name).get(name)


def _unlisted(address: DoorAddress, name: str, *, dry_run: bool) -> UnitInfo | None:
    """Return a unit that the gateway does not list, because the key may only dry-run it; None if it does not exist.

    Raises Forbidden without `dry_run`.
    """
    unit = None
    with contextlib.suppress(NotFound, InvalidRequest):
        unit = with_door(address, lambda door: door.describe(name))
    if unit and not dry_run:
        needed = f"{unit.domain}:{unit.risk}"
        raise Forbidden(
            f"the key may not use {name}, which needs the scope {needed}", reason="SCOPE", unit=name, needed=needed
        )
    return unit


def _for_completion(ctx: Any, address: DoorAddress, name: str) -> DomainInfo:
    """Return a domain for shell completion; if the bus does not answer quickly, a domain without units."""
    with contextlib.suppress(AimaError):
        if info := _known(ctx, replace(address, wait=_BRIEF), name):
            return info
    return DomainInfo(id="", name=name, version="", about="", node="", units={}, resources=[])


def _fetch(address: DoorAddress, name: str = "") -> Mapping[str, DomainInfo]:
    return with_door(address, lambda door: door.domains(name))


def _address(ctx: Any) -> DoorAddress:
    """Return the address of the door, read from the whole command line.

    `--url` and `--api-key` may stand after the command's name. They are read before the command is built, because the
    command is built from the units at this address.
    """
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
