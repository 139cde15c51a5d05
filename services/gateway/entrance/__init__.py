"""What every request passes before its API: connection, host, key, rate, quota; and how an error looks."""
