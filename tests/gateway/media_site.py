"""A gateway before stand-in engines that serve every kind of request, each model as a service of its own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aima_core.testing import until
from services.engine.domain import ENGINE
from services.inference.domain import INFERENCE
from services.service.domain import SERVICE
from tests.engine.programs import STAND_IN as TEXT_ENGINE
from tests.gateway.conftest import ADMIN, Site, gateway
from tests.toys.asking import ask
from tests.toys.devices import PROCESSOR
from tests.toys.machine import machine
from tests.toys.memory import memory
from tests.toys.models import model_view, shelf

MEDIA_ENGINE = TEXT_ENGINE.with_name("media_engine.py")
MODELS = {
    "Talk": "llm",
    "Vectors": "embedding",
    "Voice": "tts",
    "Ears": "asr",
    "Brush": "diffusion",
    "Film": "video_gen",
    "Judge": "rerank",
    "Eyes": "detection",
}
MANIFEST = """
name: {name}
about: A stand-in for engines.
type: {main}
version: "1"
command: ["{{python}}", "-S", {program}, "--port={{port}}", "--host={{host}}", "--model={{model_name}}"]
health: {{path: /health, interval: 0.1, timeout: 1}}
endpoints: [/health]
model_types: [{types}]
formats: [gguf]
features: {{max_context_length: 100}}
devices: [cpu]
preference: {{cpu: 1000}}
"""
MANIFESTS = {
    "media": MANIFEST.format(
        name="media", main="asr", program=MEDIA_ENGINE, types="asr, tts, diffusion, video_gen, rerank, detection"
    ),
    "text": MANIFEST.format(name="text", main="llm", program=TEXT_ENGINE, types="llm, embedding"),
}
SHELF = shelf(*(model_view(name, type=kind) for name, kind in MODELS.items()))


@contextlib.asynccontextmanager
async def media_site(folder: Path, **environ: str) -> AsyncIterator[Site]:
    """Serve a gateway with a running service for each model; `<model>-service` is its name."""
    async with machine(folder) as here:
        for name, manifest in MANIFESTS.items():
            (here.folder / "engine" / "manifests" / f"{name}.yaml").write_text(manifest)
        environ |= {"AIMA_ENGINE_PORT_MIN": str(here.ports[0]), "AIMA_ENGINE_PORT_MAX": str(here.ports[-2])}
        environ |= {"AIMA_API_KEYS": f"admin:{ADMIN}"}
        domains = (SHELF, memory(100_000), PROCESSOR, ENGINE, SERVICE, INFERENCE)
        async with gateway(here.folder, here.nats, here.ports[-1], *domains, **environ) as site:
            services = [await _started(site, name.lower()) for name in MODELS]
            await until(lambda: _routed(site))
            yield site
            for service in services:
                await ask(site.client, "service.stop", service_id=service)


async def _started(site: Site, model: str) -> str:
    created: dict[str, Any] = await site.ask("service.create", model_id=model, name=f"{model}-service")
    await site.ask("service.start", service_id=created["service_id"])
    return str(created["service_id"])


async def _routed(site: Site) -> bool:
    models = (await site.ask("inference.models"))["models"]
    return sum(service["replicas"] for model in models for service in model["services"]) == len(MODELS)
