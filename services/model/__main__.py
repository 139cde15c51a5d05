"""Runs the model domain as a process of its own: `python -m services.model`."""

from __future__ import annotations

from aima_core import logs, process, settings
from services.model.domain import MODEL

if __name__ == "__main__":
    loaded = settings.load({MODEL.name: MODEL.settings})
    logs.set_up(MODEL.name, loaded.log.level)
    process.run(MODEL, loaded)
