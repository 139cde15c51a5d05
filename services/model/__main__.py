"""The model domain as a process of its own: `python -m services.model`."""

from aima_core.process.launch import main
from services.model.domain import MODEL

if __name__ == "__main__":
    main(MODEL)
