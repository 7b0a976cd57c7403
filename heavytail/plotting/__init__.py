"""Plotting: style and panels shared by all figures."""
