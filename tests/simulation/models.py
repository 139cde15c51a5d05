"""What there is to be served, on what: models with what they need, the engines, a device domain of two devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from aima_core.call import Call
from aima_core.domain import Domain, Outside, World
from aima_core.units import Command, Event, Query, Success, View
from services.device import units as device
from services.engine.manifests.manifest_schema import Manifest
from tests.toys.models import model_view, shelf
from tests.toys.stateless import Nothing

NODE = "node"
GPU = f"{NODE}-gpu-0"
ENGINE_NAME, ADDON = "toy", "addon"
_MIB = 2**20


class Need(NamedTuple):
    """Bytes of main memory that a replica of a model takes, and where it runs."""

    memory: int
    device: device.DeviceType


NEEDS = {
    "a": Need(1_500 * _MIB, "cpu"),
    "b": Need(2_500 * _MIB, "cpu"),
    "c": Need(3_000 * _MIB, "gpu"),
    "d": Need(4_000 * _MIB, "cpu"),
}
"""By model; each of these has a service of that name."""


def _model(name: str, need: Need) -> Any:
    weights = need.memory if need.device == "cpu" else 4_000 * _MIB
    overhead = 0 if need.device == "cpu" else need.memory
    takes = {"weights": weights, "kv_bytes_per_token": 0, "overhead": overhead, "context_length": 0}
    return model_view(name, requirements=takes)


MODELS: Domain[Nothing] = shelf(*(_model(name, need) for name, need in NEEDS.items()))

_TOY: dict[str, Any] = {
    "name": ENGINE_NAME,
    "about": "A stand-in.",
    "type": "llm",
    "version": "1",
    "command": ["toy", "--port={port}", "--model={model_name}"],
    "options": {"slots": {"about": "Requests at once.", "type": "int", "minimum": 1, "maximum": 8, "default": 2}},
    "health": {"path": "/health", "interval": 5, "timeout": 1},
    "endpoints": ["/v1/chat/completions"],
    "model_types": ["llm"],
    "formats": ["gguf"],
    "features": {"max_context_length": 100, "cancels_whole": False},
    "devices": ["cpu", "gpu"],
    "failures": [{"pattern": "out of memory", "error_code": "OUT_OF_MEMORY", "message": "not enough memory"}],
}
MANIFESTS = {
    ENGINE_NAME: Manifest.model_validate(_TOY),
    ADDON: Manifest.model_validate(_TOY | {"name": ADDON, "formats": ["onnx"], "package": ADDON, "module": ADDON}),
}


class Find(Command[Success], unit="device.find"):
    """Record the devices."""


class _Devices(Outside[Nothing]):
    async def open(self) -> None:
        await self.context.record(Find())

    async def answer(self, query: Query[Any]) -> View:
        items = [_item(GPU, "gpu"), _item(f"{NODE}-cpu-0", "cpu")]
        return device.DeviceList(items=items, total=len(items))


def _item(ident: str, kind: device.DeviceType) -> device.DeviceItem:
    return device.DeviceItem(
        id=ident,
        name="Toy",
        vendor="Toy",
        type=kind,
        node=NODE,
        memory=17_500 * _MIB,
        memory_free=None,
        cores=8 if kind == "cpu" else None,
        capabilities=[],
        memory_bandwidth=None,
    )


def _decide(world: World[Nothing], _: Command[Any], __: Call) -> list[Event]:
    gpu = device.Device(id=GPU, name="Toy", vendor="Toy", type="gpu", architecture="", memory=1, node=NODE)
    return [] if world else [device.DeviceDetected(device_id=GPU, device=gpu)]


def _reply(_: World[Nothing], __: Command[Any], ___: Sequence[Event]) -> View:
    return Success()


DEVICES: Domain[Nothing] = Domain(
    name="device",
    about="A processor and a GPU.",
    state=Nothing,
    events=(device.DeviceDetected,),
    internal=(Find,),
    queries=(device.ListDevices,),
    decide=_decide,
    evolve=lambda *_: Nothing(),
    reply=_reply,
    outside=_Devices,
)
