"""Which engine a service runs on, with which options, and why. Pure, on what the other domains have said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from aima_core.errors import Conflict
from services.engine.units import EngineView
from services.model.units import ModelView
from services.service import units as u

RESOURCE_TABLE: Mapping[str, Mapping[str, int]] = yaml.safe_load(
    Path(__file__).with_name("resource_table.yaml").read_text()
)


def choose_engine(found: ModelView, engines: Sequence[EngineView], wanted: str, device: str) -> tuple[EngineView, str]:
    """Return the engine and the reason for it; raise Conflict when none will do.

    Among the engines that are installed, read the model's format and run on the device, the preference of their
    manifests decides, then the name.
    """
    fit = [
        engine
        for engine in engines
        if found.type in engine.model_types
        and found.format in engine.formats
        and device in engine.devices
        and wanted in ("", engine.name)
    ]
    installed = [engine for engine in fit if engine.installed]
    if not installed:
        names = " or ".join(engine.name for engine in fit)
        lacking = f"{wanted} does not serve" if wanted else "no engine serves"
        what = f"{names} would serve it on {device}, but is not installed" if fit else f"{lacking} that on {device}"
        raise Conflict(
            f"model {found.id} is a {found.type} in {found.format}: {what}",
            reason="ENGINE_NOT_INSTALLED" if fit else "NO_ENGINE",
            engines=[engine.name for engine in fit],
        )
    best = max(installed, key=lambda engine: (engine.preference.get(device, 0), engine.name))
    asked = "asked for" if wanted else f"preferred among {', '.join(sorted(engine.name for engine in installed))}"
    return best, f"{best.name} on {device}: {found.type} in {found.format}, {asked}"


def options(
    found: ModelView, engine: EngineView, resource_class: u.ResourceClass, own: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options of a start: those of the resource class that the engine knows, then the service's own."""
    table = {name: value for name, value in RESOURCE_TABLE[resource_class].items() if name in engine.options}
    trained_for = found.requirements.context_length
    if trained_for and "context_length" in table:
        table["context_length"] = min(table["context_length"], trained_for)
    return {**table, **own}
