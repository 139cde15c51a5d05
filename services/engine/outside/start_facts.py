"""Collects the facts for the decision on a start: the model, its memory, and free ports."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aima_core.call import Call
from aima_core.domain import Context
from aima_core.errors import Conflict, NotFound, ValidationFailed
from services.engine import internal as i
from services.engine import units as u
from services.engine.manifests.manifest import check
from services.engine.manifests.manifest_schema import Manifest
from services.engine.outside.engine_host import Host
from services.engine.rules.state import InstanceState
from services.model import units as model

_UNKNOWN_SHARE = 4  # a model path has no known header: add a quarter of the files' size for the KV cache and the engine


async def prepare_start(
    context: Context[InstanceState], host: Host, manifest: Manifest, command: u.StartEngine, call: Call
) -> i.BeginStart:
    """Return a BeginStart command with the facts for the decision on a start.

    Raises ValidationFailed for a bad config or path, NotFound for a missing model or file, and Conflict if the model is
    not ready or the engine cannot serve the model.
    """
    settings = context.settings
    check(manifest, command.config)
    facts = await _of_path(command) if command.model_path is not None else await _of_model(context, manifest, command)
    candidates = (command.port,) if command.port else range(settings.port_min, settings.port_max + 1)
    return i.BeginStart(
        process_id=command.process_id or call.new_id(f"eng-{command.name.replace('_', '-')}"),
        name=command.name,
        type=manifest.type,
        runtime=manifest.runtime,
        service_id=command.service_id,
        config=command.config,
        host=settings.host,
        address=settings.address,
        port=command.port,
        free_ports=tuple(await asyncio.to_thread(host.free_ports, settings.host, candidates)),
        port_range=(settings.port_min, settings.port_max),
        gpu_fraction=command.gpu_fraction,
        priority=command.priority,
        wait=command.wait,
        timeout=command.timeout,
        **facts,
    )


async def _of_path(command: u.StartEngine) -> dict[str, Any]:
    path = Path(command.model_path or "")
    if not path.is_absolute() or ".." in path.parts:
        raise ValidationFailed(
            "model_path: expected an absolute path without ..",
            fields=[{"field": "model_path", "expected": "an absolute path without .."}],
        )
    if not path.exists():
        raise NotFound(f"there is no model file {path}", reason="FILE_NOT_FOUND", path=str(path))
    size = await asyncio.to_thread(_size, path)
    memory = size + size // _UNKNOWN_SHARE if command.memory_bytes is None else command.memory_bytes
    return {
        "model_id": "",
        "model_name": path.stem[:80],
        "model_path": str(path),
        "model_type": "",
        "memory": memory,
    }


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


async def _of_model(context: Context[InstanceState], manifest: Manifest, command: u.StartEngine) -> dict[str, Any]:
    if command.model_id is None:
        raise ValidationFailed(
            "give model_id or model_path",
            fields=[{"field": "model_id", "expected": "a model's id, unless model_path is given"}],
        )
    view = await context.peers.call(model.GetModel(model_id=command.model_id))
    if view.status != "ready":
        cause = f"its status is {view.status}" + (f": {view.error}" if view.error else "")
        raise Conflict(
            f"model {view.id} is not ready; {cause}; see model.get", reason="MODEL_NOT_READY", model_id=view.id
        )
    if view.format not in manifest.formats or view.type not in manifest.model_types:
        raise Conflict(
            f"{manifest.name} cannot serve {view.id}: its type is {view.type} and its format {view.format}; "
            f"{manifest.name} serves types {', '.join(manifest.model_types)} in formats {', '.join(manifest.formats)}",
            reason="ENGINE_UNFIT",
        )
    return {
        "model_id": view.id,
        "model_name": view.name,
        "model_path": view.path,
        "model_type": view.type,
        "memory": _memory(manifest, command, view) if command.memory_bytes is None else command.memory_bytes,
    }


def _memory(manifest: Manifest, command: u.StartEngine, view: model.ModelView) -> int:
    """Return the bytes that the instance needs for its context length and slots."""
    tokens = 0
    if {"context_length", "slots"} <= manifest.options.keys():
        values = [command.config.get(name, manifest.options[name].value()) for name in ("context_length", "slots")]
        tokens = int(values[0] or 0) * int(values[1] or 1)
    return view.requirements.memory(tokens)
