"""The part of the device domain that awaits its drivers."""
