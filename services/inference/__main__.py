"""The inference domain as a process of its own: `python -m services.inference`."""

from aima_core.process.launch import main
from services.inference.domain import INFERENCE

if __name__ == "__main__":
    main(INFERENCE)
