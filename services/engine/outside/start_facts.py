"""What deciding a start needs to know from outside: the model's facts, the memory it takes, ports that are free."""

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

_UNKNOWN_SHARE = 4  # a file that nobody has looked into: a quarter of its size for the cache and the engine itself


async def prepare_start(
    context: Context[InstanceState], host: Host, manifest: Manifest, command: u.StartEngine, call: Call
) -> i.BeginStart:
    """Return the start with all its facts; refuse what cannot be served, or a config that the engine does not take."""
    settings = context.settings
    address, wanted = settings.host, command.port
    check(manifest, command.config)
    facts = await _of_path(command) if command.model_path is not None else await _of_model(context, manifest, command)
    candidates = (wanted,) if wanted else range(settings.port_min, settings.port_max + 1)
    return i.BeginStart(
        process_id=command.process_id or call.new_id(f"eng-{command.name.replace('_', '-')}"),
        name=command.name,
        type=manifest.type,
        runtime=manifest.runtime,
        service_id=command.service_id,
        config=command.config,
        host=address,
        address=settings.address,
        port=wanted,
        free_ports=tuple(await asyncio.to_thread(host.free_ports, address, candidates)),
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
        raise NotFound(f"there is no {path}", reason="FILE_NOT_FOUND", path=str(path))
    size = path.stat().st_size
    memory = size + size // _UNKNOWN_SHARE if command.memory_bytes is None else command.memory_bytes
    return {
        "model_id": "",
        "model_name": path.stem[:80],
        "model_path": str(path),
        "model_type": "",
        "memory": memory,
    }


async def _of_model(context: Context[InstanceState], manifest: Manifest, command: u.StartEngine) -> dict[str, Any]:
    if command.model_id is None:
        raise ValidationFailed(
            "model_id or model_path has to be given", fields=[{"field": "model_id", "expected": "a model"}]
        )
    found = await context.peers.call(model.GetModel(model_id=command.model_id))
    if found.status != "ready":
        raise Conflict(f"model {found.id} is {found.status}", reason="MODEL_NOT_READY", model_id=found.id)
    if found.format not in manifest.formats or found.type not in manifest.model_types:
        raise Conflict(
            f"{manifest.name} does not serve a {found.type} in {found.format}; "
            f"it serves {', '.join(manifest.model_types)} in {', '.join(manifest.formats)}",
            reason="ENGINE_UNFIT",
        )
    return {
        "model_id": found.id,
        "model_name": found.name,
        "model_path": found.path,
        "model_type": found.type,
        "memory": _memory(manifest, command, found) if command.memory_bytes is None else command.memory_bytes,
    }


def _memory(manifest: Manifest, command: u.StartEngine, found: model.ModelView) -> int:
    """Return the bytes that the instance will take with the context and the slots it is started with."""
    tokens = 0
    if {"context_length", "slots"} <= manifest.options.keys():
        chosen = [command.config.get(name, manifest.options[name].value()) for name in ("context_length", "slots")]
        tokens = int(chosen[0] or 0) * int(chosen[1] or 1)
    return found.requirements.memory(tokens)
