"""The gateway as a process of its own: `python -m services.gateway`."""

from aima_core.process.launch import main
from services.gateway.domain import GATEWAY

if __name__ == "__main__":
    main(GATEWAY)
