"""Run the resource domain alone: `python -m services.resource`."""

from aima_core import logs, settings
from aima_core.process import run
from services.resource.domain import RESOURCE

if __name__ == "__main__":
    loaded = settings.load({RESOURCE.name: RESOURCE.settings})
    logs.set_up(RESOURCE.name, loaded.log.level)
    run(RESOURCE, loaded)
