"""The page of theorem 3: gradient flow beside sign flow, with sliders; computed in the page, from closed forms alone.

`theory.js` has the closed forms of `heavytail.analysis.theory`; tests/browser compares what it shows with them.
"""

from __future__ import annotations

from pathlib import Path

from heavytail.files import write_result
from heavytail.plotting.style import COLOURS, group_colours
from heavytail.report.page import Section, Table, render

_CLASSES = 6  # colours, from the most frequent class to the rarest


def write_theory(file: Path) -> None:
    """Write the page.

    Raises:
        StoreError: the file cannot be written.
    """
    from matplotlib.colors import to_hex

    colours = {"groups": [*map(to_hex, group_colours(_CLASSES))], "gd": COLOURS["gd"], "sign": COLOURS["sign"]}
    flows = Section(
        "Loss over steps",
        id="flows",
        note="Lines: the flows at time t = steps × step size. Points: gradient descent with this step size. Sign "
        "descent is on its line at every step.",
        live=colours,
    )
    formulas = Table(
        ("", "gradient flow", "sign flow"),
        [
            ("gap u of the logits", "u + (e^u − 1)/(c − 1) = c π t/(c − 1)", "u = 2 t"),
            ("loss", "log(1 + (c − 1) e^(−u))", "log(1 + (c − 1) e^(−2 t))"),
            ("loss once it is small", "(c − 1)/(c π t)", "(c − 1) e^(−2 t)"),
            ("time to a given loss", "in proportion to 1/π", "the same for every class"),
        ],
    )
    about = Section(
        "What is computed",
        note="Softmax regression from zero on c classes, where every sample of class k is the basis vector e_k, and π "
        "is the frequency of the class. The logit of the right class minus any other is the gap u; the gap of a class "
        "does not depend on other classes. The paper prints e^(−c t) for sign flow, which is right for two classes "
        "only (docs/errata.md, 4).",
        tables=[formulas],
    )
    page = render(
        "Theorem 3: gradient flow and sign flow",
        [flows, about],
        note="Gradient flow takes a class of frequency π a time in proportion to 1/π; sign flow takes all classes the "
        "same.",
        more_scripts=["theory.js"],
    )
    write_result(file, page)
