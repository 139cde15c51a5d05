"""The resource domain. `domain.py` assembles it."""
