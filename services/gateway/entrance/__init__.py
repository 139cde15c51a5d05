"""What every request passes before its API: connection, host, key, rate, quota; and the format of errors."""
