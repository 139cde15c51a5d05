"""The commands of `aima`, one file each, named after the command."""
