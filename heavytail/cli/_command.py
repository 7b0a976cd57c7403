"""Shared parts of the commands: protocol, parser, common options, output folders, required packages."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from heavytail.cli._complete import completes
from heavytail.errors import HeavyTailError, SpecError, StoreError, install, unknown

if TYPE_CHECKING:
    from heavytail.experiment.store import RunStore
    from heavytail.experiment.sweep import Sweep
    from heavytail.train.options import Options

LAB = ("scipy", "matplotlib", "polars", "rich", "jinja2", "safetensors", "pooch", "tokenizers", "sklearn", "PIL")
QUICK = "quick"
SCALES = ("paper", "small", QUICK)
ROLES = ("head", "embedding", "norm", "hidden")  # of heavytail.optim.roles, which imports torch


class Command(Protocol):
    """Interface of a command's module. Its docstring is the description, the first line the summary."""

    EXAMPLE: str
    """One complete command line, shown by --help; tests run it."""
    DURATION: str
    """Measured time and machine of the example; empty if it does not train."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Run the command and return the exit code."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line with the nearest flag. Flags cannot be abbreviated."""

    def __init__(self, prog: str, description: str = "", epilog: str = "") -> None:
        super().__init__(
            prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Exit with 2 and one line."""
        if message.startswith("unrecognized arguments: "):
            wrong = message.removeprefix("unrecognized arguments: ").split()[0]
            flags = [o for action in self._actions for o in action.option_strings]
            near = difflib.get_close_matches(wrong.split("=")[0], flags, n=1)
            message = f"unknown argument '{wrong}'" + (f"; did you mean '{near[0]}'?" if near else "")
        elif match := re.match(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message):
            argument, wrong, choices = match.groups()
            message = str(unknown(argument, wrong, re.findall(r"[\w-]+", choices)))
        self.exit(2, f"heavytail: {message} (see {self.prog} --help)\n")

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Report unknown flags here, where the subcommand's own flags can be suggested."""
        namespace, rest = super().parse_known_args(*args, **kwargs)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return namespace, rest


def scale_argument(parser: argparse.ArgumentParser, default: str | None = QUICK) -> None:
    """Add --scale; None tells whether it was given."""
    parser.add_argument("--scale", choices=SCALES, default=default, help="quick (default), small or paper")


def store_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --root and --data-dir."""
    parser.add_argument(
        "--root", type=Path, help="folder of stored runs (default: HEAVYTAIL_ROOT, or ~/.cache/heavytail)"
    )
    parser.add_argument("--data-dir", type=Path, help="folder of data sets (default: HEAVYTAIL_DATA, or ROOT/data)")


def device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --device and --compile."""
    parser.add_argument("--device", help="cpu, cuda or mps (default: cuda if available)")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")


def executor_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --executor, the options of every executor, --jobs and --shard."""
    from heavytail.train import executors

    parser.add_argument(
        "--executor", default="local", metavar="NAME", help=f"{', '.join(executors.names())} (default: local)"
    )
    parser.add_argument(
        "--jobs", "--workers", dest="workers", type=int, metavar="N",
        help="runs trained at a time (default: one per CPU core or GPU; all that a cluster has room for)",
    )  # fmt: skip
    parser.add_argument("--shard", metavar="I/N", help="train part I of N of the runs, the same on every machine")
    for setting, having in executors.settings().values():
        text = f"{', '.join(having)}: {setting.help}"
        if setting.parse is None:
            parser.add_argument(f"--{setting.name}", action="store_const", const=True, help=text)
        else:
            parser.add_argument(f"--{setting.name}", type=setting.parse, metavar=setting.metavar, help=text)


def sweep_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add a sweep's file or preset, its scale and variant, for `load_sweep`."""
    text = "a TOML file, or the name of a preset" + ("" if required else " (default: all runs)")
    file = parser.add_argument("file", nargs=None if required else "?", metavar="FILE.toml", help=text)
    completes(file, "presets")
    scale_argument(parser, QUICK if required else None)
    parser.add_argument("--variant", default="", help="variant of the preset")


def load_sweep(args: argparse.Namespace) -> Sweep | None:
    """Return the sweep of the command line, None if none is given."""
    from heavytail.experiment.registry import registry
    from heavytail.experiment.sweep import Sweep

    if args.file is None:
        for setting in ("variant", "scale"):
            if value := getattr(args, setting):
                raise SpecError(f"--{setting}: expected a sweep with it, got '{value}' alone")
        return None
    sweep = Sweep.load(args.file, scale=args.scale or QUICK, variant=args.variant).pinned(data_dir(args))
    for probe in sweep.probes:  # which only the runs at the selected step sizes have
        registry("probe").make(probe)
    return sweep


def quiet_argument(parser: argparse.ArgumentParser) -> None:
    """Add --quiet."""
    parser.add_argument("--quiet", action="store_true", help="print errors, warnings and the last line only")


@contextlib.contextmanager
def last_line_only() -> Iterator[None]:
    """Print the last line of what is printed inside, and nothing after an error."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        yield
    print(*printed.getvalue().splitlines()[-1:], sep="")


def on_argument(parser: argparse.ArgumentParser) -> None:
    """Add --on."""
    parser.add_argument(
        "--on",
        action="append",
        default=[],
        metavar="ROLE=OPT",
        help="optimizer of the parameters with a role: head, embedding, norm, hidden or rest (repeatable)",
    )


def optimizer(name: str | None, on: Sequence[str]) -> dict[str, Any]:
    """Return the table of an optimizer: `name`, or one for each role in `on`; `name` is then that of the rest."""
    if not on:
        if name is None:
            raise SpecError("--optim: expected the name of an optimizer, got none")
        return {"name": name}
    table: dict[str, Any] = {"name": "by-role"} | ({} if name is None else {"rest": {"name": name}})
    for assignment in on:
        role, _, part = assignment.partition("=")
        if role not in (*ROLES, "rest") or not part:
            raise SpecError(f"--on: expected ROLE=OPT with ROLE {', '.join(ROLES)} or rest, got '{assignment}'")
        if role in table:
            given = table[role]["name"]
            raise SpecError(f"--on: expected one optimizer for {role}, got '{given}' and '{part}'")
        table[role] = {"name": part}
    return table


def assignment(setting: str) -> tuple[str, Any]:
    """Return the key and the value of `--set KEY=VALUE`; the value is TOML, or else the text itself."""
    key, equals, text = setting.partition("=")
    if not (key and equals):
        raise SpecError(f"--set: expected KEY=VALUE, got '{setting}'")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        _check_text(key, text)
        return key, text
    except RecursionError as error:
        raise SpecError(f"--set {key}: nested too deeply") from error


def _check_text(key: str, text: str) -> None:
    """Raise SpecError for what is a text in TOML, but meant as something else: False, None, .5."""
    spelled = {"True": "true", "False": "false"}.get(text, "")
    if text == "None":
        raise SpecError(f"--set {key}: expected a TOML value, got None; leave the setting out, or write '\"None\"'")
    with contextlib.suppress(ValueError):
        spelled = spelled or repr(float(text))
    if spelled:
        raise SpecError(f"--set {key}: expected a TOML value, got {text}; write {spelled}, or '\"{text}\"' for a text")


def root(args: argparse.Namespace) -> Path:
    """Return the folder of stored runs."""
    from heavytail.files import expanded
    from heavytail.system import user_cache

    given = args.root or os.environ.get("HEAVYTAIL_ROOT")
    return expanded(given) if given else user_cache()


def data_dir(args: argparse.Namespace) -> Path:
    """Return the folder of data sets."""
    from heavytail.files import expanded

    return expanded(args.data_dir or os.environ.get("HEAVYTAIL_DATA") or root(args) / "data")


def run_store(args: argparse.Namespace) -> RunStore:
    """Return the store of runs."""
    from heavytail.experiment.store import RunStore

    return RunStore(root(args))


def options(args: argparse.Namespace, workers: int | None = None) -> Options:
    """Return how to train: --data-dir, --device, --compile, --executor, --shard, and --jobs or the number given."""
    from heavytail.train.executors import executor, settings
    from heavytail.train.options import ALL, Options, Shard

    given = vars(args)
    workers = workers or given["workers"]
    if workers is not None and workers < 1:
        raise SpecError(f"--jobs: expected an integer >= 1, got {workers}")
    shard = ALL if given.get("shard") is None else Shard.parse(args.shard)
    name = given.get("executor", "local")
    executor(name)
    chosen = {}
    for setting, having in settings().values():
        value = given.get(setting.name.replace("-", "_"))
        if value is not None and name not in having:
            raise SpecError(f"--{setting.name}: expected --executor {' or '.join(having)}, got {name}")
        if value is not None:
            chosen[setting.name] = value
    device = args.device
    if name != "local" and device is not None:
        pass  # the machines that train may have a GPU that this one has not
    elif device is None or device != "cpu":
        import torch

        allowed = ["cpu"]
        if torch.cuda.is_available():
            allowed += ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            allowed.append("mps")
        device = device or ("cuda" if "cuda" in allowed else "cpu")
        if device.removesuffix(":0") not in allowed:
            listed = " or ".join(allowed) if len(allowed) > 1 else "cpu (no GPU is available)"
            raise SpecError(f"--device: expected {listed}, got '{device}'")
    return Options(data_dir(args), device, workers, args.compile, executor=name, settings=chosen, shard=shard)


def writable(folder: Path) -> Path:
    """Create an output folder before training, so that hours of training do not end in a failure to write.

    Returns:
        The folder, with `~` replaced by the home folder.
    """
    from heavytail.files import expanded

    folder = expanded(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise StoreError(f"--out: cannot write to {folder}: {error.strerror}") from error


def browse(page: Path) -> None:
    """Open a page in the user's browser."""
    import webbrowser

    webbrowser.open(page.resolve().as_uri())


def require_lab() -> None:
    """Raise if a package of the extra `lab` is missing: every command needs it."""
    missing = [name for name in LAB if find_spec(name) is None]
    if missing:
        raise HeavyTailError(f"the command line needs {', '.join(missing)}; {install('lab')}")
