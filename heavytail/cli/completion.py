"""Print the script that completes heavytail's commands, options and names in a shell.

bash: add `eval "$(heavytail completion bash)"` to ~/.bashrc; zsh: the same with zsh in ~/.zshrc, after compinit; fish:
`heavytail completion fish > ~/.config/fish/completions/heavytail.fish`.
"""

from __future__ import annotations

import argparse

from heavytail.errors import HeavyTailError, install

EXAMPLE = "heavytail completion bash"
DURATION = ""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the shell."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    try:
        from argcomplete.shell_integration import shellcode
    except ImportError:
        raise HeavyTailError(f"completion needs argcomplete; {install('completion')}") from None
    print(shellcode(["heavytail"], shell=args.shell))
    return 0
