"""What the model domain awaits: pulls, hubs, files."""
