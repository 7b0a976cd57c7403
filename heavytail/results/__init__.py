"""Results: what figures read and what they claim."""
