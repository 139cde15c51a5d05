"""The device domain. `domain.py` assembles it."""
