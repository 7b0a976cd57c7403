"""Theory in closed form, curvature of the head, and statistics of the classes.

theory       Theorem 3, Proposition 2 and the quadratic of figure 6
curvature    gradient norm, Hessian trace and Hessian entries of the rows of a head, in one pass
correlation  correlation of two quantities of the classes on log-log axes
zipf         Zipf's exponent of class counts
bigram, unigram, associative   models of three later papers, in closed form or iterated
"""
