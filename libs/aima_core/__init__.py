"""The core that every domain of AIMA is built on: units, the event log, the bus. Must not know any domain."""

VERSION = "0.3.0"
