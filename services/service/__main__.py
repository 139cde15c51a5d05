"""The service domain as a process of its own: `python -m services.service`."""

from aima_core.process.launch import main
from services.service.domain import SERVICE

if __name__ == "__main__":
    main(SERVICE)
