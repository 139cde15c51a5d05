"""Settings, read in one place: defaults, then the TOML file, then `AIMA_<SECTION>_<KEY>` from the environment.

Whatever is unknown or ill-typed stops the start with the file, the line, the key and what was expected.
"""

from __future__ import annotations

import os
import platform
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aima_core.errors import InvalidRequest, ValidationFailed

DEFAULT_URL = "nats://127.0.0.1:4222"
_ALIASES = {"AIMA_API_KEYS": "AIMA_GATEWAY_API_KEYS"}  # names that people know by heart
_NODE = re.compile(r"[^A-Za-z0-9-]+")


def default_node() -> str:
    """Return the host's name as one token of a subject."""
    return _NODE.sub("-", platform.node().partition(".")[0]).strip("-") or "local"


class Section(BaseModel):
    """A part of the settings; a domain derives its own from this."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NatsSettings(Section):
    """Where the bus is."""

    url: str = Field("", description="URL of a NATS server; empty: the one that `aima up` runs.")
    port: int = Field(
        0, ge=0, le=65535, description="Port of the one that `aima up` runs; 0: 4222 or the next free one."
    )


class LogSettings(Section):
    """What the processes write to stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is written.")


class General(Section):
    """What stands at the top of the file, outside any section."""

    data: str = Field("~/.aima", description="Folder that holds everything AIMA keeps.")
    node: str = Field(
        default_factory=default_node,
        pattern=r"^[A-Za-z0-9-]{1,63}$",
        description="Name of this machine on the bus; default: the host's name.",
    )


CORE_SECTIONS: Mapping[str, type[Section]] = {"nats": NatsSettings, "log": LogSettings}


@dataclass(frozen=True)
class Settings:
    """All settings of a process."""

    data: Path
    node: str
    nats: NatsSettings
    log: LogSettings
    sections: Mapping[str, Section]

    def of(self, domain: str) -> Any:
        """Return a domain's own section."""
        return self.sections.get(domain)


def load(
    sections: Mapping[str, type[Section]],
    *,
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    partial: bool = False,
) -> Settings:
    """Read all settings; `path` is `--config`. Raise ValidationFailed for the first thing that is wrong.

    With `partial`, sections that are not among `sections` are somebody else's to check.
    """
    environ = os.environ if environ is None else environ
    file = _file(path, environ)
    text, table = _read(file)
    known = {**CORE_SECTIONS, **sections}
    merged = _overlay(table, known, environ)
    for key in merged:
        foreign = partial and isinstance(merged[key], dict)
        if key not in known and key not in General.model_fields and not foreign:
            expected = sorted([*General.model_fields, *known])
            raise _fault(file, _line(text, None, key), key, f"unknown; expected one of {', '.join(expected)}")
    top = {k: v for k, v in merged.items() if k in General.model_fields}
    general = _check(General, top, None, file, text, environ)
    checked = {name: _check(model, merged.get(name, {}), name, file, text, environ) for name, model in known.items()}
    data = Path(general.data).expanduser().absolute()
    nats = checked.pop("nats")
    if not nats.url:
        nats = nats.model_copy(update={"url": _url_in_use(data)})
    return Settings(data=data, node=general.node, nats=nats, log=checked.pop("log"), sections=checked)


def chosen_url(environ: Mapping[str, str] | None = None, path: Path | None = None) -> str:
    """Return the URL that the user named in the environment or the file, or nothing: then the server is ours to run."""
    environ = os.environ if environ is None else environ
    _, table = _read(_file(path, environ))
    nats = table.get("nats", {})
    return environ.get("AIMA_NATS_URL") or (str(nats.get("url", "")) if isinstance(nats, dict) else "")


def _url_in_use(data: Path) -> str:
    try:
        return (data / "nats.url").read_text().strip() or DEFAULT_URL
    except OSError:
        return DEFAULT_URL


def _file(path: Path | None, environ: Mapping[str, str]) -> Path:
    named = path or (Path(environ["AIMA_CONFIG"]) if environ.get("AIMA_CONFIG") else None)
    if named and not named.is_file():
        raise ValidationFailed(f"{named}: there is no such file", reason="NO_CONFIG", file=str(named))
    home = Path(environ.get("AIMA_DATA") or "~/.aima").expanduser()
    return named or home / "config.toml"


def _read(file: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = file.read_text()
        return text, tomllib.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return "", {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file}: cannot be read: {error}", reason="BAD_CONFIG", file=str(file)) from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"{file}: not TOML: {error}", reason="BAD_CONFIG", file=str(file)) from error


def _overlay(table: dict[str, Any], known: Mapping[str, type[Section]], environ: Mapping[str, str]) -> dict[str, Any]:
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in table.items()}
    for name, value in environ.items():
        section, _, key = _ALIASES.get(name, name).removeprefix("AIMA_").lower().partition("_")
        if not name.startswith("AIMA_") or value == "":
            continue
        if not key and section in General.model_fields:
            merged[section] = value
        elif key and section in known:
            if key not in known[section].model_fields:
                expected = ", ".join(known[section].model_fields)
                raise ValidationFailed(f"{name}: unknown; [{section}] has {expected}", reason="BAD_CONFIG", key=name)
            inner = merged.setdefault(section, {})
            if isinstance(inner, dict):
                inner[key] = value
    return merged


def _check(
    model: type[Section], values: Any, section: str | None, file: Path, text: str, environ: Mapping[str, str]
) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = str(fault["loc"][0]) if fault["loc"] else ""
        dotted = ".".join(filter(None, (section, key)))
        expected = fault["msg"]
        if fault["type"] == "extra_forbidden":
            expected = f"unknown; expected one of {', '.join(model.model_fields)}"
        variable = f"AIMA_{dotted.replace('.', '_').upper()}"
        if environ.get(variable):
            raise ValidationFailed(
                f"{variable}: {dotted}: {expected}", reason="BAD_CONFIG", key=dotted, expected=expected
            ) from None
        raise _fault(file, _line(text, section, key), dotted, expected) from None


def _fault(file: Path, line: int | None, key: str, expected: str) -> ValidationFailed:
    where = f"{file}:{line}" if line else f"{file} or the environment"
    return ValidationFailed(
        f"{where}: {key}: {expected}", reason="BAD_CONFIG", file=str(file), line=line, key=key, expected=expected
    )


def _line(text: str, section: str | None, key: str) -> int | None:
    """Return the line that sets a key: tomllib keeps no positions, so look for it under its section's header."""
    current: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if header := re.match(r"\[+\s*([^\]]+?)\s*\]", stripped):
            current = header.group(1).strip("\"'")
            if section is None and current == key:
                return number
        elif key and current == section and re.match(rf"[\"']?{re.escape(key)}[\"']?\s*[=.]", stripped):
            return number
    return _line(text, None, section) if section else None  # `section = 5`, `section.key = 5`, an inline table
