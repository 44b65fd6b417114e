"""Same seed, machine and cores: the same bytes and weights. Another number of cores: the same but for rounding.

XLA splits a loop among the cores that a process may use, and what is split rounds differently in its last place.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jobs
import numpy as np
import pytest
from safetensors.numpy import load_file

from mdn.dataset import SPLITS, load_pairs

ROOT = Path(__file__).parent.parent
STEPS, RATE = jobs.WIDE[1].steps, jobs.WIDE[1].learning_rate


def made(folder: Path, *, cores: int, hash_seed: int) -> Path:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(hash_seed)}
    subprocess.run([sys.executable, ROOT / "tests" / "jobs.py", folder, str(cores)], env=environment, check=True)
    return folder


def dataset(folder: Path) -> dict[str, str]:
    files = (path for path in (folder / "dataset").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def weights(folder: Path) -> np.ndarray:
    stored = load_file(folder / "training" / "weights.safetensors")
    return np.concatenate([value.ravel() for _, value in sorted(stored.items())])


def history(folder: Path) -> dict[str, list]:
    told = json.loads((folder / "training" / "history.json").read_text())
    return {name: values for name, values in told.items() if name != "seconds"}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return made(tmp_path_factory.mktemp("first"), cores=2, hash_seed=1)


def test_twice_the_same_bytes(first, tmp_path):
    again = made(tmp_path, cores=2, hash_seed=2)
    assert len(dataset(first)) > 100 and dataset(first) == dataset(again)
    assert history(first) == history(again)
    np.testing.assert_array_equal(weights(first), weights(again))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_on_one_core_and_on_two_the_same_but_for_rounding(first, tmp_path):
    alone = made(tmp_path, cores=1, hash_seed=1)
    for split in SPLITS:
        a, b = (load_pairs(folder / "dataset" / "pairs.zarr", split) for folder in (first, alone))
        for name in ("labels", "regions", "twin_boundaries", "boundaries", "defects", "source", "box", "varied"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        for name in ("noisy", "clean"):  # float16's step in [0, 1], twice
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-3, err_msg=name)
    for name, values in history(first).items():
        np.testing.assert_allclose(values, history(alone)[name], rtol=1e-4, err_msg=name)
    apart = np.abs(weights(first) - weights(alone))
    print(f"weights: {apart.max():.1e} apart after {STEPS} steps of {RATE}, {np.mean(apart > 1e-6):.1e} above 1e-6")
    assert apart.max() < STEPS * RATE / 10  # Adam's step is the rate, whatever the gradient's size: round-off's too
    assert np.mean(apart > 1e-6) < 1e-2
