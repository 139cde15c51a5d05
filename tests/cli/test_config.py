"""`aima config`, and the description of the settings in the documents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.generators import configuration
from services.cli.commands.config import fields, sections

ROOT = Path(__file__).parents[2]


def aima(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AIMA_")}
    return subprocess.run(
        [sys.executable, "-m", "services.cli.entry", "config", *arguments],
        env=kept | {"AIMA_DATA": str(folder)} | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def shown(folder: Path, *, form: str = "json", **environ: str) -> dict[str, tuple[Any, str]]:
    done = aima(folder, "show", "-o", form, **environ)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout) if form == "json" else yaml.safe_load(done.stdout)
    return {item["key"]: (item["value"], item["from"]) for item in found["settings"]}


def test_every_setting_is_shown_with_its_value_and_where_that_is_from(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        'node = "here"\n\n[service]\ndrain = 12\n\n[gateway]\nhosts = [\n  "a.example",\n  "b.example",\n]\n'
    )
    found = shown(
        tmp_path, AIMA_SERVICE_GRACE="7", AIMA_GATEWAY_CORS_ORIGINS="https://a, https://b", AIMA_GATEWAY_AUTH=""
    )
    assert set(found) == {f"{section}.{key}" if section else key for section, key, _ in fields(sections())}
    assert found["data"] == (str(tmp_path), "AIMA_DATA")
    assert found["node"] == ("here", f"{file}:1")
    assert found["service.drain"] == (12.0, f"{file}:4")
    assert found["service.grace"] == (7.0, "AIMA_SERVICE_GRACE")
    assert found["service.calm"] == (60.0, "default")
    assert found["gateway.hosts"] == (["a.example", "b.example"], f"{file}:7")
    assert found["gateway.cors_origins"] == (["https://a", "https://b"], "AIMA_GATEWAY_CORS_ORIGINS")
    assert found["gateway.auth"] == ("auto", "default")
    assert shown(tmp_path, form="yaml", AIMA_SERVICE_GRACE="7")["service.grace"] == (7.0, "AIMA_SERVICE_GRACE")


def test_the_address_of_a_bus_that_runs_is_shown_with_the_file_that_says_it(tmp_path: Path) -> None:
    (tmp_path / "nats.url").write_text("nats://127.0.0.1:4999\n")
    assert shown(tmp_path)["nats.url"] == ("nats://127.0.0.1:4999", str(tmp_path / "nats.url"))


@pytest.mark.parametrize("form", ["json", "yaml", "table"])
def test_no_secret_is_shown(tmp_path: Path, form: str) -> None:
    (tmp_path / "config.toml").write_text('[nats]\nurl = "nats://me:hunter2@there:4222"\n')
    done = aima(tmp_path, "show", "-o", form, AIMA_API_KEYS="ci:hunter2,me:hunter2", COLUMNS="300")
    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout
    assert "AIMA_API_KEYS" in done.stdout
    assert "nats://me:**********@there:4222" in done.stdout


def test_a_good_file_is_told_with_what_it_sets(tmp_path: Path) -> None:
    file = tmp_path / "good.toml"
    file.write_text('node = "here"\n[log]\nlevel = "debug"\n')
    done = aima(tmp_path, "check", str(file), "-o", "json", AIMA_LOG_LEVEL="no such level")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"file": str(file), "valid": True, "sets": ["node", "log.level"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gateway]\nport = 9090\n", ":2: gateway.port: unknown; expected one of addr, socket, "),
        ("[gate]\naddr = ':1'\n", ":1: gate: unknown; expected one of data, device, "),
        ("[service]\ndrain = 'long'\n", ":2: service.drain: Input should be a valid number"),
        ("[gateway]\ntls_cert = 'cert.pem'\n", ":1: gateway: Value error, set both tls_cert and tls_key, or neither"),
        ("[gateway]\nhosts = [\n  'a',\n  5,\n]\n", ":4: gateway.hosts.1: Input should be a valid string"),
        ("[gateway\n", ": not TOML: "),
    ],
)
def test_a_bad_file_is_told_with_line_and_key_and_the_exit_code_says_so(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    done = aima(tmp_path, "check", str(file), "-o", "json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["message"].startswith(f"{file}{said}")


def test_a_file_that_is_not_there_is_no_good_file(tmp_path: Path) -> None:
    done = aima(tmp_path, "check", str(tmp_path / "none.toml"), "-o", "json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["details"]["reason"] == "NO_CONFIG"


def test_a_variable_of_a_known_section_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    done = aima(tmp_path, "show", "-o", "json", AIMA_GATEWAY_PORT="1")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["message"].startswith("AIMA_GATEWAY_PORT: unknown; [gateway] has addr, ")
    assert aima(tmp_path, "show", AIMA_ELSEWHERE_PORT="1").returncode == 0  # another program's


def test_the_path_of_the_file_is_told_whether_it_is_there_or_not(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    assert json.loads(aima(tmp_path, "path", "-o", "json").stdout) == {"path": str(file), "exists": False}
    file.write_text("")
    assert json.loads(aima(tmp_path, "path", "-o", "json").stdout) == {"path": str(file), "exists": True}
    other = tmp_path / "other.toml"
    other.write_text("")
    assert aima(tmp_path, "path", "--config", str(other)).stdout == f"{other}\n"
    assert aima(tmp_path, "path", AIMA_CONFIG=str(other)).stdout == f"{other}\n"


def test_the_settings_reference_is_what_make_docs_writes() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == "\n".join(configuration.pages()).rstrip() + "\n"


def test_every_setting_explains_itself() -> None:
    for section, key, field in fields(sections()):
        assert field.description, f"{section}.{key}"
