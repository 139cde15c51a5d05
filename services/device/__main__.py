"""The device domain as a process of its own: `python -m services.device`."""

from aima_core.process.launch import main
from services.device.domain import DEVICE

if __name__ == "__main__":
    main(DEVICE)
