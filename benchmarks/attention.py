"""What the attention does, measured: `python benchmarks/attention.py --directory data/shipped`, about 10 core-minutes.

    maps       how far each block's spatial map follows defects, boundaries and the change from input to output
    weights    how far each channel's weight follows what an image holds, over images
    set        what is lost where the weights no longer follow the image: held at a mean, or another image's
    silencing  what each channel does: PSNR lost without it, and where the output changes

All on test pairs, up to half of them by the paper's recipe. Means stand with their 95 % interval by image; pairs of
one phase-field run or micrograph are not independent. Writes
benchmarks/results/attention.json. `--quick` tries it on a few images and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

import mdn
from mdn.attention import AttentionMaps, correlations, gated, image_content, local_defects, map_correlations, silencing
from mdn.dataset import Pairs
from mdn.files import write_whole
from mdn.inference import Denoiser
from mdn.metrics import boundary_band, mean_interval, psnr

RESULTS = Path(__file__).parent / "results" / "attention.json"
CROP = 128  # px of the images on which channels are silenced
SHUFFLES = 500  # of the images, for what correlation chance gives the luckiest channel
TOLD = 5  # channels at either end of the silencing
Table = dict[str, list]


def map_table(maps: list[AttentionMaps], pairs: Pairs, chosen: np.ndarray) -> Table:
    """Correlation over pixels, and brightness on defects over that beside them within grains, by recipe and block."""
    found = []  # [image, what, block]
    for seen, i in zip(maps, chosen, strict=True):
        defects, near = local_defects(pairs.defects[i]), boundary_band(pairs.boundaries[i], 1)
        masks = defects, near, np.abs(seen.output - seen.image)
        on, beside = seen.spatial[:, defects & ~near], seen.spatial[:, ~defects & ~near]
        lift = on.mean(1) / beside.mean(1) if min(on.size, beside.size) else np.full(len(on), np.nan)
        follows = [map_correlations(seen, mask) if mask.any() else np.full(len(lift), np.nan) for mask in masks]
        found.append([*follows, lift])
    found = np.array(found)
    rows = [
        [recipe, int(mask.sum()), block + 1, *(mean_interval(column) for column in found[mask, :, block].T)]
        for recipe, mask in recipes(pairs, chosen).items()
        for block in range(found.shape[2])
    ]
    return {"columns": ["pairs", "n", "block", "defects", "boundaries", "change", "on defects / beside"], "rows": rows}


def recipes(pairs: Pairs, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Which of the chosen pairs follow the paper's recipe, and which are varied."""
    masks = {"paper": ~pairs.varied[chosen], "varied": pairs.varied[chosen]}
    return {name: mask for name, mask in masks.items() if mask.any()}


def weight_table(
    weights: np.ndarray, contents: list[dict[str, float]], groups: list[np.ndarray]
) -> tuple[Table, dict[str, np.ndarray]]:
    """Pearson's r over images, [blocks, width] by content, beside what chance gives the luckiest of all channels.

    Weights and contents less their means over each recipe: what differs between recipes would pass for an answer.
    """
    rng, rows, fields = np.random.default_rng(0), [], {}
    weights, content = weights.copy(), np.array([list(each.values()) for each in contents])
    for mask in groups:
        weights[mask] -= weights[mask].mean(0)
        content[mask] -= content[mask].mean(0)
    names = list(contents[0])
    for name, values in zip(names, content.T, strict=True):
        fields[name], luckiest = correlations(weights, values), []
        for _ in range(SHUFFLES):
            shuffled = values.copy()
            for mask in groups:
                shuffled[mask] = rng.permutation(values[mask])
            luckiest.append(np.abs(correlations(weights, shuffled)).max())
        chance = float(np.percentile(luckiest, 95))
        for block, field in enumerate(np.abs(fields[name])):
            largest, beyond = int(field.argmax()), int((field > chance).sum())
            rows.append([name, block + 1, float(field[largest]), largest + 1, beyond, chance])
    columns = ["content", "block", "largest |r|", "its channel", "channels beyond chance", "chance (95 %)"]
    among = {
        a: dict(zip(names, row, strict=True)) for a, row in zip(names, np.corrcoef(content.T).tolist(), strict=True)
    }
    return {"columns": columns, "rows": rows, "contents among themselves": among}, fields


def set_table(denoiser: Denoiser, maps: list[AttentionMaps], pairs: Pairs, chosen: np.ndarray) -> Table:
    """Raw PSNR lost on every other image with weights of those between; one image's are of another phase-field run."""
    rng, rows = np.random.default_rng(0), []
    weights, fitted = np.array([seen.channel_weights for seen in maps]), np.arange(len(maps)) % 2 == 0
    mean = weights[fitted].mean(0)
    for recipe, mask in recipes(pairs, chosen).items():
        own, lost = weights[fitted & mask].mean(0), []
        for n in np.flatnonzero(~fitted & mask):
            i = chosen[n]
            another = rng.choice(np.flatnonzero(fitted & mask & (pairs.run[chosen] != pairs.run[i])))
            instead = {
                "mean over images of its recipe": own,
                "mean over images of both": mean,
                "another image's, same recipe": weights[another],
                "one number for all": mean.mean(),
            }
            outputs = (gated(denoiser, pairs.noisy[i], scale=0, offset=y) for y in instead.values())
            lost.append([psnr(maps[n].output, pairs.clean[i]) - psnr(output, pairs.clean[i]) for output in outputs])
        rows += [
            [recipe, len(lost), name, mean_interval(column), float(np.median(column))]
            for name, column in zip(instead, np.array(lost).T, strict=True)
        ]
    return {"columns": ["pairs", "n", "weights held at", "PSNR lost (dB)", "median"], "rows": rows}


def silencing_table(denoiser: Denoiser, pairs: Pairs, chosen: np.ndarray) -> tuple[Table, dict[str, np.ndarray]]:
    """The channels that are missed most and least, by the mean over images; all of them as fields.

    The interval of a channel's loss is by image, and not corrected for that it was chosen among all of them.
    """
    found, arrays = [], (pairs.noisy, pairs.clean, pairs.defects, pairs.boundaries)
    for i in chosen:
        noisy, clean, bits, edges = (array[i, :CROP, :CROP] for array in arrays)
        defects, near = local_defects(bits), boundary_band(edges, 1)
        regions = {"defects": defects & ~near, "boundaries": near, "elsewhere": ~defects & ~near}
        found.append(silencing(denoiser, noisy, clean, regions))
    fields = {"PSNR lost": np.mean([one.psnr_drop for one in found], 0)}
    fields |= {name: np.nanmean([one.change[name] for one in found], 0) for name in found[0].change}
    order = np.argsort(-fields["PSNR lost"], axis=None)
    told = [("most", place) for place in order[:TOLD]] + [("least", place) for place in order[-TOLD:]]
    rows = []
    for missed, place in told:
        block, channel = divmod(int(place), fields["PSNR lost"].shape[1])
        lost = mean_interval([one.psnr_drop[block, channel] for one in found])
        changed = [float(field[block, channel]) for field in list(fields.values())[1:]]
        rows.append([missed, block + 1, channel + 1, lost, *changed])
    columns = ["missed", "block", "channel", "PSNR lost (dB)", *(f"change, {name}" for name in found[0].change)]
    return {"columns": columns, "rows": rows}, fields


def measure(denoiser: Denoiser, pairs: Pairs, n: int, silenced: int) -> dict:
    """All tables, and the fields [blocks, width] behind them."""
    half = [np.flatnonzero(mask) for mask in (~pairs.varied, pairs.varied)]
    paper = half[0][: n // 2]
    chosen = np.concatenate([paper, half[1][: n - len(paper)]])
    maps = [mdn.attention_maps(denoiser, pairs.noisy[i]) for i in chosen]
    contents = [image_content(pairs.noisy[i], pairs.defects[i], pairs.boundaries[i]) for i in chosen]
    weights = np.array([seen.channel_weights for seen in maps], float)
    followed, r = weight_table(weights, contents, list(recipes(pairs, chosen).values()))
    few = np.concatenate([places[: silenced // 2] for places in half])
    missed, fields = silencing_table(denoiser, pairs, few)
    facts = {
        "images": len(chosen),
        "images, silencing": len(few),
        "std of a weight over images, mean over channels": float(weights.std(0).mean()),
        "std of mean weights over channels": float(weights.mean(0).std(1).mean()),
        "share of channels better silenced": float((fields["PSNR lost"] < 0).mean()),
        "r over channels of mean weight and PSNR lost": float(
            correlations(weights.mean(0).ravel(), fields["PSNR lost"].ravel())
        ),
    }
    return {
        "maps": map_table(maps, pairs, chosen),
        "weights": followed,
        "set": set_table(denoiser, maps, pairs, chosen),
        "silencing": missed,
        "facts": facts,
        "fields": {
            name: {key: value.round(5).tolist() for key, value in some.items()}
            for name, some in {"weights": r, "silencing": fields}.items()
        },
    }


def plain(value):
    """As JSON takes it: None for what is not finite, lists for tuples."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def show(name: str, table: Table) -> None:
    """Aligned columns."""

    def text(value) -> str:
        if isinstance(value, tuple):
            return "{:.3f} ({:.3f} to {:.3f})".format(*value)
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    cells = [table["columns"], *(list(map(text, row)) for row in table["rows"])]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{name}")
    for row in cells:
        print("  " + " | ".join(f"{one:>{width}}" for one, width in zip(row, widths, strict=True)), flush=True)


def write(path: Path, result: dict) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(plain(result), indent=1).encode())


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("data/shipped"), help="where pairs.zarr lies")
    parser.add_argument("--weights", type=Path, help="a safetensors file; the shipped weights by default")
    parser.add_argument("--n", type=int, default=100, help="test pairs, as many of each recipe as there are")
    parser.add_argument(
        "--silenced", type=int, default=40, help=f"of them, cut to {CROP} px, whose channels are silenced"
    )
    parser.add_argument("--quick", action="store_true", help="a few images, to see that it runs; nothing is written")
    args = parser.parse_args()
    n, silenced = (8, 2) if args.quick else (args.n, args.silenced)
    denoiser = mdn.load_denoiser(args.weights)
    found = measure(denoiser, mdn.load_pairs(args.directory / "pairs.zarr", "test"), n, silenced)
    for name in ("maps", "weights", "set", "silencing"):
        show(name, found[name])
    print("\n" + "\n".join(f"{fact}: {value}" for fact, value in found["facts"].items()))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    facts = {
        "command": " ".join(["python benchmarks/attention.py", *sys.argv[1:]]),
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__} on {jax.default_backend()}",
        "sha256": denoiser.metadata.get("sha256"),
    }
    if not args.quick:
        write(RESULTS, facts | found)


if __name__ == "__main__":
    main()
