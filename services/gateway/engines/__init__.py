"""A request on its way to an engine and its answer on the way back, whatever API asks."""
