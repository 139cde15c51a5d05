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
from aima_core.toml_lines import Path as TomlPath
from aima_core.toml_lines import line_of, lines

_DEFAULT_PORT = 4222
URL_FILE = "nats.url"  # in the data folder: where the bus that `aima up` runs is
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
    users: bool = Field(False, description="Whether the one that `aima up` runs asks who connects: docs/bus-users.md.")
    user: str = Field(
        "", pattern=r"^[A-Za-z0-9_-]*$", description="User to be on the bus; empty: the domain, or operator."
    )
    password_file: str = Field(
        "", description="File with that user's password; empty: nats/users/ in the data folder, if it is there."
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
    """All settings of a process. `file` need not be there."""

    data: Path
    node: str
    nats: NatsSettings
    log: LogSettings
    sections: Mapping[str, Section]
    file: Path
    origins: Mapping[str, str]
    """Where each value that is not a default is from, by `section.key`: a variable's name, or file and line."""

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
    """Read all settings; `path` is `--config`. Raise ValidationFailed that tells all that is wrong.

    With `partial`, sections that are not among `sections` are somebody else's to check.
    """
    environ = os.environ if environ is None else environ
    given = _Given(_file(path, environ))
    known = {**CORE_SECTIONS, **sections}
    given.overlay(environ, known)
    for key, value in given.values.items():
        foreign = partial and isinstance(value, dict)
        if key not in known and key not in General.model_fields and not foreign:
            given.fault((key,), f"unknown; expected one of {', '.join(sorted([*General.model_fields, *known]))}")
    general = given.check(General)
    checked: dict[str, Any] = {name: given.check(model, name) for name, model in known.items()}
    given.refuse()
    data = Path(general.data).expanduser().absolute()
    nats, log, origins = checked.pop("nats"), checked.pop("log"), given.origins()
    if not nats.url:
        if in_use := _url_in_use(data):
            origins["nats.url"] = str(data / URL_FILE)
        nats = nats.model_copy(update={"url": in_use or f"nats://127.0.0.1:{nats.port or _DEFAULT_PORT}"})
    return Settings(data, general.node, nats, log, checked, given.file, origins)


def chosen_url(environ: Mapping[str, str] | None = None, path: Path | None = None) -> str:
    """Return the URL that the user named in the environment or the file, or nothing: then the server is ours to run."""
    environ = os.environ if environ is None else environ
    nats = _Given(_file(path, environ)).values.get("nats", {})
    return environ.get("AIMA_NATS_URL") or (str(nats.get("url", "")) if isinstance(nats, dict) else "")


def variable(section: str, key: str) -> str:
    """Return the name of the variable that sets a key; the section is empty for what stands outside any."""
    return "_".join(filter(None, ("AIMA", section, key))).upper()


def _url_in_use(data: Path) -> str:
    try:
        return (data / URL_FILE).read_text().strip()
    except OSError:
        return ""


def _file(path: Path | None, environ: Mapping[str, str]) -> Path:
    named = path or (Path(environ["AIMA_CONFIG"]) if environ.get("AIMA_CONFIG") else None)
    if named and not named.is_file():
        raise ValidationFailed(f"{named}: there is no such file", reason="NO_CONFIG", file=str(named))
    home = Path(environ.get("AIMA_DATA") or "~/.aima").expanduser()
    return named or home / "config.toml"


class _Given:
    """What is set, and where: the file's values, with those of the environment over them."""

    def __init__(self, file: Path) -> None:
        """Read the file; one that is not there sets nothing. Raises InvalidRequest when it is not TOML."""
        self.file = file
        self._faults: list[ValidationFailed] = []
        self._variables: dict[TomlPath, str] = {}
        try:
            text = file.read_text()
            self.values = tomllib.loads(text)
        except (FileNotFoundError, NotADirectoryError):
            text, self.values = "", {}
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"{file}: cannot be read: {error}", reason="BAD_CONFIG", file=str(file)) from error
        except tomllib.TOMLDecodeError as error:
            raise InvalidRequest(f"{file}: not TOML: {error}", reason="BAD_CONFIG", file=str(file)) from error
        self._lines = lines(text)

    def overlay(self, environ: Mapping[str, str], known: Mapping[str, type[Section]]) -> None:
        """Put the environment over the file; what is no section of `known` there is somebody else's."""
        # aliases first: a name that says exactly what it means goes over them
        for name in sorted(environ, key=lambda name: name not in _ALIASES):
            section, _, key = _ALIASES.get(name, name).removeprefix("AIMA_").lower().partition("_")
            if not name.startswith("AIMA_") or environ[name] == "":
                continue
            if not key and section in General.model_fields:
                self.values[section] = environ[name]
                self._variables[section,] = name
            elif key and section in known:
                self._set(section, key, name, environ[name], known[section])

    def _set(self, section: str, key: str, name: str, value: str, model: type[Section]) -> None:
        if key not in model.model_fields:
            self._note(f"{name}: unknown; [{section}] has {', '.join(model.model_fields)}", key=name)
            return
        inner = self.values.setdefault(section, {})
        if isinstance(inner, dict):
            inner[key] = value
            self._variables[section, key] = name

    def check(self, model: type[Section], section: str = "") -> Any:
        """Return a section, valid; when something is wrong in it, take note of that and return nothing of use."""
        if section:
            values = self.values.get(section, {})
        else:
            values = {key: value for key, value in self.values.items() if key in model.model_fields}
        try:
            return model.model_validate(values)
        except ValidationError as error:
            for each in error.errors(include_url=False):
                expected = each["msg"]
                if each["type"] == "extra_forbidden":
                    expected = f"unknown; expected one of {', '.join(model.model_fields)}"
                self.fault((*([section] if section else []), *each["loc"]), expected)
            return None

    def refuse(self) -> None:
        """Raise what has been found wrong, if anything has."""
        if len(self._faults) == 1:
            raise self._faults[0]
        if self._faults:
            told = "\n  ".join(fault.message for fault in self._faults)
            raise ValidationFailed(
                f"{len(self._faults)} settings are wrong:\n  {told}",
                reason="BAD_CONFIG",
                faults=[fault.details for fault in self._faults],
            )

    def fault(self, path: TomlPath, expected: str) -> None:
        """Take note of what is wrong at a path: in the environment if it is from there, else in the file."""
        key = ".".join(map(str, path))
        if name := self._variables.get(path[:2]):
            self._note(f"{name}: {key}: {expected}", key=key, expected=expected)
            return
        line = line_of(self._lines, path)
        where = f"{self.file}:{line}" if line else f"{self.file} or the environment"
        told = f"{where}: {key}: {expected}"
        self._note(told, file=str(self.file), line=line, key=key, expected=expected)

    def _note(self, told: str, **details: Any) -> None:
        self._faults.append(ValidationFailed(told, reason="BAD_CONFIG", **details))

    def origins(self) -> dict[str, str]:
        """Return where each value is from, by `section.key`."""
        found = {path: f"{self.file}:{line}" for path, line in self._lines.items()} | self._variables
        return {".".join(map(str, path)): origin for path, origin in found.items()}
