"""Results: finished runs as figures read them, figures, and their claims."""
