"""What tests/test_distributed.py runs on several devices or in several processes, into a folder:

    python tests/distributed.py FOLDER PORT PROCESSES PROCESS WORK...

Devices have to be there before JAX is, so this is a process of its own; FOLDER/WORK.PROCESS.json is what came of it.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.distributed import carried
from mdn import batch, dataset, training
from mdn.inference import Denoiser
from mdn.network import DenoisingNetwork, NetworkConfig
from mdn.training import History, TrainingConfig, fit

# The paper's rate: at ten times of it Adam makes 1e-5 of float32's rounding in 20 steps, as it does on one device when
# the weight gradient is summed in another order.
TRAINING = TrainingConfig(steps=20, batch=8, crop=None, evaluate_every=1)
PAIRS = dataset.DatasetConfig(
    n_pairs=10, n_test=1, n_runs=5, shape=(64, 64), time=(2.0, 4.0), diameter=(26.0, 40.0), real=False
)  # grains that all grow on the same grid


class Double(nnx.Module):
    """A network in float64; `fit` hands out images in float32."""

    def __init__(self, network):
        self.network = network

    def __call__(self, x):
        return self.network(x.astype(jnp.float64))


def network(double: bool) -> nnx.Module:
    """The same small network each time, without dropout."""
    model = DenoisingNetwork(NetworkConfig(width=8, blocks=2, dropout=0.0), rngs=nnx.Rngs(0))
    if not double:
        return model
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    nnx.update(model, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), state))
    return Double(model)


def stripes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy stripes and their truth, [n, 36, 36]: the weight gradient takes four strips of rows."""
    rng = np.random.default_rng(seed)
    clean = np.float32(0.2 + 0.6 * (np.indices((36, 36)).sum(0) // 6 % 2 * np.ones((n, 1, 1))))
    return np.clip(clean + rng.normal(0, 0.2, clean.shape), 0, 1).astype(np.float32), clean


def train(double: bool = False, config: TrainingConfig = TRAINING, **options) -> dict:
    """Losses, PSNR and weights of a short training."""
    model = network(double)
    history = fit(model, stripes(16, 0), stripes(2, 9), config=config, key=jax.random.key(1), **options)
    leaves = jax.tree.leaves(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    found = {"loss": history.train_loss, "psnr": history.validation_psnr, "dtype": str(leaves[0].dtype)}
    return found | {"devices": jax.device_count(), "weights": [np.asarray(leaf).ravel().tolist() for leaf in leaves]}


def float64(folder: Path) -> dict:
    """The same in double precision, and ten times as fast."""
    with jax.enable_x64(True):
        return train(double=True, config=replace(TRAINING, learning_rate=1e-3))


def resumed(folder: Path) -> dict:
    """A training that is broken off after its first checkpoint and gone on with."""
    config = replace(TRAINING, steps=6, evaluate_every=2)

    def interrupt(history: History):
        raise InterruptedError

    try:
        train(config=config, directory=folder / "run", report=interrupt)
    except InterruptedError:
        return train(config=config, directory=folder / "run")


def refused(folder: Path) -> dict:
    """Each process asks for a training of its own length."""
    try:
        train(config=replace(TRAINING, steps=5 + jax.process_index()), directory=folder / "other")
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def collectives(folder: Path) -> dict:
    """What the collectives of a step carry, weights aside and in all."""
    graph, *state, rest = nnx.split(network(False), nnx.Param, nnx.BatchStat, ...)
    mesh = training._mesh(TRAINING.batch)
    everywhere, shared = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    state = jax.device_put((*state, TRAINING.optimiser().init(state[0]), tuple(state)), everywhere)
    images = jax.device_put(stripes(TRAINING.batch, 0), shared)
    step = training._step_function(TRAINING, graph, rest, True, everywhere)
    reduced, _, other = carried(step.lower(state, jax.random.key(0), *images).compile().as_text())
    return {"reduced": reduced, "other": other}


def counted(module, name: str) -> list:
    """The calls of a function of a module from here on."""
    calls, function = [], getattr(module, name)

    def counting(*args, **options):
        calls.append(name)
        return function(*args, **options)

    setattr(module, name, counting)
    return calls


def pairs(folder: Path) -> dict:
    """Make pairs."""
    runs = counted(dataset, "_make_run")
    dataset.make_dataset(folder / "pairs.zarr", PAIRS)
    return {"done": len(runs)}


def micrographs(folder: Path) -> dict:
    """Denoise the micrographs beside the folder."""
    files, calls = batch.find_micrographs(folder.parent / "micrographs"), counted(batch, "denoise_file")
    denoiser = Denoiser(network(False))
    records = list(batch.denoise_folder(denoiser, files, folder / "clean", passes=2))
    return {"done": len(calls), "files": sorted(record["file"] for record in records)}


WORK = {"float32": lambda folder: train(), "float64": float64, "resumed": resumed, "refused": refused}
WORK |= {"pairs": pairs, "micrographs": micrographs, "collectives": collectives}


if __name__ == "__main__":
    folder, port, processes, process, *work = sys.argv[1:]
    if int(processes) > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(process))
    for name in work:
        found = WORK[name](Path(folder))
        (Path(folder) / f"{name}.{process}.json").write_text(json.dumps(found), encoding="utf-8")
