"""What the service domain awaits: its peers and the time."""
