"""The inference domain. `domain.py` assembles it."""
