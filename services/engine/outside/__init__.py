"""What the engine domain awaits: packages, programs, ports, health, peers."""
