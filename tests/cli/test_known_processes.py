"""The file with a bus's known processes may be missing or damaged, and is never more than a hint."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from services.cli.door.client_settings import ClientSettings, NatsClient
from services.cli.door.known_processes import recall, remember

HERE = [("model", "node"), ("service", "node")]


def of(data: Path, url: str = "nats://me:hunter2@there:4222") -> ClientSettings:
    return ClientSettings(data, "node", NatsClient(url, "", "", chosen=True), data / "config.toml")


def file_of(data: Path) -> Path:
    remember(of(data), HERE)
    (file,) = (data / "cli").iterdir()
    return file


def test_what_served_on_a_bus_is_known_for_that_bus_alone(tmp_path: Path) -> None:
    assert recall(of(tmp_path)) == set()
    remember(of(tmp_path), HERE)
    assert recall(of(tmp_path)) == set(HERE)
    assert recall(of(tmp_path, "nats://elsewhere:4222")) == set()
    remember(of(tmp_path), HERE[:1])
    assert recall(of(tmp_path)) == set(HERE[:1])


def test_only_the_user_can_read_it_and_it_has_no_password(tmp_path: Path) -> None:
    file = file_of(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert "hunter2" not in file.read_text()
    assert "there" not in file.read_text()


def test_it_is_written_only_if_something_is_new(tmp_path: Path) -> None:
    file = file_of(tmp_path)
    before = file.stat().st_ino
    remember(of(tmp_path), reversed(HERE))  # type: ignore[arg-type]
    assert file.stat().st_ino == before


def test_it_does_not_grow_without_end(tmp_path: Path) -> None:
    for number in range(50):
        remember(of(tmp_path, f"nats://there:{number}"), HERE)
    assert [number for number in range(50) if recall(of(tmp_path, f"nats://there:{number}"))] == list(range(42, 50))
    remember(of(tmp_path), [(f"domain{number}", "node") for number in range(1000)])
    remember(of(tmp_path), [("x" * 1000, "node")])
    assert recall(of(tmp_path)) == set()
    assert file_of(tmp_path).stat().st_size < 4096


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"buses": 1}', '{"buses": {"a": [["b"]]}}', "\xff", "[" * 100_000, '{"buses": {}}' + " " * 70_000],
    ids=["empty", "cut", "list", "number", "short", "not text", "deep", "large"],
)
def test_a_damaged_file_is_no_file_and_is_replaced(tmp_path: Path, content: str) -> None:
    file = file_of(tmp_path)
    file.write_bytes(content.encode("latin-1"))
    assert recall(of(tmp_path)) == set()
    remember(of(tmp_path), HERE)
    assert recall(of(tmp_path)) == set(HERE)


def test_a_file_that_others_may_write_is_not_read(tmp_path: Path) -> None:
    file = file_of(tmp_path)
    file.chmod(0o622)
    assert recall(of(tmp_path)) == set()


def test_neither_a_link_nor_a_pipe_nor_a_folder_in_its_place_is_followed(tmp_path: Path) -> None:
    file = file_of(tmp_path)
    elsewhere = file.rename(tmp_path / "elsewhere")
    file.symlink_to(elsewhere)
    assert recall(of(tmp_path)) == set()
    file.unlink()
    os.mkfifo(file)
    assert recall(of(tmp_path)) == set()
    file.unlink()
    file.mkdir()
    assert recall(of(tmp_path)) == set()
    remember(of(tmp_path), HERE)
    assert recall(of(tmp_path)) == set()


def test_a_data_folder_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    remember(of(tmp_path / "data"), HERE)
    assert recall(of(tmp_path / "data")) == set()
