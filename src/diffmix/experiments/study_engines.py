"""Who runs a study's cells: processes on this machine, or tasks of a Ray cluster.

Either way a cell is one `diffmix train` in a process of its own, which writes to `CELL.log`. That file is locked while the
process lives: if the study is killed and its last cell is still being trained, or if two people start the same study, the
cell is waited for and not trained twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from diffmix.errors import RequestError
from diffmix.experiments.cells import Notice, train_command

try:
    import fcntl
except ImportError:  # no POSIX system: nobody guards against two starts at once there
    fcntl = None

_POLL = 0.1  # seconds between looks at the running processes
_GRACE = 10  # seconds for a process to end when told to


@dataclasses.dataclass(frozen=True)
class Job:
    """A cell to be trained. Everything in it can be sent to another machine."""

    label: str
    recipe: Path  # the resolved recipe
    folder: Path
    log: Path
    data: str | None
    cwd: str  # where relative paths in a recipe start
    data_folder: str | None  # $DIFFMIX_DATA


Engine = Callable[[Sequence[Job], int | None, Notice], Generator[tuple[Job, int], None, None]]


class Held(Exception):
    """Another process is training this cell."""


def start(job: Job, threads: int | None = None) -> subprocess.Popen[bytes] | None:
    """Start training a cell, or go on with it; None: it is finished. Raises Held."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        if fcntl is not None:
            try:
                # The lock belongs to the open file, which the process inherits: it ends with the process.
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Held from None
        if (job.folder / "metrics.json").is_file():
            return None
        _clear_stillborn(job.folder)
        command = train_command(str(job.recipe), job.folder, data=job.data)
        log.write(f"$ {shlex.join(['diffmix', *command[3:]])}\n".encode())
        log.flush()
        environment = {**os.environ, **({"DIFFMIX_DATA": job.data_folder} if job.data_folder else {})}
        if threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=job.cwd, env=environment)


def complaint(log: Path, code: int) -> str:
    """Why a cell's training failed: the error that its log ends with, or how its process ended."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    said = next((line for line in reversed(lines) if line.startswith(("error: ", "$ "))), "")
    if said.startswith("error: "):
        return said.removeprefix("error: ")
    return "the system ended it, most likely for lack of memory" if code < 0 else f"exit code {code}, see {log}"


def is_held(log: Path) -> bool:
    """Whether a process is training the cell of this log."""
    if fcntl is None or not log.is_file():
        return False
    with log.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _clear_stillborn(folder: Path) -> None:
    """Remove what a run leaves that was killed while it took its folder: without recipe.yaml it cannot be continued."""
    begun = list(folder.iterdir()) if folder.is_dir() else []
    if all(path.name == "data.json" or path.suffix == ".tmp" for path in begun):
        for path in begun:
            path.unlink()


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes; what they have saved stays."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    deadline = time.monotonic() + _GRACE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_local(jobs: Sequence[Job], workers: int | None, notice: Notice) -> Generator[tuple[Job, int], None, None]:
    """Train cells as processes of this machine, `workers` (1) at a time: each with its exit code, as they end."""
    workers = workers or 1
    threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None
    waiting, running, told = list(jobs), {}, set()
    try:
        while waiting or running:
            for job in list(waiting):
                if len(running) == workers:
                    break
                try:
                    process = start(job, threads)
                except Held:
                    if job not in told:
                        notice(f"{job.label} is being trained by another process: it is waited for")
                        told.add(job)
                    continue
                waiting.remove(job)
                if process is None:
                    yield job, 0
                else:
                    notice(f"{job.label}: training, see {job.log}")
                    running[process] = job
            for process in [process for process in running if process.poll() is not None]:
                job = running.pop(process)
                yield job, process.returncode
            time.sleep(_POLL)
    finally:
        stop(list(running))


def run_job(job: Job, threads: int | None = None) -> int:
    """Train one cell to its end: the exit code. What a Ray task does."""
    while True:
        try:
            process = start(job, threads)
            break
        except Held:
            time.sleep(_POLL)
    if process is None:
        return 0
    try:
        while process.poll() is None:  # a cancelled task is interrupted between two looks, not inside a wait
            time.sleep(_POLL)
        return process.returncode
    finally:
        stop([process])


def run_ray(jobs: Sequence[Job], workers: int | None, notice: Notice) -> Generator[tuple[Job, int], None, None]:
    """Train cells as tasks of a Ray cluster: that of $RAY_ADDRESS, or a local one, which ends with the study.

    At most `workers` run at a time, left out one a GPU, or one a machine where there is no GPU; each task has an equal share
    of the cluster's CPUs and GPUs. On several machines the runs' folder must be one that all of them see.
    """
    import ray  # pyright: ignore[reportMissingImports]  (an extra)

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15, but the cells are what the machine is for
    ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    tasks: dict[Any, Job] = {}
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum(node.get("GPU", 0) for node in nodes)
        workers = workers or int(gpus) or len(nodes)
        share = sum(node.get("CPU", 0) for node in nodes) // workers
        cpus = max(1, int(min(share, max(node.get("CPU", 0) for node in nodes))))
        task = ray.remote(num_cpus=cpus, num_gpus=min(1.0, gpus / workers), max_retries=0)(run_job)
        notice(f"Ray: {len(nodes)} machines, {workers} cells at a time with {cpus} CPUs each, {gpus:g} GPUs")
        waiting = list(jobs)
        while waiting or tasks:
            while waiting and len(tasks) < workers:
                job = waiting.pop(0)
                tasks[task.remote(job)] = job
            for done in ray.wait(list(tasks), num_returns=1)[0]:
                job = tasks.pop(done)
                try:
                    code = ray.get(done)
                except ray.exceptions.RayError:  # its machine or its worker is gone
                    code = -signal.SIGKILL
                yield job, code
    finally:
        for reference in tasks:
            ray.cancel(reference)  # interrupts the task, which ends its process
        if tasks:
            ray.wait(list(tasks), num_returns=len(tasks), timeout=_GRACE)
        ray.shutdown()


def find_engine(name: str) -> Engine:
    """`local` or `ray`. Raises RequestError for another name, and where Ray is not installed."""
    if name == "local":
        return run_local
    if name != "ray":
        raise RequestError(f"--engine is {name!r}; give local or ray")
    if importlib.util.find_spec("ray") is None:
        raise RequestError("--engine ray needs Ray, which is not installed: pip install 'diffmix[ray]'")
    return run_ray


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end the study as Ctrl-C does, with its cells told to end, instead of leaving them behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
