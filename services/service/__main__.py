"""The service domain as a process of its own: `python -m services.service`."""

from aima_core import logs
from aima_core.process import run
from aima_core.settings import load
from services.service.domain import SERVICE

if __name__ == "__main__":
    settings = load({SERVICE.name: SERVICE.settings})
    logs.set_up(SERVICE.name, settings.log.level)
    run(SERVICE, settings)
