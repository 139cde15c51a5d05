"""Builds the answers of queries from the pools in memory and from the rows of the read tables. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ddsketch import DDSketch

from services.inference import units as u
from services.inference.rules.state import Pool, Route
from services.inference.rules.views import BUCKETS, PERIOD, PERIODS

Row = Mapping[str, Any]
_MINUTE = 60  # seconds

USAGE = "SELECT * FROM usage WHERE service_id = ?"
RECENT = "SELECT * FROM seconds WHERE service_id = ? AND epoch > ? AND epoch <= ?"
LATENCIES = "SELECT * FROM sketches WHERE service_id = ? AND epoch > ? AND epoch <= ?"
SPEEDS = "SELECT * FROM speeds WHERE model_id = ? ORDER BY engine, device, slots, concurrency"


class Rows(NamedTuple):
    """The rows of a service in the read tables. Each process of the service has one set of rows."""

    usage: Sequence[Row]
    seconds: Sequence[Row]
    sketches: Sequence[Row]

    def of(self, process_id: str) -> Rows:
        """Return the rows of one process."""
        return Rows(*([row for row in rows if row["process_id"] == process_id] for rows in self))


def last_minute(now: float) -> tuple[int, int]:
    """Return the two epochs that limit RECENT. The first is excluded, and the last is the current second."""
    return int(now) - _MINUTE, int(now)


def last_hour(now: float) -> tuple[int, int]:
    """Return the two epochs that limit LATENCIES. The first is excluded, and the last is the current period."""
    return int(now) // PERIOD - PERIODS, int(now) // PERIOD


def metrics(pool: Pool, rows: Rows, queued: int) -> u.ServiceMetrics:
    """Return the figures of a service's requests, in total and for each current replica."""
    return u.ServiceMetrics(
        service_id=pool.service_id,
        refused=sum(row["refused"] for row in rows.usage),
        queued=queued,
        replicas=[
            u.ReplicaMetrics(
                process_id=route.process_id,
                **_figures(rows.of(route.process_id), pool.outstanding(route.process_id)),
            )
            for route in pool.routes
        ],
        **_figures(rows, len(pool.requests)),
    )


def _figures(rows: Rows, outstanding: int) -> dict[str, Any]:
    ended = _sum(rows.seconds, "requests")
    durations, firsts = (_sketch(rows.sketches, metric) for metric in ("duration", "time_to_first_token"))
    return {
        "requests_per_second": ended / _MINUTE,
        "latency_p50": durations.get_quantile_value(0.5),
        "latency_p99": durations.get_quantile_value(0.99),
        "time_to_first_token_p50": firsts.get_quantile_value(0.5),
        "time_to_first_token_p99": firsts.get_quantile_value(0.99),
        "total_requests": _sum(rows.usage, "requests"),
        "failed": _sum(rows.usage, "failed"),
        "cancelled": _sum(rows.usage, "cancelled"),
        "error_rate": _sum(rows.seconds, "failed") / ended if ended else 0.0,
        "tokens_per_second": _sum(rows.seconds, "completion_tokens") / _MINUTE,
        "prompt_tokens": _sum(rows.usage, "prompt_tokens"),
        "completion_tokens": _sum(rows.usage, "completion_tokens"),
        "outstanding": outstanding,
    }


def _sum(rows: Iterable[Row], column: str) -> int:
    return sum(row[column] for row in rows)


def _sketch(rows: Iterable[Row], metric: str) -> DDSketch:
    sketch = DDSketch(BUCKETS.relative_accuracy)
    for row in rows:
        if row["metric"] == metric:
            sketch.add(BUCKETS.value(row["bucket"]), row["count"])
    return sketch


def speeds(rows: Iterable[Row]) -> u.Speeds:
    """Return the measured speeds of a model."""
    return u.Speeds(
        speeds=[
            u.Speed(
                engine=row["engine"],
                device=row["device"],
                slots=row["slots"],
                concurrency=row["concurrency"],
                requests=row["requests"],
                tokens_per_second=row["completion_tokens"] / row["seconds"],
            )
            for row in rows
        ]
    )


def load(pool: Pool, queued: int, now: float) -> u.ServiceLoad:
    """Return the load of a service. Includes processes that get no new requests but still have requests under way."""
    routed = {route.process_id for route in pool.routes}
    leaving = {ident: count for ident, count in pool.by_process.items() if ident not in routed}
    return u.ServiceLoad(
        service_id=pool.service_id,
        phase=pool.phase,
        outstanding=len(pool.requests),
        queued=queued,
        refused=pool.refused,
        last_used=pool.last_used,
        replicas=[
            *(_replica(pool, route, now) for route in pool.routes),
            *(
                u.ReplicaLoad(
                    process_id=ident,
                    outstanding=count,
                    slots=0,
                    healthy=False,
                    busy_until=pool.busy_until(ident),
                    breaker="closed",
                )
                for ident, count in leaving.items()
            ),
        ],
    )


def _replica(pool: Pool, route: Route, now: float) -> u.ReplicaLoad:
    return u.ReplicaLoad(
        process_id=route.process_id,
        outstanding=pool.outstanding(route.process_id),
        slots=route.slots,
        healthy=route.healthy,
        busy_until=pool.busy_until(route.process_id),
        breaker=route.breaker.state(now),
    )


def models(pools: Iterable[Pool], usage: Iterable[Row], model_type: str | None) -> u.Models:
    """Return the models that have services, with their services, sorted by id. None as `model_type` means all types."""
    counts: dict[str, Counter[str]] = {}
    for row in usage:
        numbers = {column: value for column, value in row.items() if not column.endswith("_id")}
        counts.setdefault(row["service_id"], Counter()).update(numbers)
    by_model: dict[str, list[Pool]] = {}
    for pool in pools:
        if model_type in (None, pool.type):
            by_model.setdefault(pool.model_id, []).append(pool)
    return u.Models(
        models=[
            u.ServedModel(
                id=model_id,
                name=group[0].model_name,
                type=group[0].type,
                status="running" if any(route.healthy for pool in group for route in pool.routes) else "unavailable",
                services=[_served_by(pool, counts.get(pool.service_id, Counter())) for pool in group],
            )
            for model_id, group in sorted(by_model.items())
        ]
    )


def _served_by(pool: Pool, counts: Counter[str]) -> u.ServedBy:
    return u.ServedBy(
        service_id=pool.service_id,
        name=pool.service_name,
        replicas=sum(1 for route in pool.routes if route.healthy),
        outstanding=len(pool.requests),
        requests=counts["requests"],
        failed=counts["failed"],
        cancelled=counts["cancelled"],
        prompt_tokens=counts["prompt_tokens"],
        completion_tokens=counts["completion_tokens"],
    )
