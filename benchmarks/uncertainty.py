"""Where not to trust the network, measured: `python benchmarks/uncertainty.py --directory data/shipped`.

    ranking      does an uncertainty rank the pixels of a test pair by their true error? The map of
                 `mdn.uncertainty_map`, and standard deviations over Monte Carlo dropout, the eight symmetries and both,
                 of equally many passes; the error as it is, and less its mean over each grain
    familiarity  how often an image is called unlike the training data: images that should not be, and that should

The map was put together on validation pairs. The measure of familiarity was chosen among a dozen on the groups marked
"seen"; the others were first looked at here.
Writes benchmarks/results/uncertainty.json. `--quick` tries it on a few images and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from itertools import product
from pathlib import Path

import jax
import numpy as np
import skimage.data
from scipy import ndimage

import mdn
from mdn.dataset import Pairs
from mdn.files import write_whole
from mdn.inference import Denoiser
from mdn.metrics import mean_interval, psnr
from mdn.micrographs import load_reference, load_source, luminance
from mdn.uncertainty import Sparsification, hesitation, restorations, sparsification, training_statistics

RESULTS = Path(__file__).parent / "results" / "uncertainty.json"
MAP = "map"  # what `mdn.uncertainty_map` makes of the symmetries
SWITCHED = {  # dropout and symmetries, of the standard deviations
    "dropout": (True, False),
    "symmetries": (False, True),
    "both": (True, True),
}
METHODS = (MAP, *SWITCHED)
FITTED_ON = 400  # training images, where the weights carry no statistics
SIDE = 256  # px of a crop
PICTURES = (
    "camera",
    "astronaut",
    "coffee",
    "cat",
    "rocket",
    "moon",
    "coins",
    "brick",
    "grass",
    "gravel",
    "page",
    "text",
)
UNSEEN_PICTURES = ("clock", "horse", "shepp_logan_phantom", "microaneurysms", "logo", "colorwheel")


def errors(output: np.ndarray, clean: np.ndarray, regions: np.ndarray) -> dict[str, np.ndarray]:
    """|output - truth|, and the same once each grain's (each twin's) mean error, its grey's, is taken off."""
    difference = output - clean
    count = np.bincount(regions.ravel())
    mean = np.bincount(regions.ravel(), weights=difference.ravel()) / np.maximum(count, 1)
    return {"all": np.abs(difference), "within grains": np.abs(difference - mean[regions])}


def ranking(denoiser: Denoiser, pairs: Pairs, chosen: np.ndarray, passes: int) -> dict:
    """Sparsification of each method by recipe, for the error and for the error within grains."""
    curves: dict[tuple[str, str], list[Sparsification]] = {}
    gains, told = [], []
    for i in chosen:
        usual, key = denoiser.restore(pairs.noisy[i]), jax.random.fold_in(jax.random.key(0), int(i))
        wrong = errors(usual, pairs.clean[i], pairs.regions[i])
        maps = {}
        for name, (dropout, turned) in SWITCHED.items():
            masks = key if dropout else None
            outputs = restorations(denoiser, pairs.noisy[i], passes=passes, dropout=masks, symmetries=turned)
            maps[name] = outputs.std(0)
            if turned and not dropout:
                maps[MAP] = hesitation(outputs)
                gains.append(psnr(outputs.mean(0), pairs.clean[i]) - psnr(usual, pairs.clean[i]))
        for (which, error), name in product(wrong.items(), METHODS):
            curves.setdefault((which, name), []).append(sparsification(error, maps[name]))
        told.append([float(np.sqrt((one**2).mean())) for one in (wrong["all"], maps[MAP], maps["symmetries"])])
    error_of, map_of, spread_of = np.array(told).T
    recipes = {"paper": ~pairs.varied[chosen], "varied": pairs.varied[chosen]}
    rows, drawn = [], {}
    for (which, name), each in curves.items():
        for recipe, mask in recipes.items():
            kept = [curve for curve, take in zip(each, mask, strict=True) if take]
            drawn.setdefault(which, {}).setdefault(recipe, {})[name] = averaged(kept)
            left = [
                np.mean([c.left[np.searchsorted(c.removed, share)] / c.random[0] for c in kept]) for share in (0.1, 0.5)
            ]
            scores = (mean_interval([getattr(c, what) for c in kept]) for what in ("ause", "spearman"))
            rows.append([recipe, len(kept), which, name, *scores, *map(float, left)])
    return {
        "columns": ["pairs", "n", "error", "uncertainty", "AUSE", "Spearman", "left without 10 %", "left without 50 %"],
        "rows": rows,
        "passes": passes,
        "curves": drawn,
        "facts": {
            "gain of the mean of the symmetries over one pass, in dB": mean_interval(gains),
            "root mean square of the error": float(error_of.mean()),
            "root mean square of the map": float(map_of.mean()),
            "root mean square of the symmetries' standard deviation": float(spread_of.mean()),
            "Spearman, over images, of the map's and the error's": sparsification(error_of, map_of).spearman,
        },
    }


def averaged(curves: list[Sparsification]) -> dict[str, list[float]]:
    """Mean over images of each curve over its own start."""
    mean = {name: np.mean([getattr(c, name) / c.random[0] for c in curves], 0) for name in ("left", "oracle", "random")}
    return {"removed": curves[0].removed.tolist()} | {name: value.round(5).tolist() for name, value in mean.items()}


def crops(image: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random crops of `SIDE` px, or as large as the image has room for."""
    height, width = (min(SIDE, n) for n in image.shape)
    corners = zip(
        rng.integers(image.shape[0] - height + 1, size=count), rng.integers(image.shape[1] - width + 1, size=count),
        strict=True,
    )  # fmt: skip
    return [image[top : top + height, left : left + width] for top, left in corners]


def electrons(rng: np.random.Generator) -> np.ndarray:
    """As a scanning electron microscope shows a rough surface: bright edges, shot noise."""
    height = ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), 6)
    height /= height.std()
    signal = 0.25 + 0.12 * np.tanh(2 * height) + 0.5 * np.exp(-((height / 0.15) ** 2))
    return np.clip(rng.gamma(6, signal / 6), 0, 1).astype(np.float32)


def stripes(rng: np.random.Generator) -> np.ndarray:
    """Lamellae, as of pearlite: two greys in bent stripes of a few pixels."""
    bent = 12 * ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), 30) / 0.01
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 10)
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle) + bent * 0.1) / period)
    return np.clip(0.5 + 0.35 * np.tanh(3 * wave) + 0.03 * rng.standard_normal((SIDE, SIDE)), 0, 1).astype(np.float32)


def groups(pairs: Pairs, count: int) -> list[tuple[str, bool, bool, list[np.ndarray]]]:
    """(name, whether it should be flagged, whether the measure was chosen on it, images)."""
    rng = np.random.default_rng(0)

    def pictures(names):
        for name in names:
            image = np.asarray(getattr(skimage.data, name)())
            yield name, luminance(image[..., :3] if image.ndim == 3 else image)

    paper, varied = (pairs.noisy[mask][: 4 * count] for mask in (~pairs.varied, pairs.varied))
    steel, small = (luminance(load_source(name).pixels) for name in ("steel_nist", "brass_c2600_annealed_200x"))
    left, upper, right, lower = mdn.micrographs.sources()["brass_c2600_annealed_200x"].box
    regions = {name: load_reference(name, "test") for name in mdn.dataset.REFERENCES}
    regions |= {"steel_nist": steel, "brass_c2600_annealed_200x": small[upper:lower, left:right]}
    known = {"pairs, paper": list(paper), "pairs, varied": list(varied)}
    known |= {name: crops(image, count, rng) for name, image in regions.items()}
    strange = {name: crops(image, count, rng) for name, image in pictures(PICTURES)}
    strange |= {
        "white noise": [rng.random((SIDE, SIDE), np.float32) for _ in range(count)],
        "blank": [np.full((SIDE, SIDE), grey, np.float32) for grey in np.linspace(0, 1, count)],
        "electron micrograph, simulated": [electrons(rng) for _ in range(count)],
        "pairs, paper, inverted": [1 - image for image in paper],
        "pairs, varied, inverted": [1 - image for image in varied],
        "steel_nist, inverted": [1 - image for image in known["steel_nist"]],
    }
    unseen = {name: crops(image, count, rng) for name, image in pictures(UNSEEN_PICTURES)}
    unseen |= {
        "lamellae, simulated": [stripes(rng) for _ in range(count)],
        "blobs": [skimage.data.binary_blobs(SIDE, rng=i).astype(np.float32) for i in range(count)],
        "pairs, paper, blurred": [ndimage.gaussian_filter(image, 4) for image in paper],
        "steel_nist, 4 x enlarged": [ndimage.zoom(image[:64, :64], 4, order=1) for image in known["steel_nist"]],
    }
    return [
        (name, flag, seen, images)
        for flag, seen, family in ((False, True, known), (True, True, strange), (True, False, unseen))
        for name, images in family.items()
    ]


def flags(denoiser: Denoiser, pairs: Pairs, count: int) -> dict:
    """Share of each group that is flagged, and its median distance over the limit."""
    rows = []
    for name, flag, seen, images in groups(pairs, count):
        found = [mdn.familiarity(denoiser, image) for image in images]
        share = float(np.mean([one.warning is not None for one in found]))
        distance = float(np.median([one.distance / one.limit for one in found]))
        rows.append([name, "yes" if flag else "no", "seen" if seen else "new", len(images), share, distance])
    mean = {
        f"mean share flagged, {wanted}": float(np.mean([row[4] for row in rows if tuple(row[1:3]) == which]))
        for wanted, which in {
            "should not be": ("no", "seen"), "should be": ("yes", "seen"), "should be, new": ("yes", "new"),
        }.items()
    }  # fmt: skip
    columns = ["group", "should be flagged", "chosen on", "n", "flagged", "distance / limit"]
    return {"columns": columns, "rows": rows, "facts": mean}


def with_statistics(denoiser: Denoiser, directory: Path) -> tuple[Denoiser, str]:
    """The denoiser with training statistics: its own, or fitted on training pairs now."""
    try:
        mdn.familiarity(denoiser, np.eye(32, dtype=np.float32))
        return denoiser, "the weights'"
    except ValueError:
        train = mdn.load_pairs(directory / "pairs.zarr", "train")
        noisy = train.noisy[:: max(1, len(train) // FITTED_ON)]
        known = {"training_statistics": training_statistics(denoiser.network, noisy)}
        return Denoiser(denoiser.network, denoiser.metadata | known), f"fitted here on {len(noisy)} training pairs"


def show(name: str, table: dict) -> None:
    """Aligned columns, and the facts below."""

    def text(value) -> str:
        if isinstance(value, tuple):
            return "{:.3f} ({:.3f} to {:.3f})".format(*value)
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    cells = [table["columns"], *(list(map(text, row)) for row in table["rows"])]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{name}")
    for row in cells:
        print("  " + " | ".join(f"{one:>{width}}" for one, width in zip(row, widths, strict=True)))
    for fact, value in table["facts"].items():
        print(f"  {fact}: {text(value)}", flush=True)


def write(path: Path, result: dict) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(result, indent=1).encode())


def main() -> None:
    """Measure, print and keep both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("data/shipped"), help="where pairs.zarr lies")
    parser.add_argument("--weights", type=Path, help="a safetensors file; the shipped weights by default")
    parser.add_argument("--n", type=int, default=60, help="test pairs, as many of each recipe as there are")
    parser.add_argument("--passes", type=int, default=8, help="forward passes of an uncertainty")
    parser.add_argument("--quick", action="store_true", help="a few images, to see that it runs; nothing is written")
    args = parser.parse_args()
    n, passes, count = (4, 2, 2) if args.quick else (args.n, args.passes, 8)
    test = mdn.load_pairs(args.directory / "pairs.zarr", "test")
    chosen = np.concatenate([np.flatnonzero(mask)[: n // 2] for mask in (~test.varied, test.varied)])
    denoiser, whose = with_statistics(mdn.load_denoiser(args.weights), args.directory)
    ranked = ranking(denoiser, test, chosen, passes)
    show("ranking", ranked)
    flagged = flags(denoiser, test, count)
    show("familiarity", flagged)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    facts = {
        "command": " ".join(["python benchmarks/uncertainty.py", *sys.argv[1:]]),
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__} on {jax.default_backend()}",
        "weights": str(args.weights or "shipped"),
        "sha256": denoiser.metadata.get("sha256"),
        "statistics": whose,
    }
    if not args.quick:
        write(RESULTS, facts | {"ranking": ranked, "familiarity": flagged})


if __name__ == "__main__":
    main()
