"""The resource domain as a process of its own: `python -m services.resource`."""

from aima_core.process.launch import main
from services.resource.domain import RESOURCE

if __name__ == "__main__":
    main(RESOURCE)
