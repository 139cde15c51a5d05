"""The inference domain as a process of its own: `python -m services.inference`."""

from aima_core import logs
from aima_core.process import run
from aima_core.settings import load
from services.inference.domain import INFERENCE

if __name__ == "__main__":
    settings = load({INFERENCE.name: INFERENCE.settings})
    logs.set_up(INFERENCE.name, settings.log.level)
    run(INFERENCE, settings)
