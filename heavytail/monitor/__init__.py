"""The monitor inside other people's frameworks. Each file needs its framework, and is imported only when asked for."""
