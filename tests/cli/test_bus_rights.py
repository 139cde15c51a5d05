"""The rights of each user of the bus, derived from the domains."""

from __future__ import annotations

import functools
import json
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aima_core.bus import nats_server
from aima_core.bus.credentials import BusUser, bus_user
from aima_core.domain import Domain
from aima_core.errors import ValidationFailed
from aima_core.settings import load
from services.cli import domains
from services.cli.bus import users
from services.cli.bus.calls import calls_of
from services.cli.bus.rights import AGENT, DOOR, OBSERVER, Rights, rights

KNOWN: dict[str, Domain[Any]] = {name: domains.load(name) for name in domains.names()}

# each domain with the others that it asks: what it names in its source
ASKS = {
    "device": set(),
    "engine": {"model", "resource"},
    "inference": {"model", "service"},
    "model": {"engine", "service"},
    "resource": set(),
    "service": {"device", "engine", "inference", "model", "resource"},
}


@functools.cache
def found() -> dict[str, Rights]:
    """Return the rights of each user, once for all tests: reading the source of all domains takes a second."""
    return rights(KNOWN)


def covers(pattern: str, subject: str) -> bool:
    """Return whether a subject matches a pattern by the rules of nats-server."""
    found = re.escape(pattern).replace(r"\*", r"[^.]+").replace(">", ".+")
    return re.fullmatch(found, subject) is not None


def may_publish(right: Rights, subject: str) -> bool:
    return any(covers(p, subject) for p in right.publish) and not any(covers(p, subject) for p in right.denied)


def units(risk: str = "") -> list[str]:
    return [u.spec.name for d in KNOWN.values() for u in d.units if not risk or u.spec.risk == risk]


def test_what_a_domain_asks_is_found_in_its_source() -> None:
    found = {name: {unit.partition(".")[0] for unit in calls_of(name, KNOWN)} for name in ASKS}
    assert found == ASKS
    assert {"engine.start", "engine.stop", "model.get"} <= calls_of("service", KNOWN)
    assert "service.list" in calls_of("model", KNOWN)  # asked by its name
    assert calls_of("engine", KNOWN) <= set(units())


def test_there_is_a_user_for_each_domain_and_each_kind_of_caller() -> None:
    assert set(found()) == {*domains.names(), AGENT, OBSERVER, "operator"}


def test_only_the_doors_the_operator_and_who_has_to_may_ask_what_is_of_high_risk() -> None:
    assert units("high")
    for name, right in found().items():
        reached = {unit for unit in units("high") if may_publish(right, f"aima.{unit}")}
        wanted = set(units("high")) if name in (DOOR, "operator") else set()
        if name in ASKS:
            wanted = set(units("high")) & calls_of(name, KNOWN)
        assert reached == wanted, name


@pytest.mark.parametrize("name", [*domains.names(), AGENT, OBSERVER])
def test_nobody_else_tells_a_domains_events_answers_for_it_or_reads_its_inbox(name: str) -> None:
    right = found()[name]
    for other in (each for each in KNOWN if each != name):
        assert not may_publish(right, f"aima.events.{other}.happened.x")
        assert not may_publish(right, f"$KV.aima-resources.{other}.x")
        assert not any(covers(pattern, f"aima.{other}.get") for pattern in right.subscribe)
        assert not any(covers(pattern, f"$SRV.INFO.{other}") for pattern in right.subscribe)
        assert not any(covers(pattern, f"_INBOX.{other}.x") for pattern in right.subscribe)
    for change in ("STREAM.DELETE", "STREAM.UPDATE", "STREAM.PURGE", "STREAM.MSG.DELETE"):
        assert not may_publish(right, f"$JS.API.{change}.AIMA_EVENTS")


@pytest.mark.parametrize("name", ASKS)
def test_a_domain_answers_whoever_asks_it_and_nobody_else(name: str) -> None:
    right = found()[name]
    askers = {other for other in ASKS if name in {*ASKS[other], *KNOWN[other].follows}}
    answered = {user for user in found() if may_publish(right, f"_INBOX.{user}.x")}
    assert answered == askers | {AGENT, DOOR, "operator"}


def test_the_users_of_the_folder_are_written_once_and_kept(tmp_path: Path) -> None:
    first = aima(tmp_path, "bus", "users", "-o", "json")
    assert {user["user"] for user in first["users"]} == set(found())
    agent = next(user for user in first["users"] if user["user"] == AGENT)
    assert agent["inbox"] == "_INBOX.agent.>"
    password = Path(agent["password_file"]).read_text()
    assert len(password.strip()) >= 43  # 256 bits
    assert stat.S_IMODE(Path(agent["password_file"]).stat().st_mode) == 0o600
    assert aima(tmp_path, "bus", "users", "-o", "json") == first
    assert Path(agent["password_file"]).read_text() == password
    Path(agent["password_file"]).unlink()
    aima(tmp_path, "bus", "users", "-o", "json")
    assert Path(agent["password_file"]).read_text() != password


def test_nats_server_takes_the_configuration(tmp_path: Path) -> None:
    users.write(tmp_path, KNOWN)
    done = subprocess.run(
        [nats_server.find_binary(), "-t", "-c", str(tmp_path / "nats" / "users.conf")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "plaintext" not in done.stderr.lower()


def test_who_we_are_on_the_bus_is_said_or_found(tmp_path: Path) -> None:
    def found(**environ: str) -> BusUser | None:
        return bus_user(load({}, environ={"AIMA_DATA": str(tmp_path), **environ}, partial=True), "operator")

    assert found() is None
    folder = tmp_path / "nats" / "users"
    folder.mkdir(parents=True)
    (folder / "operator").write_text("o\n")
    (folder / "agent").write_text("a\n")
    (tmp_path / "other").write_text("x\n")
    assert found() == BusUser("operator", "o")
    assert found(AIMA_NATS_USER="agent") == BusUser("agent", "a")
    assert found(AIMA_NATS_USER="nobody") is None
    assert found(AIMA_NATS_URL="nats://me:p%40ss@there:1") == BusUser("me", "p@ss")
    assert found(AIMA_NATS_PASSWORD_FILE=str(tmp_path / "other"), AIMA_NATS_USER="me") == BusUser("me", "x")
    with pytest.raises(ValidationFailed, match=r"nats\.password_file"):
        found(AIMA_NATS_PASSWORD_FILE=str(tmp_path / "none"))
    assert "p@ss" not in repr(found(AIMA_NATS_URL="nats://me:p%40ss@there:1"))


def aima(folder: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "services.cli.entry", *arguments],
        env={"AIMA_DATA": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
