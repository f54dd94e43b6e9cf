"""Many runs: sweeps, launchers, transfer, reports. Nothing here trains by itself."""
