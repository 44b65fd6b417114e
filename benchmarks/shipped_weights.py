"""Train the weights in mdn/weights/: `python benchmarks/shipped_weights.py`, again to go on after an interruption.

Makes the pairs in data/shipped/pairs.zarr (real micrographs, found as `mdn.micrographs` finds them), trains in
data/shipped/run, and writes mdn/weights/denoiser.safetensors after each evaluation that was the best so far.
`--sitting 1` and then `--sitting 2` go on from the weights in the box, with the recipes of `SITTINGS`; the last one
also sees `SHARP`, more pairs that keep their edges. `--card` writes the model card from
benchmarks/results/shipped_weights.json and rivals.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from dataclasses import asdict, replace
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
    steps=3400, batch=8, crop=128, learning_rate=1.5e-3, schedule="cosine", edges=1.0, average=0.998,
    grey_jitter=0.1, dropout_until=0.5, evaluate_every=200,
)  # fmt: skip
FURTHER = replace(RECIPE, steps=800, learning_rate=6e-4, clean_share=0.1, dropout_until=0.3)
SITTINGS = (RECIPE, FURTHER, replace(FURTHER, steps=1400, learning_rate=8e-4, dropout_until=0.0))
# degraded in space alone, from the runs and regions that PAIRS trains on
SHARP = replace(PAIRS, n_pairs=1000, n_test=0, n_runs=990, varied=1.0, without=("blend",))
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
        "recipe": json.dumps({**asdict(SITTINGS[len(sittings)]), "seed": SEED + len(sittings)}),
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


SHOWN = ("raw PSNR", "aligned PSNR", "matched PSNR", "SSIM", "boundary F", "precision", "recall", "twin recall")


def markdown(columns: list[str], rows: list[list]) -> list[str]:
    """A table; of an interval [mean, low, high] the mean and half its width."""

    def cell(value) -> str:
        if isinstance(value, list):
            mean, low, high = value
            return "-" if mean is None else f"{mean:.2f}" + (f" ± {(high - low) / 2:.2f}" if low is not None else "")
        return f"{value:.3g}" if isinstance(value, float) else "-" if value is None else str(value)

    lines = [columns, ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def card(results: dict, rivals: dict) -> str:
    """The model card, every number from a run."""
    history, counts, registry = results["history"], PAIRS.counts(), mdn.micrographs.sources()
    best, table = int(np.argmax(history["validation_psnr"])), rivals["table"]
    denoiser = mdn.load_denoiser()
    parameters, config = mdn.network.count_parameters(denoiser.network), denoiser.network.config
    earlier = sum(sitting["hours"] for sitting in results["earlier"])
    used = [
        f"- `{n}`: {registry[n].material}. {registry[n].licence}, {registry[n].url}" for n in mdn.dataset.REFERENCES
    ]
    places = [table["columns"].index(name) for name in ("pairs", "n", "method", *SHOWN)]
    measured = markdown(
        ["pairs", "n", "method", *SHOWN],
        [[row[i] for i in places] for row in table["rows"] if row[2] != "truth"],
    )
    targets = markdown(
        ["target", "wanted", "found", ""],
        [[*row[:3], "met" if row[3] else "**missed**"] for row in rivals["targets"]["rows"]],
    )
    hard = markdown(["of the varied pairs", "%"], [[name, f"{share:.0f}"] for name, share in hard_kinds().items()])
    removal = rivals["removal"]
    removed = markdown(removal["columns"], removal["rows"])
    sizes = [f"{n} {split} ({v} varied)" for split, (n, v) in results["pairs"].items()]
    return "\n".join(
        [
            "# Model card: denoiser.safetensors",
            "",
            f"The network of mdn {mdn.__version__}, {parameters:,} parameters (Eqs. 1-10 of the paper), `{config}`.",
            "Written by `python benchmarks/shipped_weights.py --card`; every number below comes from a run.",
            "",
            "## For",
            "Optical micrographs of etched, polycrystalline, single-phase metals: removing scratches, pits, pores,",
            "stains, rough etching and what optics and camera add, while grain and twin boundaries stay. Not for:",
            "measuring what it removed (pores, pits, inclusions), two-phase structures, electron micrographs.",
            "`mdn.familiarity` says when an image is unlike the training data, `mdn.uncertainty_map` where to look",
            "twice.",
            "",
            "## Trained on",
            f"Pairs of {PAIRS.shape[0]} x {PAIRS.shape[1]} px: {', '.join(sizes)}; {PAIRS.n_test} more to test; from",
            f"{PAIRS.n_runs} phase-field runs (`{PAIRS}`)."
            + f" In the last sitting {results['sharp']} more, degraded in space alone." * bool(results.get("sharp")),
            f"Every {CHOSEN_ON}th of the {counts['validation']} validation pairs chose the checkpoint.",
            "Fourier magnitudes and histograms of procedural stand-ins and of:",
            "",
            *used,
            "",
            "Each is cut into disjoint regions for training, validation and test. The weights hold no image of them.",
            "The truth: a grey for each grain and twin, a dark groove along boundaries, and nothing else.",
            "",
            f"How hard the varied pairs are (shares of {DRAWN} recipes drawn by `PairConfig.draw`):",
            "",
            *hard,
            "",
            "## How",
            f"`{RECIPE}`",
            *[f"then `{recipe}`" for recipe in SITTINGS[1 : 1 + len(results["earlier"])]],
            "",
            f"{history['seconds'][-1] / 3600:.2f} h ({results['machine']}), seed {SEED}"
            + (f", after {earlier:.2f} h in earlier sittings: `{results['earlier']}`. " if earlier else ". "),
            f"Best on validation at step {history['step'][best]}: {history['validation_psnr'][best]:.2f} dB.",
            "",
            "## Measured",
            "On test pairs (grains and regions never trained on); filters and boundary thresholds tuned on validation",
            "pairs, for each recipe apart. PSNR in dB, boundaries within 3 px; ± is half the 95 % interval by image.",
            "",
            *measured,
            "",
            "Each defect alone on the truth: share of its visible pixels restored to within 0.1, and twins found",
            "beside it:",
            "",
            *removed,
            "",
            "## Targets",
            *targets,
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
    """Make the pairs, train, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("data/shipped"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument(
        "--sitting", type=int, default=0, choices=range(len(SITTINGS)), help="above 0: go on from the box"
    )
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
    seen = [train]
    if arguments.sitting == 2:
        mdn.make_dataset(directory / "sharp.zarr", SHARP, grown=grown, workers=arguments.workers)
        seen.append(mdn.load_pairs(directory / "sharp.zarr", "train"))
    model, sittings, run = mdn.DenoisingNetwork(NETWORK, rngs=nnx.Rngs(SEED)), [], directory / "run"
    if arguments.sitting:
        run = directory / f"sitting_{arguments.sitting}"
        earlier, note = mdn.load_denoiser(), run / "earlier.json"
        model, told = earlier.network, dict(earlier.metadata["training"])
        if not note.exists():  # the weights in the box soon are this run's own
            write(note, json.dumps([*told.pop("earlier", []), told]))
        sittings = json.loads(note.read_text())
        if len(sittings) != arguments.sitting:
            raise SystemExit(f"the weights in the box have had {len(sittings)} sittings, not {arguments.sitting}")

    before = sittings[-1]["validation_psnr_db"] if sittings else 0.0

    def report(history: mdn.History) -> None:
        if history.best == len(history.step) - 1 and history.validation_psnr[-1] > before:
            export(model, history, sittings)

    history = mdn.fit(
        model,
        tuple(np.concatenate([getattr(pairs, name) for pairs in seen]) for name in ("noisy", "clean")),
        (validation.noisy[::CHOSEN_ON], validation.clean[::CHOSEN_ON]),
        config=SITTINGS[len(sittings)],
        directory=run,
        key=jax.random.key(SEED + len(sittings)),
        report=report,
    )
    if max(history.validation_psnr) <= before:
        raise SystemExit(f"no gain on the {before} dB of the weights in the box, which stay")
    export(model, history, sittings, training_statistics(model, validation.noisy[:: max(1, len(validation) // 200)]))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__} on {jax.default_backend()}"
    results = {
        "command": f"python benchmarks/shipped_weights.py --sitting {arguments.sitting}",
        "commit": commit,
        "machine": machine,
        "earlier": sittings,
        "sources": list(train.sources),
        "pairs": {split: [len(p), int(p.varied.sum())] for split, p in (("train", train), ("validation", validation))},
        "sharp": sum(map(len, seen[1:])),
        "history": asdict(history),
    }
    write(RESULTS, json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
