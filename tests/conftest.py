"""Fixtures that more than one test file uses."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, and no time limit for each: a loaded machine must not fail a test.
settings.register_profile("heavytail", derandomize=True, deadline=None, database=None)
settings.load_profile("heavytail")

# A shell starts its background jobs with Ctrl-C ignored, and the processes that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the public data sets; a test that asks for it is skipped where there is none."""
    named = os.environ.get("HEAVYTAIL_DATA")
    if not named or not Path(named).is_dir():
        pytest.skip("set HEAVYTAIL_DATA to the folder of the public data sets (see `heavytail data fetch`)")
    return Path(named)
