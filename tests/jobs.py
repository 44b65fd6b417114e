"""Small work that writes files: killed by tests/test_kills.py, done twice by tests/test_same_bytes.py.

python tests/jobs.py FOLDER CORES
"""

import multiprocessing
import os
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx

import mdn.dataset
from mdn.batch import denoise_folder, find_micrographs
from mdn.dataset import DatasetConfig, load_references, make_dataset
from mdn.inference import Denoiser
from mdn.micrographs import write_micrograph
from mdn.network import DenoisingNetwork, NetworkConfig, save_weights
from mdn.report import write_report, write_table
from mdn.training import TrainingConfig, fit

PAIRS = DatasetConfig(n_pairs=9, n_test=2, n_runs=5, shape=(64, 64), time=(1.0, 2.0), diameter=(26.0, 30.0), real=False)
NETWORK = NetworkConfig(width=8, blocks=1)
TRAINING = TrainingConfig(steps=12, batch=2, crop=32, learning_rate=1e-3, evaluate_every=3)
WIDE = NetworkConfig(blocks=1), TrainingConfig(steps=4, batch=16, evaluate_every=2)  # where cores share the work
settle = mdn.dataset._settle
OWN_PROCESS = __name__ == "__main__" or multiprocessing.parent_process() is not None  # not that of the other tests


def settle_small(cores) -> None:
    """Named here, it has a worker import this file, and so draw as small references."""
    settle(cores)


if OWN_PROCESS:
    mdn.dataset.STAND_IN_SHAPE = (96, 96)  # most of a small dataset's time would go into its references
    mdn.dataset._settle = settle_small


def dataset(folder: Path, workers: int = 1) -> None:
    make_dataset(folder / "pairs.zarr", PAIRS, grown=folder / "grown", workers=workers, progress=False)


def two_workers(folder: Path) -> None:
    dataset(folder, workers=2)


def noise(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    clean = rng.uniform(0, 1, (n, 8, 8)).repeat(8, 1).repeat(8, 2).astype(np.float32)
    return np.clip(clean + rng.normal(0, 0.1, clean.shape), 0, 1).astype(np.float32), clean


def training(folder: Path, network: NetworkConfig = NETWORK, config: TrainingConfig = TRAINING) -> None:
    model = DenoisingNetwork(network, rngs=nnx.Rngs(0))
    options = {"config": config, "directory": folder, "key": jax.random.key(1), "progress": False}
    fit(model, noise(6, 0), noise(2, 1), **options)
    save_weights(folder / "weights.safetensors", model)


def batch(folder: Path) -> None:
    """As notebook 06: results and records, then table and report; the micrographs lie beside the folder."""
    denoiser = Denoiser(DenoisingNetwork(NETWORK, rngs=nnx.Rngs(0)))
    files = find_micrographs(folder.parent / "micrographs")
    records = list(denoise_folder(denoiser, files, folder, um_per_px=0.5, passes=2))
    write_table(records, folder / "denoised.csv")
    write_report(records, folder / "report.html")


def micrographs(folder: Path, n: int = 4) -> None:
    folder.mkdir()
    for i, image in enumerate(load_references("test", real=False).images[:n]):
        write_micrograph(folder / f"{i}.png", (255 * image).astype(np.uint8))
    (folder / "notes.tif").write_text("no image")


if __name__ == "__main__":
    made = Path(sys.argv[1])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[2])])  # XLA has a thread a core
    dataset(made / "dataset")
    training(made / "training", *WIDE)
