"""Turns a unit into a command, with a flag for each field of its input: `aima service start svc-chat --timeout 600`.

The unit's description comes from the bus. This module makes a function with one parameter per flag, and typer makes the
command from the function's signature. `flags.py` checks the values.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter, Signature
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from aima_core.bus.directory import UnitInfo
from aima_core.errors import InvalidRequest, ValidationFailed
from services.cli.door.door import DoorAddress
from services.cli.door.session import release, with_door
from services.cli.plain_values import take_plain
from services.cli.shared_options import column_names
from services.cli.show import tables
from services.cli.show.console import Format, dim, err, escape, styled
from services.cli.show.output import document
from services.cli.single_options import refuse_repeats
from services.cli.units import completion, flags, unit_call
from services.cli.units.file_values import with_files
from services.cli.units.flags import Flag
from services.cli.units.unit_call import CallOptions

_PANEL = "Call options"
_KIND = Parameter.KEYWORD_ONLY

# name, type, default, options, help; if a field of the unit has the same flag, the option is omitted
_SHARED: tuple[tuple[str, Any, Any, tuple[str, ...], str], ...] = (
    ("output", Format, Format.TABLE, ("-o", "--output"), "table for people; json or yaml for programs."),
    ("columns", str, "", ("--columns",), "Columns of the table, separated by commas."),
    ("quiet", bool, False, ("-q", "--quiet"), "Do not show progress."),
    ("dry_run", bool, False, ("--dry-run",), "Show the events that the command would record; change nothing."),
    ("timeout", float | None, None, ("--timeout", "--deadline"), "Timeout in seconds; default: the unit's timeout."),
    ("key", str, "", ("--key", "--idempotency-key"), "Idempotency key: a repeat with the same key changes nothing."),
    ("expect", int | None, None, ("--expect", "--expected-version"), "Fail unless the stream has this version."),
    ("principal", str, "", ("--as", "--principal"), "Principal to record in the events."),
    ("yes", bool, False, ("-y", "--yes"), "Do not ask for confirmation."),
    ("url", str, "", ("--url",), "URL of a gateway, such as http://host:9090; default: use the bus."),
    ("api_key", str, "", ("--api-key",), "API key for the gateway."),
)
_HINTED = 6  # flags that a hint names at most
_LEAST = {"timeout": 0.1, "expect": 0}
_DEFAULTS = {name: default for name, _, default, _, _ in _SHARED}


class UnitCommand(TyperCommand):
    """A command with the flags of a unit."""

    fields: Sequence[Flag] = ()
    ident: str = ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, with `--config.slots 2` rewritten as `--config slots=2`. Reject words without a flag."""
        ctx.allow_extra_args = True  # the code below rejects extra words, with a hint
        extra = super().parse_args(ctx, flags.undotted(args, self.fields))
        if extra and not ctx.resilient_parsing:
            given = typed(self.fields, self.ident, ctx.params)
            ctx.fail(f"Got unexpected extra argument(s) ({' '.join(extra)}){_meant(self.fields, given, extra)}")
        return extra


def command(unit: UnitInfo, ident: str, address: DoorAddress) -> UnitCommand:
    """Return the command of a unit; `ident` is the field that is the positional argument."""
    unit_flags = flags.flags_of(unit)
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.command(
        unit.action.replace("_", "-"),
        cls=UnitCommand,
        help=_help(unit),
        short_help=escape(unit.summary),
        epilog=_epilog(unit, ident),
        context_settings={"token_normalize_func": _dashes},
    )(_function(unit, unit_flags, ident, address))
    made = refuse_repeats(take_plain(typer.main.get_command(app)))
    assert isinstance(made, UnitCommand)
    made.fields, made.ident = unit_flags, ident
    return made


def example(unit: UnitInfo, given: Mapping[str, Any], ident: str) -> str:
    """Return an example input as a command line."""
    words = [f"aima {unit.domain} {unit.action.replace('_', '-')}"]
    words += [word(given[ident])] if ident in given else []
    for flag in flags.flags_of(unit):
        if flag.field in given and flag.field != ident:
            words += _words(flag, given[flag.field])
    return " ".join(words)


def _function(unit: UnitInfo, unit_flags: Sequence[Flag], ident: str, address: DoorAddress) -> Callable[..., None]:
    """Return the function that typer runs. It has one parameter for each flag."""
    parameters = list(_parameters(unit, unit_flags, ident, address))

    def run(**given: Any) -> None:  # typer passes the parameters of the signature below
        _run(
            unit,
            unit_flags,
            flags.read(unit_flags, with_files(unit_flags, typed(unit_flags, ident, given))),
            _DEFAULTS | given,
            address,
        )

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run


def typed(unit_flags: Sequence[Flag], ident: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the user typed, by field. Raises InvalidRequest if the user typed a field twice."""
    data = {flag.field: given[f"field{index}"] for index, flag in enumerate(unit_flags)}
    first = given.get("ident")
    if first is not None:
        if data[ident] not in (None, first):
            raise InvalidRequest(f"{ident} is given twice: {first} and {data[ident]}", reason="GIVEN_TWICE")
        data[ident] = first
    return data


def _run(
    unit: UnitInfo, unit_flags: Sequence[Flag], data: Mapping[str, Any], given: Mapping[str, Any], default: DoorAddress
) -> None:
    output, shown = given["output"], column_names(given["columns"], given["output"])
    if not given["dry_run"]:  # a plan has columns of its own
        tables.check(shown, unit.output)
    options = CallOptions(
        given["dry_run"], given["key"], given["expect"], given["timeout"], given["principal"], given["quiet"]
    )
    if unit.risk == "high" and unit.kind == "command" and not (given["yes"] or options.dry_run):
        confirm(unit, data)
    address = DoorAddress(given["url"] or default.url, given["api_key"] or default.api_key, default.config)
    try:
        answer = with_door(address, lambda door: unit_call.answer(door, unit, data, options))
        document(answer, output, shown)
    except ValidationFailed as error:
        raise (flags.named(error, unit_flags) if output is Format.TABLE else error) from error


def confirm(unit: UnitInfo, data: Mapping[str, Any]) -> None:
    """Ask for confirmation. Exits with 1 if the user declines. Raises InvalidRequest if stdin is not a terminal."""
    if not sys.stdin.isatty():
        raise InvalidRequest(
            f"{unit.name} has high risk and needs confirmation, but stdin is not a terminal; pass --yes",
            reason="NOT_CONFIRMED",
        )
    words = " ".join(f"{key}={word(value)}" for key, value in data.items())
    err.print(f"{unit.name} {words}: ", styled("bold red", "high risk"), f". {unit.summary}")
    release()  # the user may think for longer than an idle connection lasts
    if not typer.confirm("Continue?", err=True):
        err.print(dim("nothing was changed"))
        raise typer.Exit(1)


def _parameters(unit: UnitInfo, unit_flags: Sequence[Flag], ident: str, address: DoorAddress) -> Iterator[Parameter]:
    for flag in unit_flags:
        if flag.field == ident:
            info = typer.Argument(
                metavar=ident.upper(),
                help=escape(f"{flag.description} Same as {flag.name}."),
                show_default=False,
                autocompletion=completion.values(flag, unit.domain, address),
            )
            yield Parameter("ident", _KIND, default=None, annotation=Annotated[str | None, info])
    taken = set()
    for index, flag in enumerate(unit_flags):
        yield Parameter(f"field{index}", _KIND, default=None, annotation=_option(unit, flag, ident, address))
        for number, inner in enumerate(flags.inner(flag)):
            yield Parameter(f"field{index}_{number}", _KIND, default=None, annotation=_option(unit, inner, "", address))
        taken |= {flag.name, f"--no-{flag.name[2:]}"} if flag.kind == "switch" else {flag.name}
    for name, kind, default, words, text in _SHARED:
        own = [word for word in words if word not in taken]
        if own:
            least = _LEAST.get(name)
            option = typer.Option(*own, help=text, min=least, show_default=False, rich_help_panel=_PANEL)
            yield Parameter(name, _KIND, default=default, annotation=Annotated[kind, option])


def _option(unit: UnitInfo, flag: Flag, ident: str, address: DoorAddress) -> Any:
    switch = flag.kind == "switch"
    parts = [escape(flag.description)]
    parts += [f"[dim]\\[default: {escape(flag.default)}][/]"] if flag.default else []
    parts += ["[red]\\[required][/]"] if flag.required and flag.field != ident else []
    option = typer.Option(
        f"{flag.name}/--no-{flag.name[2:]}" if switch else flag.name,
        metavar=None if switch else flag.takes,
        help=" ".join(filter(None, parts)),
        show_default=False,
        autocompletion=completion.values(flag, unit.domain, address),
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


def _meant(unit_flags: Sequence[Flag], given: Mapping[str, Any], extra: Sequence[str]) -> str:
    """Return the hint for words without a flag: the missing required flags or, if none is missing, all flags."""
    needed = [flag for flag in unit_flags if flag.required and given[flag.field] in (None, [])]
    if needed:
        flags_and_words = (f"{flag.name} {word(text)}" for flag, text in zip(needed, extra, strict=False))
        return f"; did you mean {' '.join(flags_and_words)}?"
    names = [flag.name for flag in unit_flags]
    more = ", …" if len(names) > _HINTED else ""
    return f"; the command's flags are {', '.join(names[:_HINTED])}{more}" if names else "; the command takes no input"


def _dashes(word: str) -> str:
    return word.replace("_", "-")
