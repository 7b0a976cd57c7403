"""Figures: each is a picture and a list of claims, made from finished runs; adding one is one file here.

A file in this folder registers its figures with `register(Figure(...))`; the first look-up imports every file.
Nothing here trains, and a figure whose runs are missing says which command makes them.
"""
