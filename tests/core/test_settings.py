from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, model_validator

from aima_core.errors import AimaError
from aima_core.settings import Section, chosen_url, load
from aima_core.system.node import default_node
from tests.core.toy import CounterSettings

SECTIONS = {"counter": CounterSettings}


class Range(Section):
    """Settings with parts, and with a rule between them."""

    tags: tuple[str, ...] = ()
    low: int = 0
    high: int = 9

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


def read(folder: Path, text: str | None = None, **environ: str) -> Any:
    if text is not None:
        (folder / "config.toml").write_text(text)
    return load(SECTIONS, environ={"AIMA_DATA": str(folder), **environ})


def fault(folder: Path, text: str | None = None, **environ: str) -> AimaError:
    with pytest.raises(AimaError) as refusal:
        read(folder, text, **environ)
    assert refusal.value.status == 400
    return refusal.value


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    settings = read(tmp_path)
    assert settings.data == tmp_path
    assert settings.node == default_node()
    assert settings.nats.url == "nats://127.0.0.1:4222"
    assert read(tmp_path, AIMA_NATS_PORT="4300").nats.url == "nats://127.0.0.1:4300"
    assert settings.log.level == "info"
    assert settings.of("counter") == CounterSettings(step=1, name="one")


def test_the_file_goes_over_the_defaults(tmp_path: Path) -> None:
    settings = read(
        tmp_path, 'node = "n1"\n[nats]\nurl = "nats://there:1"\n[log]\nlevel = "debug"\n[counter]\nstep = 7\n'
    )
    assert (settings.node, settings.nats.url, settings.log.level) == ("n1", "nats://there:1", "debug")
    assert settings.of("counter") == CounterSettings(step=7, name="one")


def test_the_environment_goes_over_the_file(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        'node = "n1"\n[counter]\nstep = 7\nname = "file"\n',
        AIMA_COUNTER_STEP="8",
        AIMA_NODE="n2",
        AIMA_LOG_LEVEL="error",
        AIMA_NATS_URL="nats://env:1",
    )
    assert (settings.node, settings.log.level, settings.nats.url) == ("n2", "error", "nats://env:1")
    assert settings.of("counter") == CounterSettings(step=8, name="file")


def test_what_is_empty_in_the_environment_is_not_set(tmp_path: Path) -> None:
    assert read(tmp_path, "[counter]\nstep = 7\n", AIMA_COUNTER_STEP="").of("counter").step == 7


def test_what_others_keep_in_the_environment_is_none_of_ours(tmp_path: Path) -> None:
    read(tmp_path, AIMA_CONFIGURATION="x", AIMAX_COUNTER_STEP="x", COUNTER_STEP="x")


def test_the_server_in_use_is_found_in_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "nats.url").write_text("nats://127.0.0.1:4999\n")
    assert read(tmp_path).nats.url == "nats://127.0.0.1:4999"
    assert read(tmp_path, AIMA_NATS_URL="nats://env:1").nats.url == "nats://env:1"


def test_the_port_of_our_own_server_is_kept_beside_the_url_in_use(tmp_path: Path) -> None:
    assert read(tmp_path, "[nats]\nport = 4333\n").nats.port == 4333
    assert read(tmp_path, AIMA_NATS_PORT="4334").nats.port == 4334


def test_a_url_that_somebody_chose_is_told_from_the_one_that_is_ours(tmp_path: Path) -> None:
    environ = {"AIMA_DATA": str(tmp_path)}
    assert chosen_url(environ) == ""
    (tmp_path / "config.toml").write_text('[nats]\nurl = "nats://file:1"\n')
    assert chosen_url(environ) == "nats://file:1"
    assert chosen_url({**environ, "AIMA_NATS_URL": "nats://env:1"}) == "nats://env:1"


def test_a_file_may_be_named(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("[counter]\nstep = 3\n")
    assert read(tmp_path, "[counter]\nstep = 7\n", AIMA_CONFIG=str(other)).of("counter").step == 3
    environ = {"AIMA_DATA": str(tmp_path)}
    assert load(SECTIONS, path=other, environ=environ).of("counter").step == 3


def test_a_named_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    error = fault(tmp_path, AIMA_CONFIG=str(tmp_path / "none.toml"))
    assert error.details == {"reason": "NO_CONFIG", "file": str(tmp_path / "none.toml")}


@pytest.mark.parametrize(
    ("text", "line", "key", "expected"),
    [
        ("\nnodes = 1\n", 2, "nodes", "unknown; expected one of counter, data, log, nats, node"),
        ("# a\n[counters]\nstep = 1\n", 2, "counters", "unknown; expected one of counter, data, log, nats, node"),
        ("[counter]\nstep = 1\n\nstride = 2\n", 4, "counter.stride", "unknown; expected one of step, name"),
        ("[counter]\nstep = 0\n", 2, "counter.step", "Input should be greater than or equal to 1"),
        ("[counter]\n  'step' = 'x'\n", 2, "counter.step", "Input should be a valid integer, unable to parse"),
        ("[log]\nlevel = 'loud'\n", 2, "log.level", "Input should be 'debug', 'info', 'warning' or 'error'"),
        ("[counter]\nstep = 1\n[log]\nlevel = 1\n", 4, "log.level", "Input should be 'debug'"),
        ("node = 'a b'\n", 1, "node", "String should match pattern '^[A-Za-z0-9-]{1,63}$'"),
        ("\ncounter = 5\n", 2, "counter", "Input should be a valid dictionary"),
        ("[[counter]]\nstep = 1\n", 1, "counter", "Input should be a valid dictionary"),
        ("counter.step = 0\n", 1, "counter.step", "Input should be greater than or equal to 1"),
        ("counter.name = 'x'\ncounter.step = 0\n", 2, "counter.step", "Input should be greater than or equal to 1"),
        ("\ncounter = { name = 'x', step = 0 }\n", 2, "counter.step", "Input should be greater than or equal to 1"),
        ("[counter]\nstep = 1\n[counter.more]\nx = 1\n", 3, "counter.more", "unknown; expected one of step, name"),
        ("[counter.more]\nx = 1\n", 1, "counter.more", "unknown; expected one of step, name"),
        ('[counter]\nname = """\nstep = 0\n"""\nstep = 0\n', 5, "counter.step", "Input should be greater"),
        ("[counter]\nname = [\n'a']\n", 2, "counter.name", "Input should be a valid string"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_line_key_and_what_was_expected(
    tmp_path: Path, text: str, line: int, key: str, expected: str
) -> None:
    error = fault(tmp_path, text)
    assert error.reason == "BAD_CONFIG"
    assert error.details["file"] == str(tmp_path / "config.toml")
    assert (error.details["line"], error.details["key"]) == (line, key)
    assert error.details["expected"].startswith(expected)
    assert error.message.startswith(f"{tmp_path / 'config.toml'}:{line}: {key}: {expected}")


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    error = fault(tmp_path, "[counter]\nstep = 0\nstride = 1\n[conuter]\n", AIMA_LOG_LEVELS="all")
    first, *told = error.message.splitlines()
    assert first == "4 settings are wrong:"
    assert [line.strip().removeprefix(f"{tmp_path}/").partition(": Input")[0] for line in told] == [
        "AIMA_LOG_LEVELS: unknown; [log] has level",
        "config.toml:4: conuter: unknown; expected one of counter, data, log, nats, node",
        "config.toml:2: counter.step",
        "config.toml:3: counter.stride: unknown; expected one of step, name",
    ]
    keys = [each["key"] for each in error.details["faults"]]
    assert keys == ["AIMA_LOG_LEVELS", "conuter", "counter.step", "counter.stride"]


@pytest.mark.parametrize("text", ["[counter\n", "step = \n", "a = 1\na = 2\n", "\0", "[counter]\nstep = 1 2"])
def test_a_file_that_is_not_toml_is_named_with_the_line(tmp_path: Path, text: str) -> None:
    error = fault(tmp_path, text)
    assert error.details == {"reason": "BAD_CONFIG", "file": str(tmp_path / "config.toml")}
    assert error.message.startswith(f"{tmp_path / 'config.toml'}: not TOML: ")
    assert "line" in error.message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    assert fault(tmp_path).details == {"reason": "BAD_CONFIG", "file": str(tmp_path / "config.toml")}
    (tmp_path / "config.toml").unlink()
    (tmp_path / "config.toml").mkdir()
    assert fault(tmp_path).details == {"reason": "BAD_CONFIG", "file": str(tmp_path / "config.toml")}


def test_what_is_wrong_in_the_environment_is_named_as_it_stands_there(tmp_path: Path) -> None:
    text = "[counter]\nstep = 5\n"  # the file is not to blame
    error = fault(tmp_path, text, AIMA_COUNTER_STEP="none")
    assert error.message.startswith("AIMA_COUNTER_STEP: counter.step: Input should be a valid integer")
    assert error.details["key"] == "counter.step"
    error = fault(tmp_path, text, AIMA_COUNTER_STRIDE="1")
    assert error.message == "AIMA_COUNTER_STRIDE: unknown; [counter] has step, name"
    error = fault(tmp_path, text, AIMA_NODE="a b")
    assert error.message.startswith("AIMA_NODE: node: String should match pattern")


def test_a_value_of_the_environment_is_not_repeated(tmp_path: Path) -> None:
    assert "hunter2" not in str(fault(tmp_path, AIMA_COUNTER_STEP="hunter2").body())


def test_a_value_with_parts_is_named_with_the_line_of_the_part(tmp_path: Path) -> None:
    table = {
        "[range]\ntags = [\n  'a',\n  1,\n]\n": (4, "range.tags.1"),
        "[range]\nlow = 2\nhigh = 1\n": (1, "range"),  # the rule between them
        "range.low = 2\nrange.high = 1\n": (1, "range"),
    }
    for text, where in table.items():
        (tmp_path / "config.toml").write_text(text)
        with pytest.raises(AimaError) as refusal:
            load({"range": Range}, environ={"AIMA_DATA": str(tmp_path)})
        assert (refusal.value.details["line"], refusal.value.details["key"]) == where


def test_where_each_value_is_from_is_known(tmp_path: Path) -> None:
    (tmp_path / "nats.url").write_text("nats://127.0.0.1:4999\n")
    settings = read(tmp_path, "[counter]\n\nstep = 5\nname = 'x'\n", AIMA_COUNTER_NAME="y", AIMA_LOG_LEVEL="error")
    file = tmp_path / "config.toml"
    assert settings.file == file
    assert settings.origins == {
        "data": "AIMA_DATA",
        "nats.url": str(tmp_path / "nats.url"),
        "log.level": "AIMA_LOG_LEVEL",
        "counter": f"{file}:1",
        "counter.step": f"{file}:3",
        "counter.name": "AIMA_COUNTER_NAME",
    }


class Keys(Section):
    """Settings that go by a second name, too."""

    api_keys: str = Field("", max_length=5)


def test_a_second_name_of_a_variable_gives_way_to_the_first(tmp_path: Path) -> None:
    def found(**environ: str) -> Any:
        return load({"gateway": Keys}, environ={"AIMA_DATA": str(tmp_path), **environ})

    assert found(AIMA_API_KEYS="a").of("gateway").api_keys == "a"
    assert found(AIMA_API_KEYS="a").origins["gateway.api_keys"] == "AIMA_API_KEYS"
    both = found(AIMA_GATEWAY_API_KEYS="b", AIMA_API_KEYS="a")
    assert (both.of("gateway").api_keys, both.origins["gateway.api_keys"]) == ("b", "AIMA_GATEWAY_API_KEYS")
    with pytest.raises(AimaError, match=r"^AIMA_API_KEYS: gateway\.api_keys: String should have at most 5 characters"):
        found(AIMA_API_KEYS="too long")
