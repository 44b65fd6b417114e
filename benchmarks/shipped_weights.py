"""Train the weights in mdn/weights/: `python benchmarks/shipped_weights.py`, again to go on after an interruption.

Makes the pairs in data/shipped/pairs.zarr (real micrographs, found as `mdn.micrographs` finds them), trains in
data/shipped/run, and writes mdn/weights/denoiser.safetensors after each evaluation that was the best so far. At the
end it scores the network beside the tuned filters on the test pairs and writes benchmarks/results/shipped_weights.json
and the model card from that.
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
from mdn.baselines import score_methods, tuned_filters
from mdn.inference import SHIPPED
from mdn.uncertainty import training_statistics

PAIRS = mdn.DatasetConfig(n_pairs=1000, n_test=60, n_runs=300, varied=0.7, seed=2026)
RECIPE = mdn.TrainingConfig(
    steps=2800, batch=16, crop=64, learning_rate=2e-3, schedule="cosine", dropout_until=0.7, evaluate_every=100
)
SEED = 2026
CHOSEN_ON = 8  # every 8th validation pair chooses the checkpoint
TUNED_ON = 24  # validation pairs that filters and boundary thresholds are tuned on
RESULTS = Path(__file__).parent / "results" / "shipped_weights.json"


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
                "hours": round(history.seconds[-1] / 3600, 2),
                "validation_psnr_db": round(history.validation_psnr[best], 2),
            }
        ),
        "training_statistics": json.dumps(training_statistics(model, pairs.noisy[:: max(1, len(pairs) // 100)])),
    }
    mdn.save_weights(SHIPPED, model, metadata=metadata)


def evaluate(directory: Path, history: mdn.History) -> dict:
    """The table of the model card: means over the test pairs, by recipe, tuned on validation pairs."""
    validation, test = (mdn.load_pairs(directory / "pairs.zarr", split) for split in ("validation", "test"))
    filters = tuned_filters(validation.noisy[:TUNED_ON], validation.clean[:TUNED_ON])
    methods = {"noisy": lambda image: image, **filters, "network": mdn.load_denoiser().restore}
    scores = score_methods(methods, validation.scored(TUNED_ON), test.scored(len(test)))
    columns = [name for name in scores["noisy"][0] if name != "threshold"]
    recipes = {"all": np.ones(len(test), bool), "paper": ~test.varied, "varied": test.varied}
    rows = [
        [
            recipe,
            int(chosen.sum()),
            name,
            *(float(np.mean([row[c] for row in np.array(values)[chosen]])) for c in columns),
        ]
        for recipe, chosen in recipes.items()
        for name, values in scores.items()
    ]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "command": "python benchmarks/shipped_weights.py",
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__} on {jax.default_backend()}",
        "columns": ["pairs", "n", "method", *columns],
        "rows": rows,
        "history": asdict(history),
    }


def card(results: dict) -> str:
    """The model card, every number from the run."""
    history, best = results["history"], int(np.argmax(results["history"]["validation_psnr"]))
    counts, registry = PAIRS.counts(), mdn.micrographs.sources()
    chosen_on = len(range(0, counts["validation"], CHOSEN_ON))
    used = [
        f"- `{n}`: {registry[n].material}. {registry[n].licence}, {registry[n].url}" for n in mdn.dataset.REFERENCES
    ]
    head = "| " + " | ".join(results["columns"]) + " |\n" + "|---" * len(results["columns"]) + "|"
    body = [
        "| " + " | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row) + " |" for row in results["rows"]
    ]
    return "\n".join(
        [
            "# Model card: denoiser.safetensors",
            "",
            f"The network of mdn {mdn.__version__} with its default configuration "
            f"({mdn.network.count_parameters(mdn.load_denoiser().network):,} parameters; Eqs. 1-10 of the paper).",
            "Written by `benchmarks/shipped_weights.py`; every number below comes from that run.",
            "",
            "## For",
            "Optical micrographs of etched, polycrystalline, single-phase metals: removing scratches, pits, stains",
            "and uneven etching while grain and twin boundaries stay. Not for: measuring what it removed (pits,",
            "inclusions), two-phase structures, electron micrographs. `mdn.familiarity` says when an image is unlike",
            "the training data.",
            "",
            "## Trained on",
            f"{counts['train']} pairs of {PAIRS.shape[0]} x {PAIRS.shape[1]} px ({counts['validation']} more to",
            f"validate on, of which {chosen_on} chose the checkpoint; {counts['test']} to test),",
            f"{PAIRS.n_runs} phase-field runs, {PAIRS.varied:.0%} of the pairs with a recipe of their own",
            "(`PairConfig.draw`), the others by the paper's;",
            f"seed {PAIRS.seed}. Fourier magnitudes and histograms of:",
            "",
            *used,
            "",
            "Each is cut into disjoint regions for training, validation and test. The weights hold no image of them.",
            "",
            "## How",
            f"`{RECIPE}`",
            "",
            f"{history['seconds'][-1] / 3600:.2f} h ({results['machine']}), seed {SEED}. Best on validation at step "
            f"{history['step'][best]}: {history['validation_psnr'][best]:.2f} dB.",
            "",
            "## Measured",
            f"Test pairs; filters and boundary thresholds tuned on {TUNED_ON} validation pairs. PSNR in dB; boundary",
            "F, precision and recall within 3 px.",
            "",
            head,
            *body,
            "",
        ]
    )


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def main() -> None:
    """Make the pairs, train, export, score."""
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
        (validation.noisy[::CHOSEN_ON], validation.clean[::CHOSEN_ON]),
        config=RECIPE,
        directory=directory / "run",
        key=jax.random.key(SEED),
        report=report,
    )
    export(model, history, train, provenance)
    results = evaluate(directory, history)
    write(RESULTS, json.dumps(results, indent=1))
    write(SHIPPED.with_name("MODEL_CARD.md"), card(results))
    print("\n".join(card(results).splitlines()[-2 - len(results["rows"]) :]))


if __name__ == "__main__":
    main()
