"""Contains the code that depends on the operating system: file locks, child processes, control groups, boots."""
