"""Which domains there are: every folder of `services/` with a `domain.py`. Adding one is adding a folder."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from typing import Any

import services
from aima_core.domain import Domain


def names() -> list[str]:
    """Return the names of all domains, without importing any."""
    found = (module.name for module in pkgutil.iter_modules(services.__path__) if module.ispkg)
    return sorted(name for name in found if importlib.util.find_spec(f"services.{name}.domain"))


def load(name: str) -> Domain[Any]:
    """Import a domain."""
    module = importlib.import_module(f"services.{name}.domain")
    return next(value for value in vars(module).values() if isinstance(value, Domain) and value.name == name)
