"""Nothing is lost or half written: work that is killed at any moment and gone on with ends as if it never was.

A moment is a share of the uninterrupted run's time from its first result on, killed from outside, or one of its
operations on files, before which the process kills itself: between a temporary file and its renaming, say. Both are
drawn from a seed.
Killed is the process with all its workers. A line a moment goes to kills.txt in pytest's temporary folder, and to the
terminal where all twenty are drawn.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import jobs
import numpy as np
import psutil
import pytest

SPAWN = multiprocessing.get_context("forkserver")  # each a process of its own, without importing jax each time
SPAWN.set_forkserver_preload(["mdn.batch", "mdn.report", "mdn.training", "mdn.dataset"])
TEMPORARY = (".part", ".partial", "orbax-checkpoint-tmp")
FIRST = {"dataset": "grown/*.npz*", "two_workers": "grown/*.npz*", "training": "last/*", "batch": "denoised/*"}
OPERATIONS = ("os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir")


def temporary(path: Path) -> bool:
    return any(text in path.name for text in TEMPORARY)


def work(job: str, folder: Path, fatal: int | None) -> None:
    """The job; it dies before the operation on files of that number, or leaves their number beside the folder."""
    os.setsid()  # a group of its own, with its workers
    count = 0

    def watch(event, args):
        nonlocal count
        written = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (written or event in OPERATIONS) and str(args[0]).startswith(f"{folder}{os.sep}"):
            if count == fatal:
                with folder.with_suffix(".died").open("a") as file:
                    file.write(f"{event} {Path(os.fspath(args[0])).relative_to(folder)}\n")
                os.killpg(0, signal.SIGKILL)
            count += 1

    sys.addaudithook(watch)
    getattr(jobs, job)(folder)
    folder.with_suffix(".operations").write_text(str(count))


def start(job: str, folder: Path, fatal: int | None = None):
    folder.mkdir()
    return go_on(job, folder, fatal)


def go_on(job: str, folder: Path, fatal: int | None = None):
    process = SPAWN.Process(target=work, args=(job, folder, fatal))
    process.start()
    return process


def begun(process, job: str, folder: Path) -> float:
    """The time of the first result: of imports and compilation, before that, there is nothing to lose."""
    while process.is_alive() and not any(folder.glob(FIRST[job])):
        time.sleep(0.002)
    return time.monotonic()


def finish(process) -> None:
    process.join(300)
    assert process.exitcode == 0, process.exitcode


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def outcome(job: str, folder: Path) -> dict:
    """What has to be the same: every file by its bytes; of a training, not its times and Orbax's own files."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    if job != "training":
        return {name: digest(path) for name, path in files.items()}
    history = json.loads(files.pop("history.json").read_text())
    kept = {int(name.split("/")[1]) for name in files if name.startswith("last/")}
    for step in kept:
        for line in (folder / f"last.{step}.sha256").read_text().splitlines():
            told, name = line.split("  ")
            assert told == digest(folder / "last" / name), name
    assert np.all(np.diff(history.pop("seconds")) > 0)
    own = {name: digest(path) for name, path in files.items() if not name.startswith("last")}
    return own | history | {"kept": kept, "sums": sorted(name for name in files if name.startswith("last."))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Of each job, run without interruption: its outcome, seconds of work and number of operations on files."""
    root, known = tmp_path_factory.mktemp("kills"), {}
    jobs.micrographs(root / "micrographs")

    def run(job: str) -> dict:
        if job not in known:
            process, folder = start(job, root / job), root / job
            since = begun(process, job, folder)
            finish(process)
            operations = int(folder.with_suffix(".operations").read_text())
            known[job] = {"root": root, "seconds": time.monotonic() - since, "operations": operations}
            known[job]["outcome"] = outcome(job, folder)
        return known[job]

    return run


def kill_at(job: str, folder: Path, share: float, seconds: float) -> float | None:
    """Kill a run at that share of its time; where it was done before, the seconds that it took."""
    process = start(job, folder)
    since = begun(process, job, folder)
    process.join(max(0.0, since + share * seconds - time.monotonic()))
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return time.monotonic() - since if folder.with_suffix(".operations").exists() else None


def kill_before(job: str, folder: Path, fatal: int) -> str:
    """Let a run kill itself before the operation of that number; which one that was."""
    start(job, folder, fatal).join(300)
    return folder.with_suffix(".died").read_text().splitlines()[0]


def survives(job: str, moment: int, whole, name: str) -> str:
    """Kill at the moment of that number, go on, compare; the line of the kill matrix."""
    known, rng = whole(job), np.random.default_rng([moment, len(job)])
    folder = known["root"] / f"{job}-{name}-{moment}"
    if job != "two_workers" and moment % 2:  # a worker's operations are not counted
        died = "before " + kill_before(job, folder, int(rng.integers(known["operations"])))
    else:
        share = rng.uniform()
        while faster := kill_at(job, folder, share, known["seconds"]):  # than the first, which compiled
            known["seconds"], share = faster, rng.uniform()
            folder = folder.with_name(folder.name + "-again")
        died = f"at {share:.3f} of its time"
    left = [path for path in folder.rglob("*") if path.is_file()]
    parts = sorted({str(path.relative_to(folder)) for path in folder.rglob("*") if temporary(path)})
    assert not folder.with_suffix(".operations").exists()  # it was not done
    for path in filter(temporary, left):
        os.utime(path, (0, 0))  # as if it was gone on with tomorrow: no other process writes these
    finish(go_on("dataset" if job == "two_workers" else job, folder))
    line = json.dumps({"job": job, "moment": moment, "killed": died, "files": len(left), "unfinished": parts[:3]})
    found = outcome(job, folder)
    expected = whole("dataset" if job == "two_workers" else job)["outcome"]
    odd = {key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)}
    assert not odd, f"{line}: {sorted(odd)}"
    return line


def say(lines: list[str], tmp_path_factory) -> None:
    with (tmp_path_factory.getbasetemp() / "kills.txt").open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


@pytest.mark.parametrize("job", ["dataset", "two_workers", "training", "batch"])
def test_three_kills(job, whole, tmp_path_factory):
    moments = (1,) if job == "two_workers" else (0, 1, 3)
    say([survives(job, moment, whole, "fast") for moment in moments], tmp_path_factory)


def test_workers_do_not_outlive_the_process_that_started_them(tmp_path):
    """Killed alone, as the system does where memory runs out."""
    process = start("two_workers", tmp_path / "two_workers")
    begun(process, "two_workers", tmp_path / "two_workers")
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "spawn_main" in str(child.cmdline())]
    assert len(workers) == 2
    process.kill()
    process.join()
    _, left = psutil.wait_procs(workers, timeout=20)
    for child in left:
        child.kill()
    assert not left


@pytest.mark.slow
@pytest.mark.parametrize("job", ["dataset", "two_workers", "training", "batch"])
def test_twenty_kills(job, whole, tmp_path_factory, capsys):
    for moment in range(20):
        line = survives(job, moment, whole, "slow")
        say([line], tmp_path_factory)
        with capsys.disabled():
            print(f"\n{line}", end="", flush=True)
