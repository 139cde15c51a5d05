"""Chooses the engine, the device and the options of a service, and gives the reason. Pure.

Its inputs are answers of the model, engine, device and inference domains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aima_core.errors import Conflict, InsufficientResources
from services.device.units import DeviceItem
from services.engine.units import EngineView
from services.inference.units import Speed
from services.model.units import ModelView
from services.service import units as u
from services.service.rules.resource_table import RESOURCE_TABLE

_MIB = 2**20


class SelectionRequest(NamedTuple):
    """The fields of service.create that decide the selection. `engine` is empty if the caller named no engine."""

    engine: str
    device: u.Device
    resource_class: u.ResourceClass
    config: Mapping[str, Any]
    replicas: int


class Selection(NamedTuple):
    """The engine, device and options of a replica. `memory` is bytes of main memory; `gpu_fraction` is of one GPU."""

    engine: EngineView
    device: str
    config: dict[str, Any]
    memory: int
    gpu_fraction: float
    reason: str


def choose(
    model: ModelView,
    engines: Sequence[EngineView],
    devices: Sequence[DeviceItem],
    request: SelectionRequest,
    speeds: Sequence[Speed] = (),
) -> Selection:
    """Return the engine, the device and the memory of a replica. Raises Conflict or InsufficientResources.

    A candidate is a pair: an installed engine that reads the model's format, and a device with enough memory that the
    engine runs on. If all candidates were measured with this model, the fastest wins. Otherwise, the candidate with the
    highest preference in the manifests wins. Among equal preferences, a GPU wins over a CPU, then the name decides.
    """
    suitable = [
        engine
        for engine in engines
        if model.type in engine.model_types and model.format in engine.formats and request.engine in ("", engine.name)
    ]
    cores = next((device.cores for device in devices if device.type == "cpu" and device.cores), None)
    gpus = [device for device in devices if device.type == "gpu"]
    choices: list[Selection] = []
    unmet_gpu_need = 0  # bytes of the smallest need that fits on no GPU
    for engine in suitable:
        config = options(model, engine, request, cores)
        need = memory_of(model, config)
        for device in engine.devices:
            if not engine.installed or request.device not in ("auto", device):
                continue
            if device != "gpu":
                choices.append(Selection(engine, device, config, need, 0.0, ""))
            elif gpu := max((gpu for gpu in gpus if _free(gpu) >= need), key=_free, default=None):
                fraction = min(1.0, math.ceil(100 * need / max(gpu.memory, 1)) / 100)
                main_memory = model.requirements.overhead
                choices.append(Selection(engine, device, config, main_memory, fraction, ""))
            else:
                unmet_gpu_need = min(unmet_gpu_need or need, need)
    if not choices:
        raise _refusal(model, engines, suitable, gpus, request, unmet_gpu_need)
    measured = [_measured(choice, speeds) for choice in choices]
    by_speed = len(choices) > 1 and all(measured)
    ranks = [(speed if by_speed else 0.0, *_rank(choice)) for choice, speed in zip(choices, measured, strict=True)]
    best = choices[ranks.index(max(ranks))]
    return best._replace(reason=_reason(model, best, choices, request, unmet_gpu_need, by_speed=by_speed))


def options(model: ModelView, engine: EngineView, request: SelectionRequest, cores: int | None) -> dict[str, Any]:
    """Return the options of a start. The service's own options override those of its resource class.

    Omits options of the resource class that the engine does not know.
    """
    share = RESOURCE_TABLE[request.resource_class]
    trained_for = model.requirements.context_length
    table: dict[str, Any] = {
        "context_length": min(share.context_length, trained_for) if trained_for else share.context_length,
        "slots": share.slots,
    }
    if cores:
        table["threads"] = max(1, int(cores * share.cores / max(request.replicas, 1)))
    return {**{name: value for name, value in table.items() if name in engine.options}, **request.config}


def memory_of(model: ModelView, config: Mapping[str, Any]) -> int:
    """Return the bytes that a replica needs with these options, on any device."""
    tokens = _positive_int(config.get("context_length"), 0) * _positive_int(config.get("slots"), 1)
    return model.requirements.memory(tokens)


def _positive_int(value: object, default: int) -> int:
    """Return the option, or the default if the option is not a positive integer. The engine domain refuses it later."""
    return value if isinstance(value, int) and value > 0 else default


def _measured(choice: Selection, speeds: Sequence[Speed]) -> float:
    """Return the speed of one request on this engine and device, in tokens per second, or 0 if it was not measured.

    Uses the measurement with the fewest concurrent requests.
    """
    same = [speed for speed in speeds if (speed.engine, speed.device) == (choice.engine.name, choice.device)]
    return min(same, key=lambda speed: speed.concurrency).tokens_per_second if same else 0.0


def _rank(choice: Selection) -> tuple[int, bool, str]:
    return choice.engine.preference.get(choice.device, 0), choice.device == "gpu", choice.engine.name


def _free(gpu: DeviceItem) -> int:
    return gpu.memory if gpu.memory_free is None else gpu.memory_free


def _reason(
    model: ModelView,
    best: Selection,
    choices: Sequence[Selection],
    request: SelectionRequest,
    unmet_gpu_need: int,
    *,
    by_speed: bool,
) -> str:
    names = sorted({choice.engine.name for choice in choices})
    if request.engine:
        why = "requested"
    elif by_speed:
        why = f"measured fastest among {', '.join(names)}"
    elif len(names) == 1:
        why = "the only suitable engine"
    else:
        why = f"preferred among {', '.join(names)}"
    no_gpu = f"; no GPU with {unmet_gpu_need / _MIB:.0f} MiB free" if unmet_gpu_need and best.device != "gpu" else ""
    return f"{best.engine.name} on {best.device}: {model.type} in {model.format}, {why}{no_gpu}"


def _refusal(
    model: ModelView,
    engines: Sequence[EngineView],
    suitable: Sequence[EngineView],
    gpus: Sequence[DeviceItem],
    request: SelectionRequest,
    unmet_gpu_need: int,
) -> Conflict | InsufficientResources:
    if unmet_gpu_need:
        return _no_gpu(model, suitable, gpus, unmet_gpu_need)
    uninstalled = [engine for engine in suitable if request.device in ("auto", *engine.devices)]
    if uninstalled:
        where = "" if request.device == "auto" else f" on {request.device}"
        names = " or ".join(engine.name for engine in uninstalled)
        message = (
            f"model {model.id} ({model.type}, {model.format}) needs an engine that is not installed{where}: {names}; "
            f"install it with: aima call engine.install name={uninstalled[0].name}"
        )
    else:
        message = _unserved(model, engines, request)
    return Conflict(
        message,
        reason="ENGINE_NOT_INSTALLED" if uninstalled else "NO_ENGINE",
        engines=[engine.name for engine in uninstalled],
    )


def _unserved(model: ModelView, engines: Sequence[EngineView], request: SelectionRequest) -> str:
    """Return why no engine serves the model: because of its format, its type or the device, in this order."""
    if request.engine:
        return _unfit(model, engines, request)
    readers = [engine for engine in engines if model.format in engine.formats]
    if not readers:
        installed = _by_name([engine for engine in engines if engine.installed], "formats")
        return f"no engine reads the format {model.format} of model {model.id}; installed engines read: {installed}"
    typed = [engine for engine in readers if model.type in engine.model_types]
    if not typed:
        served = _by_name(readers, "model_types")
        what = f"{model.type}, the type of model {model.id}"
        return f"no engine that reads {model.format} serves {what}; they serve: {served}"
    devices = _by_name(typed, "devices")
    return f"no engine serves model {model.id} on {request.device}; engines that serve it run on: {devices}"


def _unfit(model: ModelView, engines: Sequence[EngineView], request: SelectionRequest) -> str:
    """Return why the requested engine does not serve the model."""
    engine = next((engine for engine in engines if engine.name == request.engine), None)
    if engine is None:
        names = sorted(engine.name for engine in engines)
        return f"there is no engine {request.engine}; known: {', '.join(names)}"
    cannot = f"engine {engine.name} cannot serve model {model.id}"
    if model.format not in engine.formats:
        return f"{cannot}: it reads {', '.join(engine.formats)}, and the format of the model is {model.format}"
    if model.type not in engine.model_types:
        return f"{cannot}: it serves {', '.join(engine.model_types)}, and the type of the model is {model.type}"
    return f"{cannot} on {request.device}: it runs on {', '.join(engine.devices)}"


def _by_name(engines: Sequence[EngineView], field: str) -> str:
    """Return all values of a field. The engines with a value follow it in brackets, as in `gguf (llamacpp, vllm)`."""
    values = sorted({value for engine in engines for value in getattr(engine, field)})
    named = (sorted(engine.name for engine in engines if value in getattr(engine, field)) for value in values)
    return ", ".join(f"{value} ({', '.join(names)})" for value, names in zip(values, named, strict=True)) or "none"


def _no_gpu(
    model: ModelView, suitable: Sequence[EngineView], gpus: Sequence[DeviceItem], need: int
) -> InsufficientResources:
    freest = max(gpus, key=_free, default=None)
    free = _free(freest) if freest else 0
    runs_on_cpu = any(engine.installed and "cpu" in engine.devices for engine in suitable)
    hints = ["create the service with device=cpu"] if runs_on_cpu else []
    if freest is None:
        cause = "no GPU has been detected"
        hints = [*hints, "connect a GPU and run device.detect"]
    else:
        cause = f"the freest GPU, {freest.id}, has {free / _MIB:.0f} of {freest.memory / _MIB:.0f} MiB free"
        hints = ["free GPU memory (resource.allocations shows who holds it)", "use a smaller resource_class", *hints]
    return InsufficientResources(
        f"model {model.id} needs {need / _MIB:.0f} MiB of GPU memory, but {cause}; {', or '.join(hints)}",
        reason="INSUFFICIENT_ACCELERATORS" if gpus else "NO_GPU",
        requested=need,
        available=free,
        missing=need - free,
    )
