"""A domain's log, and everything that is derived from the log: states, snapshots and read tables."""
