"""Sweeps: grids of runs, planned, carried out and reported; nothing that was computed is lost."""
