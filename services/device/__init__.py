"""Hardware of every node and its health."""
