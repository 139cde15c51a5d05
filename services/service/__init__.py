"""The service domain. `domain.py` assembles it."""
