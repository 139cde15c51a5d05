"""The model domain as a process that ends itself with SIGKILL where a test says: `before FUNCTION` or `after FUNCTION`.

A kill from outside cannot hit the moment between two lines; this can.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from aima_core import settings, structured_logs
from aima_core.process import domain_process
from services.model.domain import MODEL


def arm(when: str, where: str) -> None:
    """Let the function `module.name` of services.model be the last one that runs."""
    module_name, _, name = where.rpartition(".")
    module = import_module(f"services.model.{module_name}")
    function: Callable[..., Any] = getattr(module, name)

    def deadly(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        function(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, name, deadly)


if __name__ == "__main__":
    arm(*sys.argv[1].split())
    loaded = settings.load({MODEL.name: MODEL.settings})
    structured_logs.set_up(MODEL.name, loaded.log.level)
    domain_process.run(MODEL, loaded)
