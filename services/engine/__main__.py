"""The engine domain as a process of its own: `python -m services.engine`."""

from aima_core.process.launch import main
from services.engine.domain import ENGINE

if __name__ == "__main__":
    main(ENGINE)
