"""Finds the names of the domains in a package without importing a domain."""

from __future__ import annotations

import pkgutil
from importlib.util import find_spec
from types import ModuleType


def names_in(package: ModuleType) -> list[str]:
    """Return the names of the domains in a package: its folders with a `domain.py`. Imports no domain."""
    folders = (module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg)
    return sorted(name for name in folders if find_spec(f"{package.__name__}.{name}.domain"))
