"""The engine domain as a process of its own: `python -m services.engine`."""

from aima_core import logs
from aima_core.process import run
from aima_core.settings import load
from services.engine.domain import ENGINE

if __name__ == "__main__":
    settings = load({ENGINE.name: ENGINE.settings})
    logs.set_up(ENGINE.name, settings.log.level)
    run(ENGINE, settings)
