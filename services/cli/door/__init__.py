"""Connects the command line to the units: over the bus, or over HTTP to a gateway."""
