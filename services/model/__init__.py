"""The model domain: the registry of models and their files."""
