"""The command line. Thin: every command imports what it needs when it runs, so that --help is immediate.

A user's mistake is one line on stderr and exit status 2; --strict turns a claim that did not hold into status 1; 130 is
Ctrl-C.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from heavytail import __version__
from heavytail.errors import HeavyTailError, SpecError, StoreError

if TYPE_CHECKING:
    from heavytail.experiment.sweep import Sweep
    from heavytail.results.claims import Claim
    from heavytail.results.figure import Figure
    from heavytail.results.results import Results, SweepRef
    from heavytail.train.options import Options

LAB = ("scipy", "matplotlib", "polars", "rich", "safetensors", "pooch", "tokenizers", "sklearn", "PIL")
SCALES = ("paper", "small", "quick")
GPUS = ("a100", "h100", "h200", "rtx4090")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        _require_lab()
        status: int = args.command(args)
        return status
    except HeavyTailError as error:
        print(f"heavytail: {' '.join(str(error).split())}", file=sys.stderr)
        return 130 if type(error).__name__ == "Interrupted" else 2
    except KeyboardInterrupt:
        print("heavytail: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


# -- commands --------------------------------------------------------------------------------------------------------


def list_command(args: argparse.Namespace) -> int:
    """Print what there is: figures, presets, components."""
    from heavytail.experiment import sweep
    from heavytail.experiment.registry import registry
    from heavytail.results.figure import all_figures

    what: dict[str, Iterable[tuple[str, str]]] = {
        "figures": ((f.id, f.title) for f in all_figures()),
        "presets": ((name, str(sweep.read_preset(name).get("title", ""))) for name in sweep.preset_names()),
    }
    for kind in ("data", "model", "optim", "loss", "probe"):
        what[kind] = _recipes(kind, registry(kind))
    if args.what and args.what not in what:
        raise _unknown("what to list", args.what, what)
    for kind, rows in what.items():
        if args.what in (None, kind):
            print(kind)
            for name, text in rows:
                print(f"  {name:24} {text}")
    return 0


def reproduce_command(args: argparse.Namespace) -> int:
    """Train what is missing, draw, check the claims, report."""
    from heavytail.report.reproduce import reproduce
    from heavytail.results.figure import all_figures, figure
    from heavytail.train.distributed import joined
    from heavytail.train.progress import display

    chosen = [figure(name) for name in args.figures] or all_figures()
    if args.dry_run:
        return _print_costs(chosen, args)
    out = _writable(args.out or Path("results") / args.scale)
    with joined(_options(args)) as options, display(quiet=not options.first) as shown:
        claims = reproduce(chosen, _store(args), out, scale=args.scale, options=options, display=shown)
    if not options.first:
        return 0
    _print_claims(claims)
    print(f"report: {out / 'report.html'}")
    return 1 if args.strict and any(c.verdict == "not reproduced" for c in claims) else 0


def run_command(args: argparse.Namespace) -> int:
    """Train one run and write its tables."""
    from heavytail.experiment.spec import RunSpec
    from heavytail.report.tables import write_tables
    from heavytail.train.distributed import joined
    from heavytail.train.progress import display
    from heavytail.train.runner import run_all

    table: dict[str, Any] = {kind: {"name": getattr(args, kind)} for kind in ("data", "model", "optim")}
    table |= {"lr": args.lr, "steps": args.steps, "seed": args.seed, "eval_every": args.eval_every}
    if args.batch_size is not None:
        table["batch_size"] = args.batch_size
    spec = RunSpec.from_dict(_with_settings(table, args.set))
    out, store = _writable(args.out), _store(args)
    spec.resolved  # noqa: B018 - refuse unknown names before anything starts
    with joined(_options(args, 1)) as options, display(quiet=not options.first) as shown:
        failures = run_all(lambda: [spec] if store.missing_steps(spec) else [], store, options, shown)
    if failures:
        raise HeavyTailError(failures[0].reason)
    if not options.first:
        return 0
    history = store.load(spec)
    assert history is not None
    paths = write_tables(history, out)
    print(f"{history.status}: loss {history.loss[0]:.4f} at step 0, {history.loss[-1]:.4f} at step {history.step[-1]}")
    print("\n".join(map(str, paths)))
    return 0


def sweep_command(args: argparse.Namespace) -> int:
    """Search step sizes for a preset or a user's own problem, and say why each candidate lost."""
    from heavytail.experiment.sweep import Sweep
    from heavytail.train.distributed import joined
    from heavytail.train.progress import display
    from heavytail.train.runner import remember, search

    sweep = Sweep.load(args.file, scale=args.scale, variant=args.variant)
    store = _store(args)
    with joined(_options(args)) as options, display(quiet=not options.first) as shown:
        failures = search([sweep], store, options, shown)
    if failures:
        raise HeavyTailError(failures[0].reason)
    if not options.first:
        return 0
    _print_sweep(sweep, remember(store))
    if args.out is not None:
        _write_best(sweep, store, _writable(args.out))
    return 0


def status_command(args: argparse.Namespace) -> int:
    """Print every stored run and where it stands."""
    from heavytail.experiment.spec import RunSpec

    store = _store(args)
    count = 0
    for key, table, record in store.records():
        spec = RunSpec.from_dict(table)
        status = record["status"]
        if status == "running" and not store.locked(key):
            status = "interrupted"
        print(f"{key}  {status:12} step {record['step']:>6} of {spec.steps:<6}  {spec.describe()}")
        count += 1
    print(f"{count} runs under {store.root}")
    return 0


def data_command(args: argparse.Namespace) -> int:
    """List, verify or fetch the public data sets."""
    from heavytail.data import fetch

    folder = _data_dir(args)
    incomplete = 0
    for name in args.names or fetch.DATASETS:
        if args.action == "fetch":
            fetch.fetch(name, folder)
        states = fetch.status(name, folder)
        incomplete += any(status.state != "present" for status in states)
        print(f"{name}: {fetch.DATASETS[name].note}")
        for status in states:
            print(f"  {status.state:12} {status.path}")
    return 1 if args.action == "verify" and incomplete else 0


def report_command(args: argparse.Namespace) -> int:
    """Render a monitored training."""
    from heavytail.monitor.page import write_monitored

    print(f"report: {write_monitored(args.folder)}")
    return 0


def audit_command(args: argparse.Namespace) -> int:
    """Count a corpus, and say what its classes' frequencies will do to gradient descent."""
    from heavytail.audit.audit import audit

    out = _writable(args.out) if args.out is not None else None
    found = audit(args.path, tokenizer=args.tokenizer, vocab=args.vocab, column=args.column, num_groups=args.groups)
    print(found)
    if out is not None:
        from heavytail.audit.picture import draw_audit
        from heavytail.files import strict_json, write_atomic

        write_atomic(out / "audit.json", strict_json(found.to_dict()))
        write_atomic(out / "audit.png", draw_audit(found).render("png"))
        print(f"\n{out / 'audit.json'}\n{out / 'audit.png'}")
    return 0


# -- arguments -------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with the nearest flag."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            wrong = message.removeprefix("unrecognized arguments: ").split()[0]
            flags = [o for action in self._actions for o in action.option_strings]
            near = difflib.get_close_matches(wrong.split("=")[0], flags, n=1)
            message = f"unknown argument '{wrong}'" + (f"; did you mean '{near[0]}'?" if near else "")
        elif found := re.match(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message):
            argument, wrong, choices = found.groups()
            message = str(_unknown(argument, wrong, re.findall(r"[\w-]+", choices)))
        self.exit(2, f"heavytail: {message} (see {self.prog} --help)\n")

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        # A subcommand's parser must report its own unknown flags: it knows which are near.
        namespace, rest = super().parse_known_args(*args, **kwargs)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return namespace, rest


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="heavytail", description="Heavy-tailed class imbalance: the paper, rerun and checked.")
    parser.add_argument("--version", action="version", version=f"heavytail {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=function)
        return sub

    sub = add("list", list_command, "list figures, presets and components")
    sub.add_argument("what", nargs="?", help="figures, presets, data, model, optim, loss or probe")

    sub = add("reproduce", reproduce_command, "make figures of the paper and check their claims")
    sub.add_argument("figures", nargs="*", metavar="figNN", help="which figures (default: all)")
    _scale(sub)
    sub.add_argument("--out", type=Path, help="folder of the results (default: results/SCALE)")
    sub.add_argument("--strict", action="store_true", help="exit 1 if a claim that was checked does not hold")
    sub.add_argument("--dry-run", action="store_true", help="train nothing; list the runs and what they would cost")
    sub.add_argument("--gpu", choices=GPUS, default="h100", help="GPU whose hours --dry-run counts (default: h100)")
    _where(sub)

    sub = add("run", run_command, "train one run; write its losses per class and per frequency group")
    for kind, text in (("data", "data set"), ("model", "model"), ("optim", "optimizer")):
        sub.add_argument(f"--{kind}", required=True, metavar="NAME", help=f"{text} (see: heavytail list)")
    sub.add_argument("--lr", type=float, required=True, help="step size")
    sub.add_argument("--steps", type=int, required=True, help="number of updates")
    sub.add_argument("--batch-size", type=int, help="samples of an update (default: full batch)")
    sub.add_argument("--eval-every", type=int, default=1, metavar="K", help="record losses every K steps (default: 1)")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting, e.g. data.path=x.npz, model.init=zero, optim.momentum=0.9, loss.weights=inverse-sqrt",
    )
    sub.add_argument("--out", type=Path, required=True, help="folder of history.parquet and groups.parquet")
    _where(sub, workers=False)

    sub = add("sweep", sweep_command, "search step sizes for a preset or your own TOML file")
    sub.add_argument("file", metavar="FILE.toml", help="a TOML file, or the name of a preset")
    _scale(sub)
    sub.add_argument("--variant", default="", help="variant of the preset")
    sub.add_argument("--out", type=Path, help="folder for the tables of each optimizer's selected run")
    _where(sub)

    sub = add("status", status_command, "list the stored runs and where they stand")
    _where(sub, device=False, workers=False)

    sub = add("data", data_command, "list, verify or fetch the public data sets")
    sub.add_argument("action", choices=("list", "verify", "fetch"))
    sub.add_argument("names", nargs="*", metavar="NAME", help="data sets (default: all)")
    _where(sub, device=False, workers=False)

    sub = add("report", report_command, "render a monitored training as one HTML page")
    sub.add_argument("folder", type=Path, metavar="FOLDER", help="folder of a heavytail.Journal")

    sub = add("audit", audit_command, "how heavy the tail of a corpus is, and what it will do to gradient descent")
    sub.add_argument("path", type=Path, metavar="PATH", help="text, .jsonl, .csv, .parquet, .npy, or a folder of these")
    sub.add_argument("--tokenizer", default="words", help="words (default), bpe, unigram, or a tokenizer's JSON file")
    sub.add_argument("--vocab", type=int, metavar="N", help="keep N types, with <unk> (default: all; learned: 4000)")
    sub.add_argument("--column", metavar="NAME", help="column of a table or field of a JSON line (default: text)")
    sub.add_argument("--groups", type=int, default=10, metavar="G", help="frequency groups (default: 10)")
    sub.add_argument("--out", type=Path, help="folder of audit.json and audit.png")
    return parser


def _scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scale", choices=SCALES, default="quick", help="quick (default), small or paper")


def _where(parser: argparse.ArgumentParser, *, device: bool = True, workers: bool = True) -> None:
    parser.add_argument("--root", type=Path, help="folder of all runs (default: HEAVYTAIL_ROOT, else the cache folder)")
    parser.add_argument("--data-dir", type=Path, help="folder of data sets (default: HEAVYTAIL_DATA, else ROOT/data)")
    if device:
        parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda where there is one)")
        parser.add_argument("--compile", action="store_true", help="send models through torch.compile")
    if workers:
        parser.add_argument("--workers", type=int, help="processes (default: one per core on a CPU, one on a GPU)")


def _with_settings(table: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Lay `data.path=x` and the like over a run's table; a value is TOML, or else a string."""
    from heavytail.experiment.sweep import overlay

    for setting in settings:
        path, equals, text = setting.partition("=")
        if not (path and equals):
            raise SpecError(f"--set: expected KEY=VALUE, got '{setting}'")
        try:
            value: Any = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        for key in reversed(path.split(".")):
            value = {key: value}
        table = overlay(table, value)
    return table


def _store(args: argparse.Namespace) -> Any:
    from heavytail.experiment.store import RunStore

    return RunStore(_root(args))


def _root(args: argparse.Namespace) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(args.root or os.environ.get("HEAVYTAIL_ROOT") or Path(cache) / "heavytail").expanduser()


def _data_dir(args: argparse.Namespace) -> Path:
    return Path(args.data_dir or os.environ.get("HEAVYTAIL_DATA") or _root(args) / "data").expanduser()


def _options(args: argparse.Namespace, workers: int | None = None) -> Options:
    from heavytail.train.options import Options

    workers = workers or args.workers
    if workers is not None and workers < 1:
        raise SpecError(f"--workers: expected an integer >= 1, got {workers}")
    device = args.device
    if device is None or device != "cpu":
        import torch

        available = torch.cuda.is_available()
        device = device or ("cuda" if available else "cpu")
        if device.split(":")[0] not in ("cpu", "cuda") or (device != "cpu" and not available):
            raise SpecError(
                f"--device: expected cpu{' or cuda' if available else ' (there is no GPU)'}, got '{device}'"
            )
    return Options(_data_dir(args), device, workers, args.compile)


def _writable(folder: Path) -> Path:
    """Make an output folder now, so that hours of training do not end in a failure to write."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise StoreError(f"--out: cannot write to {folder}: {error.strerror}") from error


def _require_lab() -> None:
    missing = [name for name in LAB if find_spec(name) is None]
    if missing:
        raise HeavyTailError(f"this command needs {', '.join(missing)}: pip install 'heavytail[lab]'")


# -- output ----------------------------------------------------------------------------------------------------------


def _recipes(kind: str, known: Any) -> Iterable[tuple[str, str]]:
    for name in known.names():
        text = (known.recipe(name).__doc__ or "").strip().splitlines()
        yield name, text[0] if text else ""


def _unknown(kind: str, name: str, known: Iterable[str]) -> SpecError:
    from heavytail.errors import unknown

    return unknown(kind, name, known)


def _print_claims(claims: Sequence[Claim]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "claim", "measured", "threshold", "verdict", title="Claims", title_justify="left")
    colour = {"reproduced": "green", "not reproduced": "red", "not run": "yellow"}
    for claim in claims:
        measured = "" if claim.measured is None else f"{claim.measured:.4g}"
        verdict = f"[{colour[claim.verdict]}]{claim.verdict}[/]"
        table.add_row(claim.figure, claim.claim, measured, f"{claim.comparison} {claim.threshold}", verdict)
    Console().print(table)
    counts = {verdict: sum(c.verdict == verdict for c in claims) for verdict in colour}
    print(", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n))


def _print_costs(chosen: Sequence[Figure], args: argparse.Namespace) -> int:
    from heavytail.errors import DataError
    from heavytail.results.results import Results
    from heavytail.train import cost

    results, speed = Results(_store(args), args.scale), cost.speed()
    total = hours = 0.0
    print(
        f"{'problem':38} {'optimizer':16} {'runs':>4} {'steps':>6} {'parameters':>11} {'operations':>10} {'memory':>8} "
        f"{'hours here':>10} {'on ' + args.gpu:>10}"
    )
    for ref in _searches(chosen, results):
        name = " ".join(filter(None, [ref.preset, ref.variant]))
        try:
            for row in cost.rows(results.sweep(ref), _data_dir(args)):
                print(
                    f"{name:38} {row.arm.label:16} {row.runs:4} {row.spec.steps:6} {row.cost.parameters:11,} "
                    f"{row.operations:10.2g} {row.cost.memory / 2**30:5.1f} GB "
                    f"{_hours(row.hours(speed)):>10} {_hours(row.gpu_hours(args.gpu)):>10}"
                    + ("  (data not here)" if row.cost.nominal else "")
                )
                total += row.operations
                hours += row.gpu_hours(args.gpu)
        except DataError as error:
            print(f"{name:38} not counted: {error}")
    here = total / (speed * cost.UTILISATION)
    share = f"{cost.UTILISATION:.0%}"
    print(f"all runs, if no step size diverges early: {total:.3g} floating-point operations")
    print(f"here: about {_duration(here)} ({share} of the time in matrix products, at {speed / 1e9:.0f} GFLOP/s)")
    print(f"on one {args.gpu}: about {hours:.3g} hours ({share} of its peak); memory is that of one run")
    return 0


def _searches(chosen: Sequence[Figure], results: Results) -> list[SweepRef]:
    """Return the searches of some figures, each once: with its probes if any figure reads them."""
    found: dict[str, tuple[SweepRef, str]] = {}
    for ref in sorted((ref for figure in chosen for ref in figure.sweeps), key=lambda ref: ref.probed):
        sweep = results.sweep(ref)
        for arm in sweep.arms:
            key = sweep.spec(arm, arm.grid.exponents[0], 0).key
            found[key] = replace(ref, optim=()), arm.label
    labels: dict[SweepRef, list[str]] = {}
    for ref, label in found.values():
        labels.setdefault(ref, []).append(label)
    return [replace(ref, optim=tuple(names)) for ref, names in labels.items()]


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _print_sweep(sweep: Sweep, lookup: Any) -> None:
    for arm in sweep.arms:
        best = sweep.best(arm.label, lookup)
        assert best is not None
        print(arm.label)
        for lr, loss, reason in best.table():
            print(f"  lr {lr:<10.4g} loss {loss:<10.4g} {reason}")
        if best.warning:
            print(f"warning: {best.warning}", file=sys.stderr)


def _write_best(sweep: Sweep, store: Any, out: Path) -> None:
    from heavytail.report.tables import write_tables
    from heavytail.train.runner import remember

    for arm in sweep.arms:
        best = sweep.best(arm.label, remember(store))
        assert best is not None
        if best.chosen is not None:
            for spec in best.chosen.specs:
                folder = out / arm.label / f"seed{spec.seed}"
                folder.mkdir(parents=True, exist_ok=True)
                write_tables(store.load(spec), folder)
