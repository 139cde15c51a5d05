"""Reads the settings that a client of the bus needs, usually without pydantic, whose import takes 60 ms.

`read` accepts values that are valid without a conversion. If any value needs a conversion or is invalid, the reader of
all settings (`aima_core/settings.py`) reads the settings instead; its errors name file, line and key. A test compares
the results of both readers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aima_core.bus.address import DEFAULT_PORT, published_url
from aima_core.system.node import default_node

_TOP = {"data": ".+", "node": "[A-Za-z0-9-]{1,63}"}
_SECTIONS: Mapping[str, Mapping[str, str]] = {  # a pattern for each key: texts that are valid without a conversion
    "nats": {
        "url": ".*",
        "port": "0|[1-9][0-9]{0,3}|[1-5][0-9]{4}",
        "users": "true|false",
        "user": "[A-Za-z0-9_-]*",
        "password_file": ".*",
    },
    "log": {"level": "debug|info|warning|error"},
}
_TYPES: Mapping[str, type] = {"port": int, "users": bool}  # the type of a key's value in a file; str for all other keys


@dataclass(frozen=True)
class NatsClient:
    """The settings to connect to the bus. `chosen`: whether the user has set the URL.

    Otherwise, the URL is that of `aima up` or, if `aima up` does not run, the default URL.
    """

    url: str
    user: str
    password_file: str
    chosen: bool


@dataclass(frozen=True)
class ClientSettings:
    """The settings of a client. `file` is the path of the settings file, even if the file does not exist."""

    data: Path
    node: str
    nats: NatsClient
    file: Path


class _Unusual(Exception):
    """A value needs a conversion or is invalid, so the reader of all settings must read the settings."""


def read(config: Path | None = None) -> ClientSettings:
    """Return a client's settings; do not check the sections of domains. Raises the same errors as `settings.load`."""
    try:
        return _plain(config, os.environ)
    except (_Unusual, OSError, UnicodeDecodeError):
        return _checked(config)


def _checked(config: Path | None) -> ClientSettings:
    from aima_core.settings import chosen_url, load

    loaded = load({}, path=config, partial=True)
    chosen = bool(chosen_url(path=config))
    nats = NatsClient(loaded.nats.url, loaded.nats.user, loaded.nats.password_file, chosen)
    return ClientSettings(loaded.data, loaded.node, nats, loaded.file)


def _plain(config: Path | None, environ: Mapping[str, str]) -> ClientSettings:
    """Return the settings; raise _Unusual if any value needs a conversion or is invalid."""
    named = config or (Path(environ["AIMA_CONFIG"]) if environ.get("AIMA_CONFIG") else None)
    file = named or Path(environ.get("AIMA_DATA") or "~/.aima").expanduser() / "config.toml"
    values = _of_file(file, required=named is not None)
    for name, text in environ.items():
        section, _, key = name.removeprefix("AIMA_").lower().partition("_")
        if name.startswith("AIMA_") and text and (section in _SECTIONS if key else section in _TOP):
            known = _SECTIONS[section] if key else _TOP
            values[section, key] = _valid(text, known.get(key or section))
    data = Path(values.get(("data", ""), "~/.aima")).expanduser().absolute()
    set_url, running = values.get(("nats", "url"), ""), published_url(data)
    port = int(values.get(("nats", "port"), "0")) or DEFAULT_PORT
    nats = NatsClient(
        url=set_url or running or f"nats://127.0.0.1:{port}",
        user=values.get(("nats", "user"), ""),
        password_file=values.get(("nats", "password_file"), ""),
        chosen=bool(set_url),
    )
    return ClientSettings(data, values.get(("node", "")) or default_node(), nats, file)


def _of_file(file: Path, *, required: bool) -> dict[tuple[str, str], str]:
    """Return the values of the settings file as texts, by section and key. A key outside any section is (key, "")."""
    try:
        text = file.read_text()
    except (FileNotFoundError, NotADirectoryError):
        if required:
            raise _Unusual from None
        return {}
    import tomllib

    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise _Unusual from None
    values: dict[tuple[str, str], str] = {}
    for section, value in content.items():
        if section in _TOP:
            values[section, ""] = _text(value, str, _TOP[section])
        elif not isinstance(value, dict):
            raise _Unusual
        else:
            for key, inner in value.items() if section in _SECTIONS else ():
                values[section, key] = _text(inner, _TYPES.get(key, str), _SECTIONS[section].get(key))
    return values


def _text(value: Any, kind: type, pattern: str | None) -> str:
    if type(value) is not kind:
        raise _Unusual
    return _valid(str(value).lower() if kind is bool else str(value), pattern)


def _valid(text: str, pattern: str | None) -> str:
    if pattern is None or not re.fullmatch(pattern, text):
        raise _Unusual
    return text
