"""Chooses the files of a repository or package that form the model, before any of them is downloaded or unpacked."""
