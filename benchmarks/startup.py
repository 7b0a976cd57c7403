"""Start-up time of `import heavytail` and `heavytail --help`, against `import torch`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

from benchmarks.timing import Options, Row, interleave


def rows(options: Options) -> Iterator[Row]:
    """Return the start-up time of each, relative to a process that does nothing and to one that imports torch."""

    def start(*arguments: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    contenders = {
        "nothing": start("-c", "pass"),
        "import torch": start("-c", "import torch"),
        "import heavytail": start("-c", "import heavytail"),
        "heavytail.Monitor": start("-c", "import heavytail; heavytail.Monitor"),
        "heavytail --help": start("-m", "heavytail", "--help"),
    }
    timing = interleave(contenders, rounds=options.rounds or 7, warmup=1)
    yield timing.row("start", "import heavytail", "nothing")
    yield timing.row("start", "heavytail --help", "nothing")
    yield timing.row("start", "heavytail.Monitor", "import torch")
