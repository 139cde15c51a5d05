"""The logs of every release so far decode, fold and project in this one."""

from __future__ import annotations

import importlib
import json
import sqlite3
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aima_core import VERSION
from aima_core.domain import Domain
from aima_core.store.records import Codec, Meta, Recorded
from aima_core.testing import NOON

GOLDEN = Path(__file__).parent / "golden"
LOGS = sorted(GOLDEN.glob("*/*.jsonl"))


def domain_of(log: Path) -> Domain[Any]:
    module = importlib.import_module(f"services.{log.stem}.domain")
    (found,) = (value for value in vars(module).values() if isinstance(value, Domain) and value.name == log.stem)
    return found


def runs(log: Path) -> Iterator[list[dict[str, Any]]]:
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for _, events in groupby(rows, key=lambda row: row["run"]):
        yield list(events)


@pytest.mark.parametrize("log", LOGS, ids=lambda log: f"{log.parent.name} {log.stem}")
def test_a_log_of_that_release_decodes_folds_and_projects(log: Path) -> None:
    domain = domain_of(log)
    codec = Codec(domain.events, domain.upcasters)
    encode, decode = msgspec.json.encode, msgspec.json.Decoder(domain.state).decode
    count = 0
    for rows in runs(log):
        world: dict[str, Any] = {}
        connection = sqlite3.connect(":memory:")
        for statement in domain.tables.values():
            connection.execute(statement)
        for position, row in enumerate(rows, 1):
            event = codec.decode(row["type"], encode(row["data"]))
            state = domain.evolve(world.get(event.stream), event)
            if state is None:
                world.pop(event.stream, None)
            else:
                assert decode(encode(state)) == state
                list(domain.todo(state))
                world[event.stream] = state
            recorded = Recorded(position, event.stream, position, NOON + position, Meta(), event, f"log-{position}")
            for sql, values in domain.project(recorded):
                connection.execute(sql, values)
            count += 1
        connection.close()
    assert count


@pytest.mark.parametrize("log", LOGS, ids=lambda log: f"{log.parent.name} {log.stem}")
def test_what_that_release_wrote_is_still_all_there(log: Path) -> None:
    """Decoding drops no field: a fact that was written must not get lost by renaming it."""
    domain = domain_of(log)
    codec = Codec(domain.events, domain.upcasters)
    for rows in runs(log):
        for row in rows:
            if row["type"] in domain.upcasters:
                continue
            event = codec.decode(row["type"], msgspec.json.encode(row["data"]))
            read = json.loads(msgspec.json.encode(event))
            assert read | row["data"] == read


def test_the_first_release_has_a_log_of_each_of_these_domains() -> None:
    assert VERSION
    recorded = {log.stem for log in LOGS if log.parent.name == "0.1.0"}
    assert recorded >= {"engine", "service", "inference"}
