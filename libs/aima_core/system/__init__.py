"""What depends on the operating system: file locks, child processes, control groups, boots. Linux first."""
