"""Train the weights in mdn/weights/: `python benchmarks/shipped_weights.py`, again to go on after an interruption.

Makes the pairs in data/shipped/pairs.zarr (real micrographs, found as `mdn.micrographs` finds them), trains in
data/shipped/run, and writes mdn/weights/denoiser.safetensors after each evaluation that was the best so far.
`--further` starts a new run from the weights in the box instead of from nothing. `--card` writes the model card from
benchmarks/results/shipped_weights.json and rivals.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
from flax import nnx

import mdn
from mdn.defects import KINDS
from mdn.inference import SHIPPED
from mdn.synthesis import LOOKS, PairConfig
from mdn.uncertainty import training_statistics

PAIRS = mdn.DatasetConfig(n_pairs=3000, n_test=120, n_runs=1240, varied=0.4, seed=2027)
NETWORK = mdn.NetworkConfig(width=64, scale=2, dropout=0.05)
RECIPE = mdn.TrainingConfig(
    steps=3600, batch=8, crop=128, learning_rate=1.5e-3, schedule="cosine", edges=1.0, average=0.998,
    grey_jitter=0.1, dropout_until=0.5, evaluate_every=200,
)  # fmt: skip
SEED = 2027
CHOSEN_ON = 15  # every 15th validation pair chooses the checkpoint
DRAWN = 2000  # recipes, to say how many of them are hard
RESULTS = Path(__file__).parent / "results" / "shipped_weights.json"
RIVALS = RESULTS.with_name("rivals.json")


def export(model: nnx.Module, history: mdn.History, sittings: list, statistics: dict | None = None) -> None:
    """Write the weights with what a reader of them needs to know."""
    best = history.best
    metadata = {
        "version": mdn.__version__,
        "trained_on": json.dumps({**asdict(PAIRS), "micrographs": "real"}),
        "recipe": json.dumps({**asdict(RECIPE), "seed": SEED}),
        "training": json.dumps(
            {
                "step": history.step[best],
                "hours": round(history.seconds[-1] / 3600, 2),
                "validation_psnr_db": round(history.validation_psnr[best], 2),
                "earlier": sittings,
            }
        ),
    }
    metadata |= {"training_statistics": json.dumps(statistics)} if statistics else {}
    mdn.save_weights(SHIPPED, model, metadata=metadata)


def hard_kinds() -> dict[str, float]:
    """Shares of the varied pairs' recipes, in per cent: what is hard about them."""
    drawn = [PairConfig.draw(jax.random.fold_in(jax.random.key(SEED), n)) for n in range(DRAWN)]
    shares = {f"boundaries: {look}": [c.look == look for c in drawn] for look in LOOKS}
    shares |= {f"defect: {kind.replace('_', ' ')}": [getattr(c.defects, kind) > 0 for c in drawn] for kind in KINDS}
    shares |= {
        "boundaries missing in places": [c.missing > 0 for c in drawn],
        "grain contrast below 0.15": [c.grey[1] - c.grey[0] < 0.15 for c in drawn],
        "twins": [c.twin_fraction > 0 for c in drawn],
        "blurred": [c.blur > 0 for c in drawn],
        "full magnitude swap": [c.magnitude == 1 for c in drawn],
        "partial magnitude swap": [0 < c.magnitude < 1 for c in drawn],
        "degraded in space alone": [c.magnitude == 0 for c in drawn],
    }
    return {name: 100 * float(np.mean(chosen)) for name, chosen in shares.items()}


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def main() -> None:
    """Make the pairs, train, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("data/shipped"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--further", action="store_true", help="start from the weights in the box")
    parser.add_argument("--card", action="store_true", help="write the model card and stop")
    arguments = parser.parse_args()
    if arguments.card:
        write(SHIPPED.with_name("MODEL_CARD.md"), card(json.loads(RESULTS.read_text()), json.loads(RIVALS.read_text())))
        return
    directory = arguments.directory
    grown = directory / "grown"
    if mdn.make_dataset(directory / "pairs.zarr", PAIRS, grown=grown, workers=arguments.workers) != "real":
        raise SystemExit("the real micrographs could not be had; set MDN_MICROGRAPHS to their folder")
    train, validation = (mdn.load_pairs(directory / "pairs.zarr", split) for split in ("train", "validation"))
    model, sittings = mdn.DenoisingNetwork(NETWORK, rngs=nnx.Rngs(SEED)), []
    if arguments.further:
        earlier, note = mdn.load_denoiser(), directory / "further" / "earlier.json"
        model, told = earlier.network, dict(earlier.metadata["training"])
        if not note.exists():  # the weights in the box soon are this run's own
            write(note, json.dumps([*told.pop("earlier", []), told]))
        sittings = json.loads(note.read_text())

    def report(history: mdn.History) -> None:
        if history.best == len(history.step) - 1:
            export(model, history, sittings)

    history = mdn.fit(
        model,
        (train.noisy, train.clean),
        (validation.noisy[::CHOSEN_ON], validation.clean[::CHOSEN_ON]),
        config=RECIPE,
        directory=directory / ("further" if arguments.further else "run"),
        key=jax.random.key(SEED + len(sittings)),
        report=report,
    )
    export(model, history, sittings, training_statistics(model, validation.noisy[:: max(1, len(validation) // 200)]))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__} on {jax.default_backend()}"
    results = {
        "command": "python benchmarks/shipped_weights.py" + " --further" * arguments.further,
        "commit": commit,
        "machine": machine,
        "earlier": sittings,
        "sources": list(train.sources),
        "pairs": {split: [len(p), int(p.varied.sum())] for split, p in (("train", train), ("validation", validation))},
        "history": asdict(history),
    }
    write(RESULTS, json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
