"""Several devices, and several processes on the loopback: the same losses, the same pairs, the same results as one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import distributed as benchmark
from mdn.inference import load_denoiser
from mdn.micrographs import write_micrograph

WORKER = Path(__file__).parent / "distributed.py"
TRAINED = ("float32", "float64", "resumed")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launch(folder: Path, work: tuple[str, ...], *, processes: int = 1, devices: int = 1) -> SimpleNamespace:
    """Run it and wait: the folder, and by work what each process found; the last one's `stderr`."""
    folder.mkdir()
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(WORKER.parent.parent)}
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), str(port), str(processes), str(i), *work],
            env=environment, stderr=(folder / f"{i}.err").open("w"),
        )
        for i in range(processes)
    ]  # fmt: skip
    try:
        codes = [process.wait(400) for process in started]
    finally:
        for process in started:
            process.kill()
    said = [(folder / f"{i}.err").read_text(encoding="utf-8") for i in range(processes)]
    assert codes == [0] * processes, "\n".join(text[-2000:] for text in said)
    found = {w: [json.loads((folder / f"{w}.{i}.json").read_text()) for i in range(processes)] for w in work}
    return SimpleNamespace(folder=folder, found=found, said=said)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "micrographs").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(60, 200, (40, 48), np.uint8)
        write_micrograph(folder / "micrographs" / f"{i}.tif", pixels)
    (folder / "micrographs" / "3.tif").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def one(place):
    return launch(place / "one", (*TRAINED, "pairs", "micrographs"))


@pytest.fixture(scope="module")
def two(place):
    return launch(place / "two", (*TRAINED, "pairs", "micrographs", "refused"), processes=2)


@pytest.fixture(scope="module")
def eight(place):
    return launch(place / "eight", (*TRAINED, "collectives"), devices=8)


@pytest.mark.parametrize("work", TRAINED)
@pytest.mark.parametrize("run", ["two", "eight"])
def test_the_losses_are_those_of_one_device(one, run, work, request):
    (alone,) = one.found[work]
    for found in request.getfixturevalue(run).found[work]:
        assert found["devices"] == {"two": 2, "eight": 8}[run]
        assert found["dtype"] == alone["dtype"] == ("float64" if work == "float64" else "float32")
        np.testing.assert_allclose(found["loss"], alone["loss"], rtol=1e-10 if work == "float64" else 1e-5)
        assert found["psnr"][-1] == pytest.approx(alone["psnr"][-1], abs=0.1)


def test_processes_end_with_the_same_weights(two):
    for work in TRAINED:
        first, second = two.found[work]
        assert first["weights"] == second["weights"] and first["psnr"] == second["psnr"], work


def test_only_the_first_shows_a_bar_and_one_writes_checkpoints(two):
    assert "validation=" in two.said[0] and "validation=" not in two.said[1]
    assert [p.name for p in sorted((two.folder / "run" / "last").iterdir())] == ["4", "6"]
    history = json.loads((two.folder / "run" / "history.json").read_text())
    assert history["train_loss"] == two.found["resumed"][0]["loss"] and len(history["step"]) == 3


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("work", "made", "total"), [("pairs", "pairs.zarr", 6), ("micrographs", "clean", 4)])
def test_work_is_shared_and_comes_out_the_same(one, two, work, made, total):
    shares = [found["done"] for found in two.found[work]]
    assert sum(shares) == total and min(shares) == total // 2
    assert contents(two.folder / made) == contents(one.folder / made) != {}


def test_every_process_has_all_records(two):
    assert [found["files"] for found in two.found["micrographs"]] == [[f"{i}.tif" for i in range(4)]] * 2


def test_what_fails_on_one_process_fails_on_all(two):
    first, second = (found["error"] for found in two.found["refused"])
    assert first == "RuntimeError: process 1 failed, and says why"
    assert second.startswith("ValueError: directory: ") and "another configuration: training" in second


def test_images_stay_where_they_are(eight):
    """Gradients and statistics alone travel: no activation is gathered."""
    (found,) = eight.found["collectives"]
    assert found["other"] == 0 < found["reduced"]


def test_collectives_of_a_compiled_step_are_counted():
    step = """
      %a = (f32[3,3,8,8]{3,2,1,0}, f32[8]{0}, f32[]) all-reduce(%x, %y, %z), channel_id=1
      %b = f32[16,32,8]{2,1,0} all-gather(%x), dimensions={0}
      ROOT %c = f32[8]{0} add(%a, %b)
    """
    assert benchmark.carried(step) == (4 * (576 + 8 + 1), 1, 4 * 16 * 32 * 8)


def test_the_page_tells_what_was_counted():
    """The sum of parameters and channels is what the compiled step carries, but for the loss."""
    found = json.loads(benchmark.RESULTS.read_text(encoding="utf-8"))
    gradients, norms, counted = list(found["facts"].values())[2:5]
    assert counted == gradients + norms + 4
    assert benchmark.page(found) in benchmark.PAGE.read_text(encoding="utf-8")


def test_the_slurm_script_runs(tmp_path):
    """At a tiny size, under an `srun` that starts one task here; with workers, who must not run the program again."""
    script = (WORKER.parent.parent / "benchmarks" / "distributed.sbatch").read_text(encoding="utf-8")
    tiny = "n_pairs=10, n_test=0, n_runs=5, shape=(32, 32), diameter=(16.0, 18.0), real=False"
    for large, small in {
        "jax.distributed.initialize()": f"jax.distributed.initialize('127.0.0.1:{free_port()}', 1, 0)",
        "mdn.DatasetConfig(varied=0.5)": f"mdn.DatasetConfig({tiny})",
        "len(os.sched_getaffinity(0))": "2",
        "mdn.DenoisingNetwork(rngs": "mdn.DenoisingNetwork(mdn.NetworkConfig(width=4, blocks=1, reduction=2), rngs",
        "batch=16 * jax.device_count(), crop=128": "batch=2 * jax.device_count(), crop=16, steps=2",
    }.items():
        assert script.count(large) == 1, large
        script = script.replace(large, small)
    for name, body in {"srun": 'shift; exec "$@"', ".venv/bin/python": f'exec {sys.executable} "$@"'}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(WORKER.parent.parent)}
    run = subprocess.run(
        ["bash", "-c", script, "sbatch", "out"],
        cwd=tmp_path, env=os.environ | environment | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert load_denoiser(tmp_path / "out" / "weights.safetensors").network.config.width == 4
