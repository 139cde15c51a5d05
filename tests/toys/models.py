"""A model domain with some models on its shelf."""

from __future__ import annotations

import asyncio
from typing import Any

from aima_core.domain import Domain, Outside
from aima_core.errors import NotFound
from aima_core.units import Query, Success, View
from services.model import units as model
from tests.toys.stateless import Nothing


def model_view(name: str, *, path: str = "/models/m.gguf", trained_for: int = 0, **other: Any) -> model.ModelView:
    """Return a model as the model domain shows it."""
    view: dict[str, Any] = {
        "id": name.lower(),
        "name": name,
        "type": "llm",
        "format": "gguf",
        "status": "ready",
        "size": 1000,
        "requirements": {"weights": 1000, "kv_bytes_per_token": 2, "overhead": 100, "context_length": trained_for},
        "source": "local",
        "repo": "",
        "tag": None,
        "path": path,
        "checksum": "",
        "architecture": "toy",
        "parameters": None,
        "quantization": None,
        "tools": True,
        "progress": 100,
        "error": None,
        "created_at": "2026-01-01T12:00:00Z",
        "changed_at": "2026-01-01T12:00:00Z",
    }
    return model.ModelView.model_validate(view | other)


def shelf(*models: model.ModelView, slow: float = 0) -> Domain[Nothing]:
    """Return a model domain that has these models, and takes `slow` seconds to say so."""

    class Shelf(Outside[Nothing]):
        async def answer(self, query: Query[Any]) -> View:
            assert isinstance(query, model.GetModel)
            await asyncio.sleep(slow)
            for found in models:
                if query.model_id in (found.id, found.name):
                    return found
            raise NotFound(f"there is no model {query.model_id}", reason="MODEL_NOT_FOUND")

    return Domain(
        name="model",
        about="A shelf.",
        state=Nothing,
        events=(),
        queries=(model.GetModel,),
        decide=lambda *_: [],
        evolve=lambda *_: None,
        reply=lambda *_: Success(success=True),
        outside=Shelf,
    )
