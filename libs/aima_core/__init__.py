"""The core of every domain: units, the event log, the bus. The core must not know any domain."""

VERSION = "0.3.0"
