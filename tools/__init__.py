"""Maintainers' commands: they are neither in the wheel nor in `heavytail --help`."""
