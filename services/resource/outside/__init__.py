"""The part of the resource domain that awaits the machine and its peers."""
