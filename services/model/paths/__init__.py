"""Paths of files of models: on the disk or on a hub, and what their names say."""
