"""A domain's log and everything derived from it: state, snapshots, read tables."""
