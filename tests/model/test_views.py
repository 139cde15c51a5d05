"""What each event makes of the read table, and what callers see of a row."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

from aima_core.call import timestamp
from aima_core.store.records import Meta, Recorded
from aima_core.units import Event
from services.model import units as u
from services.model.domain import MODEL
from services.model.rules import views
from tests.model.test_decider import (
    COMPLETED,
    DAMAGED,
    DIGEST,
    FAILED,
    ID,
    IMPORTED,
    IMPORTED_PATH,
    PATH,
    PROGRESS,
    PULLED,
    PULLED_DELETED,
    REMOVED,
    REPO,
    VERIFIED,
    created,
    started,
    verify_started,
)

Row = dict[str, Any]


def rows_after(*events: Event) -> list[Row]:
    """Return the table's rows; the first event was recorded at 1, the next at 2 and so on."""
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    for statement in MODEL.tables.values():
        connection.execute(statement)
    for position, event in enumerate(events, 1):
        record = Recorded(position, event.stream, position, float(position), Meta(), event, f"log-{position}")
        for sql, values in MODEL.project(record):
            connection.execute(sql, values)
    rows = [dict(row) for row in connection.execute("SELECT * FROM models ORDER BY id")]
    connection.close()
    return rows


PULLING: Row = {
    "id": ID,
    "name": ID,
    "type": "",
    "format": "",
    "status": "pulling",
    "size": 0,
    "source": "huggingface",
    "repo": REPO,
    "tag": None,
    "path": "",
    "checksum": "",
    "facts": "{}",
    "progress": 0.0,
    "error": None,
    "created_at": 1.0,
    "changed_at": 1.0,
}
KNOWN: Row = {
    "name": "Tiny Llama",
    "type": "llm",
    "format": "gguf",
    "status": "ready",
    "size": 100,
    "path": PATH,
    "checksum": DIGEST,
    "facts": '{"architecture":"llama","context_length":2048}',
    "progress": 100.0,
}
READY: Row = PULLING | KNOWN | {"changed_at": 3.0}
PENDING: Row = PULLING | {"type": "llm", "status": "pending", "source": "local", "repo": ""}
FROM_FILES: Row = (
    PULLING
    | KNOWN
    | {"name": ID, "source": "import", "repo": "", "path": IMPORTED_PATH, "progress": 0.0}
    | {"created_at": 2.0, "changed_at": 2.0}
)

CASES: list[tuple[str, tuple[Event, ...], list[Row]]] = [
    ("pull started", (started(),), [PULLING]),
    ("pull progress", (started(), PROGRESS), [PULLING | {"progress": 25.0, "changed_at": 2.0}]),
    ("pull completed", (started(), PROGRESS, COMPLETED), [PULLING | {"progress": 100.0, "changed_at": 3.0}]),
    ("created by a pull", (started(), *PULLED), [READY]),
    (
        "pull failed",
        (started(), FAILED),
        [PULLING | {"status": "error", "error": "the hub has no maker/tiny", "changed_at": 2.0}],
    ),
    ("pulled again after a failure", (started(), FAILED, started(2)), [PULLING | {"changed_at": 3.0}]),
    (
        "pulled again because it is damaged",
        (started(), *PULLED, verify_started(2), DAMAGED, started(3)),
        [READY | {"status": "pulling", "progress": 0.0, "changed_at": 6.0}],
    ),
    ("created", (created(),), [PENDING]),
    ("imported", IMPORTED, [FROM_FILES]),
    (
        "files for what was created",
        (created(), *IMPORTED),
        [FROM_FILES | {"created_at": 1.0, "changed_at": 3.0}],
    ),
    ("verifying", (started(), *PULLED, verify_started(2)), [READY | {"status": "verifying", "changed_at": 4.0}]),
    ("verified", (started(), *PULLED, verify_started(2), VERIFIED), [READY | {"changed_at": 5.0}]),
    (
        "damaged",
        (started(), *PULLED, verify_started(2), DAMAGED),
        [READY | {"status": "error", "error": "missing: it", "changed_at": 5.0}],
    ),
    (
        "whole again",
        (started(), *PULLED, verify_started(2), DAMAGED, verify_started(3), VERIFIED),
        [READY | {"changed_at": 7.0}],
    ),
    ("deleted", (started(), *PULLED, PULLED_DELETED), []),
    ("removed", (started(), *PULLED, PULLED_DELETED, REMOVED), []),
    (
        "another stays",
        (created("other", model_id="other"), *IMPORTED, PULLED_DELETED),
        [
            PENDING | {"id": "other", "name": "other"},
        ],
    ),
]


@pytest.mark.parametrize(("events", "rows"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_an_event_leaves_the_rows(events: tuple[Event, ...], rows: list[Row]) -> None:
    assert rows_after(*events) == rows


def test_every_event_is_among_the_cases() -> None:
    assert {type(event) for _, events, _ in CASES for event in events} == set(u.EVENTS)


def test_a_caller_sees_the_whole_row() -> None:
    facts: u.Facts = {
        "architecture": "llama",
        "parameters": 134_515_008,
        "quantization": "Q4_1",
        "context_length": 8192,
        "layers": 30,
        "kv_heads": 3,
        "key_length": 64,
        "value_length": 64,
        "embedding_length": 576,
        "vocabulary": 49_152,
        "tools": True,
        "tensors_end": 98_362_432,
    }
    (row,) = rows_after(created("SmolLM2", PATH, size=98_362_432, facts=facts))
    assert views.view(row) == u.ModelView(
        id=ID,
        name="SmolLM2",
        type="llm",
        format="gguf",
        status="ready",
        size=98_362_432,
        requirements=u.Requirements(
            weights=98_362_432,
            kv_bytes_per_token=30 * 3 * (64 + 64) * 2,
            overhead=64 * 2**20 + 512 * 4 * (49_152 + 16 * 576),
            context_length=8192,
        ),
        source="local",
        repo="",
        tag=None,
        path=PATH,
        checksum=DIGEST,
        architecture="llama",
        parameters=134_515_008,
        quantization="Q4_1",
        tools=True,
        progress=0.0,
        error=None,
        created_at=timestamp(1.0),
        changed_at=timestamp(1.0),
    )
    weights_and_overhead = 98_362_432 + 64 * 2**20 + 512 * 4 * (49_152 + 16 * 576)
    assert views.estimated(row, None, None) == u.Estimate(
        memory_min=weights_and_overhead + 2048 * 23_040, memory_recommended=weights_and_overhead + 4 * 8192 * 23_040
    )
    assert views.estimated(row, 1000, 2) == u.Estimate(
        memory_min=weights_and_overhead + 2 * 1000 * 23_040, memory_recommended=weights_and_overhead + 2 * 1000 * 23_040
    )


def test_a_model_without_files_requires_nothing_yet() -> None:
    (row,) = rows_after(started())
    seen = views.view(row)
    nothing = u.Requirements(weights=0, kv_bytes_per_token=0, overhead=0, context_length=0)
    assert (seen.requirements, seen.type, seen.architecture, seen.tools) == (nothing, "", "", False)


def test_engines_fit_where_they_read_the_format_and_serve_the_type() -> None:
    rows = rows_after(
        created("b", "/b", model_id="b"),
        created("a", "/a", model_id="a"),
        created("e", "/e", model_id="e", type="embedding", format="e5s"),
    )
    engines = [
        {"name": "llamacpp", "model_types": ["llm", "embedding"], "formats": ["gguf"]},
        {"name": "another", "model_types": ["llm"], "formats": ["gguf", "safetensors"]},
    ]
    assert views.compatibility(rows, engines) == u.Compatibility(
        items=[
            u.Fit(type="embedding", format="e5s", models=["e"], engines=[]),
            u.Fit(type="llm", format="gguf", models=["a", "b"], engines=["another", "llamacpp"]),
        ],
        engines_known=True,
    )
    assert views.compatibility(rows[:1], None) == u.Compatibility(
        items=[u.Fit(type="llm", format="gguf", models=["a"], engines=[])], engines_known=False
    )
