"""What the resource domain awaits: the machine and its peers."""
