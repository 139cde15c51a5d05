"""Writes the golden logs of a release from recorded runs: what every later release must decode and fold.

    python -m pytest tests --basetemp=RUNS && python -m tests.golden.record RUNS 0.3.0

Of all logs under RUNS it keeps, for each domain, the few that hold every type of event that occurred. A file that
exists is never written again: a release does not change.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
import tempfile
from pathlib import Path

from services.cli import domains

HERE = Path(__file__).parent
LONGEST = 150  # events of a run; longer ones say the same over and over

Events = list[tuple[str, str]]


def main(runs: Path, version: str) -> int:
    """Record every domain that has left a log."""
    by_domain: dict[str, list[Events]] = {}
    for file in sorted(runs.resolve().rglob("log.db")):
        by_domain.setdefault(file.parent.name, []).append(_read(file, runs.resolve()))
    (HERE / version).mkdir(exist_ok=True)
    for domain, logs in sorted(by_domain.items()):
        target = HERE / version / f"{domain}.jsonl"
        own = [events for events in logs if events and events[0][0].partition(".")[0] == domain]
        if target.exists() or not own or domain not in domains.names():  # a toy is no part of a release
            continue
        chosen = _fewest([events for events in own if len(events) <= LONGEST])
        lines = [
            json.dumps({"run": run, "type": kind, "data": json.loads(data)})
            for run, events in enumerate(chosen, 1)
            for kind, data in events
        ]
        target.write_text("\n".join(lines) + "\n")
        kinds = sorted({kind for events in chosen for kind, _ in events})
        sys.stdout.write(f"{target.name}: {len(lines)} events of {len(chosen)} runs: {', '.join(kinds)}\n")
    return 0


def _read(file: Path, runs: Path) -> Events:
    """Return a log's events, without the folders of the machine that recorded them."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT type, data FROM events ORDER BY position").fetchall()
    except sqlite3.Error:
        return []  # a test broke it on purpose
    here = {
        str(runs): "/runs",
        sys.prefix: "/venv",
        sys.base_prefix: "/python",
        str(HERE.parents[1]): "/aima",
        tempfile.gettempdir(): "/temporary",
    }
    events = []
    for kind, data in rows:
        if not isinstance(data, bytes):
            return []  # so did this one
        text = bytes(data).decode(errors="replace")
        for folder, name in here.items():
            text = text.replace(folder, name)
        events.append((kind, text))
    return events


def _fewest(logs: list[Events]) -> list[Events]:
    """Return logs, the richest first, until all types of event are in them."""
    chosen: list[Events] = []
    seen: set[str] = set()
    while logs:
        best = max(logs, key=lambda events: (len({kind for kind, _ in events} - seen), -len(events)))
        new = {kind for kind, _ in best} - seen
        if not new:
            break
        seen |= new
        chosen.append(best)
        logs.remove(best)
    return chosen


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
