"""Which domains there are: every folder of `services/` with a `domain.py`. Adding one is adding a folder."""

from __future__ import annotations

import importlib
from typing import Any

import services
from aima_core.domain import Domain, names_in


def names() -> list[str]:
    """Return the names of all domains, without importing any."""
    return names_in(services)


def load(name: str) -> Domain[Any]:
    """Import a domain."""
    module = importlib.import_module(f"services.{name}.domain")
    return next(value for value in vars(module).values() if isinstance(value, Domain) and value.name == name)
