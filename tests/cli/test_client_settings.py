"""The fast reader of a client's settings has the same results as the reader of all settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aima_core.bus.address import URL_FILE
from aima_core.errors import AimaError
from aima_core.settings import CORE_SECTIONS, General, chosen_url, load
from services.cli.door import client_settings
from services.cli.door.client_settings import _SECTIONS, _TOP, ClientSettings, read

TEXTS = [
    "",
    "true",
    "off",
    "7",
    "07",
    "65535",
    "70000",
    "-1",
    "1.5",
    "info",
    "loud",
    "a b",
    "me",
    "nats://there:1",
    "~/x",
]
VALUES = [
    '""',
    '"me"',
    '"nats://there:1"',
    "7",
    "70000",
    "true",
    '"true"',
    "1.5",
    "[]",
    "{ port = 1 }",
    '"debug"',
    '"a b"',
]
KEYS = ["url", "port", "users", "user", "password_file", "level", "colour"]
NAMES = ["AIMA_NODE", "AIMA_NATS", "AIMA_LOG", "AIMA_URL", "AIMA_ENGINE_PORT", "AIMA_API_KEYS"] + [
    f"AIMA_{section}_{key.upper()}" for section in ("NATS", "LOG") for key in KEYS
]
FILES = st.lists(
    st.tuples(
        st.sampled_from(["", "nats", "log", "engine"]),
        st.sampled_from([*KEYS, "node", "data"]),
        st.sampled_from(VALUES),
    ),
    max_size=4,
)


def slow(config: Path | None) -> Any:
    """Return the settings that the reader of all settings returns."""
    loaded = load({}, path=config, partial=True)
    nats = loaded.nats
    found = client_settings.NatsClient(nats.url, nats.user, nats.password_file, bool(chosen_url(path=config)))
    return ClientSettings(loaded.data, loaded.node, found, loaded.file)


def outcome(reader: Any, config: Path | None) -> Any:
    try:
        return reader(config)
    except AimaError as error:
        return error.body()


def toml(lines: list[tuple[str, str, str]]) -> str:
    """Return a settings file. A key in two lines makes the file invalid, on purpose."""
    sections = sorted({section for section, _, _ in lines})
    return "\n".join(
        "\n".join(
            [f"[{name}]" if name else "", *(f"{key} = {value}" for section, key, value in lines if section == name)]
        )
        for name in sections
    )


@given(
    environ=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(TEXTS), max_size=4),
    lines=st.one_of(st.none(), FILES),
    running=st.sampled_from(["", "nats://127.0.0.1:4999\n"]),
    named=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
def test_both_readers_read_the_same_and_refuse_the_same(
    tmp_path: Path, environ: dict[str, str], lines: list[tuple[str, str, str]] | None, running: str, named: bool
) -> None:
    file = tmp_path / "config.toml"
    file.unlink(missing_ok=True)
    if lines is not None:
        file.write_text(toml(lines))
    (tmp_path / URL_FILE).write_text(running)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIMA_DATA", str(tmp_path))
        for name, text in environ.items():
            patch.setenv(name, text)
        config = file if named else None
        assert outcome(read, config) == outcome(slow, config)


def test_the_quick_reader_knows_every_key() -> None:
    assert set(_TOP) == set(General.model_fields)
    assert {name: set(keys) for name, keys in _SECTIONS.items()} == {
        name: set(model.model_fields) for name, model in CORE_SECTIONS.items()
    }


@pytest.mark.parametrize("text", ["", 'node = "n1"\n[nats]\nport = 4300\nusers = true\n[gateway]\nhosts = ["a"]\n'])
def test_plain_settings_need_no_second_look(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    environ = {"AIMA_DATA": str(tmp_path), "AIMA_NATS_USER": "me", "AIMA_ENGINE_PORT_MIN": "x", "AIMA_URL": "http://x"}
    found = client_settings._plain(None, environ)
    assert (found.data, found.nats.user, found.nats.chosen) == (tmp_path, "me", False)
    assert (found.node, found.nats.url) == ("n1", "nats://127.0.0.1:4300") if text else found.nats.url.endswith(":4222")
