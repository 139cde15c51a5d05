"""What every domain of AIMA stands on: units, the event log, the bus. Knows no domain."""

VERSION = "0.3.0"
