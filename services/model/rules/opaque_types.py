"""Determines the type of a model in an opaque format from the engines that read the format. Pure.

`Engines` are the items of engine.list; None if the engine domain does not answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from aima_core.errors import ValidationFailed
from aima_core.suggestions import did_you_mean, nearest
from services.model import units as u

Engines = Sequence[Mapping[str, Any]] | None


def opaque_type(format_: str, engines: Engines) -> u.ModelType:
    """Return the type of model that engines serve in this format, if there is exactly one such type.

    Otherwise, raises ValidationFailed (TYPE_NEEDED). The error names the engines that read the format.
    """
    readers = sorted(engine["name"] for engine in engines or () if format_ in engine["formats"])
    types = sorted({kind for engine in engines or () if format_ in engine["formats"] for kind in engine["model_types"]})
    if len(types) == 1:
        return cast(u.ModelType, types[0])
    if types:
        expected = f"one of {', '.join(types)}: {' and '.join(readers)} {_verb(readers)} these types in {format_}"
    else:
        expected = f"the type of the model, because AIMA does not read {format_} and {_no_engine(format_, engines)}"
    raise ValidationFailed(
        f"type: expected {expected}",
        reason="TYPE_NEEDED",
        field="type",
        fields=[{"field": "type", "expected": expected}],
        format=format_,
        engines=readers,
    )


def check_format(format_: str, engines: Engines) -> None:
    """Raise ValidationFailed (UNKNOWN_FORMAT) if no engine reads the opaque format: its name may be mistyped."""
    if any(format_ in engine["formats"] for engine in engines or ()):
        return
    expected = (
        f"one of {', '.join(u.KNOWN_FORMATS)}, or a format that an engine reads, not {format_}:"
        f" {_no_engine(format_, engines)}; set opaque to true if an engine for {format_} is installed later"
    )
    raise ValidationFailed(
        f"format: expected {expected}",
        reason="UNKNOWN_FORMAT",
        field="format",
        fields=[{"field": "format", "expected": expected}],
        format=format_,
    )


def opaque_hint(engines: Engines) -> str:
    """Return the end of a message about files in an unknown format: how to register them if an engine reads them."""
    formats = _by_format(engines)
    listed = ", ".join(f"{name} ({', '.join(names)})" for name, names in formats.items() if u.is_opaque(name))
    offer = f"; the installed engines also read {listed}" if listed else ""
    return f"{offer}; if an engine reads these files, set format to a format that the engine's manifest lists"


def _no_engine(format_: str, engines: Engines) -> str:
    if engines is None:
        return "the engine domain does not answer"
    formats = _by_format(engines)
    listed = ", ".join(f"{name} ({', '.join(names)})" for name, names in formats.items()) or "nothing"
    near = did_you_mean(nearest(format_, {*u.KNOWN_FORMATS, *formats}))
    return f"no installed engine does; the installed engines read {listed}{near}"


def _by_format(engines: Engines) -> dict[str, list[str]]:
    """Return, for each format, the names of the installed engines that read the format."""
    formats: dict[str, list[str]] = {}
    for engine in engines or ():
        for name in engine["formats"] if engine["installed"] else ():
            formats.setdefault(name, []).append(engine["name"])
    return {name: sorted(formats[name]) for name in sorted(formats)}


def _verb(readers: Sequence[str]) -> str:
    return "serve" if len(readers) > 1 else "serves"
