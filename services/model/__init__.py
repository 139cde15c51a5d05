"""The model domain: which models there are, and their files."""
