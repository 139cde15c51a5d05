"""Which engine and device a service runs on, with what it takes, and why. Pure, on what the other domains have said."""

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
    """What was asked of a service when it was created; `engine` may be empty."""

    engine: str
    device: u.Device
    resource_class: u.ResourceClass
    config: Mapping[str, Any]
    replicas: int


class Selection(NamedTuple):
    """What a replica runs on: `memory` in bytes of main memory, `gpu_fraction` of one GPU."""

    engine: EngineView
    device: str
    config: dict[str, Any]
    memory: int
    gpu_fraction: float
    reason: str


def choose(
    found: ModelView,
    engines: Sequence[EngineView],
    devices: Sequence[DeviceItem],
    wish: SelectionRequest,
    speeds: Sequence[Speed] = (),
) -> Selection:
    """Return the engine, the device and what the replica takes; raise Conflict or InsufficientResources.

    Of the engines that are installed and read the model's format, on the devices that they run on and that have the
    memory, the one decides that was measured fastest, if all were measured with this model; else the preference of the
    manifests, then the GPU, then the name.
    """
    fit = [
        engine
        for engine in engines
        if found.type in engine.model_types and found.format in engine.formats and wish.engine in ("", engine.name)
    ]
    cores = next((device.cores for device in devices if device.type == "cpu" and device.cores), None)
    gpus = [device for device in devices if device.type == "gpu"]
    choices: list[Selection] = []
    crowded = 0
    for engine in fit:
        config = options(found, engine, wish, cores)
        need = memory_of(found, config)
        for device in engine.devices:
            if not engine.installed or wish.device not in ("auto", device):
                continue
            if device != "gpu":
                choices.append(Selection(engine, device, config, need, 0.0, ""))
            elif gpu := max((gpu for gpu in gpus if _free(gpu) >= need), key=_free, default=None):
                fraction = min(1.0, math.ceil(100 * need / max(gpu.memory, 1)) / 100)
                host = found.requirements.overhead
                choices.append(Selection(engine, device, config, host, fraction, ""))
            else:
                crowded = min(crowded or need, need)
    if not choices:
        raise _nothing_fits(found, fit, gpus, wish, crowded)
    measured = [_measured(choice, speeds) for choice in choices]
    known = len(choices) > 1 and all(measured)
    ranks = [(speed if known else 0.0, *_rank(choice)) for choice, speed in zip(choices, measured, strict=True)]
    best = choices[ranks.index(max(ranks))]
    return best._replace(reason=_why(found, best, choices, wish, crowded, known=known))


def options(found: ModelView, engine: EngineView, wish: SelectionRequest, cores: int | None) -> dict[str, Any]:
    """Return the options of a start: those of the resource class that the engine knows, then the service's own."""
    share = RESOURCE_TABLE[wish.resource_class]
    trained_for = found.requirements.context_length
    table: dict[str, Any] = {
        "context_length": min(share.context_length, trained_for) if trained_for else share.context_length,
        "slots": share.slots,
    }
    if cores:
        table["threads"] = max(1, int(cores * share.cores / max(wish.replicas, 1)))
    return {**{name: value for name, value in table.items() if name in engine.options}, **wish.config}


def memory_of(found: ModelView, config: Mapping[str, Any]) -> int:
    """Return the bytes that a replica takes with these options, on whichever device."""
    return found.requirements.memory(_whole(config.get("context_length"), 0) * _whole(config.get("slots"), 1))


def _whole(value: object, default: int) -> int:
    """Return an option as a number; what is none is for the engine domain to refuse, by its name."""
    return value if isinstance(value, int) and value > 0 else default


def _measured(choice: Selection, speeds: Sequence[Speed]) -> float:
    """Return the tokens per second that a request was given by this engine on this device, 0 when that is not known."""
    same = [speed for speed in speeds if (speed.engine, speed.device) == (choice.engine.name, choice.device)]
    return min(same, key=lambda speed: speed.concurrency).tokens_per_second if same else 0.0


def _rank(choice: Selection) -> tuple[int, bool, str]:
    return choice.engine.preference.get(choice.device, 0), choice.device == "gpu", choice.engine.name


def _free(gpu: DeviceItem) -> int:
    return gpu.memory if gpu.memory_free is None else gpu.memory_free


def _why(
    found: ModelView,
    best: Selection,
    choices: Sequence[Selection],
    wish: SelectionRequest,
    crowded: int,
    *,
    known: bool,
) -> str:
    names = ", ".join(sorted({choice.engine.name for choice in choices}))
    how = "measured fastest" if known else "preferred"
    asked = "asked for" if wish.engine else f"{how} among {names}"
    no_gpu = f"; no GPU with {crowded / _MIB:.0f} MiB free" if crowded and best.device != "gpu" else ""
    return f"{best.engine.name} on {best.device}: {found.type} in {found.format}, {asked}{no_gpu}"


def _nothing_fits(
    found: ModelView, fit: Sequence[EngineView], gpus: Sequence[DeviceItem], wish: SelectionRequest, crowded: int
) -> Conflict | InsufficientResources:
    if crowded:
        largest = max((_free(gpu) for gpu in gpus), default=0)
        have = f"the freest has {largest / _MIB:.0f} MiB" if gpus else "this machine has no GPU that AIMA can see"
        return InsufficientResources(
            f"{found.id} takes {crowded / _MIB:.0f} MiB of a GPU's memory; {have}",
            reason="INSUFFICIENT_ACCELERATORS" if gpus else "NO_GPU",
            requested=crowded,
            available=largest,
            missing=crowded - largest,
        )
    on = [engine for engine in fit if wish.device in ("auto", *engine.devices)]
    where = "" if wish.device == "auto" else f" on {wish.device}"
    names = " or ".join(engine.name for engine in on)
    lacking = f"{wish.engine} does not serve" if wish.engine else "no engine serves"
    what = f"{names} would serve it{where}, but is not installed" if on else f"{lacking} that{where}"
    return Conflict(
        f"model {found.id} is a {found.type} in {found.format}: {what}",
        reason="ENGINE_NOT_INSTALLED" if on else "NO_ENGINE",
        engines=[engine.name for engine in on],
    )
