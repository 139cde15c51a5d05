"""Finds the bus if the settings do not name it. `aima up` publishes the address of the bus in a file."""

from __future__ import annotations

from pathlib import Path

DEFAULT_PORT = 4222
URL_FILE = "nats.url"  # in the data folder; holds the URL of the NATS server that `aima up` started


def published_url(data: Path) -> str:
    """Return the URL of the server that `aima up` started, or "" if `aima up` has not published a URL."""
    try:
        return (data / URL_FILE).read_text().strip()
    except OSError:
        return ""
