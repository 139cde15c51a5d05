"""Paths of model files, on the disk and in lists: their type, their names, and the walk through their folders."""
