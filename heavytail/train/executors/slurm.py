"""Runs as jobs of a Slurm cluster, submitted as arrays by submitit; they outlive the command that submits them.

Each run is one job. A job that is pre-empted or reaches its time limit commits its step, returns to the queue, and
resumes from its last commit. All nodes need heavytail and the folders of the store and the data sets under the same
paths. The same command finds the jobs of an earlier one in the queue and waits for them.

    ROOT/slurm/SUBMISSION/jobs.json       the job of each run, by key
    ROOT/slurm/SUBMISSION/ended/KEY.json  how a run ended; a job writes it last
    ROOT/slurm/SUBMISSION/...             submitit's script, pickles and logs
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from argparse import ArgumentTypeError
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heavytail.errors import HeavyTailError, SpecError, UnreadableError, install, reason
from heavytail.train.executors import CPUS, Event, Executor, Handle, Setting, attempt

if TYPE_CHECKING:  # `--help` imports every executor for its settings
    from heavytail.experiment.spec import RunSpec
    from heavytail.experiment.store import RunStore
    from heavytail.train.options import Options

FOLDER = "slurm"  # in the folder of the store
NAME = "heavytail"  # of every job
COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
QUEUED = 1000  # jobs of one store in the queue at most; the default limit of an array is 1001
HOURS = 1  # of a job, unless --time is given
WARNING_SECONDS = 90  # before the time limit, for a run to commit its step
RESUMES = 100  # at most, after time limits
ENDED_SECONDS = 1.0  # between two looks for runs that have ended
QUEUE_SECONDS = 15.0  # between two looks at the queue
VISIBLE_SECONDS = 60.0  # until a file of another node must be visible here: NFS caches folders for up to a minute
OURS = ("array", "cpus-per-task", "error", "gres", "job-name", "open-mode", "output", "partition", "signal", "time")
_LOG = logging.getLogger("heavytail")


def minutes(text: str) -> int:
    """Read a time limit in one of Slurm's forms: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; seconds are rounded up.

    >>> minutes("90"), minutes("1:30:00"), minutes("2-12")
    (90, 90, 3600)
    """
    match = re.fullmatch(r"(?:(\d{1,4})-)?(\d{1,6})(?::(\d\d?))?(?::(\d\d?))?", text, re.ASCII)
    if match is not None:
        days, *parts = (int(part or 0) for part in match.groups())
        if match[1] is None and match[4] is None:  # M or M:S
            parts = [0, *parts[:2]]
        total = days * 24 * 60 + parts[0] * 60 + parts[1] + (parts[2] > 0)
        if total >= 5:  # Slurm may send the warning a minute early
            return total
    raise ArgumentTypeError(f"expected 5 minutes or more as minutes, H:M:S or D-H:M:S, got '{text}'")


def flags(text: str) -> dict[str, Any]:
    """Read options of sbatch, such as `account=physics exclusive`."""
    found: dict[str, Any] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{error}, got '{text}'") from error
    for word in words:
        match = re.fullmatch(r"(?:--)?([a-z][a-z-]*)(?:=(.+))?", word, re.ASCII)
        if match is None:
            raise ArgumentTypeError(f"expected options such as 'account=NAME mem=8G', got '{word}'")
        if match[1] in OURS:
            raise ArgumentTypeError(f"expected other options than '{match[1]}', which heavytail sets")
        found[match[1]] = match[2] or True
    return found


SETTINGS = (
    CPUS,
    Setting("partition", str, "NAME", "partition of the jobs (default: the cluster's)"),
    Setting("time", minutes, "LIMIT", f"time limit of a job, which then resumes in another one (default: {HOURS} h)"),
    Setting("gres", str, "LIST", "resources of each job, such as gpu:1"),
    Setting("setup", str, "COMMANDS", "shell commands at the start of each job, such as 'module load cuda'"),
    Setting("sbatch", flags, "OPTIONS", "further options of sbatch, such as 'account=NAME mem=8G'"),
    Setting("leave", None, "", "submit the runs that can be trained now, and do not wait for them"),
)


def connect(store: RunStore, options: Options, should_stop: Callable[[], bool]) -> Executor:
    """Return the queue of the cluster, with the jobs of earlier commands on this store.

    Raises:
        HeavyTailError: submitit is not installed, this is no machine of a cluster, or Slurm does not answer.
    """
    try:
        import submitit  # noqa: F401
    except ModuleNotFoundError as error:
        raise HeavyTailError(f"--executor slurm needs submitit; {install('slurm')}") from error
    gres = options.settings.get("gres", "")
    if "gpu" in gres and not options.device.startswith("cuda"):
        raise SpecError(f"--device: expected cuda with --gres {gres}, got {options.device}")
    return Queue(store, options, should_stop)


def cancel(root: Path, keys: Collection[str] | None = None) -> int:
    """Cancel the jobs of a store, and return their number; runs in progress commit their step.

    Args:
        root: folder of the store.
        keys: of the runs whose jobs to cancel; None for all.

    Raises:
        HeavyTailError: Slurm does not answer.
    """
    submissions = _submissions(root, ())
    if not submissions:
        return 0
    queue = _queue()
    chosen = [(s, key) for s in submissions for key in s.open(queue) if keys is None or key in keys]
    for submission, key in chosen:  # first, so that a command that waits for the job does not submit it again
        _write(submission.folder, key, "failed", "cancelled")
    _scancel([submission.jobs[key] for submission, key in chosen])
    return len(chosen)


def queued(root: Path) -> set[str]:
    """Return the keys of the runs of a store whose jobs are in the queue; none while Slurm does not answer."""
    with contextlib.suppress(HeavyTailError):
        if submissions := _submissions(root, ()):
            queue = _queue()
            return {key for submission in submissions for key in submission.open(queue)}
    return set()


# -- the command's side ------------------------------------------------------------------------------------------------


@dataclass
class _Submission:
    """The jobs of one array.

    Attributes:
        folder: where they write.
        jobs: the job of each run, by key: "12_3", or "12" if there is one only.
        throttle: the number of its jobs that Slurm runs at a time.
        ended: the keys of the runs that are known to have ended.
    """

    folder: Path
    jobs: dict[str, str]
    throttle: int
    ended: set[str] = field(default_factory=set)

    def look(self) -> set[str]:
        """Look for runs that have ended; return those that were not known to."""
        with contextlib.suppress(OSError):
            names = {name.removesuffix(".json") for name in os.listdir(self.folder / "ended")}
            new = (names & self.jobs.keys()) - self.ended
            self.ended |= new
            return new
        return set()

    def open(self, queue: set[str]) -> list[str]:
        """Return the keys of the runs whose jobs are in the queue and have not ended."""
        return [key for key, job in self.jobs.items() if job in queue and key not in self.ended]

    @property
    def array(self) -> str:
        """The array's number."""
        return next(iter(self.jobs.values())).partition("_")[0]


@dataclass
class _Watched:
    """A run that the command waits for: its job, how it ended, and since when it is missing in the queue."""

    spec: RunSpec
    submission: _Submission
    event: Event | None = None
    since: float | None = None


class Queue:
    """The jobs of a store in the queue of a Slurm cluster: submits runs, and waits for those of the command."""

    def __init__(self, store: RunStore, options: Options, should_stop: Callable[[], bool]) -> None:
        self._store, self._should_stop = store, should_stop
        self._limit = options.workers
        self._settings = options.settings
        self._root = Path(os.path.abspath(store.root))
        self._options = replace(options, data_dir=Path(os.path.abspath(options.data_dir)))
        self._watched: dict[str, _Watched] = {}
        self._queue = _queue()
        self._queue_at = time.monotonic()
        self._ended_at = -float("inf")
        self._left = self._fatal = False
        self._said = ""
        self._submissions = _submissions(self._root, ())
        for submission in self._submissions[:]:
            if not submission.open(self._queue) and submission.ended == submission.jobs.keys():
                self._clear(submission)

    def start(self, specs: Sequence[RunSpec]) -> Sequence[RunSpec]:
        """Submit the runs that are not in the queue; return all that are there now, and none with --leave.

        While --jobs runs are in the queue, others wait here: the arrays of this store together never run more.
        """
        while specs:
            with _locked(self._root):
                self._read()
                jobs = {key: s for s in self._submissions for key in s.open(self._queue)}
                room = (self._limit or QUEUED) - len(jobs)
                missing = [spec for spec in specs if spec.key not in jobs][: max(0, QUEUED - len(jobs))]
                if missing and room > 0 and (made := self._submit(missing, room, bool(jobs))) is not None:
                    jobs |= dict.fromkeys(made.jobs, made)
            if self._settings.get("leave"):
                self._say_left(len(jobs), len([spec for spec in specs if spec.key not in jobs]))
                return []
            started = [spec for spec in specs if spec.key in jobs]
            self._watched |= {spec.key: _Watched(spec, jobs[spec.key]) for spec in started}
            if started or self._watched or self._should_stop():
                return started
            time.sleep(ENDED_SECONDS)  # the jobs of other commands have taken all room
        return []

    def poll(self, handle: Handle, timeout: float) -> None:
        """Report the runs that have ended, and those whose job is gone; after `stop`, return all."""
        if self._left:
            for key in list(self._watched):
                handle(Event(self._watched.pop(key).spec, "returned"))
            return
        now = time.monotonic()
        if now - self._ended_at < ENDED_SECONDS:
            time.sleep(timeout)
            return
        self._ended_at = now
        for submission in {id(w.submission): w.submission for w in self._watched.values()}.values():
            submission.look()
        if now - self._queue_at > QUEUE_SECONDS:
            self._look()
            self._balance()
        for key, watched in list(self._watched.items()):
            if (event := self._end(watched, now)) is not None:
                self._fatal = self._fatal or event.kind == "fatal"
                del self._watched[key]
                handle(event)

    def stop(self) -> None:
        """Leave the jobs in the queue; after a fatal error, cancel those that this command waits for."""
        if self._left:
            return
        self._left = True
        if self._fatal:
            _scancel(w.submission.jobs[key] for key, w in self._watched.items())
        elif self._watched:
            self._say_left(len(self._watched))

    def close(self) -> None:
        """Do nothing: the jobs go on."""

    def _say_left(self, queued: int, more: int = 0) -> None:
        waiting = f" ({more} more wait for room)" if more else ""
        _LOG.warning("%d runs are left in Slurm's queue%s; `heavytail cancel` ends them", queued, waiting)

    def _warn(self, text: str) -> None:
        """Warn, once for several warnings in succession."""
        if text != self._said:
            _LOG.warning("%s; trying again", text)
        self._said = text

    def _read(self) -> None:
        """Read what other commands have submitted since the last time, and what has ended."""
        for submission in self._submissions:
            submission.look()
        new = _submissions(self._root, [submission.folder.name for submission in self._submissions])
        self._submissions += new
        if new or time.monotonic() - self._queue_at > QUEUE_SECONDS:
            self._look()

    def _look(self) -> None:
        """Look at the queue; while Slurm does not answer, the last answer counts."""
        self._queue_at = time.monotonic()
        try:
            self._queue, self._said = _queue(), ""
        except HeavyTailError as error:
            self._warn(str(error))
            return
        for watched in self._watched.values():
            gone = watched.submission.jobs[watched.spec.key] not in self._queue
            watched.since = (watched.since or time.monotonic()) if gone else None

    def _end(self, watched: _Watched, now: float) -> Event | None:
        """How a run ended; None while it goes on, or while its commit is not visible here."""
        spec, submission = watched.spec, watched.submission
        job = submission.jobs[spec.key]
        if watched.event is None and spec.key in submission.ended:
            kind, text = _read(submission.folder, spec.key)
            watched.event = Event(spec, kind, text)  # type: ignore[arg-type]
            watched.since = now
        if watched.event is not None:
            hidden = not watched.event.visible(self._store)
            return None if hidden and now - (watched.since or 0.0) < VISIBLE_SECONDS else watched.event
        if watched.since is None or now - watched.since < VISIBLE_SECONDS:
            return None
        state = _state(job)
        if state.startswith("CANCELLED"):
            return Event(spec, "failed", f"its job {job} was cancelled")
        return Event(spec, "lost", f"its job {job} ended{f' as {state}' * bool(state)}{_last_words(submission, job)}")

    def _balance(self) -> None:
        """Let the arrays of this store run --jobs jobs at a time in all, the oldest first."""
        left = self._limit or 0
        for submission in self._submissions:
            number = len(submission.open(self._queue))
            share = min(left, number)
            left -= share
            if share > 1 and share != min(submission.throttle, number):
                submission.throttle = share
                with contextlib.suppress(HeavyTailError):  # the array has just ended
                    _call("scontrol", "update", f"JobId={submission.array}", f"ArrayTaskThrottle={share}")

    def _submit(self, specs: Sequence[RunSpec], room: int, waiting: bool) -> _Submission | None:
        """Submit runs as one array of which `room` are trained at a time; None if Slurm takes no more for now."""
        import submitit

        folder = self._root / FOLDER / f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{uuid.uuid4().hex[:6]}"
        (folder / "ended").mkdir(parents=True)
        given = self._settings
        limit = given.get("time", HOURS * 60)
        executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=RESUMES)
        executor.update_parameters(
            job_name=NAME,
            time=limit,
            signal_delay_s=min(WARNING_SECONDS, limit * 15),
            cpus_per_task=given.get("cpus", 1),
            array_parallelism=min(room, len(specs)),
            additional_parameters={"requeue": True, **given.get("sbatch", {})},
            **{name: given[name] for name in ("partition", "gres") if name in given},
            **({"setup": [given["setup"]]} if "setup" in given else {}),
        )
        try:
            with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # it prints errors that it raises
                jobs = [executor.submit(_Run(spec, self._root, folder, self._options)) for spec in specs]
        except submitit.core.utils.FailedJobError as error:
            shutil.rmtree(folder, ignore_errors=True)
            refusal = reason(error, -1).removeprefix("sbatch: error: ")
            if waiting or self._watched:
                self._warn(f"sbatch refuses more jobs: {refusal}")
                return None
            raise HeavyTailError(f"--executor slurm: sbatch refuses the jobs: {refusal}") from error
        table = {spec.key: job.job_id for spec, job in zip(specs, jobs, strict=True)}
        submission = _Submission(folder, table, min(room, len(specs)))
        _write_json(folder / "jobs.json", {"jobs": table, "throttle": submission.throttle})
        self._submissions.append(submission)
        self._queue |= {*table.values()}
        return submission

    def _clear(self, submission: _Submission) -> None:
        """Delete the folder of a submission whose runs are all finished; logs of others may be of use."""
        self._submissions.remove(submission)
        if all(_read(submission.folder, key)[0] == "finished" for key in submission.jobs):
            shutil.rmtree(submission.folder, ignore_errors=True)


def _locked(root: Path) -> contextlib.AbstractContextManager[Any]:
    """Hold the lock of the submissions: two commands do not submit one run."""
    from heavytail.locks import locked

    return locked(root / FOLDER / "lock")


def _submissions(root: Path, known: Collection[str]) -> list[_Submission]:
    """Read the submissions of a store that are not known yet, the oldest first, with the runs that have ended."""
    from heavytail.files import read_json

    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(root / FOLDER)):
            if name not in known and name != "lock":
                table = read_json(root / FOLDER / name / "jobs.json", {}, {})
                if table.get("jobs"):
                    found.append(_Submission(root / FOLDER / name, table["jobs"], table["throttle"]))
                    found[-1].look()
    return found


def _call(*command: str) -> str:
    """Return what a command of Slurm prints.

    Raises:
        HeavyTailError: it is not there, or fails.
    """
    if shutil.which(command[0]) is None:
        raise HeavyTailError(f"--executor slurm needs {command[0]}, which is not on the PATH of {socket.gethostname()}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        return done.stdout
    except (subprocess.SubprocessError, OSError) as error:
        text = reason((getattr(error, "stderr", None) or "").strip() or error)
        raise HeavyTailError(f"Slurm does not answer: {command[0]}: {text.partition('error: ')[2] or text}") from error


def _queue() -> set[str]:
    """Return the jobs of all commands in the queue, running ones and those that are ending included."""
    printed = _call("squeue", "--name", NAME, "--array", "--noheader", "--format", "%F %K")
    return {array if index == "N/A" else f"{array}_{index}" for array, index in map(str.split, printed.splitlines())}


def _scancel(jobs: Iterable[str]) -> None:
    listed = list(jobs)
    for start in range(0, len(listed), QUEUED):  # the length of a command line is limited
        _call("scancel", "--quiet", *listed[start : start + QUEUED])


def _state(job: str) -> str:
    """Return the state in which a job ended; "" if Slurm has forgotten it and keeps no accounts."""
    with contextlib.suppress(HeavyTailError):
        found = re.search(r"JobState=(\w+)", _call("scontrol", "--oneliner", "show", "job", job))
        if found is not None:
            return found[1]
    with contextlib.suppress(HeavyTailError):
        return (_call("sacct", "--jobs", job, "--allocations", "--noheader", "--format", "State%30").split() or [""])[0]
    return ""


def _last_words(submission: _Submission, job: str) -> str:
    """The last line that a job wrote to its log, besides those of Slurm, and the log's path."""
    log = submission.folder / f"{job}_0_log.err"
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()
        own = [line for line in lines if line.strip() and not re.match(r"srun: |slurmstepd|submitit ", line)]
        return f": {own[-1].strip()} (log: {log})" if own else f" (log: {log})"
    return ""


def _write_json(file: Path, table: Any) -> None:
    from heavytail.files import strict_json, write_atomic

    write_atomic(file, strict_json(table))


def _write(folder: Path, key: str, kind: str, text: str) -> None:
    """Record how a run ended."""
    _write_json(folder / "ended" / f"{key}.json", {"kind": kind, "text": text})


def _read(folder: Path, key: str) -> tuple[str, str]:
    """Return how a run ended: the kind and the text of its event."""
    from heavytail.files import read_json

    table = read_json(folder / "ended" / f"{key}.json", None, ({"kind": str, "text": str}, None))
    if table is None:
        raise UnreadableError(f"cannot read {folder / 'ended' / key}.json")
    return table["kind"], table["text"]


# -- the job's side ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """A run as submitit calls it in a job."""

    spec: RunSpec
    root: Path
    folder: Path
    options: Options

    def __call__(self) -> None:
        """Train the run and record how it ended; on a signal, commit, and return to the queue unless cancelled."""
        import torch
        from submitit import JobEnvironment

        from heavytail.experiment.store import RunStore

        requeue = signal.getsignal(signal.Signals[f"SIG{JobEnvironment.USR_SIG}"])
        asked: list[int] = []
        for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(signum, lambda signum, frame: asked.append(signum))
        torch.set_num_threads(self.options.settings.get("cpus", 1))
        try:
            event = attempt(self.spec, RunStore(self.root), self.options, should_stop=lambda: bool(asked))
        except HeavyTailError as error:
            event = Event(self.spec, "fatal", f"{socket.gethostname()}: {error}")
        if event.text == "interrupted":
            # If Slurm is ending this job, it returns it to the queue or cancels it by itself.
            state = _call("squeue", "--jobs", os.environ["SLURM_JOB_ID"], "--noheader", "--format", "%T")
            if state.strip() == "RUNNING":
                assert callable(requeue), "submitit has set a handler"
                requeue(signal.SIGUSR2, None)
            sys.exit(1)
        _write(self.folder, self.spec.key, event.kind, event.text)

    def checkpoint(self) -> Any:
        """Return what submitit calls when the job runs again: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
