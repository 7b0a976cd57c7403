"""The figures, one file per family: each reads finished runs, plots them and checks claims.

A file in this folder registers its figures with `register(Figure(...))`; the first look-up imports every file.
Nothing here trains; a figure whose runs are missing names the command that trains them.
"""
