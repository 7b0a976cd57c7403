"""What the paper measures about curvature: blocks of the head, entries of its Hessian, traces of the whole network.

blocks       gradient norm and Hessian trace of every class's row, one pass
entries      entries of the Hessian between chosen classes and inputs; the matrix of block traces
features     the class means and second moments that proposition 2 predicts from
hutchinson   the trace of any block of any network, estimated
correlation  how closely two quantities of the classes follow a power law of each other
"""
