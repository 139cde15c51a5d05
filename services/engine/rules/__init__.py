"""The decisions, states, replies and views of the engine domain. All are pure."""
