"""Health and metrics of the gateway and of the domains behind it."""
