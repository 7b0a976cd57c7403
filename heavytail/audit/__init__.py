"""Measure class imbalance in a corpus."""
