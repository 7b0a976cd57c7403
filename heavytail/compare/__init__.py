"""`heavytail compare`: whether an optimizer helps the tail, by the rule of docs/compare.md.

`search` selects a step size, `statistics` has the test and the intervals, `comparison` makes trials into rows with
verdicts, `picture` and `page` show them.
"""
