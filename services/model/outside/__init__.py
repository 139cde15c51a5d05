"""The I/O of the model domain: pulls, hubs, files."""
