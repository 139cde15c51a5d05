"""Run the device domain alone: `python -m services.device`."""

from aima_core import logs, settings
from aima_core.process import run
from services.device.domain import DEVICE

if __name__ == "__main__":
    loaded = settings.load({DEVICE.name: DEVICE.settings})
    logs.set_up(DEVICE.name, loaded.log.level)
    run(DEVICE, loaded)
