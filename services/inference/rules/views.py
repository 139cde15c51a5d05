"""The read tables of the inference domain. They contain figures of requests. Each end of a request updates them. Pure.

Every table has a bounded number of rows per replica. When a replica ends, its figures are added to the rows of the
service that have an empty `process_id`. These rows are called the rest of the service.

Latencies are counted in the buckets of a DDSketch (Masson et al., VLDB 2019). Its percentiles have an error of at most
1 %, even after sketches are merged. The tables `seconds` and `sketches` are rings. Each slot of a ring has the figures
of one second or of one period. `epoch` is the number of this second or period. A newer epoch overwrites the slot.
"""

from __future__ import annotations

from collections.abc import Iterable

from ddsketch.mapping import LogarithmicMapping

from aima_core.store.records import Recorded, Statement
from services.inference import units as u

BUCKETS = LogarithmicMapping(0.01)
PERIOD, PERIODS = 300, 12  # ring of latencies: seconds of each slot and number of slots; one hour in total
SECONDS = 64  # number of slots in the ring of seconds: a little more than a minute
_MIN_DURATION = 1e-6  # seconds; shorter durations count as this, because a clock that is set back makes them negative
_CANCELLED = "CANCELLED"  # the caller left, so the service made no error
_REFUSED = "ENGINE_REFUSED"  # the request was invalid, so the service made no error
_MIN_TOKENS = 8  # shorter answers do not count for a model's speed

TABLES = {
    "services": "CREATE TABLE services (service_id TEXT NOT NULL PRIMARY KEY) WITHOUT ROWID",
    "replicas": """CREATE TABLE replicas (
        service_id TEXT NOT NULL, process_id TEXT NOT NULL, PRIMARY KEY (service_id, process_id)) WITHOUT ROWID""",
    "usage": """CREATE TABLE usage (
        service_id TEXT NOT NULL, process_id TEXT NOT NULL, requests INTEGER NOT NULL, failed INTEGER NOT NULL,
        cancelled INTEGER NOT NULL, refused INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL, PRIMARY KEY (service_id, process_id)) WITHOUT ROWID""",
    "seconds": """CREATE TABLE seconds (
        service_id TEXT NOT NULL, process_id TEXT NOT NULL, slot INTEGER NOT NULL, epoch INTEGER NOT NULL,
        requests INTEGER NOT NULL, failed INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
        PRIMARY KEY (service_id, process_id, slot)) WITHOUT ROWID""",
    "sketches": """CREATE TABLE sketches (
        service_id TEXT NOT NULL, process_id TEXT NOT NULL, metric TEXT NOT NULL, slot INTEGER NOT NULL,
        epoch INTEGER NOT NULL, bucket INTEGER NOT NULL, count INTEGER NOT NULL,
        PRIMARY KEY (service_id, process_id, metric, slot, bucket)) WITHOUT ROWID""",
    "speeds": """CREATE TABLE speeds (
        model_id TEXT NOT NULL, engine TEXT NOT NULL, device TEXT NOT NULL, slots INTEGER NOT NULL,
        concurrency INTEGER NOT NULL, requests INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
        seconds REAL NOT NULL, PRIMARY KEY (model_id, engine, device, slots, concurrency)) WITHOUT ROWID""",
}
# A request that ends after the removal of its replica is added to the rest of the service. A request that ends after
# the deletion of its service is not counted.
_ADD_USAGE = """INSERT INTO usage
    SELECT ?1, coalesce((SELECT process_id FROM replicas WHERE service_id = ?1 AND process_id = ?2), ''),
    ?3, ?4, ?5, ?6, ?7, ?8 FROM services WHERE service_id = ?1
    ON CONFLICT (service_id, process_id) DO UPDATE SET
    requests = requests + excluded.requests, failed = failed + excluded.failed,
    cancelled = cancelled + excluded.cancelled, refused = refused + excluded.refused,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens"""
_ADD_SECOND = """INSERT INTO seconds
    SELECT ?1, coalesce((SELECT process_id FROM replicas WHERE service_id = ?1 AND process_id = ?2), ''),
    ?3, ?4, ?5, ?6, ?7 FROM services WHERE service_id = ?1
    ON CONFLICT (service_id, process_id, slot) DO UPDATE SET epoch = excluded.epoch,
    requests = iif(epoch = excluded.epoch, requests, 0) + excluded.requests,
    failed = iif(epoch = excluded.epoch, failed, 0) + excluded.failed,
    completion_tokens = iif(epoch = excluded.epoch, completion_tokens, 0) + excluded.completion_tokens"""
_ADD_LATENCY = """INSERT INTO sketches
    SELECT ?1, coalesce((SELECT process_id FROM replicas WHERE service_id = ?1 AND process_id = ?2), ''),
    ?3, ?4, ?5, ?6, 1 FROM services WHERE service_id = ?1
    ON CONFLICT (service_id, process_id, metric, slot, bucket) DO UPDATE SET epoch = excluded.epoch,
    count = iif(epoch = excluded.epoch, count, 0) + excluded.count"""
_ADD_SPEED = """INSERT INTO speeds VALUES (?, ?, ?, ?, ?, 1, ?, ?)
    ON CONFLICT (model_id, engine, device, slots, concurrency) DO UPDATE SET
    requests = requests + excluded.requests, completion_tokens = completion_tokens + excluded.completion_tokens,
    seconds = seconds + excluded.seconds"""

# If a slot of a ring is merged into the slot of the rest, the newer epoch wins. Figures of the same epoch are added.
_MERGE_INTO_REST = (
    """INSERT INTO usage
    SELECT service_id, '', requests, failed, cancelled, refused, prompt_tokens, completion_tokens
    FROM usage WHERE service_id = ? AND process_id = ?
    ON CONFLICT (service_id, process_id) DO UPDATE SET
    requests = requests + excluded.requests, failed = failed + excluded.failed,
    cancelled = cancelled + excluded.cancelled, refused = refused + excluded.refused,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens""",
    """INSERT INTO seconds
    SELECT service_id, '', slot, epoch, requests, failed, completion_tokens
    FROM seconds WHERE service_id = ? AND process_id = ?
    ON CONFLICT (service_id, process_id, slot) DO UPDATE SET epoch = excluded.epoch,
    requests = iif(epoch = excluded.epoch, requests, 0) + excluded.requests,
    failed = iif(epoch = excluded.epoch, failed, 0) + excluded.failed,
    completion_tokens = iif(epoch = excluded.epoch, completion_tokens, 0) + excluded.completion_tokens
    WHERE excluded.epoch >= epoch""",
    """INSERT INTO sketches
    SELECT service_id, '', metric, slot, epoch, bucket, count
    FROM sketches WHERE service_id = ? AND process_id = ?
    ON CONFLICT (service_id, process_id, metric, slot, bucket) DO UPDATE SET epoch = excluded.epoch,
    count = iif(epoch = excluded.epoch, count, 0) + excluded.count
    WHERE excluded.epoch >= epoch""",
    "DELETE FROM usage WHERE service_id = ? AND process_id = ?",
    "DELETE FROM seconds WHERE service_id = ? AND process_id = ?",
    "DELETE FROM sketches WHERE service_id = ? AND process_id = ?",
    "DELETE FROM replicas WHERE service_id = ? AND process_id = ?",
)
_DELETE_FIGURES = (
    "DELETE FROM usage WHERE service_id = ?",
    "DELETE FROM seconds WHERE service_id = ?",
    "DELETE FROM sketches WHERE service_id = ?",
)
_ADD_SERVICE = "INSERT OR IGNORE INTO services VALUES (?)"


def project(recorded: Recorded) -> Iterable[Statement]:
    """Yield the SQL statements for an event. A request counts when it ends. Its latency counts only if it was answered.

    The creation and the deletion of a service both delete its figures, because a later service may have the same id.
    """
    at = recorded.recorded_at
    match recorded.event:
        case u.ServiceAdded(service_id=ident):
            for sql in (*_DELETE_FIGURES, _ADD_SERVICE):
                yield sql, (ident,)
        case u.ServiceRemoved(service_id=ident):
            for sql in (*_DELETE_FIGURES, "DELETE FROM services WHERE service_id = ?"):
                yield sql, (ident,)
        case u.RouteAdded(service_id=ident, process_id=process_id):
            yield _ADD_SERVICE, (ident,)  # logs of older releases have no event for a new service
            yield "INSERT OR IGNORE INTO replicas VALUES (?, ?)", (ident, process_id)
        case u.RouteRemoved(service_id=ident, process_id=process_id):
            for sql in _MERGE_INTO_REST:
                yield sql, (ident, process_id)
        case u.RequestsRefused(service_id=ident, count=count):
            yield _ADD_USAGE, (ident, "", 0, 0, 0, count, 0, 0)
        case u.RequestFailed(service_id=ident, process_id=process_id, error_code=code):
            cancelled = code == _CANCELLED
            yield _ADD_USAGE, (ident, process_id, 1, not cancelled, cancelled, 0, 0, 0)
            fault = not (cancelled or code == _REFUSED)
            yield _ADD_SECOND, (ident, process_id, int(at) % SECONDS, int(at), 1, fault, 0)
        case u.RequestCompleted() as event:
            yield from _completed(event, at)


def _completed(event: u.RequestCompleted, at: float) -> Iterable[Statement]:
    replica, tokens, first = (event.service_id, event.process_id), event.completion_tokens, event.time_to_first_token
    yield _ADD_USAGE, (*replica, 1, 0, 0, 0, event.prompt_tokens, tokens)
    yield _ADD_SECOND, (*replica, int(at) % SECONDS, int(at), 1, 0, tokens)
    epoch = int(at) // PERIOD
    for metric, value in (("duration", event.duration), ("time_to_first_token", first)):
        if value is not None:
            bucket = BUCKETS.key(max(value, _MIN_DURATION))
            yield _ADD_LATENCY, (*replica, metric, epoch % PERIODS, epoch, bucket)
    generating = event.duration - (first or 0.0)
    if event.engine and tokens >= _MIN_TOKENS and generating > 0:
        key = (event.model, event.engine, event.device, event.slots, event.concurrency)
        yield _ADD_SPEED, (*key, tokens, generating)
