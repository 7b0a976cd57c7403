"""A Slurm cluster of one node: this machine, as root, without systemd, accounts or files outside one folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from heavytail.system import num_cores

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")

CONFIGURATION = """
ClusterName=heavytail
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores}
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE
"""


def obstacle() -> str | None:
    """Return why no cluster can be started here; None if it can."""
    missing = [name for name in DAEMONS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install slurmctld slurmd slurm-client munge"
    return None if os.geteuid() == 0 else "only root can start Slurm here"


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Start a cluster whose files are in `folder`; SLURM_CONF leads the commands of Slurm to it."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=host, folder=folder, ports=_free_ports(), cores=num_cores()))
    munge = {"socket": "munge.sock", "key-file": "munge.key", "pid-file": "munge.pid", "seed-file": "munge.seed"}
    given = [f"--{option}={folder / name}" for option, name in munge.items()]
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(configuration)
    with open(folder / "daemons.log", "wb") as log, contextlib.ExitStack() as stack:

        def start(*command: str) -> None:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            stack.callback(process.wait)
            stack.callback(process.terminate)

        try:
            start("munged", "--foreground", "--force", *given)
            _wait_for(lambda: (folder / "munge.sock").exists(), folder)
            start("slurmctld", "-D")
            start("slurmd", "-D")
            _wait_for(lambda: "idle" in _printed("sinfo", "--noheader", "--format=%T"), folder)
            yield
        finally:
            _printed("scancel", "--user=root")
            with contextlib.suppress(TimeoutError):
                _wait_for(lambda: not _printed("squeue", "--noheader"), folder)
            del os.environ["SLURM_CONF"]
            if before is not None:
                os.environ["SLURM_CONF"] = before


def _free_ports() -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _wait_for(condition: object, folder: Path, seconds: float = 30.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(log.read_text(errors="replace")[-2000:] for log in folder.glob("*.log"))
            raise TimeoutError(f"Slurm did not get there in {seconds:.0f} s:\n{logs}")
        time.sleep(0.05)
