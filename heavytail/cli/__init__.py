# PYTHON_ARGCOMPLETE_OK
"""The command line: one file per command, and `main`, which runs a command.

A file in this folder without a leading underscore is a command of the same name; it implements `_command.Command`.
Commands import their dependencies when they run, so that --help is fast.
"""

from __future__ import annotations

import argparse
import io
import os
import pkgutil
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import cast

from heavytail import __version__
from heavytail.cli._command import Command, Parser, last_line_only, require_lab
from heavytail.cli._complete import autocomplete
from heavytail.errors import HeavyTailError, printable

_DESCRIPTION = """\
Heavy-tailed class imbalance and why Adam outperforms gradient descent on language models: reproduce the paper, check
its claims, and measure the same in your own training."""

_EPILOG = """\
example (5 seconds on one CPU core; writes results/quick):
  heavytail reproduce fig06

environment variables:
  HEAVYTAIL_ROOT     folder of stored runs, as --root (default: ~/.cache/heavytail)
  HEAVYTAIL_DATA     folder of data sets, as --data-dir (default: data/ in the folder of stored runs)
  HEAVYTAIL_MIRROR   URL from which `data fetch` downloads instead of the public addresses
  HEAVYTAIL_WORKERS  processes that decode an image folder (default: one per usable CPU, at most 16; 0: none)

exit codes:
  0    done
  1    a check failed: a claim under --strict, a file under `data verify`, a run under `store merge`
  2    wrong input or environment: a setting, a file, a missing package, a full disk
  70   a bug in heavytail; the message names a file with the traceback
  130  interrupted; the same command continues"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; argparse's own errors and --help raise SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names need not be valid text
            stream.reconfigure(errors="backslashreplace")
    try:
        parser = _parser()
        autocomplete(parser)
        args = parser.parse_args(argv)
        require_lab()
        with last_line_only() if vars(args).get("quiet") else nullcontext():
            code: int = args.run(args)
        sys.stdout.flush()  # a closed pipe must raise here, not when the interpreter exits
        return code
    except HeavyTailError as error:
        return _fail(error.exit_code, str(error))
    except KeyboardInterrupt:
        return _fail(130, "interrupted")
    except BrokenPipeError:  # the reader of the output, such as `head`, closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.strerror is None:
            return _crash(error)
        return _fail(2, f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    except MemoryError:
        return _fail(2, "out of memory")
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # panics of Rust extensions are not Exceptions
        return _fail(2, f"out of memory: {error}") if _out_of_memory(error) else _crash(error)


def commands() -> dict[str, Command]:
    """Return the commands by name: every module of this folder without a leading underscore."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
    return {name: cast("Command", import_module(f"{__name__}.{name}")) for name in names}


def _parser() -> argparse.ArgumentParser:
    parser = Parser("heavytail", _DESCRIPTION, _EPILOG)
    parser.add_argument("--version", action="version", version=f"heavytail {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for name, command in commands().items():
        text = (command.__doc__ or "").strip()
        summary = text.splitlines()[0].rstrip(".")
        listed = summary[0].lower() + summary[1:]
        duration = f" ({command.DURATION})" if command.DURATION else ""
        sub = subparsers.add_parser(
            name, description=text, epilog=f"example{duration}:\n  {command.EXAMPLE}", help=listed
        )
        command.arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def _fail(code: int, message: str) -> int:
    print(f"heavytail: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


def _out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch could not allocate memory, on a GPU or on the CPU; neither is a MemoryError."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _crash(error: BaseException) -> int:
    """Report a bug in heavytail in one line, with the path of a file that has the traceback."""
    try:
        handle, log = tempfile.mkstemp(prefix="heavytail-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
        where = f"traceback in {log}"
    except OSError as unwritable:
        where = f"no traceback: {unwritable.strerror}"
    return _fail(70, f"bug in heavytail: {type(error).__name__}: {error} ({where}; please report it)")
