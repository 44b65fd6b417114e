"""The network beside its rivals: `python benchmarks/rivals.py --directory data/shipped`, or some of its parts by name.

    table          every method on test pairs of both recipes: greys, boundaries, grains, defects
    removal        each kind of defect alone, at three strengths, and the twins beside it
    controls       what must not happen: clean images changed, boundaries invented, a result that hangs on the exposure,
                   halos round pits; and what a mount beside the specimen does to the rest
    steel          the annotated steel, as it is and with defects added, at three magnifications
    magnification  the table's columns on the varied test pairs, by the size of their grains
    looks          the same by how their boundaries are etched, and by the contrast of their grains
    hard_pair      twins away from grain boundaries, which a line of these would find as well, by width and contrast;
                   scratches, and what is none; the grain size number as E112 counts, of what a user can segment
    targets        what was to be reached, one by one, from the parts above
    seconds        of each method for a megapixel; only when named, on a machine that does nothing else

Filters are tuned on validation pairs, for aligned and for raw PSNR, for each recipe apart; so are thresholds and the
filters held beside the network outside the main table. There *best filter* is harder: the one of the best mean on the
test pairs, column by column. All that is told is from test pairs. A value is [mean, low, high], its 95 % interval
by image. What the filters reach is kept beside the pairs, so that another network is scored without them again. Each
part goes into benchmarks/results/rivals.json when it is done. `--quick` tries the parts on a few pairs, and leaves the
results as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path

import jax
import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.exposure import match_histograms
from skimage.measure import block_reduce
from skimage.measure import label as connected

import mdn
from mdn.baselines import Method, as_method, load_dncnn, named_filter, one_defect, score_removal, tuned_parameters
from mdn.dataset import Pairs
from mdn.defects import KINDS, DefectStrengths, add_defects
from mdn.files import write_whole
from mdn.grains import traced_grains
from mdn.metrics import (
    align,
    aligned_psnr,
    boundary_band,
    boundary_recall,
    boundary_score,
    choose_threshold,
    detect_boundaries,
    grain_grey_error,
    image_scores,
    label_boundaries,
    masked_psnr,
    matched_psnr,
    mean_interval,
    psnr,
    restored_share,
    variation_of_information,
)
from mdn.micrographs import load_source, luminance, traced_boundaries
from mdn.synthesis import LOOKS, PairConfig, mounted

RESULTS = Path(__file__).parent / "results" / "rivals.json"
NETWORK, NOISY, TRUTH, CHANCE = "network", "noisy", "truth", "chance"
GRAINS = "grain boundaries alone"
SHORT = ("network, short", "no attention, short", "DnCNN, short")  # trained briefly by benchmarks.ablation
LONG = ("network, from nothing", "DnCNN, as long")  # trained for equal time by benchmarks.dncnn
EVERYWHERE = {"speckle", "illumination", "noise", "jpeg", "mottle"}  # kinds that have no inside and no outside
SCRATCHES = ("deep_scratch", "faint_scratch")
MADE_FOR_DEFECTS = ("closing", "inpainting")  # of detected spots and scratches
SLOW = {"BM3D": 2}  # filters of seconds an image: tuned on every other validation pair
LOWER = {
    "VoI split",
    "VoI merge",
    "G error",
    "G error, twins left out",
    "G error to clean",
    "grain grey median",
    "grain grey p95",
}  # the less, the better
STRENGTHS = (0.25, 0.5, 1.0)
STEEL_STRENGTHS = (0.3, 0.6, 1.0)
PATCH = 32  # px a side of a black patch in a corner, which moves the grey range of what the network sees
RIM = (2, 4)  # px off a pit or a pore
FACTORS = (1, 2, 4)  # of the steel's magnification, downwards
DIAMETERS = (0, 15, 25, 50, math.inf)  # px, edges of the bins
FAINT = 0.15  # of the range of grain greys
ENOUGH = 50  # grains in a field, of E112
APART = 6  # px between a twin and a line that is none: a line found may be off the one by 3, and off the other by 3
WIDTHS, CONTRASTS = (0, 6, 12, math.inf), (0, 0.05, 0.15, 1)  # of twins, in px and in greys of the truth: edges of bins
RESCALED = ((0.5, 0.25), (0.3, 0.05), (0.8, 0.1))  # gain and offset that clip nothing
SEAM = 16  # px beside the grains that do not count as blank
TO_ITSELF = {f"{column} to untouched": column for column in ("raw PSNR", "aligned PSNR", "matched PSNR", "SSIM")}
ADDED = (*TO_ITSELF, "PSNR outside", "PSNR on the band")  # nothing to be held to where nothing was added
Table = dict[str, list | dict]
Rows = list[list]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many pairs of each recipe tune and test, truths for defects and controls, draws of defects on the steel."""

    tuned: int = 40
    tested: int | None = None
    truths: int = 8
    draws: int = 6


QUICK = Sizes(tuned=2, tested=4, truths=2, draws=1)


def chosen(pairs: Pairs, index: np.ndarray) -> Pairs:
    """Some of the pairs."""
    arrays = {f.name: getattr(pairs, f.name) for f in fields(pairs)}
    return replace(pairs, **{n: a[index] for n, a in arrays.items() if isinstance(a, np.ndarray)})


def bits(kinds: Iterable[str]) -> int:
    """Those kinds in the bit mask of a pair's defects."""
    return sum(1 << KINDS.index(kind) for kind in kinds)


def score(output: np.ndarray, pairs: Pairs, i: int, boundaries, threshold: float, clean_g: float) -> dict[str, float]:
    """All columns of the table for one output on the i-th pair, whose true boundaries are given.

    clean_g: grain size number of the clean image when it is segmented. It is not the true one: segmentation misses
    twins and thin grains on a perfect image too, and only what is added to that is the denoiser's.
    """
    noisy, clean = pairs.noisy[i], pairs.clean[i].astype(float)
    aligned, matched = align(output, clean), match_histograms(output, noisy)
    local, scratches = (pairs.defects[i] & bits(kinds) > 0 for kinds in (set(KINDS) - EVERYWHERE, SCRATCHES))
    found, grains = detect_boundaries(output, threshold), mdn.segment_grains(output, threshold)
    regions = connected(pairs.regions[i], background=-1, connectivity=1)
    shape, greys = boundary_score(found, boundaries), grain_grey_error(matched, noisy, pairs.labels[i])
    split, merge = variation_of_information(grains, regions)
    lines = label_boundaries(pairs.labels[i], periodic=True)
    parents = connected(pairs.labels[i], background=-1, connectivity=1)
    g, joined = astm(grains), astm(without_twins(grains, lines, pairs.twin_boundaries[i]))
    error, added, e112 = abs(g - astm(regions)), abs(g - clean_g), abs(joined - astm(parents))
    return image_scores(output, noisy, clean) | {
        "PSNR inside defects": masked_psnr(aligned, clean, local),
        "PSNR outside": masked_psnr(aligned, clean, ~local),
        "PSNR on the band": masked_psnr(aligned, clean, boundary_band(boundaries)),
        "boundary F": shape.f,
        "precision": shape.precision,
        "recall": shape.recall,
        "grain recall": boundary_recall(found, lines),
        "twin recall": boundary_recall(found, pairs.twin_boundaries[i]),
        "VoI split": split,
        "VoI merge": merge,
        "G error": error,
        "G within 0.25": float(error <= 0.25),
        "G error, twins left out": e112,
        "G within 0.25, twins left out": float(e112 <= 0.25),
        "G error to clean": added,
        "G within 0.25 of clean": float(added <= 0.25),
        "grain grey median": greys.median,
        "grain grey p95": greys.p95,
        "defects restored": restored_share(aligned, clean, local),
        "scratches restored": restored_share(aligned, clean, scratches),
        "scratches restored, raw": restored_share(output, clean, scratches),
    }


def astm(labels: np.ndarray) -> float:
    """Grain size number at 1 um a pixel, twins counted as grains on both sides; NaN without any boundary."""
    try:
        return mdn.grain_size(labels.astype(np.int32), um_per_px=1.0).astm_g
    except ValueError:
        return math.nan


def without_twins(grains: np.ndarray, lines: np.ndarray, twins: np.ndarray, tolerance: float = 3) -> np.ndarray:
    """Segmented grains as E112 counts them: joined where the truth has nothing but a twin boundary between them.

    grains: labels [H, W]; lines, twins: true boundaries of grains and of twins, bool. Two neighbours are joined if
    more than half of the border between them lies within `tolerance` px of a twin boundary and of no grain's. What is
    invented within a grain stays.
    """
    far = {name: ndimage.distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf)
           for name, mask in (("line", lines), ("twin", twins))}  # fmt: skip
    on_twin = (far["twin"] <= tolerance) & (far["line"] > tolerance)
    n, borders, on_twins = int(grains.max()) + 1, 0, 0
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        apart = grains[one] != grains[other]
        pair = np.sort([grains[one][apart], grains[other][apart]], axis=0)
        borders += coo_array((np.ones(pair.shape[1]), pair), (n, n)).tocsr()
        on_twins += coo_array((on_twin[one][apart].astype(float), pair), (n, n)).tocsr()
    return connected_components(on_twins > 0.5 * borders, directed=False)[1][grains].astype(np.int32)


class Kept:
    """Answers that cost minutes and do not hang on the network, kept for the pairs and the code that gave them.

    A question names what this file does to answer it; the modules that it calls are told apart here.
    """

    def __init__(self, path: Path, *pairs: Pairs):
        code = [Path(module.__file__) for module in (mdn.baselines, mdn.grains, mdn.metrics)]
        digest = hashlib.sha256(b"".join(a.tobytes() for p in pairs for a in (p.noisy, p.clean, p.labels)))
        digest.update(b"".join(file.read_bytes() for file in code))
        made_from = digest.hexdigest()
        held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.path, self.answers = path, held if held.get("made_from") == made_from else {"made_from": made_from}

    def __call__(self, question: str, work: Callable):
        """The answer, in JSON's types, worked out where it is not there yet."""
        if question not in self.answers:
            self.answers[question] = json.loads(json.dumps(work()))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(self.answers).encode())
        return self.answers[question]


class Recipe:
    """The pairs of one recipe, and the methods as tuned on its validation pairs.

    Attributes:
        ends: filters whose parameter is the first or the last that was tried.
    """

    def __init__(self, recipe: str, validation: Pairs, test: Pairs, models: dict[str, Method], kept: Kept):
        self.name, self.validation, self.test, self.kept = recipe, validation, test, kept
        filters, self.ends = {}, []
        for name, baseline in mdn.baselines.BASELINES.items():
            for value in kept(f"tuned {name}", lambda b=name: self.tuned(b)):
                value = tuple(value) if isinstance(value, list) else value
                told, method = named_filter(name, value)
                filters[told] = method
                self.ends += [told] if baseline.at_end(value) else []
        self.methods = {NOISY: lambda image: image, **filters, **models}
        self.filters, self.models = tuple(filters), tuple(models)
        self._thresholds, self._scores, self._outputs = {}, {}, {}

    def tuned(self, baseline: str) -> list:
        """The parameters of a filter that suit the validation pairs, for aligned and for raw PSNR."""
        noisy, clean = (images[:: SLOW.get(baseline, 1)] for images in (self.validation.noisy, self.validation.clean))
        return list(
            dict.fromkeys(tuned_parameters(mdn.baselines.BASELINES[baseline], noisy, clean, (aligned_psnr, psnr)))
        )

    def keep(self, name: str, question: str, work: Callable):
        """Kept for what is no network."""
        return work() if name in self.models else self.kept(f"{question} {name}", work)

    def outputs(self, name: str, pairs: Pairs) -> list[np.ndarray]:
        """What a method makes of pairs; the truth stands for a perfect one. Of the validation pairs it is kept."""
        if pairs is self.validation and name in self._outputs:
            return self._outputs[name]
        outputs = list(pairs.clean if name == TRUTH else map(self.methods[name], pairs.noisy))
        if pairs is self.validation:
            self._outputs[name] = outputs
        return outputs

    @cached_property
    def best(self) -> str:
        """The filter of the highest mean aligned PSNR on the validation pairs."""
        pairs = self.validation

        def mean(name):
            return float(np.mean(list(map(aligned_psnr, self.outputs(name, pairs), pairs.clean))))

        return max(self.filters, key=lambda name: self.keep(name, "validation", lambda: mean(name)))

    @cached_property
    def clean_g(self) -> list[float]:
        """Grain size number of each clean test image, segmented with its own threshold."""
        return [astm(mdn.segment_grains(image, self.threshold(TRUTH))) for image in self.test.clean]

    def threshold(self, name: str) -> float:
        """A method's threshold of the boundary detector."""
        if name not in self._thresholds:
            pairs = self.validation
            self._thresholds[name] = self.keep(
                name, "threshold", lambda: float(choose_threshold(self.outputs(name, pairs), pairs.boundaries))
            )
        return self._thresholds[name]

    def scores(self, name: str) -> dict[str, np.ndarray]:
        """A method's columns on the test pairs, each [N]."""
        if name not in self._scores:
            code = "".join(map(inspect.getsource, (score, without_twins, astm, bits)))
            code = hashlib.sha256(code.encode()).hexdigest()[:8]
            columns = self.keep(name, f"scores {code}", lambda: self.scored(name))
            columns = {column: np.array(values, float) for column, values in columns.items()}
            self._scores[name] = {c: np.where(np.isinf(v), np.nan, v) for c, v in columns.items()}  # the truth's PSNR
        return self._scores[name]

    def scored(self, name: str) -> dict[str, list[float]]:
        """A method's columns as they are measured."""
        threshold, boundaries = self.threshold(name), self.test.boundaries
        outputs = enumerate(self.outputs(name, self.test))
        rows = [score(x, self.test, i, boundaries[i], threshold, self.clean_g[i]) for i, x in outputs]
        return {column: [float(row[column]) for row in rows] for column in rows[0]}

    def compared(self) -> dict[str, Method]:
        """Untouched, the network and, between, filters: that of the best aligned PSNR, and those made for defects.

        What is held side by side beyond the main table. Of a filter made for defects, it is the one tuned for raw PSNR,
        which does more: for aligned PSNR many a filter is tuned to leave the image nearly as it is.
        """
        kinds = ([name for name in self.filters if name.startswith(kind)] for kind in MADE_FOR_DEFECTS)
        made = [names[-1] for names in kinds if names]
        return {name: self.methods[name] for name in (NOISY, self.best, *made, NETWORK)}


@dataclass(frozen=True)
class Bench:
    """All that the parts need: `denoiser` is the network, `recipes` those there are pairs of.

    drawn: what each varied test pair drew.
    """

    denoiser: mdn.Denoiser
    recipes: dict[str, Recipe]
    sizes: Sizes
    key: jax.Array
    drawn: list[PairConfig]

    @property
    def general(self) -> Recipe:
        """The recipe whose filters and thresholds serve where there are no pairs: the varied one."""
        return list(self.recipes.values())[-1]

    @cached_property
    def lines(self) -> np.ndarray:
        """Grain boundaries of the truths, without twins: what corrosion follows."""
        return np.stack([label_boundaries(labels, periodic=True) for labels in self.truths.labels])

    @cached_property
    def truths(self) -> Pairs:
        """Some test pairs, spread over all of them."""
        halves = [recipe.test for recipe in self.recipes.values()]
        count = math.ceil(self.sizes.truths / len(halves))
        halves = [chosen(p, np.linspace(0, len(p) - 1, min(count, len(p))).astype(int)) for p in halves]
        names = [f.name for f in fields(Pairs) if f.name != "sources"]
        return replace(halves[0], **{n: np.concatenate([getattr(p, n) for p in halves]) for n in names})


def prepare(directory: Path, sizes: Sizes, weights: dict[str, Path], seed: int = 0) -> Bench:
    """Load pairs and models, and tune. weights: further networks by name, DnCNN's too."""
    denoiser = mdn.load_denoiser(weights.get(NETWORK))
    models = {name: model(path) for name, path in weights.items() if name != NETWORK} | {NETWORK: denoiser.restore}
    validation, test = (mdn.load_pairs(directory / "pairs.zarr", split) for split in ("validation", "test"))
    config, recipes, drawn = mdn.dataset.made_with(directory / "pairs.zarr"), {}, []
    for name, varied in (("paper", False), ("varied", True)):
        tuned, tested = (np.flatnonzero(pairs.varied == varied) for pairs in (validation, test))
        if len(tuned) and len(tested):
            spread = np.unique(np.linspace(0, len(tuned) - 1, sizes.tuned).astype(int))  # neighbours share their grains
            pairs = chosen(validation, tuned[spread]), chosen(test, tested[: sizes.tested])
            kept = Kept(directory / "rivals" / f"{name}-{len(pairs[0])}-{len(pairs[1])}.json", *pairs)
            recipes[name] = Recipe(name, *pairs, models, kept)
            if varied:
                drawn = [mdn.dataset.drawn_recipe(config, "test", int(i)) for i in tested[: sizes.tested]]
    return Bench(denoiser, recipes, sizes, jax.random.key(seed), drawn)


def model(path: Path) -> Method:
    """A network or a DnCNN as a method, by what its file holds."""
    try:
        return as_method(load_dncnn(path))
    except ValueError:
        return mdn.load_denoiser(path).restore


# ---- the parts


def table(bench: Bench) -> Table:
    """Every method on the test pairs; then the network less its rivals, pair by pair."""
    rows, differences, best = [], [], {}
    for recipe in bench.recipes.values():
        scores = {name: recipe.scores(name) for name in (*recipe.methods, TRUTH)}
        columns = list(scores[NOISY])
        n = len(recipe.test)
        rows += [[recipe.name, n, name, *(mean_interval(s[c]) for c in columns)] for name, s in scores.items()]
        rows.append([recipe.name, n, CHANCE, *chance_row(recipe.test.boundaries, columns, recipe.test.twin_boundaries)])
        hardest = {c: hardest_filter(recipe, c) for c in columns}
        best[recipe.name] = hardest
        rivals = {NOISY: dict.fromkeys(columns, NOISY), "best filter": hardest}
        told = {NETWORK, *SHORT, *LONG}  # short and long trainings are held to their like alone
        rivals |= {name: dict.fromkeys(columns, name) for name in recipe.models if name not in told}
        pairs = [(NETWORK, name, rival) for name, rival in rivals.items()]
        for first, *others in (SHORT, LONG):
            if first in scores:
                pairs += [(first, name, dict.fromkeys(columns, name)) for name in others if name in scores]
        for ours, name, rival in pairs:
            gains = [mean_interval(scores[ours][c] - scores[rival[c]][c]) for c in columns]
            differences.append([recipe.name, n, f"{ours} - {name}", *gains])
    thresholds = {r.name: {name: r.threshold(name) for name in (*r.methods, TRUTH)} for r in bench.recipes.values()}
    return {
        "columns": ["pairs", "n", "method", *columns],
        "rows": rows,
        "differences": differences,
        "best filter": best,
        "thresholds": thresholds,
        "at an end of the grid": {recipe.name: recipe.ends for recipe in bench.recipes.values()},
    }


def chance(boundaries: np.ndarray, twins: np.ndarray | None = None) -> dict[str, float]:
    """What lines as dense as the true ones reach that know nothing of these: the same, shifted by half the field.

    boundaries, twins: bool [H, W]. Where grains are few pixels wide, a line lies within the tolerance wherever it is.
    """
    shifted = np.roll(boundaries, [n // 2 for n in boundaries.shape], (0, 1))
    shape = boundary_score(shifted, boundaries)
    found = {"boundary F": shape.f, "precision": shape.precision, "recall": shape.recall}
    return found if twins is None else found | {"twin recall": boundary_recall(shifted, twins)}


def chance_row(boundaries: np.ndarray, columns: Iterable[str], twins: np.ndarray | None = None) -> list:
    """Mean and interval of each column by chance; gaps where it is not defined."""
    each = [chance(*one) for one in zip(boundaries, *([] if twins is None else [twins]), strict=True)]
    return [mean_interval([found.get(c, math.nan) for found in each]) for c in columns]


def hardest_filter(recipe: Recipe, column: str) -> str:
    """The filter of the best mean on the test pairs: harder to beat than the one that validation would choose."""
    means = {name: mean_interval(recipe.scores(name)[column]).mean for name in recipe.filters}
    return (min if column in LOWER else max)(means, key=means.get)


def removal(bench: Bench) -> Table:
    """Each defect alone: share of its visible pixels within 0.1 of the truth (aligned), and of its squared error that
    is gone, which a defect too faint to leave that band does not flatter; recall of the twins beside it.
    """
    recipe, pairs = bench.general, bench.truths
    methods = recipe.compared()
    thresholds = {name: recipe.threshold(name) for name in methods}
    arguments = methods, thresholds, pairs.clean, bench.lines, pairs.twin_boundaries
    found = score_removal(*arguments, key=bench.key, strengths=STRENGTHS)
    found += score_removal(*arguments, key=bench.key, kinds=SCRATCHES[:1], strengths=(0.0,))
    groups = {}
    for row in found:
        groups.setdefault((row["kind"], row["strength"], row["method"]), []).append(row)
    columns = "restored", "twin recall", "error removed"
    rows = [[*group, *(mean_interval([row[c] for row in each]) for c in columns)] for group, each in groups.items()]
    return {"columns": ["kind", "strength", "method", *columns], "rows": rows, "n": len(pairs)}


def controls(bench: Bench) -> Table:
    """Clean in, PSNR to itself; boundaries found on a blank field; the matched output of a rescaled input; a specimen
    beside its mount; halos round pits; greys elsewhere than a black patch.
    """
    rows = []
    for recipe in bench.recipes.values():
        truths = recipe.test.clean
        outputs = [bench.denoiser.restore(x) for x in truths]
        raw = [psnr(y, x) for y, x in zip(outputs, truths, strict=True)]
        matched = [matched_psnr(y, x, x) for y, x in zip(outputs, truths, strict=True)]
        aligned = [aligned_psnr(y, x) for y, x in zip(outputs, truths, strict=True)]
        for name, values in {"raw": raw, "matched": matched, "aligned": aligned}.items():
            rows.append([f"clean in ({recipe.name}), {name} PSNR", NETWORK, mean_interval(values)])
    for (field, kind, method), share in blank_fields(bench).items():
        rows.append([f"boundary on a blank field {field}, {kind}", method, mean_interval(share)])
    for gain, offset in RESCALED:
        apart = [np.abs(bench.denoiser(gain * x + offset) - gain * bench.denoiser(x) - offset) / gain
                 for x in bench.truths.noisy]  # fmt: skip
        name = f"input x {gain:g} + {offset:g}"
        rows.append([f"{name}, mean deviation", NETWORK, mean_interval([each.mean() for each in apart])])
        rows.append([f"{name}, largest deviation", NETWORK, [float(np.max(apart)), None, None]])
    for recipe in bench.recipes.values():
        for name, values in beside_a_mount(recipe.test, bench).items():
            told = f"at a specimen's edge ({recipe.name}), aligned PSNR of the specimen"
            rows.append([told, name, mean_interval(values)])
    for (kind, method), shares in rims(bench).items():
        rows.append(
            [f"round {kind} at {STRENGTHS[-1]:g}, {RIM[0]} to {RIM[1]} px off, restored", method, mean_interval(shares)]
        )
    far = np.s_[2 * PATCH :, 2 * PATCH :]  # where the patch acts by the grey range and the channel weights alone
    moved = {"as it comes": bench.denoiser.restore, "aligned": bench.denoiser.restore, "matched": bench.denoiser}
    for name, method in moved.items():
        apart = []
        for x in bench.truths.noisy:
            patched = x.copy()
            patched[:PATCH, :PATCH] = 0
            before, after = method(x)[far], method(patched)[far]
            after = align(after, before) if name == "aligned" else after
            apart.append(float(np.abs(after - before).mean()))
        told = f"a black patch of {PATCH} px in a corner, mean deviation elsewhere, {name}"
        rows.append([told, NETWORK, mean_interval(apart)])
    return {"columns": ["control", "method", "value"], "rows": rows}


def beside_a_mount(pairs: Pairs, bench: Bench) -> dict[str, list[float]]:
    """Aligned PSNR of the part of each pair that is no mount: untouched, denoised, and denoised without the mount."""
    found: dict[str, list[float]] = {}
    for i, (noisy, clean) in enumerate(zip(pairs.noisy, pairs.clean, strict=True)):
        edge, truth = mounted(noisy, clean, key=jax.random.fold_in(bench.key, i))
        specimen = truth == clean
        outputs = {
            NOISY: edge,
            NETWORK: bench.denoiser.restore(edge),
            f"{NETWORK}, no mount": bench.denoiser.restore(noisy),
        }
        for name, output in outputs.items():
            found.setdefault(name, []).append(aligned_psnr(output[specimen][None], clean[specimen][None]))
    return found


def rims(bench: Bench) -> dict[tuple[str, str], list[float]]:
    """Share of the pixels round pits and pores within 0.1 of the truth, which holds nothing there: a halo is what
    a removal may leave.
    """
    recipe, found = bench.general, {}
    for kind, i in product(("etch_pit", "pore"), range(len(bench.truths))):
        clean, key = bench.truths.clean[i], jax.random.fold_in(jax.random.fold_in(bench.key, KINDS.index(kind)), i)
        image, visible = one_defect(clean, bench.lines[i], kind, STRENGTHS[-1], key=key)
        if visible.any():
            far = ndimage.distance_transform_edt(~visible)
            rim, truth = (RIM[0] <= far) & (far <= RIM[1]), clean.astype(float)
            for name, method in recipe.compared().items():
                share = restored_share(align(method(image), truth), truth, rim)
                found.setdefault((kind.replace("_", " "), name), []).append(share)
    return found


def blank_fields(bench: Bench, grey: float = 0.6, strength: float = 0.5) -> dict[tuple, list[float]]:
    """Share of pixels where a boundary is found on a grey field with defects: alone, and beside grains.

    The detector stretches what it sees, so that alone even a trace of mottle is found; beside grains their
    contrast sets the scale, as on a micrograph.
    """
    recipe, found = bench.general, {}
    kinds = [kind for kind in KINDS if kind != "thick_boundary"]
    sets = {"no defect": {}, "all kinds": dict.fromkeys(kinds, strength)} | {k: {k: strength} for k in kinds}
    for i, clean in enumerate(bench.truths.clean):
        half = clean.shape[1] // 2
        beside = np.where(np.arange(clean.shape[1]) < half, clean, np.float32(grey))
        inside = np.s_[SEAM:-SEAM, half + SEAM : -SEAM]
        for field, image, part in (("alone", np.full_like(clean, grey), np.s_[:]), ("beside grains", beside, inside)):
            for kind, strengths in sets.items():
                strengths = DefectStrengths(**dict.fromkeys(KINDS, 0.0) | strengths)
                nowhere = np.zeros(clean.shape, bool)
                defective, _ = add_defects(image, nowhere, strengths=strengths, key=jax.random.fold_in(bench.key, i))
                for name, method in recipe.compared().items():
                    edges = detect_boundaries(method(defective), recipe.threshold(name))
                    found.setdefault((field, kind, name), []).append(float(edges[part].mean()))
    return found


def steel(bench: Bench) -> Table:
    """The traced steel, untouched and denoised, with defects added, at each magnification; a value a draw of defects.

    All kinds but corrosion, which follows the traced boundaries and would help to find them. Greys are held to the
    micrograph without what was added: no one knows it without its own defects. G and grain greys take the grains
    between the traced lines for the truth.
    """
    rows, recipe = [], bench.general
    try:
        image, traced = luminance(load_source("steel_nist").pixels), traced_boundaries("steel_nist")
    except FileNotFoundError as error:
        print(f"*** LEFT OUT: the annotated steel, {error} ***", file=sys.stderr)
        return {"columns": [], "rows": []}
    for factor in FACTORS:
        small, edges = block_reduce(image, factor, np.mean), block_reduce(traced, factor, np.max)
        grains = traced_grains(edges)
        for strength in (0.0, *STEEL_STRENGTHS):
            each = {name: [] for name in recipe.compared()}
            for draw in range(bench.sizes.draws if strength else 1):
                dirty, kinds = with_defects(small, edges, strength, jax.random.fold_in(bench.key, draw))
                for name, method in recipe.compared().items():
                    found = on_steel(method(dirty), dirty, small, kinds, edges, grains, recipe.threshold(name))
                    each[name].append(found | ({} if strength else dict.fromkeys(ADDED, math.nan)))
            rows += [
                [factor, strength, name, len(s), *(mean_interval([x[c] for x in s]) for c in s[0])]
                for name, s in each.items()
            ]
        columns = next(iter(each.values()))[0]
        rows.append([factor, 0.0, CHANCE, 1, *chance_row(edges[None], columns)])
    columns = ["smaller by", "strength", "method", "draws", *columns, "lost F regained"]
    f = columns.index("boundary F")
    clean = {(row[0], row[2]): row[f].mean for row in rows if not row[1]}
    before = {tuple(row[:2]): row[f].mean for row in rows if row[2] == NOISY}
    for row in rows:  # nothing to regain where nothing was lost
        lost = clean[row[0], NOISY] - before[tuple(row[:2])]
        row.append((row[f].mean - before[tuple(row[:2])]) / lost if row[1] and lost > 0.01 else None)
    return {"columns": columns, "rows": rows}


def with_defects(image: np.ndarray, edges: np.ndarray, strength: float, key: jax.Array):
    """The image [H, W] with all kinds of defects but corrosion at a strength, and their bits, as of `add_defects`."""
    strengths = DefectStrengths(**dict.fromkeys(KINDS, strength) | {"thick_boundary": 0.0})
    return add_defects(image, edges, strengths=strengths, key=key)


def on_steel(output, dirty, untouched, kinds, edges, grains, threshold: float) -> dict[str, float]:
    """Columns of the steel for one output on a micrograph with defects (bits `kinds`), and what it was before these."""
    segmented = mdn.segment_grains(output, threshold)
    shape = boundary_score(detect_boundaries(output, threshold), edges)
    split, merge = variation_of_information(segmented, grains)
    greys = grain_grey_error(match_histograms(output, dirty), dirty, grains)
    scores, aligned, truth = image_scores(output, dirty, untouched), align(output, untouched), untouched.astype(float)
    local, scratches = (kinds & bits(some) > 0 for some in (set(KINDS) - EVERYWHERE, SCRATCHES))
    return {
        "precision": shape.precision,
        "recall": shape.recall,
        "boundary F": shape.f,
        "VoI split": split,
        "VoI merge": merge,
        "G error": abs(astm(segmented) - astm(grains)),
        "grain grey median": greys.median,
        "grain grey p95": greys.p95,
        **{name: scores[column] for name, column in TO_ITSELF.items()},
        "PSNR inside defects": masked_psnr(aligned, truth, local),
        "PSNR outside": masked_psnr(aligned, truth, ~local),
        "PSNR on the band": masked_psnr(aligned, truth, boundary_band(edges)),
        "defects restored": restored_share(aligned, truth, local),
        "scratches restored": restored_share(aligned, truth, scratches),
    }


def grouped(recipe: Recipe, inside: np.ndarray) -> Rows:
    """Number, method and the columns of the table, on some of a recipe's test pairs."""
    columns, n = list(recipe.scores(NOISY)), int(inside.sum())
    rows = [[n, name, *(mean_interval(recipe.scores(name)[c][inside]) for c in columns)] for name in recipe.compared()]
    by_chance = chance_row(recipe.test.boundaries[inside], columns, recipe.test.twin_boundaries[inside])
    return [*rows, [n, CHANCE, *by_chance]]


def magnification(bench: Bench) -> Table:
    """The columns of the table on the varied test pairs, by the mean diameter of their grains."""
    recipe, rows = bench.general, []
    counts = np.array([len(np.unique(labels)) for labels in recipe.test.labels])
    diameter = np.sqrt(4 / math.pi * recipe.test.labels[0].size / counts)
    for low, high in pairwise(DIAMETERS):
        inside = (low <= diameter) & (diameter < high)
        if inside.any():
            rows += [[low, None if math.isinf(high) else high, *row] for row in grouped(recipe, inside)]
    return {"columns": ["from (px)", "below (px)", "n", "method", *recipe.scores(NOISY)], "rows": rows}


def looks(bench: Bench) -> Table:
    """The columns of the table on the varied test pairs, by what their recipes drew."""
    recipe, drawn = bench.general, bench.drawn
    if not drawn:
        return {"columns": [], "rows": []}
    faint = np.array([one.grey[1] - one.grey[0] < FAINT for one in drawn])
    groups = {f"boundaries: {look}": np.array([one.look == look for one in drawn]) for look in LOOKS}
    groups |= {f"grain contrast below {FAINT}": faint, f"grain contrast from {FAINT}": ~faint}
    rows = [[name, *row] for name, inside in groups.items() if inside.any() for row in grouped(recipe, inside)]
    return {"columns": ["recipes with", "n", "method", *recipe.scores(NOISY)], "rows": rows}


def hard_pair(bench: Bench) -> Table:
    """Twins and scratches, both straight lines: what is found of the one, and restored of the other, and beside it.

    Twins apart are more than `APART` px from a grain boundary, told by their width and contrast too; *grain boundaries
    alone* are what the true ones of the grains, and no twin, would reach of all. Scratches, and all other pixels of the
    same pairs, with what else is in them. The grain size number is that of the segmented grains, against that of the
    truth without twins.
    """
    rows, columns = [], []
    for recipe in bench.recipes.values():
        test, long = recipe.test, [name for name in LONG if name in recipe.models]
        lines = [label_boundaries(labels, periodic=True) for labels in test.labels]
        twins = [twin_pixels(test, i, lines[i]) for i in range(len(test))]
        scores = {
            name: [hard(x, recipe.threshold(name), test, i, twins[i]) for i, x in enumerate(recipe.outputs(name, test))]
            for name in (NOISY, recipe.best, *long, NETWORK, TRUTH)
        }
        scores[GRAINS] = [twins_found(*each) for each in zip(lines, twins, strict=True)]
        columns = list(scores[NOISY][0])
        for name, each in scores.items():
            told = (mean_interval([one.get(column, math.nan) for one in each]) for column in columns)
            rows.append([recipe.name, len(test), name, *told])
    return {"columns": ["pairs", "n", "method", *columns], "rows": rows, "apart": APART, "enough": ENOUGH}


def twin_pixels(pairs: Pairs, i: int, lines: np.ndarray) -> dict[str, np.ndarray]:
    """Masks [H, W] of the i-th pair's twin boundaries: all, those apart from its grain boundaries `lines`, and of
    these the ones of a width and of a contrast. The width is twice the largest distance to the rim within the thinner
    of the two sides, the contrast the difference of their median greys in the truth.
    """
    twins, regions = pairs.twin_boundaries[i], connected(pairs.regions[i], background=-1, connectivity=1)
    names = np.arange(regions.max() + 1)
    rim = ndimage.distance_transform_edt(~label_boundaries(regions, periodic=True))
    width, grey = 2 * ndimage.maximum(rim, regions, names), ndimage.median(pairs.clean[i], regions, names)
    thinner = ndimage.minimum_filter(width[regions], 3)
    contrast = ndimage.maximum_filter(grey[regions], 3) - ndimage.minimum_filter(grey[regions], 3)
    apart = twins & (ndimage.distance_transform_edt(~lines) > APART if lines.any() else True)
    masks = {"twins found": twins, "apart": apart}
    for values, bins, unit in ((thinner, WIDTHS, " px wide"), (contrast, CONTRASTS, " of contrast")):
        for low, high in pairwise(bins):
            told = f"from {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"
            masks[f"apart, {told}{unit}"] = apart & (low <= values) & (values < high)
    return masks


def twins_found(found: np.ndarray, twins: dict[str, np.ndarray]) -> dict[str, float]:
    """Recall of each of the masks of `twin_pixels` by the lines found, bool [H, W]; NaN for an empty one."""
    return {name: boundary_recall(found, mask) for name, mask in twins.items()}


def hard(output: np.ndarray, threshold: float, pairs: Pairs, i: int, twins: dict[str, np.ndarray]) -> dict[str, float]:
    """The columns of `hard_pair` for one output [H, W] on the i-th pair; NaN where it holds no scratch or no twin.

    threshold: of the boundary detector. twins: as of `twin_pixels`.
    """
    clean, scratches = pairs.clean[i].astype(float), pairs.defects[i] & bits(SCRATCHES) > 0
    columns = twins_found(detect_boundaries(output, threshold), twins)
    aligned = align(output, clean)
    for where, mask in (("on", scratches), ("off", ~scratches)):
        for what, image in ((", raw", output), ("", aligned)):
            share = restored_share(image, clean, mask) if scratches.any() else math.nan
            columns[f"{where} scratches{what}"] = share
    parents = connected(pairs.labels[i], background=-1, connectivity=1)
    off = astm(mdn.segment_grains(output, threshold)) - astm(parents)
    columns |= {"G too high": off, "G within 0.25 of E112's": float(abs(off) <= 0.25)}
    return columns | {f"fewer than {ENOUGH} grains": float(parents.max() < ENOUGH)}


def seconds(bench: Bench) -> Table:
    """Seconds a megapixel of every method of the table, on four noisy test pairs side by side: the faster of two calls
    after the first, which compiles.
    """
    rows: dict[str, float] = {}
    for recipe in bench.recipes.values():
        image = np.block([list(row) for row in np.resize(recipe.test.noisy, (2, 2, *recipe.test.noisy.shape[1:]))])
        for name, method in recipe.methods.items():
            if name in rows:
                continue
            taken = []
            for _ in range(3):
                start = time.perf_counter()
                method(image)
                taken.append(time.perf_counter() - start)
            rows[name] = min(taken[1:]) / image.size * 1e6
    return {"columns": ["method", "seconds a megapixel"], "rows": [list(row) for row in rows.items()]}


PARTS: dict[str, Callable[[Bench], Table]] = {
    p.__name__: p for p in (table, removal, controls, steel, magnification, looks, hard_pair)
}


# ---- the targets, from what the parts found

SET, BESIDE = "set", "beside"  # a target set before the training, or what helps to read one


def targets(parts: dict[str, Table]) -> Table:
    """Each target, met or missed, and beside it what else there is to tell; those without their part are left out."""
    rows: list[list] = []

    def reach(name: str, at_least: float, value, *, strictly: bool = False, beside: bool = False) -> None:
        """value: a number, or a mean and its interval, of which the mean is held to the target."""
        found = value[0] if isinstance(value, list | tuple) else value
        found = math.nan if found is None else float(found)
        met = found > at_least if strictly else found >= at_least
        wanted = f"{'above' if strictly else 'at least'} {at_least:g}"
        told = list(value) if isinstance(value, list | tuple) else found
        rows.append([name, wanted, told, bool(met), BESIDE if beside else SET])

    def at_most(name: str, most: float, value: float) -> None:
        rows.append([name, f"at most {most:.2g}", value, value <= most, SET])

    found = parts.get("table", {"columns": [], "rows": [], "differences": []})
    column = {name: place for place, name in enumerate(found["columns"])}
    rates = {"paper": (7, 6, 3, 0.90), "varied": (4, 3.5, 2, 0.80)}
    means = {(row[0], row[2]): row for row in found["rows"]}
    gains = {(row[0], row[2]): row for row in found["differences"]}
    for recipe in dict.fromkeys(row[0] for row in found["rows"]):
        noisy, best = gains[recipe, "network - noisy"], gains[recipe, "network - best filter"]
        over_noisy, over_best, aligned, f = rates[recipe]
        reach(f"{recipe}: raw PSNR over noisy (dB)", over_noisy, noisy[column["raw PSNR"]])
        reach(f"{recipe}: raw PSNR over the best filter (dB)", over_best, best[column["raw PSNR"]])
        reach(f"{recipe}: aligned PSNR over the best filter (dB)", aligned, best[column["aligned PSNR"]])
        long, short = (gains.get((recipe, f"{names[0]} - {names[-1]}")) for names in (LONG, SHORT))
        for over, told in ((long, "both from nothing for equal time"), (short, "both briefly trained")):
            for name in ("raw PSNR", "aligned PSNR", "boundary F") if over else ():
                wanted = f"{recipe}: {name} over DnCNN, {told} (low end)"
                reach(wanted, 0, over[column[name]][1], strictly=True, beside=bool(long) and over is short)
        for name in ("boundary F", "precision"):
            reach(f"{recipe}: {name} over noisy (low end)", 0, noisy[column[name]][1], strictly=True)
        reach(f"{recipe}: recall over noisy", 0, noisy[column["recall"]])
        network = means[recipe, NETWORK]
        reach(f"{recipe}: boundary F", f, network[column["boundary F"]])
        if recipe == "paper":
            told = "paper: share of pairs with G within 0.25 of the "
            reach(f"{told}truth", 0.9, network[column["G within 0.25"]])
            joined = network[column["G within 0.25, twins left out"]]
            reach(f"{told}truth, its twins left out by the truth", 0.9, joined, beside=True)
            within = network[column["G within 0.25 of clean"]]
            reach(f"{told}clean image's, segmented alike", 0.9, within, beside=True)
        reach(f"{recipe}: scratch pixels restored, raw", 0.8, network[column["scratches restored, raw"]])
        aligned = network[column["scratches restored"]]
        reach(f"{recipe}: scratch pixels restored, aligned", 0.8, aligned, beside=True)
        reach(f"{recipe}: twin boundary length found", 0.85, network[column["twin recall"]])
    hard_found = parts.get("hard_pair", {"columns": [], "rows": []})
    of = {name: place for place, name in enumerate(hard_found["columns"])}
    hard_rows = {(row[0], row[2]): row for row in hard_found["rows"]}
    for recipe in dict.fromkeys(row[0] for row in hard_found["rows"]):
        network, truth = hard_rows[recipe, NETWORK], hard_rows[recipe, TRUTH]
        told = f"{recipe}: twin boundary length found, more than {hard_found['apart']} px from grain boundaries"
        reach(told, 0.85, network[of["apart"]], beside=True)
        twins, findable = (row[of["apart"]][0] for row in (network, truth))
        if twins and findable:
            reach(f"{told}, of what is found on the truth", 0.85, twins / findable, beside=True)
        reach(f"{recipe}: pixels off scratches within 0.1 of the truth, raw", 0.8, network[of["off scratches, raw"]],
              beside=True)  # fmt: skip
        if recipe == "paper":
            told = "paper: share of pairs with G within 0.25 of E112's, which counts no twins"
            reach(told, 0.9, network[of["G within 0.25 of E112's"]], beside=True)
            on_truth = truth[of["G within 0.25 of E112's"]]
            reach(f"{told}, on the clean image", 0.9, on_truth, beside=True)
    steel_found = parts.get("steel", {"columns": [], "rows": []})
    of = {name: place for place, name in enumerate(steel_found["columns"])}
    steel_rows = {tuple(row[:3]): row for row in steel_found["rows"]}
    for (factor, strength, name), row in steel_rows.items():
        if name == NETWORK:
            steel_name = "steel" if factor == 1 else f"steel, {factor} times smaller"
            if not strength:
                untouched = steel_rows[factor, strength, NOISY][of["boundary F"]][0]
                over = row[of["boundary F"]][0] - untouched
                reach(f"{steel_name}: boundary F over untouched", 0, over, beside=factor > 1)
            elif row[of["lost F regained"]] is not None:
                regained = row[of["lost F regained"]]
                told = f"{steel_name}, defects at {strength:g}: share of the lost F regained"
                reach(told, 0.5, regained, beside=factor > 1)
    singles: dict[str, float] = {}
    for name, method, value in parts.get("controls", {"rows": []})["rows"]:
        if name.startswith("clean in") and "aligned" not in name:
            reach(f"{name} (dB)", 32, value, beside="matched" in name)
        if method == NETWORK and name.startswith("boundary on a blank field"):
            if name.endswith((" defect", "all kinds")):
                at_most(f"{name}: share of pixels", 0, value[0])
            else:
                singles[name.partition("field ")[2]] = value[0]
        if "largest deviation" in name:
            at_most(f"{name} (grey)", 1 / 255, value[0])
    if singles:
        worst = max(singles, key=singles.__getitem__)
        at_most(f"boundary on a blank field, the worst single kind ({worst}): share of pixels", 0, singles[worst])
    return {"columns": ["target", "wanted", "found", "met", "whose"], "rows": rows}


# ---- told and kept


def cell(value) -> str:
    """A number in three digits, the mean of an interval, a gap where nothing was measured."""
    value = value[0] if isinstance(value, tuple | list) else value
    if isinstance(value, bool):
        return "met" if value else "MISSED"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def show(name: str, found: Table) -> None:
    """Aligned columns, by number where there are many; of a table its differences too."""
    head = found["columns"]
    if len(head) > 9:
        print("\n" + ", ".join(f"({i}) {text}" for i, text in enumerate(head[3:], 1)))
        head = [*head[:3], *(f"({i})" for i in range(1, len(head) - 2))]
    cells = [head, *(list(map(cell, row)) for row in found["rows"] + found.get("differences", []))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{name}")
    for row in cells:
        print("  " + " | ".join(f"{text:>{width}}" for text, width in zip(row, widths, strict=True)), flush=True)


def plain(value):
    """JSON knows no NaN: null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save(path: Path, name: str, found: Table, command: str, sha256: str | None = None) -> None:
    """Put a part into the file, whole or not at all, and leave the others as they are."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__} on {jax.default_backend()}"
    facts = {"command": command, "commit": commit, "machine": machine} | ({"sha256": sha256} if sha256 else {})
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(held | {name: facts | plain(found)}, indent=1).encode())


def main() -> None:
    """Run the parts asked for, print and keep what they find."""
    known = (*PARTS, "targets", "seconds")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(known)}; all but seconds by default")
    parser.add_argument("--directory", type=Path, default=Path("data/shipped"), help="where pairs.zarr is")
    parser.add_argument(
        "--weights", action="append", default=[], metavar="NAME=PATH",
        help="a further network or DnCNN as a row; network=PATH replaces the shipped one",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="on a few pairs, to see that it runs; nothing is written")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(known):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if any("=" not in text for text in args.weights):
        parser.error(f"--weights {args.weights}: NAME=PATH is accepted")
    weights = {name: Path(path) for name, path in (text.split("=", 1) for text in args.weights)}
    trained = {
        name: args.directory / "ablation" / f"{name.replace(', ', '_').replace(' ', '_')}.safetensors" for name in SHORT
    } | {name: args.directory / "long" / f"{name.split(',')[0]}.safetensors" for name in LONG}
    weights = {name: path for name, path in trained.items() if path.exists()} | weights
    wanted = args.parts or [name for name in known if name != "seconds"]
    bench = prepare(args.directory, QUICK if args.quick else Sizes(), weights) if wanted != ["targets"] else None
    held = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() and not args.quick else {}
    for name in (n for n in known if n in wanted):
        found = targets(held) if name == "targets" else {**PARTS, "seconds": seconds}[name](bench)
        held[name] = found
        show(name, found)
        if not args.quick:
            whose = bench.denoiser.metadata.get("sha256") if bench else held.get("table", {}).get("sha256")
            save(RESULTS, name, found, " ".join(["python benchmarks/rivals.py", *sys.argv[1:]]), whose)


if __name__ == "__main__":
    main()
