"""Commands that are made from the units on the bus."""
