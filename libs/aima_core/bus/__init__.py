"""The bus: both of its sides, and the nats-server itself."""
