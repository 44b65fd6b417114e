"""Train the weights in mdn/weights/: `python benchmarks/shipped_weights.py`, again to go on after an interruption.

Makes the pairs in data/shipped/pairs.zarr (real micrographs, found as `mdn.micrographs` finds them), trains in
data/shipped/run, and writes mdn/weights/denoiser.safetensors after each evaluation that was the best so far.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
from flax import nnx

import mdn
from mdn.inference import SHIPPED
from mdn.training import predict
from mdn.uncertainty import training_statistics

PAIRS = mdn.DatasetConfig(n_pairs=1000, n_test=60, n_runs=300, varied=0.7, seed=2026)
RECIPE = mdn.TrainingConfig(
    steps=2800, batch=16, crop=64, learning_rate=2e-3, schedule="cosine", dropout_until=0.7, evaluate_every=100
)
SEED = 2026


def export(model: nnx.Module, history: mdn.History, pairs, provenance: str) -> None:
    """Write the weights with what a reader of them needs to know."""
    best = history.best
    metadata = {
        "version": mdn.__version__,
        "trained_on": json.dumps({**asdict(PAIRS), "micrographs": provenance, "sources": list(pairs.sources)}),
        "recipe": json.dumps({**asdict(RECIPE), "seed": SEED}),
        "training": json.dumps(
            {
                "step": history.step[best],
                "hours": round(history.seconds[best] / 3600, 2),
                "validation_psnr_db": round(history.validation_psnr[best], 2),
            }
        ),
        "training_statistics": json.dumps(training_statistics(model, pairs.noisy[:: max(1, len(pairs) // 100)])),
    }
    mdn.save_weights(SHIPPED, model, metadata=metadata)


def main() -> None:
    """Make the pairs, train, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("data/shipped"))
    directory = parser.parse_args().directory
    provenance = mdn.make_dataset(directory / "pairs.zarr", PAIRS)
    if provenance != "real":
        raise SystemExit("the real micrographs could not be had; set MDN_MICROGRAPHS to their folder")
    train, validation = (mdn.load_pairs(directory / "pairs.zarr", split) for split in ("train", "validation"))
    model = mdn.DenoisingNetwork(rngs=nnx.Rngs(SEED))

    def report(history: mdn.History) -> None:
        if history.best == len(history.step) - 1:
            export(model, history, train, provenance)

    history = mdn.fit(
        model,
        (train.noisy, train.clean),
        (validation.noisy[::8], validation.clean[::8]),
        config=RECIPE,
        directory=directory / "run",
        key=jax.random.key(SEED),
        report=report,
    )
    export(model, history, train, provenance)
    test = mdn.load_pairs(directory / "pairs.zarr", "test")
    error = np.mean((predict(model, np.stack([mdn.network.stretch(x) for x in test.noisy])) - test.clean) ** 2, (1, 2))
    print(f"test pairs: {np.mean(-10 * np.log10(error)):.2f} dB raw PSNR over {len(test)} pairs")


if __name__ == "__main__":
    main()
