"""A unit as a command: `aima service start svc-chat --timeout 600`, with a flag for each field of its input.

Made anew each time from what the unit says of itself. Typer builds the command, from a function whose signature is
written here; what is typed is checked by `flags.py`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter, Signature
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand

from aima_core.bus.directory import UnitInfo
from aima_core.errors import InvalidRequest, ValidationFailed
from services.cli.door.door import DoorAddress
from services.cli.door.opening import open_door
from services.cli.shared_options import listed
from services.cli.show import tables
from services.cli.show.console import Format, err
from services.cli.show.output import document
from services.cli.units import completion, flags, unit_call
from services.cli.units.flags import Flag
from services.cli.units.unit_call import CallOptions

_ASKING = "How it is asked"
_KIND = Parameter.KEYWORD_ONLY

# name, type, default, the words that mean it, help; where a field of the unit has a word, that means the field
_SHARED: tuple[tuple[str, Any, Any, tuple[str, ...], str], ...] = (
    ("output", Format, Format.TABLE, ("-o", "--output"), "table for people, json or yaml for programs."),
    ("columns", str, "", ("--columns",), "Columns of the table, with commas between them."),
    ("quiet", bool, False, ("-q", "--quiet"), "No progress."),
    ("dry_run", bool, False, ("--dry-run",), "Show what would happen; nothing does."),
    ("timeout", float | None, None, ("--timeout", "--deadline"), "Seconds; default: the unit's own."),
    ("key", str, "", ("--key", "--idempotency-key"), "The same key acts once."),
    ("expect", int | None, None, ("--expect", "--expected-version"), "Fail unless at this version."),
    ("principal", str, "", ("--as", "--principal"), "Who asks; it stands in the events."),
    ("yes", bool, False, ("-y", "--yes"), "Ask no questions: it is meant."),
    ("url", str, "", ("--url",), "A gateway, http://host:9090; without it, the bus is asked."),
    ("api_key", str, "", ("--api-key",), "Key for the gateway."),
)
_HINTED = 6  # flags that a hint names
_LEAST = {"timeout": 0.1, "expect": 0}
_DEFAULTS = {name: default for name, _, default, _, _ in _SHARED}


class UnitCommand(TyperCommand):
    """A command with the flags of a unit."""

    fields: Sequence[Flag] = ()
    ident: str = ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take `--config.slots 2` apart before the rest is read; refuse words that no flag stands before."""
        ctx.allow_extra_args = True  # they are refused here, where it is known what may have been meant
        extra = super().parse_args(ctx, flags.undotted(args, self.fields))
        if extra and not ctx.resilient_parsing:
            given = typed(self.fields, self.ident, ctx.params)
            ctx.fail(f"Got unexpected extra argument(s) ({' '.join(extra)}){_meant(self.fields, given, extra)}")
        return extra


def command(unit: UnitInfo, ident: str, reach: DoorAddress) -> UnitCommand:
    """Return the command of a unit; `ident` is the field that may be typed first, without its flag."""
    found = flags.flags_of(unit)
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.command(
        unit.action.replace("_", "-"),
        cls=UnitCommand,
        help=_help(unit),
        short_help=escape(unit.summary),
        epilog=_epilog(unit, ident),
        context_settings={"token_normalize_func": _dashes},
    )(_function(unit, found, ident, reach))
    made = typer.main.get_command(app)
    assert isinstance(made, UnitCommand)
    made.fields, made.ident = found, ident
    return made


def example(unit: UnitInfo, given: Mapping[str, Any], ident: str) -> str:
    """Return an example of the unit's input as it is typed."""
    words = [f"aima {unit.domain} {unit.action.replace('_', '-')}"]
    words += [word(given[ident])] if ident in given else []
    for flag in flags.flags_of(unit):
        if flag.field in given and flag.field != ident:
            words += _words(flag, given[flag.field])
    return " ".join(words)


def _function(unit: UnitInfo, found: Sequence[Flag], ident: str, reach: DoorAddress) -> Callable[..., None]:
    """Return what the command runs: a function with a parameter for each flag, as typer reads commands."""
    parameters = list(_parameters(unit, found, ident, reach))

    def run(**given: Any) -> None:  # typer calls with the names of the signature below
        _run(unit, found, flags.read(found, typed(found, ident, given)), _DEFAULTS | given, reach)

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run


def typed(found: Sequence[Flag], ident: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was typed for each field, from the parameters of the command. Raises InvalidRequest."""
    data = {flag.field: given[f"field{index}"] for index, flag in enumerate(found)}
    first = given.get("ident")
    if first is not None:
        if data[ident] not in (None, first):
            raise InvalidRequest(f"{ident} is given twice: {first} and {data[ident]}", reason="GIVEN_TWICE")
        data[ident] = first
    return data


def _run(
    unit: UnitInfo, found: Sequence[Flag], data: Mapping[str, Any], given: Mapping[str, Any], near: DoorAddress
) -> None:
    output, shown = given["output"], listed(given["columns"], given["output"])
    if not given["dry_run"]:  # what is planned looks different
        tables.check(shown, unit.output)
    manner = CallOptions(
        given["dry_run"], given["key"], given["expect"], given["timeout"], given["principal"], given["quiet"]
    )
    if unit.risk == "high" and unit.kind == "command" and not (given["yes"] or manner.dry_run):
        confirm(unit, data)
    reach = DoorAddress(given["url"] or near.url, given["api_key"] or near.api_key, near.config)
    try:
        document(asyncio.run(_answer(unit, data, manner, reach)), output, shown)
    except ValidationFailed as error:
        raise (flags.named(error, found) if output is Format.TABLE else error) from error


async def _answer(unit: UnitInfo, data: Mapping[str, Any], manner: CallOptions, reach: DoorAddress) -> Any:
    async with open_door(reach) as door:
        return await unit_call.answer(door, unit, data, manner)


def confirm(unit: UnitInfo, data: Mapping[str, Any]) -> None:
    """Return when somebody says that it is meant; ends the program otherwise."""
    if not sys.stdin.isatty():
        raise InvalidRequest(
            f"{unit.name} has high risk, and nobody is here to confirm it: --yes says that it is meant",
            reason="NOT_CONFIRMED",
        )
    told = " ".join(f"{key}={word(value)}" for key, value in data.items())
    err.print(f"{unit.name} {escape(told)}: [bold red]high risk[/]. {escape(unit.summary)}", highlight=False)
    if not typer.confirm("Go on?", err=True):
        err.print("[dim]nothing was done[/]")
        raise typer.Exit(1)


def _parameters(unit: UnitInfo, found: Sequence[Flag], ident: str, reach: DoorAddress) -> Iterator[Parameter]:
    for flag in found:
        if flag.field == ident:
            info = typer.Argument(
                metavar=ident.upper(),
                help=escape(f"{flag.description} Also {flag.name}."),
                show_default=False,
                autocompletion=completion.values(flag, unit.domain, reach),
            )
            yield Parameter("ident", _KIND, default=None, annotation=Annotated[str | None, info])
    taken = set()
    for index, flag in enumerate(found):
        yield Parameter(f"field{index}", _KIND, default=None, annotation=_option(unit, flag, ident, reach))
        for number, inner in enumerate(flags.inner(flag)):
            yield Parameter(f"field{index}_{number}", _KIND, default=None, annotation=_option(unit, inner, "", reach))
        taken |= {flag.name, f"--no-{flag.name[2:]}"} if flag.kind == "switch" else {flag.name}
    for name, kind, default, words, text in _SHARED:
        own = [word for word in words if word not in taken]
        if own:
            least = _LEAST.get(name)
            option = typer.Option(*own, help=text, min=least, show_default=False, rich_help_panel=_ASKING)
            yield Parameter(name, _KIND, default=default, annotation=Annotated[kind, option])


def _option(unit: UnitInfo, flag: Flag, ident: str, reach: DoorAddress) -> Any:
    switch = flag.kind == "switch"
    told = [escape(flag.description)]
    told += [f"[dim]\\[default: {escape(flag.default)}][/]"] if flag.default else []
    told += ["[red]\\[required][/]"] if flag.required and flag.field != ident else []
    option = typer.Option(
        f"{flag.name}/--no-{flag.name[2:]}" if switch else flag.name,
        metavar=None if switch else flag.takes,
        help=" ".join(filter(None, told)),
        show_default=False,
        autocompletion=completion.values(flag, unit.domain, reach),
    )
    kind: Any = bool | None if switch else list[str] | None if flag.kind in ("list", "object") else str | None
    return Annotated[kind, option]


def _help(unit: UnitInfo) -> str:
    risk = f"\n\n[dim]{unit.kind}, risk {unit.risk}; the same as `aima exec {unit.name}`[/]"
    return escape(unit.description) + risk


def _epilog(unit: UnitInfo, ident: str) -> str:
    lines = [escape(example(unit, given, ident)) for given in unit.examples if given]
    return "\n\n".join(f"Example: [cyan]{line}[/]" for line in lines)


def _words(flag: Flag, value: Any) -> list[str]:
    match flag.kind:
        case "switch":
            return [flag.name if value else f"--no-{flag.name[2:]}"]
        case "list" if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return [text for item in value for text in (flag.name, word(item))]
    return [flag.name, word(value)]


def word(value: Any) -> str:
    """Return a value as one word of a shell's command line."""
    text = value if isinstance(value, str) else json.dumps(value)
    if text and not set(text) & set(" '\"$&|<>;()*?[]{}!#~`\\\n"):
        return text
    return "'" + text.replace("'", "'\\''") + "'"


def _meant(found: Sequence[Flag], given: Mapping[str, Any], extra: Sequence[str]) -> str:
    """Return the hint for words without a flag: those flags that are still needed, or else which there are."""
    needed = [flag for flag in found if flag.required and given[flag.field] in (None, [])]
    if needed:
        told = (f"{flag.name} {word(text)}" for flag, text in zip(needed, extra, strict=False))
        return f"; did you mean {' '.join(told)}?"
    names = [flag.name for flag in found]
    more = ", …" if len(names) > _HINTED else ""
    return f"; its flags are {', '.join(names[:_HINTED])}{more}" if names else "; it takes none"


def _dashes(word: str) -> str:
    return word.replace("_", "-")
