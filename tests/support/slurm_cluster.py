"""A real Slurm of one node for the tests: munged, slurmctld and slurmd of their own, on ports and in folders of their own."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lottery.study.slurm import SlurmOptions
from tests.support.servers import free_port, needed

PARTITIONS = ("batch", "urgent")  # a job of `urgent` takes the place of one of `batch`, which is put back

CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=5,sched_min_interval=0,batch_sched_delay=0,bf_interval=3,max_array_tasks=50
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
MinJobAge=600
MaxArraySize=101
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 Gres=gpu:8 RealMemory=8000 State=UNKNOWN
PartitionName=batch Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE OverSubscribe=NO MaxTime=1-0
PartitionName=urgent Nodes={host} PriorityTier=2 PreemptMode=OFF OverSubscribe=NO MaxTime=1-0
"""


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.munged = needed("munged", "/usr/sbin/munged")
        self.controller = needed("slurmctld", "/usr/sbin/slurmctld")
        self.daemon_of_node = needed("slurmd", "/usr/sbin/slurmd")
        for command in ("sbatch", "scancel", "squeue", "sinfo"):
            needed(command)
        self.folder = folder
        self.node = socket.gethostname().split(".")[0]
        self.running: list[subprocess.Popen[bytes]] = []
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        (self.folder / "key").write_bytes(os.urandom(1024))
        (self.folder / "key").chmod(0o400)
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(
                host=self.node,
                folder=self.folder,
                user=pwd.getpwuid(os.geteuid()).pw_name,
                controller_port=free_port(),
                node_port=free_port(),
            )
        )
        # eight GPUs that are none: files, which Slurm counts, and tells a job the numbers of its own
        for i in range(8):
            (self.folder / f"gpu{i}").touch()
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-7]\n")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # does nothing until a plugin asks
        self.daemon(
            self.munged,
            "--foreground",
            "--force",
            f"--socket={self.folder}/munge.socket",
            f"--key-file={self.folder}/key",
            f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/seed",
        )
        self.until("munged answers", (self.folder / "munge.socket").exists)
        self.daemon(self.controller, "-D")
        self.daemon(self.daemon_of_node, "-D")
        self.until("the node is idle", lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%t"), 20)

    def daemon(self, *command: str) -> None:
        with open(self.folder / "daemons.log", "ab") as log:
            self.running.append(
                subprocess.Popen(command, stdout=log, stderr=log, env=self.environment, start_new_session=True)
            )

    def stop(self) -> None:
        subprocess.run(["scancel", "--user", str(os.geteuid())], env=self.environment, capture_output=True, timeout=20)
        for process in reversed(self.running):
            process.terminate()
        for process in self.running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        # what a job left behind names this cluster's configuration in its environment
        ours = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        for place in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if int(place.parent.name) != os.getpid() and ours in place.read_bytes():
                    os.kill(int(place.parent.name), signal.SIGKILL)

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands prints; empty where it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30)
        return done.stdout.strip() if done.returncode == 0 else ""

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, ... of a job or of one task of an array (`12_3`)."""
        return self.ask("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").split("\n")[0]

    def states(self, job: str) -> list[str]:
        """Of all tasks of an array, those that still wait as one line too."""
        return self.ask("squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%T").split("\n")

    def until(self, what: str, true: Callable[[], object], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end or any(process.poll() is not None for process in self.running):
                logs = [
                    f"--- {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in sorted(self.folder.glob("*.log"))
                ]
                raise AssertionError(f"not within {seconds} s: {what}\n" + self.ask("squeue") + "\n" + "\n".join(logs))
            time.sleep(0.1)

    def until_ended(self, job: str, seconds: float = 180) -> list[str]:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.until(f"job {job} has ended", lambda: all(s in ended for s in self.states(job)), seconds)
        return self.states(job)


@contextmanager
def slurm_cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # munged refuses folders that others may write, but for /tmp
    try:
        cluster = Cluster(folder)  # skips where there is no Slurm
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


SMALL = {"partition": "batch", "cpus": 1, "time": "30"}


def small(**given: Any) -> SlurmOptions:
    return SlurmOptions.parse(**(SMALL | given))
