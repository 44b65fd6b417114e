"""What each part is worth: `python -m benchmarks.ablation`, again to go on; `--seeds 3 --only best "no attention"`.

Every row is trained alike, on as many pairs of the same grown structures and for as many steps of as many crops, with
one part removed or switched, and scored on the same validation pairs, of which no row saw a grain or a region: what is
shipped was chosen by them, and the test pairs are left for the end. The annotated steel stands beside them and chose
nothing. DnCNN gets the processor seconds that the first row took instead; it and the gate as printed, which does not
learn at the sigmoid's rate, get the best of some rates, which the file names. The network is half as wide as the
shipped one and the training short: the table says what each part is worth at this budget. Rows go to
results/ablation.json one by one, from several such commands at once, each with rows of its own; their weights
stay beside the pairs, where `benchmarks.rivals` finds those of the first three, which are trained again where they are
gone.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path

import jax
import numpy as np
from flax import nnx

import mdn
from benchmarks import rivals
from benchmarks.shipped_weights import NETWORK, PAIRS, RECIPE, with_edges_and_blanks, write
from mdn import metrics
from mdn.baselines import DnCNN, as_method, load_dncnn, save_dncnn
from mdn.micrographs import load_source, luminance, traced_boundaries
from mdn.network import stretch
from mdn.training import predict

RESULTS = Path(__file__).parent / "results" / "ablation.json"
SMALL = replace(PAIRS, n_pairs=375, n_test=0, n_runs=250)
NARROW = replace(NETWORK, width=32)
BUDGET = {"steps": 400, "crop": 96, "learning_rate": 2e-3, "evaluate_every": 400}
KEPT = {"best": "network_short", "DnCNN": "DnCNN_short", "no attention": "no_attention_short"}
RATES = (5e-4, 1e-3, 2e-3)  # of the rows that choose theirs
RATED_ON = 16  # validation pairs that choose them
SPREAD = 44  # validation pairs of each recipe
TUNED = 3  # every third of them tunes a row's boundary threshold, the others score it
CLEAN = "clean in"  # PSNR of a truth to itself
COLUMNS = ("raw PSNR", "aligned PSNR", "SSIM", "boundary F", "twin recall", CLEAN)
STEEL = ("steel, boundary F", "steel with defects, boundary F")  # traced by hand; nobody trained on it
STRENGTH, DRAWS = 0.6, 6  # of the defects added to it
GAPS = {
    "aligned PSNR": "aligned gap (dB)",
    "boundary F": "F gap",
    "twin recall": "twin gap",
    CLEAN: "clean in gap (dB)",
}


@dataclass(frozen=True)
class Variant:
    """What differs from the first row: fields of the network, of the training, and parts of the pairs left out."""

    network: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    without: tuple[str, ...] = ()
    rated: bool = False  # whether its rate is chosen, of `RATES`
    beside: bool = False  # whether edges of specimens and fields without grains are beside the pairs
    dncnn: bool = False


VARIANTS = {
    "best": Variant(),
    "DnCNN": Variant(dncnn=True),
    "no attention": Variant({"attention": False}),
    "gate as printed (LeakyReLU)": Variant({"gate": "leaky_relu"}, rated=True),
    "no FFT blend": Variant(without=("blend",)),
    "no histogram matching": Variant(without=("matching",)),
    "no artificial defects": Variant(without=("defects",)),
    "no twins": Variant(without=("twins",)),
    "full swaps alone": Variant(without=("partial swaps", "space alone")),
    "no partial swaps": Variant(without=("partial swaps",)),
    "none in space alone": Variant(without=("space alone",)),
    "no looks of etching": Variant(without=("looks",)),
    "full resolution, as wide for the same work": Variant({"scale": 1, "width": 16}),
    "full resolution, for the work of twice as wide": Variant({"scale": 1}),
    "twice as wide": Variant({"width": 2 * NARROW.width}),
    "half as deep": Variant({"blocks": NARROW.blocks // 2}),
    "no dropout": Variant({"dropout": 0.0}),
    "half the rate": Variant(training={"learning_rate": BUDGET["learning_rate"] / 2}),
    "no symmetries": Variant(training={"symmetries": False}),
    "no clean crops": Variant(training={"clean_share": 0.0}),
    "more clean crops": Variant(training={"clean_share": 0.2}),
    "edges and fields without grains beside the pairs": Variant(beside=True),
    "dropout to the end": Variant(training={"dropout_until": 1.0}),
    "Adam at 1e-4, constant": Variant(training={"schedule": "constant", "learning_rate": 1e-4}),
    "edges in the loss": Variant(training={"edges": 1.0}),
    "boundaries weigh more in the loss": Variant(training={"boundaries": 4.0}),
    "averaged weights": Variant(training={"average": 0.98}),
    "grey jitter": Variant(training={"grey_jitter": 0.1}),
    "the paper's recipe, as wide for the same work": Variant(
        {"scale": 1, "width": 16, "gate": "leaky_relu", "dropout": 0.1},
        {"schedule": "constant", "learning_rate": 1e-4, "symmetries": False, "clean_share": 0.0, "dropout_until": 1.0},
    ),
}


def train(variant: Variant, directory: Path, seed: int, seconds: float | None, workers: int) -> tuple:
    """The trained network, its steps, its rate and how many processor seconds it took."""
    name = "-".join(("pairs", *variant.without)).replace(" ", "_")
    mdn.make_dataset(
        directory / f"{name}.zarr", replace(SMALL, without=variant.without), grown=directory.parent / "grown",
        workers=workers,
    )  # fmt: skip
    pairs = mdn.load_pairs(directory / f"{name}.zarr", "train")
    recipe = replace(RECIPE, **{**BUDGET, **variant.training})
    data = with_edges_and_blanks(pairs) if variant.beside else (pairs.noisy, pairs.clean)
    held = mdn.load_pairs(directory / f"{name}.zarr", "validation")
    few = held.noisy[:RATED_ON], held.clean[:RATED_ON]
    if variant.dncnn:
        return train_dncnn(data, few, recipe, seconds, seed)

    def run(rate: float) -> tuple[float, nnx.Module, float, float]:
        model = mdn.DenoisingNetwork(replace(NARROW, **variant.network), rngs=nnx.Rngs(seed))
        start, config = time.process_time(), replace(recipe, learning_rate=rate)
        history = mdn.fit(model, data, few, config=config, key=jax.random.key(seed), progress=False)
        return history.validation_psnr[-1], model, rate, time.process_time() - start

    runs = map(run, RATES if variant.rated else (recipe.learning_rate,))
    _, model, rate, took = max(runs, key=lambda found: found[0])
    return model, recipe.steps, rate, took


def train_dncnn(data: tuple, validation: tuple, recipe: mdn.TrainingConfig, seconds: float, seed: int) -> tuple:
    """DnCNN for as many processor seconds, at the rate of `RATES` that validation pairs like best."""

    def run(rate: float, steps: int) -> tuple[float, nnx.Module, float, float]:
        model, start = DnCNN(rngs=nnx.Rngs(seed)), time.process_time()
        config = replace(recipe, steps=steps, evaluate_every=steps, learning_rate=rate)
        history = mdn.fit(model, data, validation, config=config, key=jax.random.key(seed), progress=False)
        return history.validation_psnr[-1], model, rate, time.process_time() - start

    short, long = (run(RATES[0], steps)[3] for steps in (20, 40))
    once, one = 2 * short - long, (long - short) / 20  # compilation and evaluation; a step
    steps = max(12, round((seconds - once) / one))
    _, model, rate, took = max((run(rate, steps) for rate in RATES), key=lambda found: found[0])
    return model, steps, rate, took


def on_steel(model: nnx.Module, threshold: float) -> dict[str, list[float]]:
    """Boundary F on the annotated steel, as it is and under draws of added defects; none where it cannot be had."""
    try:
        image, traced = luminance(load_source("steel_nist").pixels), traced_boundaries("steel_nist")
    except FileNotFoundError:
        return {name: [float("nan")] for name in STEEL}
    restore = as_method(model) if isinstance(model, DnCNN) else mdn.Denoiser(model).restore
    keys = jax.random.split(jax.random.key(0), DRAWS)
    images = [image, *(rivals.with_defects(image, traced, STRENGTH, key)[0] for key in keys)]
    found = [metrics.detect_boundaries(restore(each), threshold) for each in images]
    f = [metrics.boundary_score(each, traced).f for each in found]
    return dict(zip(STEEL, (f[:1], f[1:]), strict=True))


def score(model: nnx.Module, directory: Path) -> dict[str, list[float]]:
    """Validation pairs by recipe: the columns, one value an image; a boundary threshold for each recipe.

    Then the annotated steel, at the threshold of the varied pairs.
    """
    pairs, scores = mdn.load_pairs(directory.parent / "pairs.zarr", "validation"), {}
    for kind, varied in (("paper", False), ("varied", True)):
        those = np.flatnonzero(pairs.varied == varied)
        those = those[np.unique(np.linspace(0, len(those) - 1, SPREAD).astype(int))]
        tuned = np.arange(len(those)) % TUNED == 0
        outputs = [predict(model, stretch(pairs.noisy[i])[None])[0] for i in those]
        few = [output for output, chosen in zip(outputs, tuned, strict=True) if chosen]
        threshold = metrics.choose_threshold(few, pairs.boundaries[those[tuned]])
        rows = []
        for i, output in ((i, x) for i, x, chosen in zip(those, outputs, tuned, strict=True) if not chosen):
            found = metrics.detect_boundaries(output, threshold)
            clean = predict(model, stretch(pairs.clean[i])[None])[0]
            shape = metrics.boundary_score(found, pairs.boundaries[i])
            rows.append(
                metrics.image_scores(output, pairs.noisy[i], pairs.clean[i])
                | {"boundary F": shape.f, "twin recall": metrics.boundary_recall(found, pairs.twin_boundaries[i])}
                | {CLEAN: metrics.psnr(clean, pairs.clean[i])}
            )
        scores |= {f"{kind}, {column}": [float(row[column]) for row in rows] for column in COLUMNS}
    return scores | on_steel(model, threshold)


def table(kept: dict, variants: Iterable[str]) -> dict:
    """Means over validation pairs and seeds, and the differences to the first row, each with a 95 % interval.

    That is by image or, where it is wider and there are three seeds, over these, which says how trainings differ.
    """

    def scores(run: dict, column: str) -> np.ndarray:
        return np.array(run["scores"].get(column, [np.nan]), float)  # what was NaN is null in the file

    rows, first = [], kept.get(next(iter(variants)), {})
    shown = [f"{kind}, {column}" for kind in ("paper", "varied") for column in COLUMNS] + list(STEEL)
    head = ["variant", "seeds", "steps", "processor minutes", *shown]
    pairs = [*product(("paper", "varied"), GAPS), STEEL[1].split(", ")]
    head += [name for kind, what in pairs for name in (f"{kind}, {GAPS[what]}", f"{kind}, {GAPS[what]}, by seed")]
    for variant in variants:
        runs = kept.get(variant, {})
        if not runs:
            continue
        row = [variant, len(runs)]
        row += [float(np.mean([run[c] for run in runs.values()])) for c in ("steps", "processor minutes")]
        row += [float(np.mean([metrics.mean_interval(scores(run, c)).mean for run in runs.values()])) for c in shown]
        shared = sorted(seed for seed in runs if seed in first)
        for kind, what in pairs:
            column = f"{kind}, {what}"
            each = [scores(runs[s], column) - scores(first[s], column) for s in shared]
            seeds = [metrics.mean_interval(one).mean for one in each]
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
    parser.add_argument("--rescore", action="store_true", help="score the weights that are there again; train nothing")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    directory = arguments.directory
    directory.mkdir(parents=True, exist_ok=True)
    setting = {"pairs": asdict(SMALL), "network": asdict(NARROW), "recipe": asdict(replace(RECIPE, **BUDGET))}
    setting = json.loads(json.dumps(setting | {"spread": SPREAD, "tuned": TUNED}))

    def kept() -> dict:
        held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        if held.get("setting", setting) != setting:
            print(f"*** {RESULTS} holds rows of another setting, which are left behind ***", file=sys.stderr)
            return {}
        return held.get("runs", {})

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()

    def keep(name: str, seed: str, run: dict) -> None:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__} on {jax.default_backend()}"
        told = {"command": "python -m benchmarks.ablation", "commit": commit, "machine": machine, "setting": setting}
        told |= {"variants": {variant: asdict(differs) for variant, differs in VARIANTS.items()}}
        with open(RESULTS.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another such command may have added rows since
            runs = kept()
            runs.setdefault(name, {})[seed] = run
            write(RESULTS, json.dumps(rivals.plain({**told, **table(runs, VARIANTS), "runs": runs}), indent=1))
        print(name, seed, {c: round(float(np.nanmean(v)), 3) for c, v in run["scores"].items()}, flush=True)

    def weights_of(name: str, seed: str) -> Path:
        file = KEPT[name] if name in KEPT and seed == "0" else f"{name} {seed}"
        return directory / f"{file}.safetensors".replace(" ", "_")

    if arguments.rescore:
        for name, seed in product(arguments.only, map(str, range(arguments.seeds))):
            weights = weights_of(name, seed)
            run = kept().get(name, {}).get(seed)
            if run and weights.exists():
                model = load_dncnn(weights) if VARIANTS[name].dncnn else mdn.load_denoiser(weights).network
                keep(name, seed, run | {"scores": score(model, directory)})
        return
    for seed, name in product(map(str, range(arguments.seeds)), arguments.only):
        weights = weights_of(name, seed)
        done = kept().get(name, {}).get(seed)
        done = done and ("rate" in done or not VARIANTS[name].rated)  # of before, at the rate of the others
        if done and (name not in KEPT or seed != "0" or weights.exists()):
            continue
        seconds = kept().get("best", {}).get(seed, {}).get("processor minutes", 0) * 60
        if VARIANTS[name].dncnn and not seconds:
            raise SystemExit(f"DnCNN takes the time of the first row, of which there is none for seed {seed}")
        model, steps, rate, took = train(VARIANTS[name], directory, int(seed), seconds, arguments.workers)
        (save_dncnn if VARIANTS[name].dncnn else mdn.save_weights)(weights, model)
        run = {"commit": commit, "steps": steps, "rate": rate, "processor minutes": took / 60}
        keep(name, seed, run | {"scores": score(model, directory)})
    for row in table(kept(), VARIANTS)["rows"]:
        print(" | ".join(rivals.cell(v) for v in row))


if __name__ == "__main__":
    main()
