"""The read table of the inference domain: what each service's requests came to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aima_core.records import Recorded, Statement
from services.inference import units as u
from services.inference.decider import Pool

TABLES = {
    "usage": """CREATE TABLE usage (
        service_id TEXT PRIMARY KEY, requests INTEGER NOT NULL, failed INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL)""",
}

_ADD = """INSERT INTO usage VALUES (?, ?, ?, ?, ?) ON CONFLICT (service_id) DO UPDATE SET
    requests = requests + excluded.requests, failed = failed + excluded.failed,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens"""


def project(recorded: Recorded) -> Iterable[Statement]:
    """Yield the SQL that an event means: a request counts when it has come to its end."""
    match recorded.event:
        case u.RequestCompleted(service_id=ident, prompt_tokens=prompt, completion_tokens=completion):
            yield (_ADD, (ident, 1, 0, prompt, completion))
        case u.RequestFailed(service_id=ident):
            yield (_ADD, (ident, 1, 1, 0, 0))


def models(pools: Iterable[Pool], usage: Mapping[str, Mapping[str, Any]], wanted: str | None) -> u.Models:
    """Return the models that the pools serve, each with its services, by name."""
    by_model: dict[str, list[Pool]] = {}
    for pool in pools:
        if wanted in (None, pool.type):
            by_model.setdefault(pool.model_id, []).append(pool)
    return u.Models(
        models=[
            u.ServedModel(
                id=model_id,
                name=group[0].model_name,
                type=group[0].type,
                status="running" if any(route.healthy for pool in group for route in pool.routes) else "unavailable",
                services=[_served_by(pool, usage.get(pool.service_id, {})) for pool in group],
            )
            for model_id, group in sorted(by_model.items())
        ]
    )


def _served_by(pool: Pool, usage: Mapping[str, Any]) -> u.ServedBy:
    return u.ServedBy(
        service_id=pool.service_id,
        name=pool.service_name,
        replicas=sum(1 for route in pool.routes if route.healthy),
        outstanding=len(pool.requests),
        requests=usage.get("requests", 0),
        failed=usage.get("failed", 0),
        prompt_tokens=usage.get("prompt_tokens", 0),
        completion_tokens=usage.get("completion_tokens", 0),
    )
