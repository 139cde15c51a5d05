"""The part of the service domain that awaits its peers and the clock."""
