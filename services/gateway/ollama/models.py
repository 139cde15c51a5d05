"""Converts the model domain's views and pull events to the formats of Ollama's API. Pure.

Source: the Ollama API reference. A field that AIMA's models do not have, such as a Modelfile, is omitted or empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aima_core.call import timestamp
from services.gateway.ollama.requests import tagged
from services.model.units import HOSTS

Json = dict[str, Any]
_CAPABILITIES = {"llm": ["completion"], "vlm": ["completion", "vision"], "embedding": ["embedding"]}
_NEVER = 10_413_792_000.0  # the year 2300: for a model that does not unload by itself
_SHORTEST = 19  # the fewest characters of a digest; some clients show characters 8 to 19


def name_of(model: Mapping[str, Any]) -> str:
    """Return a model's name for Ollama's clients, always with a tag.

    A client can pull the model by this name. If clients cannot pull from the model's source, the name is its id.
    """
    host = next((host for host, source in HOSTS.items() if source == model["source"] != "package"), None)
    if model["source"] != "ollama" and host is None:
        return tagged(model["id"])
    repo = f"{host}/{model['repo']}" if host else model["repo"]
    return f"{repo}:{model['tag']}" if model["tag"] else tagged(repo)


def tag(model: Mapping[str, Any]) -> Json:
    """Return a model as `/api/tags` lists it."""
    name = name_of(model)
    return {
        "name": name,
        "model": name,
        "modified_at": model["changed_at"],
        "size": model["size"],
        "digest": model["checksum"].removeprefix("sha256:"),
        "details": _details(model),
    }


def running(
    model: Mapping[str, Any],
    memory: int,
    services: Sequence[Mapping[str, Any]],
    last_used: Mapping[str, float],
    now: float,
) -> Json:
    """Return a model as `/api/ps` lists it.

    `memory` is the number of bytes that its replicas use; 0: unknown. `last_used` has the Unix seconds of each
    service's last request; `now` is the time. `expires_at` is when its last service goes to sleep if nobody uses it.
    """
    size = memory or model["size"]
    on_gpu = any(service["device"] not in ("cpu", "auto") for service in services)
    contexts = [length for service in services if (length := service["config"].get("context_length"))]
    return {
        **tag(model),
        "size": size,
        "size_vram": size if on_gpu else 0,
        "context_length": max(contexts, default=model["requirements"]["context_length"]),
        "expires_at": timestamp(max((_sleeps_at(service, last_used, now) for service in services), default=_NEVER)),
    }


def _sleeps_at(service: Mapping[str, Any], last_used: Mapping[str, float], now: float) -> float:
    """Return the Unix seconds at which a service goes to sleep if nobody uses it."""
    idle = service["idle_timeout"]
    used = last_used.get(service["id"]) or now
    return used + idle if idle else _NEVER


def details(model: Mapping[str, Any]) -> Json:
    """Return a model as `/api/show` shows it."""
    architecture = model["architecture"] or "unknown"
    facts = {
        "general.architecture": architecture,
        "general.parameter_count": model["parameters"],
        f"{architecture}.context_length": model["requirements"]["context_length"] or None,
    }
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": _details(model),
        "model_info": {name: fact for name, fact in facts.items() if fact is not None},
        "capabilities": _CAPABILITIES.get(model["type"], []) + (["tools"] if model["tools"] else []),
        "modified_at": model["changed_at"],
    }


def progress(event: Mapping[str, Any]) -> Json | None:
    """Return the line for an event of a pull, or None for an event without progress."""
    data = event["data"]
    match event["type"]:
        case "model.pull_progress" if data["status"] == "downloading":
            # clients need a digest for each progress bar, but the real digest is unknown until the download is complete
            bar = {"digest": f"download:{data['model_id']}".ljust(_SHORTEST, "-")}
            total = {"total": data["bytes_total"]} if data["bytes_total"] else {}
            return {"status": f"pulling {data['model_id']}", **bar, **total, "completed": data["bytes_done"]}
        case "model.pull_progress":
            return {"status": "verifying sha256 digest"}
    return None


def _details(model: Mapping[str, Any]) -> Json:
    return {
        "parent_model": "",
        "format": model["format"],
        "family": model["architecture"],
        "families": [model["architecture"]] if model["architecture"] else [],
        "parameter_size": _parameters(model["parameters"]),
        "quantization_level": model["quantization"] or "",
    }


def _parameters(count: int | None) -> str:
    """Return a number of parameters in short form: 134.50M, 7.2B."""
    if not count:
        return ""
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"
