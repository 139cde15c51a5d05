"""The domains: every folder of `services/` with a `domain.py`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import services
from aima_core.domain_names import names_in

if TYPE_CHECKING:
    from aima_core.domain import Domain


def names() -> list[str]:
    """Return the names of all domains without importing them."""
    return names_in(services)


def load(name: str) -> Domain[Any]:
    """Import a domain and return it."""
    from aima_core.domain import Domain  # a command that only needs names does not pay for this import

    module = importlib.import_module(f"services.{name}.domain")
    return next(value for value in vars(module).values() if isinstance(value, Domain) and value.name == name)
