"""The machine a run lives on: random streams, processes, memory, locks, files written whole."""
