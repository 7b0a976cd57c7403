"""`python -m heavytail` is the command `heavytail`."""

import sys

from heavytail.cli import main

if __name__ == "__main__":
    sys.exit(main())
