"""What the device domain awaits: its drivers."""
