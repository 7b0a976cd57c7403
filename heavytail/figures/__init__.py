"""The figures: sweeps to read, a plot and claims, made from finished runs; one file per family.

A file in this folder registers its figures with `register(Figure(...))`; the first look-up imports every file.
Nothing here trains; a figure whose runs are missing names the command that trains them.
"""
