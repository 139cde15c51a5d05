"""The read tables of the inference domain: what requests came to, folded as they end. Pure.

Every table keeps a bounded number of rows for each replica, and adds those of a replica that is gone to its service's
rest (an empty `process_id`). Latencies go into the buckets of a DDSketch (Masson et al., VLDB 2019), whose
percentiles are off by 1 % at most however many are added up. Rings are written over as time goes round.
"""

from __future__ import annotations

from collections.abc import Iterable

from ddsketch.mapping import LogarithmicMapping

from aima_core.store.records import Recorded, Statement
from services.inference import units as u

BUCKETS = LogarithmicMapping(0.01)
PERIOD, PERIODS = 300, 12  # seconds of a slot of the ring of latencies, and its slots: one hour
SECONDS = 64  # slots of the ring of seconds: the last minute and a little more
_LEAST_SECONDS = 1e-6  # times are kept in microseconds; a clock that was set back makes durations below zero
_CANCELLED = "CANCELLED"  # that a caller has left is no fault of the service's
_REFUSED = "ENGINE_REFUSED"  # what was wrong with a request, not with the service
_LEAST_TOKENS = 8  # of an answer whose speed is worth knowing

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
# A request may end on a replica that gets no more of them: then it belongs to the rest. One that ends when its
# service is no more belongs to nothing.
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

# To the rest go the newest turn of each ring's slot, and what both have of the same turn.
_LEAVE = (
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
_FORGET = (
    "DELETE FROM usage WHERE service_id = ?",
    "DELETE FROM seconds WHERE service_id = ?",
    "DELETE FROM sketches WHERE service_id = ?",
)
_KNOW = "INSERT OR IGNORE INTO services VALUES (?)"


def project(recorded: Recorded) -> Iterable[Statement]:
    """Yield the SQL that an event means: a request counts when it has come to its end.

    Latencies are those of requests that were answered. A service begins and ends without figures: its id may have
    been another's before.
    """
    at = recorded.recorded_at
    match recorded.event:
        case u.ServiceAdded(service_id=ident):
            for sql in (*_FORGET, _KNOW):
                yield sql, (ident,)
        case u.ServiceRemoved(service_id=ident):
            for sql in (*_FORGET, "DELETE FROM services WHERE service_id = ?"):
                yield sql, (ident,)
        case u.RouteAdded(service_id=ident, process_id=process_id):
            yield _KNOW, (ident,)  # logs of older releases do not say that a service was added
            yield "INSERT OR IGNORE INTO replicas VALUES (?, ?)", (ident, process_id)
        case u.RouteRemoved(service_id=ident, process_id=process_id):
            for sql in _LEAVE:
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
    of, tokens, first = (event.service_id, event.process_id), event.completion_tokens, event.time_to_first_token
    yield _ADD_USAGE, (*of, 1, 0, 0, 0, event.prompt_tokens, tokens)
    yield _ADD_SECOND, (*of, int(at) % SECONDS, int(at), 1, 0, tokens)
    epoch = int(at) // PERIOD
    for metric, value in (("duration", event.duration), ("time_to_first_token", first)):
        if value is not None:
            bucket = BUCKETS.key(max(value, _LEAST_SECONDS))
            yield _ADD_LATENCY, (*of, metric, epoch % PERIODS, epoch, bucket)
    generating = event.duration - (first or 0.0)
    if event.engine and tokens >= _LEAST_TOKENS and generating > 0:
        key = (event.model, event.engine, event.device, event.slots, event.concurrency)
        yield _ADD_SPEED, (*key, tokens, generating)
