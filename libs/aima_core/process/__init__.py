"""One domain as a running process: the single writer, its effects, and its copies of the log."""
