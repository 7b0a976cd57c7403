"""Experiments: components by name, runs, sweeps and their store."""
