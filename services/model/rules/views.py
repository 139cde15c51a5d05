"""The read table of the model domain, one row per model, and its views. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, assert_never, cast

import msgspec

from aima_core.call import timestamp
from aima_core.store.records import Recorded, Statement
from services.model import units as u
from services.model.headers.model_file import ModelFile
from services.model.rules.estimate import estimate, memory_min, memory_recommended

TABLES = {
    "models": (
        "CREATE TABLE models (id TEXT PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, format TEXT NOT NULL,"
        " status TEXT NOT NULL, size INTEGER NOT NULL, source TEXT NOT NULL, repo TEXT NOT NULL, tag TEXT,"
        " path TEXT NOT NULL, checksum TEXT NOT NULL, facts TEXT NOT NULL, progress REAL NOT NULL, error TEXT,"
        " created_at REAL NOT NULL, changed_at REAL NOT NULL)"
    )
}

PRESENT = "(SELECT * FROM models WHERE status <> 'error' OR path <> '')"
"""The rows without the pulls that have failed and left no files."""

_PULL_STARTED = (
    "INSERT INTO models VALUES (?, ?, ?, ?, 'pulling', 0, ?, ?, ?, '', '', '{}', 0, NULL, ?, ?)"
    " ON CONFLICT (id) DO UPDATE SET status = 'pulling', progress = 0, error = NULL, changed_at = excluded.changed_at"
)
_CREATED = (
    "INSERT INTO models VALUES (?, ?, ?, ?, ?, ?, ?, '', NULL, ?, ?, ?, 0, NULL, ?, ?)"
    " ON CONFLICT (id) DO UPDATE SET name = excluded.name, type = excluded.type, format = excluded.format,"
    " status = excluded.status, size = excluded.size, source = excluded.source, path = excluded.path,"
    " checksum = excluded.checksum, facts = excluded.facts, error = NULL, changed_at = excluded.changed_at"
)


def project(recorded: Recorded) -> Iterable[Statement]:
    """Return the statements that apply an event to the table."""
    event, at = cast(u.Events, recorded.event), recorded.recorded_at
    match event:
        case u.PullStarted(model_id=model_id):
            of_hub = event.source, event.repo, event.tag
            return [(_PULL_STARTED, (model_id, model_id, event.type, event.format, *of_hub, at, at))]
        case u.PullProgress():
            return [_change(event.model_id, at, progress=event.progress)]
        case u.PullCompleted():
            return [_change(event.model_id, at, progress=100.0)]
        case u.PullFailed():
            return [_change(event.model_id, at, status="error", error=event.error)]
        case u.ModelCreated():
            status = "ready" if event.path else "pending"
            facts = msgspec.json.encode(event.facts).decode()
            about = (event.model_id, event.name, event.type, event.format, status, event.size, event.source)
            return [(_CREATED, (*about, event.path, event.checksum, facts, at, at))]
        case u.VerifyStarted():
            return [_change(event.model_id, at, status="verifying")]
        case u.ModelVerified(intact=True):
            return [_change(event.model_id, at, status="ready", error=None)]
        case u.ModelVerified():
            return [_change(event.model_id, at, status="error", error="; ".join(event.issues))]
        case u.ModelDeleted():
            return [("DELETE FROM models WHERE id = ?", (event.model_id,))]
        case u.ModelImported() | u.FilesRemoved():
            return []
        case _:
            assert_never(event)


def _change(model_id: str, at: float, **columns: Any) -> Statement:
    # the column names come from this file, only the values from events
    named = ", ".join(f"{column} = ?" for column in columns)
    return f"UPDATE models SET {named}, changed_at = ? WHERE id = ?", (*columns.values(), at, model_id)  # noqa: S608


def view(row: Mapping[str, Any]) -> u.ModelView:
    """Return the view of a row."""
    facts = msgspec.json.decode(row["facts"])
    copied = ("id", "name", "type", "format", "status", "size", "source", "repo", "tag", "path", "checksum")
    return u.ModelView(
        **{column: row[column] for column in (*copied, "progress", "error")},
        requirements=requirements(row),
        architecture=facts.get("architecture") or "",
        parameters=facts.get("parameters"),
        quantization=facts.get("quantization"),
        tools=bool(facts.get("tools")),
        created_at=timestamp(row["created_at"]),
        changed_at=timestamp(row["changed_at"]),
    )


def requirements(row: Mapping[str, Any]) -> u.Requirements:
    """Return the memory to serve the model; all zeros while the model has no files."""
    if not row["path"]:
        return u.Requirements(weights=0, kv_bytes_per_token=0, overhead=0, context_length=0)
    file = model_file(row)
    base = estimate(file, context_length=1)
    context = file.context_length or 0
    return u.Requirements(
        weights=base.weights,
        kv_bytes_per_token=base.kv_cache,
        overhead=base.overhead,
        context_length=context,
        basis=_basis(row),
    )


def estimated(row: Mapping[str, Any], context_length: int | None, slots: int | None) -> u.Estimate:
    """Return the minimum and the recommended memory. `context_length` and `slots` replace the defaults of both."""
    file = model_file(row)
    return u.Estimate(
        memory_min=memory_min(file, context_length, slots),
        memory_recommended=memory_recommended(file, context_length, slots),
        basis=_basis(row),
    )


def _basis(row: Mapping[str, Any]) -> u.EstimateBasis:
    return "size" if u.is_opaque(row["format"]) else "header"


def model_file(row: Mapping[str, Any]) -> ModelFile:
    """Return the recorded header of the files. A query must not open the files themselves."""
    facts = msgspec.json.decode(row["facts"])
    recorded = {field: facts[field] for field in ModelFile.__struct_fields__ if field in facts}
    return ModelFile(
        **{
            **recorded,
            "name": row["name"],
            "format": row["format"],
            "type": cast(u.ModelType, row["type"]),
            "size": row["size"],
            "tensors_end": facts.get("tensors_end") or row["size"],
        }
    )


def compatibility(rows: Iterable[Mapping[str, Any]], engines: Iterable[Mapping[str, Any]] | None) -> u.Compatibility:
    """Return which engines serve which ready models. `engines`: the items of engine.list, None if it did not answer."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        kinds.setdefault((row["type"], row["format"]), []).append(row["id"])
    known = list(engines or ())
    return u.Compatibility(
        items=[
            u.Fit(
                type=kind,
                format=format_,
                models=models,
                engines=sorted(e["name"] for e in known if kind in e["model_types"] and format_ in e["formats"]),
            )
            for (kind, format_), models in sorted(kinds.items())
        ],
        engines_known=engines is not None,
    )
