"""Where the bus is if the settings do not say: the file in which `aima up` publishes its address, and a port."""

from __future__ import annotations

from pathlib import Path

DEFAULT_PORT = 4222
URL_FILE = "nats.url"  # in the data folder; holds the URL of the NATS server that `aima up` started


def published_url(data: Path) -> str:
    """Return the URL of the server that `aima up` started; empty if there is no file with one."""
    try:
        return (data / URL_FILE).read_text().strip()
    except OSError:
        return ""
