"""What each part is worth: `python -m benchmarks.ablation`, again to go on; `--seeds 3 --only best "no attention"`.

Every row is trained alike, on as many pairs of the same grown structures and for as many steps of as many crops, with
one part removed or switched, and scored on the same test pairs, of which no row saw a grain or a region. DnCNN gets
the processor seconds that the first row took instead. The network is half as wide as the shipped one and the training
short: the table says what each part is worth at this budget. Rows go to results/ablation.json one by one; the first
three leave their weights beside the pairs, where `benchmarks.rivals` finds them, and are trained again where those
are gone.

`--late` goes on instead from the weights that the fourth sitting left, for as many steps with each of `LATE`: what pays
early need not pay late.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import jax
import numpy as np
from flax import nnx

import mdn
from benchmarks import rivals
from benchmarks.shipped_weights import LONGER, NETWORK, PAIRS, RECIPE, SEED, write
from mdn import metrics
from mdn.baselines import DnCNN, save_dncnn
from mdn.files import write_whole
from mdn.network import stretch
from mdn.training import predict

RESULTS = Path(__file__).parent / "results" / "ablation.json"
SMALL = replace(PAIRS, n_pairs=375, n_test=0, n_runs=250)
BUDGET = {"steps": 500, "crop": 96, "learning_rate": 2e-3, "average": 0.98, "evaluate_every": 500}
GAPS = {"aligned PSNR": "aligned gap (dB)"}
LATE_GAPS = GAPS | {"boundary F": "F gap", "precision": "precision gap", "twin recall": "twin recall gap"}
KEPT = {"best": "network_short", "DnCNN": "DnCNN_short", "no attention": "no_attention_short"}
RATES = (5e-4, 1e-3, 2e-3)  # of DnCNN
TUNED_ON, TESTED_ON = 40, 40  # validation pairs of each recipe for its threshold; test pairs of each
RATED_ON = 16  # validation pairs that choose DnCNN's rate
FOURTH_SITTING = "7d1ec7f"  # the commit that has the weights as the fourth sitting left them
WITHOUT = {"edges": 0.0, "average": 0.0, "grey_jitter": 0.0}
LATE = {
    "as the fourth sitting": {},
    "no edges, averages, jitter": WITHOUT,
    "and boundaries weigh more": {**WITHOUT, "boundaries": 6.0},
}
LATE_BUDGET = {"steps": 300, "learning_rate": 4e-4, "evaluate_every": 300}
GREYS = ("raw PSNR", "aligned PSNR", "SSIM")
COLUMNS = (*GREYS, "boundary F", "precision", "twin recall")


@dataclass(frozen=True)
class Variant:
    """What differs from the first row: fields of the network, of the training, and parts of the pairs left out."""

    network: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    without: tuple[str, ...] = ()
    dncnn: bool = False


VARIANTS = {
    "best": Variant(),
    "DnCNN": Variant(dncnn=True),
    "no attention": Variant({"attention": False}),
    "gate as printed (LeakyReLU)": Variant({"gate": "leaky_relu"}),
    "no FFT blend": Variant(without=("blend",)),
    "no histogram matching": Variant(without=("matching",)),
    "no artificial defects": Variant(without=("defects",)),
    "no twins": Variant(without=("twins",)),
    "full swaps alone": Variant(without=("partial swaps", "space alone")),
    "no partial swaps": Variant(without=("partial swaps",)),
    "none in space alone": Variant(without=("space alone",)),
    "no looks of etching": Variant(without=("looks",)),
    "full resolution, as wide for the same work": Variant({"scale": 1, "width": 16}),
    "no edges in the loss": Variant(training={"edges": 0.0}),
    "boundaries weigh more in the loss": Variant(training={"boundaries": 4.0}),
    "no averaged weights": Variant(training={"average": 0.0}),
    "no symmetries": Variant(training={"symmetries": False}),
    "no grey jitter": Variant(training={"grey_jitter": 0.0}),
    "a tenth of the crops clean": Variant(training={"clean_share": 0.1}),
    "dropout to the end": Variant(training={"dropout_until": 1.0}),
    "Adam at 1e-4, constant": Variant(training={"schedule": "constant", "learning_rate": 1e-4}),
    "the paper's loss and rate": Variant(
        training={"schedule": "constant", "learning_rate": 1e-4, "edges": 0.0, "average": 0.0}
    ),
}


def train(variant: Variant, directory: Path, seed: int, seconds: float | None, workers: int) -> tuple:
    """The trained network, its steps and how many processor seconds it took."""
    name = "-".join(("pairs", *variant.without)).replace(" ", "_")
    mdn.make_dataset(
        directory / f"{name}.zarr", replace(SMALL, without=variant.without), grown=directory.parent / "grown",
        workers=workers,
    )  # fmt: skip
    pairs = mdn.load_pairs(directory / f"{name}.zarr", "train")
    recipe = replace(RECIPE, **{**BUDGET, **variant.training})
    data, few = (pairs.noisy, pairs.clean), (pairs.noisy[:2], pairs.clean[:2])
    key = jax.random.key(seed)
    if variant.dncnn:
        held = mdn.load_pairs(directory / f"{name}.zarr", "validation")
        return train_dncnn(data, (held.noisy[:RATED_ON], held.clean[:RATED_ON]), recipe, seconds, seed)
    model = mdn.DenoisingNetwork(replace(NETWORK, **{"width": 32} | variant.network), rngs=nnx.Rngs(seed))
    start = time.process_time()
    mdn.fit(model, data, few, config=recipe, key=key, progress=False)
    return model, recipe.steps, time.process_time() - start


def train_dncnn(data: tuple, validation: tuple, recipe: mdn.TrainingConfig, seconds: float, seed: int) -> tuple:
    """DnCNN for as many processor seconds, at the rate of `RATES` that validation pairs like best."""

    def run(rate: float, steps: int) -> tuple[float, nnx.Module, float]:
        model, start = DnCNN(rngs=nnx.Rngs(seed)), time.process_time()
        config = replace(recipe, steps=steps, evaluate_every=steps, learning_rate=rate)
        history = mdn.fit(model, data, validation, config=config, key=jax.random.key(seed), progress=False)
        return history.validation_psnr[-1], model, time.process_time() - start

    short, long = (run(RATES[0], steps)[2] for steps in (20, 40))
    once, one = 2 * short - long, (long - short) / 20  # compilation and evaluation; a step
    steps = max(12, round((seconds - once) / one))
    _, model, took = max((run(rate, steps) for rate in RATES), key=lambda found: found[0])
    return model, steps, took


def train_late(name: str, directory: Path) -> tuple[nnx.Module, float]:
    """The fourth sitting's weights after a few more steps on its pairs, and the processor seconds these took."""
    committed = ["git", "show", f"{FOURTH_SITTING}:mdn/weights/denoiser.safetensors"]
    path = directory / "fourth.safetensors"
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(path, subprocess.run(committed, capture_output=True, check=True).stdout)
    model = nnx.clone(mdn.load_denoiser(path).network)
    both = [mdn.load_pairs(directory.parent / f"{pairs}.zarr", "train") for pairs in ("pairs", "sharp")]
    data = tuple(np.concatenate([getattr(pairs, image) for pairs in both]) for image in ("noisy", "clean"))
    recipe = replace(LONGER, **(LATE_BUDGET | LATE[name]))
    start, few = time.process_time(), (data[0][:2], data[1][:2])
    mdn.fit(model, data, few, config=recipe, key=jax.random.key(SEED), progress=False)
    return model, time.process_time() - start


def score(model: nnx.Module, directory: Path) -> dict[str, list[float]]:
    """Test pairs by recipe: the columns, one value an image; the boundary threshold is tuned for each recipe apart."""

    def method(image):
        return predict(model, stretch(image)[None])[0]

    scores, splits = {}, [mdn.load_pairs(directory.parent / "pairs.zarr", split) for split in ("validation", "test")]
    for kind, varied in (("paper", False), ("varied", True)):
        tuned, tested = (np.flatnonzero(pairs.varied == varied) for pairs in splits)
        spread = tuned[np.unique(np.linspace(0, len(tuned) - 1, TUNED_ON).astype(int))]
        outputs = [
            [method(pairs.noisy[i]) for i in chosen]
            for pairs, chosen in zip(splits, (spread, tested[:TESTED_ON]), strict=True)
        ]
        threshold = metrics.choose_threshold(outputs[0], splits[0].boundaries[spread])
        pairs, rows = splits[1], []
        for i, output in zip(tested, outputs[1], strict=False):
            found = metrics.detect_boundaries(output, threshold)
            shape = metrics.boundary_score(found, pairs.boundaries[i])
            greys = metrics.image_scores(output, pairs.noisy[i], pairs.clean[i])
            twins = metrics.boundary_recall(found, pairs.twin_boundaries[i])
            rows.append(greys | {"boundary F": shape.f, "precision": shape.precision, "twin recall": twins})
        scores |= {f"{kind}, {column}": [float(row[column]) for row in rows] for column in COLUMNS}
    return scores


def table(kept: dict, variants: Iterable[str], columns: tuple[str, ...] = GREYS, gaps: dict = GAPS) -> dict:
    """Means over test pairs and seeds, and the differences to the first row, each with a 95 % interval.

    That is by image or, where it is wider and there are three seeds, over these, which says how trainings differ.
    """

    def scores(run: dict, column: str) -> np.ndarray:
        return np.array(run["scores"][column], float)  # what was NaN is null in the file

    rows, first = [], kept.get(next(iter(variants)), {})
    shown = [f"{kind}, {column}" for kind in ("paper", "varied") for column in columns]
    head = ["variant", "seeds", "steps", "processor minutes", *shown]
    pairs = list(product(("paper", "varied"), gaps))
    head += [name for kind, what in pairs for name in (f"{kind}, {gaps[what]}", f"{kind}, {gaps[what]}, by seed")]
    for variant in variants:
        runs = kept.get(variant, {})
        if not runs:
            continue
        row = [variant, len(runs)]
        for c in ("steps", "processor minutes"):
            values = [run[c] for run in runs.values() if run.get(c) is not None]
            row.append(float(np.mean(values)) if values else None)
        row += [float(np.mean([np.nanmean(scores(run, c)) for run in runs.values()])) for c in shown]
        shared = [seed for seed in runs if seed in first]
        for kind, what in pairs:
            column = f"{kind}, {what}"
            each = [scores(runs[s], column) - scores(first[s], column) for s in shared]
            seeds = [float(np.nanmean(one)) for one in each]
            spreads = [np.mean(each, axis=0), seeds][: 2 if len(seeds) > 2 else 1] if each else []
            found = max(map(metrics.mean_interval, spreads), key=lambda i: i.high - i.low, default=[None] * 3)
            row += [list(found), ", ".join(f"{one:+.3f}" for one in seeds)]
        rows.append(row)
    return {"columns": head, "rows": rows}


def main() -> None:
    """Train and score what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("data/shipped/ablation"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--late", action="store_true", help="from the fourth sitting's weights on, and nothing else")
    arguments = parser.parse_args()
    directory = arguments.directory
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept, late = held.get("runs", {}), held.get("late", {}).get("runs", {})

    def keep(runs: dict, name: str, seed: int, run: dict) -> None:
        runs.setdefault(name, {})[str(seed)] = run
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
        machine = f"{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__} on {jax.default_backend()}"
        told = {"command": "python -m benchmarks.ablation", "commit": commit.strip(), "machine": machine}
        then = told | {"command": "python -m benchmarks.ablation --late", "runs": late}
        then |= table(late, LATE, COLUMNS, LATE_GAPS)
        found = {**told, **table(kept, VARIANTS), "runs": kept, "late": then}
        write(RESULTS, json.dumps(rivals.plain(found), indent=1))
        print(name, seed, {c: round(float(np.nanmean(v)), 3) for c, v in run["scores"].items()}, flush=True)

    if arguments.late:
        for name in LATE:
            if name not in late:
                model, took = train_late(name, directory)
                run = {"steps": LATE_BUDGET["steps"], "processor minutes": took / 60}
                keep(late, name, 0, {**run, "scores": score(model, directory)})
    else:
        for seed, name in product(range(arguments.seeds), arguments.only):
            weights = directory / f"{KEPT[name]}.safetensors" if name in KEPT and seed == 0 else None
            if str(seed) in kept.get(name, {}) and (weights is None or weights.exists()):
                continue
            seconds = kept.get("best", {}).get(str(seed), {}).get("processor minutes", 0) * 60
            directory.mkdir(parents=True, exist_ok=True)
            model, steps, took = train(VARIANTS[name], directory, seed, seconds, arguments.workers)
            if weights is not None:
                save = save_dncnn if VARIANTS[name].dncnn else mdn.save_weights
                save(weights, model)
            run = {"steps": steps, "processor minutes": took / 60, "scores": score(model, directory)}
            keep(kept, name, seed, run)
    for row in (table(late, LATE, COLUMNS, LATE_GAPS) if arguments.late else table(kept, VARIANTS))["rows"]:
        print(" | ".join(rivals.cell(v) for v in row))


if __name__ == "__main__":
    main()
