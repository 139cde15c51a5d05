"""A simulation of several domains together."""
