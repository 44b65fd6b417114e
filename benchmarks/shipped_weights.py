"""Train the weights in mdn/weights/: `python benchmarks/shipped_weights.py`, again to go on after an interruption.

Makes the pairs in data/shipped/pairs.zarr (real micrographs, found as `mdn.micrographs` finds them), trains in
data/shipped/run, and writes mdn/weights/denoiser.safetensors after each evaluation that was the best so far.
What gains nothing on the weights in the box is not shipped, and told. `--further 1500` goes on from these for as many
steps, at half the rate, with more clean crops, specimens that end within the field, and fields without grains. `--card`
writes the model card from what the weights' file says of itself and what the studies left in benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
from flax import nnx

import mdn
from mdn import training
from mdn.dataset import as_config
from mdn.defects import KINDS
from mdn.files import write_whole
from mdn.inference import SHIPPED
from mdn.metrics import (
    aligned_psnr,
    boundary_score,
    choose_threshold,
    detect_boundaries,
    matched_psnr,
    mean_interval,
    psnr,
)
from mdn.network import stretch, stretch_limits
from mdn.synthesis import LOOKS, STAND_INS, PairConfig, blank_field, mounted
from mdn.training import predict
from mdn.uncertainty import training_statistics

PAIRS = mdn.DatasetConfig(n_pairs=3000, n_test=120, n_runs=1240, varied=0.4, seed=2028)
NETWORK, RECIPE = training.RECIPES["best"]
FURTHER = {"learning_rate": RECIPE.learning_rate / 2, "clean_share": 0.15}
BLANK, MOUNTED = 0.05, 0.15  # of the pairs: fields without grains, and pairs again at an edge, beside them
SEED = 2028
CHOSEN_ON = 15  # every 15th validation pair chooses the best checkpoint
SETTLED_ON = 5  # every 5th settles, at the end, whether that or the last is shipped, or neither
CLEAN, EDGE = "clean in (dB)", "at a specimen's edge (dB)"
WITHIN = {"PSNR (dB)": 0.1, "boundary F": 0.005, CLEAN: 0.5}  # of the best, for more at a specimen's edge
HALF = "0.5 of the way"  # between what a further training began with and its end
FAINT = 0.15  # of the range of grain greys
DRAWN = 2000  # recipes, to say how many of them are hard
RESULTS = Path(__file__).parent / "results" / "shipped_weights.json"
RIVALS = RESULTS.with_name("rivals.json")
UNCERTAINTY = RESULTS.with_name("uncertainty.json")
ABLATION = RESULTS.with_name("ablation.json")
DNCNN = RESULTS.with_name("dncnn.json")
INFERENCE = RESULTS.with_name("inference.json")
STEPS = (  # of network and recipe, and the rows of the ablation that switch them
    ("attention", "no attention"),
    ("gate", "gate as printed (LeakyReLU)"),
    ("scale", "full resolution, as wide for the same work"),
    ("width", "twice as wide"),
    ("blocks", "half as deep"),
    ("dropout", "no dropout"),
    ("dropout_until", "dropout to the end"),
    ("schedule", "Adam at 1e-4, constant"),
    ("learning_rate", "half the rate"),
    ("symmetries", "no symmetries"),
    ("clean_share", "no clean crops"),
    ("clean_share", "more clean crops"),
    ("edges", "edges in the loss"),
    ("boundaries", "boundaries weigh more in the loss"),
    ("average", "averaged weights"),
    ("grey_jitter", "grey jitter"),
)


def export(
    model: nnx.Module,
    history: mdn.History,
    sittings: list,
    recipe: mdn.TrainingConfig,
    statistics: dict | None = None,
    at: int | None = None,
    shipped: dict | None = None,
) -> None:
    """Write the weights with what a reader of them needs to know.

    sittings: what the trainings before this one say of themselves. recipe: this one's. at: the weights' entry of the
    history, or the best. shipped: of the finished training, how they were settled on.
    """
    best = history.best if at is None else at
    metadata = {
        "version": mdn.__version__,
        "trained_on": json.dumps({**asdict(PAIRS), "micrographs": "real"}),
        "recipe": json.dumps({**asdict(recipe), "seed": SEED + len(sittings)}),
        "training": json.dumps(
            {
                "step": history.step[best],
                "hours": round(history.seconds[-1] / 3600, 2),
                "validation_psnr_db": round(history.validation_psnr[best], 2),
                **(shipped or {}),
                "earlier": sittings,
            }
        ),
    }
    metadata |= {"training_statistics": json.dumps(statistics)} if statistics else {}
    mdn.save_weights(SHIPPED, model, metadata=metadata)


def last_weights(model: mdn.DenoisingNetwork, directory: Path, config: mdn.TrainingConfig) -> mdn.DenoisingNetwork:
    """The network as the last step of a finished run left it."""
    model = nnx.clone(model)
    _, params, statistics, _ = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    state = params, statistics, config.optimiser().init(params), (params, statistics)
    nnx.update(model, *training._restore(directory.resolve(), state, state[3])[0][3])
    return model


def half_way(start: mdn.DenoisingNetwork, end: mdn.DenoisingNetwork) -> mdn.DenoisingNetwork:
    """The mean of two networks, batch-norm statistics included, of which one was trained from the other.

    Source: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022.
    """
    mean, states = nnx.clone(end), [nnx.state(each, (nnx.Param, nnx.BatchStat)) for each in (start, end)]
    nnx.update(mean, jax.tree.map(lambda one, other: (one + other) / 2, *states))
    return mean


def at_edges(pairs: mdn.dataset.Pairs, chosen: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy and clean images of some pairs, at the edge of a specimen each: two float32 [N, H, W]."""
    keys = jax.random.split(jax.random.key(seed), len(chosen))
    edges = [mounted(pairs.noisy[i], pairs.clean[i], key=key) for i, key in zip(chosen, keys, strict=True)]
    return tuple(map(np.stack, zip(*edges, strict=True)))


def with_edges_and_blanks(pairs: mdn.dataset.Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Noisy and clean images of the pairs; behind them a share of `MOUNTED` again at an edge, and of `BLANK` without
    grains, whose truth is their grey on the scale that the network sees.
    """
    blanks, mounts = (round(share * len(pairs)) for share in (BLANK, MOUNTED))
    keys = jax.random.split(jax.random.key(SEED), blanks)
    blank = [blank_field(pairs.noisy.shape[1:], key=key) for key in keys]
    blank = [(stretch(noisy), stretch(grey, stretch_limits(noisy))) for noisy, grey in blank]
    blank = map(np.stack, zip(*blank, strict=True))
    edges = at_edges(pairs, np.linspace(0, len(pairs) - 1, mounts).astype(int), SEED)
    return tuple(map(np.concatenate, zip((pairs.noisy, pairs.clean), edges, blank, strict=True)))


def on_validation(network: nnx.Module, validation: mdn.dataset.Pairs) -> dict[str, float]:
    """Means over the pairs that settle what is shipped: PSNR, boundary F, with a threshold for each recipe, the matched
    PSNR of a truth to itself, and the aligned one at a specimen's edge, of what is no mount.
    """
    chosen, denoiser = np.arange(0, len(validation), SETTLED_ON), mdn.Denoiser(network)
    restored = np.stack([denoiser.restore(validation.noisy[i]) for i in chosen])
    itself = [matched_psnr(denoiser.restore(x), x, x) for x in validation.clean[chosen]]
    truth, varied, found = validation.boundaries[chosen], validation.varied[chosen], np.zeros(len(chosen))
    for kind in np.unique(varied):
        threshold = choose_threshold(restored[varied == kind], truth[varied == kind])
        for i in np.flatnonzero(varied == kind):
            found[i] = boundary_score(detect_boundaries(restored[i], threshold), truth[i]).f
    greys = np.array([psnr(*images) for images in zip(restored, validation.clean[chosen], strict=True)])
    noisy, edges = at_edges(validation, chosen, SEED + 1)
    inside = edges == validation.clean[chosen]
    edge = [
        aligned_psnr(denoiser.restore(x)[mask][None], y[mask][None])
        for x, y, mask in zip(noisy, edges, inside, strict=True)
    ]
    means = {"PSNR (dB)": greys, "boundary F": found, CLEAN: itself, EDGE: edge}
    return {what: float(np.mean(values)) for what, values in means.items()}


def settle(scores: dict[str, dict[str, float]]) -> str:
    """Of those within `WITHIN` of the highest PSNR, then boundary F, then clean in, the best at a specimen's edge."""
    for what, within in WITHIN.items():
        highest = max(score[what] for score in scores.values())
        scores = {name: score for name, score in scores.items() if score[what] >= highest - within}
    return max(scores, key=lambda name: scores[name][EDGE])


def hard_kinds() -> dict[str, float]:
    """Shares of the varied pairs' recipes, in per cent: what is hard about them."""
    drawn = [PairConfig.draw(jax.random.fold_in(jax.random.key(SEED), n)) for n in range(DRAWN)]
    shares = {f"boundaries: {look}": [c.look == look for c in drawn] for look in LOOKS}
    shares |= {f"defect: {kind.replace('_', ' ')}": [getattr(c.defects, kind) > 0 for c in drawn] for kind in KINDS}
    shares |= {
        "boundaries missing in places": [c.missing > 0 and c.look != "step" for c in drawn],
        f"grain contrast below {FAINT}": [c.grey[1] - c.grey[0] < FAINT for c in drawn],
        "twins": [c.twin_fraction > 0 for c in drawn],
        "blurred": [c.blur > 0 for c in drawn],
        "full magnitude swap": [c.magnitude == 1 for c in drawn],
        "partial magnitude swap": [0 < c.magnitude < 1 for c in drawn],
        "degraded in space alone": [c.magnitude == 0 for c in drawn],
    }
    return {name: 100 * float(np.mean(chosen)) for name, chosen in shares.items()}


SHOWN = ("raw PSNR", "aligned PSNR", "matched PSNR", "SSIM", "boundary F", "precision", "recall", "twin recall")
BESIDE = {
    "PSNR inside defects": 2, "PSNR outside": 2, "PSNR on the band": 2, "VoI split": 2, "VoI merge": 2, "G error": 2,
    "grain grey median": 3, "grain grey p95": 3,
}  # fmt: skip
NOISY, OURS = "noisy", "network"
MAP = "map"  # of the uncertainty's variants, that of `uncertainty_map`
PARTS = (  # of the pairs, and the rows of the ablation that leave them out
    "no FFT blend",
    "no histogram matching",
    "no artificial defects",
    "no twins",
    "full swaps alone",
    "no partial swaps",
    "none in space alone",
    "no looks of etching",
    "edges and fields without grains beside the pairs",
)
LITTLE = 0.5  # of a defect's squared error
FULL, FROM_E112 = "full resolution, as wide for the same work", "G within 0.25 of E112's"
WIDE, FULL_WORK = "twice as wide", "full resolution, for the work of twice as wide"
EQUAL_WORK = ("aligned PSNR", "boundary F", "twin recall", "clean in")
MINUTES = "processor minutes"  # of a training of the ablation
RIM = "px off"  # how a control of `benchmarks.rivals` tells the surroundings of a defect
ABSENT = {"columns": [], "rows": []}
Rows = list[list]


def markdown(columns: list[str], rows: Rows, digits: int = 2) -> list[str]:
    """A table; of an interval [mean, low, high] the mean and half its width."""

    def cell(value) -> str:
        if isinstance(value, list):
            mean, low, high = value
            if mean is None:
                return "-"
            return f"{mean:.{digits}f}" + (f" ± {(high - low) / 2:.{digits}f}" if low is not None else "")
        return f"{value:.3g}" if isinstance(value, float) else "-" if value is None else str(value)

    lines = [columns, ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def read_study(path: Path) -> dict:
    """What a study has found so far; nothing where it has not been run."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def borrowed_references(pairs: mdn.dataset.Pairs) -> dict[str, tuple[int, int]]:
    """By recipe, how many pairs have a stand-in for a reference rather than a real region, and of how many."""
    stand_in = np.isin(np.array(pairs.sources)[pairs.source], STAND_INS)
    recipes = {"paper's": ~pairs.varied, "varied": pairs.varied}
    return {name: (int(stand_in[mask].sum()), int(mask.sum())) for name, mask in recipes.items()}


def side_by_side(rows: Rows, key: int, place: int) -> tuple[list[str], dict[tuple, dict]]:
    """The methods, and their values in column `place` by the first `key` columns; a method stands in column `key`."""
    found: dict[tuple, dict] = {}
    for row in rows:
        found.setdefault(tuple(row[:key]), {})[row[key]] = row[place]
    return list(dict.fromkeys(row[key] for row in rows)), found


def other(study: dict) -> str:
    """That a study is of other weights than those in the box, where it is."""
    same = study.get("sha256") == mdn.load_denoiser().metadata.get("sha256")
    return "" if same else ", **of other weights than these**"


def elsewhere(inference: dict) -> str:
    """Seconds a megapixel of the network in the sitting that set it beside PyTorch's."""
    rows = [row for row in inference.get("speed", ABSENT)["rows"] if row[1] == OURS]
    told = ", ".join(f"{row[-1]:.2f} ({row[0]} px a side)" for row in rows)
    source = f"`{inference['speed']['command']}`, commit {inference['speed']['commit']}" if rows else ""
    return f" In another sitting the network took {told} ({source}); what slowed this one is not known." * bool(rows)


def untimed(rivals: dict) -> str:
    """Which methods of the table have no seconds, where there are any."""
    methods = {row[2] for row in rivals.get("table", ABSENT)["rows"]} - {"truth", "chance"}
    missing = methods - {row[0] for row in rivals["seconds"]["rows"]}
    return f", **without {', '.join(sorted(missing))}**" * bool(missing)


def told(rivals: dict, name: str, lines: list[str]) -> list[str]:
    """Lines from one part of the study, with where they come from; that it is missing, where it is."""
    if not rivals.get(name, ABSENT)["rows"]:
        return [f"Not measured here: `python benchmarks/rivals.py {name}`.", ""]
    part = rivals[name]
    whose = untimed(rivals) if name == "seconds" else other(part)  # seconds do not hang on the weights
    source = f"(`{part['command']}`, commit {part['commit']}{whose})" if "command" in part else ""
    return [*lines, *(["", source] if source else []), ""]


def worse(values: dict, ours: str = OURS) -> bool:
    """Whether both were measured and the network's mean is below untouched's."""
    means = [value[0] if isinstance(value, list) else value for value in (values.get(ours), values.get(NOISY))]
    return None not in means and means[0] < means[1]


def little(removed: dict) -> bool:
    """Whether less than `LITTLE` of the error is gone after the network, or whether that might be none."""
    mean, low, _ = removed[OURS]
    return mean is not None and (mean < LITTLE or (low is not None and low <= 0))


def failures(rivals: dict) -> list[str]:
    """Where the network leaves an image worse than it was, part by part, each told even if there is none."""
    rows = rivals.get("removal", ABSENT)["rows"]
    restored, twins, gone = (side_by_side(rows, 2, place)[1] for place in (3, 4, 5))
    harmed = [k for k, v in restored.items() if k[1] and (worse(v) or (gone[k][OURS][0] or 0) < 0)]
    lost = [[*k, restored[k][NOISY], restored[k][OURS], gone[k][OURS]] for k in harmed]
    tried = sum(1 for _, strength in restored if strength)
    defects = [
        "Defects of which less is within 0.1 of the truth after the network than untouched, or whose squared error is "
        f"larger, by the mean over {rivals.get('removal', {}).get('n', 'some')} truths: {len(lost)} of {tried} kinds "
        "and strengths.",
        *(["", *markdown(["kind", "strength", "untouched", "network", "error removed"], lost)] if lost else []),
    ]
    hard = [[*k, restored[k][OURS], v[OURS]] for k, v in gone.items() if k[1] and k not in harmed and little(v)]
    defects += [
        "",
        f"Of which the network, else, takes less than {LITTLE:g} of the squared error away, or may take none (the "
        f"interval holds 0): {len(hard)} of {tried}.",
        *(["", *markdown(["kind", "strength", "within 0.1", "error removed"], hard)] if hard else []),
    ]
    plain = next((v for (_, strength), v in twins.items() if not strength), {})
    kept, found = (plain.get(name, [None]) for name in (NOISY, OURS))
    if None not in (*kept, *found):
        defects += [
            "",
            f"Twins on images with **no defect**: {found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f}) of their boundary "
            f"length is found after the network, {kept[0]:.2f} ({kept[1]:.2f} to {kept[2]:.2f}) untouched"
            + (": the network takes twin boundaries away where there was nothing to remove." * worse(plain) or "."),
        ]
    steel = steel_column(rivals, "boundary F")[1]
    below = [[f, s, v[NOISY], v[OURS]] for (f, s), v in steel.items() if worse(v)]
    steels = [
        "The annotated steel with a boundary F below the untouched one's: "
        f"{len(below)} of {len(steel)} magnifications and strengths of added defects.",
        *(["", *markdown(["smaller by", "defects at", "F untouched", "F network"], below)] if below else []),
    ]
    shares: dict[str, dict] = {}
    for name, method, value in rivals.get("controls", ABSENT)["rows"]:
        if "blank field" in name:
            shares.setdefault(name.partition("blank field ")[2], {})[method] = [v and 1000 * v for v in value]
    invented = [
        [name, v[NOISY], v[OURS]] for name, v in shares.items() if NOISY in v and OURS in v and v[OURS][0] > v[NOISY][0]
    ]
    blank = [
        "Boundaries invented on a blank field, in thousandths of its pixels, where the network shows more of them "
        f"than untouched: {len(invented)} of {len(shares)} fields.",
        *(["", *markdown(["blank field", "untouched", "network"], invented)] if invented else []),
    ]
    patched = [[name, value] for name, _, value in rivals.get("controls", ABSENT)["rows"] if "black patch" in name]
    halos, by = side_by_side([row for row in rivals.get("controls", ABSENT)["rows"] if RIM in row[0]], 1, 2)
    if patched:
        blank += [
            "",
            "What moves the grey range of an image moves the greys of the result, everywhere in it:",
            "",
            *markdown(["input with", "grey"], patched, 3),
        ]
    if by:
        blank += [
            "",
            "Halos: share of the pixels round a defect, so many px off it, that are within 0.1 of the truth.",
            "",
            *markdown(["", *halos], [[*name, *map(values.get, halos)] for name, values in by.items()]),
        ]
    sections = {"removal": defects, "steel": steels, "controls": blank}
    return [line for name, lines in sections.items() for line in told(rivals, name, lines)]


def at_the_edge(rivals: dict) -> list[str]:
    """A specimen that ends within the field, beside its mount, and the same without it."""
    rows = [row for row in rivals.get("controls", ABSENT)["rows"] if "specimen's edge" in row[0]]
    methods, found = side_by_side(rows, 1, 2)
    return markdown(["", *methods], [[*name, *map(values.get, methods)] for name, values in found.items()])


def steel_column(rivals: dict, column: str) -> tuple[list[str], dict[tuple, dict]]:
    """The methods on the steel, and a column of theirs by magnification and strength."""
    steel = rivals.get("steel", ABSENT)
    return side_by_side(steel["rows"], 2, steel["columns"].index(column)) if steel["rows"] else ([], {})


def removed(rows: Rows) -> list[str]:
    """Shares restored and error removed by each method, and the twins found beside it untouched and by the network."""
    methods, restored = side_by_side(rows, 2, 3)
    twins, gone = (side_by_side(rows, 2, place)[1] for place in (4, 5))
    ends, rivals = [name for name in (NOISY, OURS) if name in methods], [name for name in methods if name != NOISY]
    heads = (*methods, *(f"error removed, {name}" for name in rivals), *(f"twins, {name}" for name in ends))
    return markdown(
        ["kind", "strength", *heads],
        [
            [*k, *(v.get(m) for m in methods), *(gone[k].get(m) for m in rivals), *(twins[k].get(m) for m in ends)]
            for k, v in restored.items()
        ],
    )


STEEL = {
    "boundary F": 2, "precision": 2, "recall": 2, "VoI split": 2, "VoI merge": 2, "G error": 2, "grain grey median": 3,
    "raw PSNR to untouched": 1, "aligned PSNR to untouched": 1, "matched PSNR to untouched": 1, "SSIM to untouched": 2,
    "PSNR inside defects": 1, "PSNR outside": 1, "PSNR on the band": 1, "defects restored": 2, "scratches restored": 2,
}  # fmt: skip


def on_steel(rivals: dict) -> list[str]:
    """The steel: boundary F of every method, and what the network does to the other measures."""
    methods, f = steel_column(rivals, "boundary F")
    regained = steel_column(rivals, "lost F regained")[1]
    lines = markdown(
        ["smaller by", "defects at", *(f"F, {name}" for name in methods), "regained"],
        [[*k, *map(v.get, methods), regained[k].get(OURS)] for k, v in f.items()],
    )
    columns = [name for name in STEEL if name in rivals.get("steel", ABSENT)["columns"] and name != "boundary F"]
    if not columns:
        return lines
    lines += ["", "The other measures there, a row for each, untouched and by the network:", ""]
    head = ["smaller by, defects at", "", *columns]
    by = {column: steel_column(rivals, column)[1] for column in columns}
    rows = []
    for size, strength in f:
        for name in (NOISY, OURS):
            values = [by[column][size, strength].get(name) for column in columns]
            told = [markdown([], [[v]], STEEL[c])[2].strip("| ") for c, v in zip(columns, values, strict=True)]
            rows.append([f"{size}, {strength:g}", name, *told])
    return lines + markdown(head, rows)


def trained_beside(named: set[str], dncnn: dict) -> list[str]:
    """What the rows of other trained networks are, of those that there are."""
    lines = []
    if any(name.endswith(", short") for name in named):
        lines += ["Rows named *short* were trained briefly (how long: the ablation); compare them with each other."]
    if "DnCNN, as long" in named and "long" in dncnn:
        ours, rival = dncnn["long"]["rows"]
        width, depth = dncnn["long"]["size"]
        tried, pilot = len(dncnn["long"]["tried"]), dncnn["long"]["pilot"]
        lines += [
            f"*DnCNN, as long* was trained for {rival[2]:.2f} h, {width} wide and {depth} deep (of {tried} sizes and",
            f"rates by validation pairs after {pilot:g} s each), *network, from nothing* for {ours[2]:.2f} h:",
            "compare these two." + at_rates_end(dncnn["long"]),
        ]
    elif named:
        lines += ["No DnCNN was trained for as long as the shipped weights."]
    return lines


def at_rates_end(long: dict) -> str:
    """That another rate might have been better: one beyond those tried, or one tried since the training."""
    used, rates = long["recipe"]["learning_rate"], sorted({row[2] for row in long["tried"]})
    best = max(long["tried"], key=lambda row: row[-1])
    told = f" Its rate, {used:g}, is at an end of those tried ({rates[0]:g} to {rates[-1]:g})." * (
        used in (rates[0], rates[-1])
    )
    if best[:3] != [*long["size"], used]:
        told += f" Tried since, {best[0]} wide, {best[1]} deep at {best[2]:g} is the best after the same seconds."
    return told


def attention_pays(table: dict) -> list[str]:
    """What attention is worth in a short training, on test pairs."""
    columns, lines = table["columns"], []
    for row in table.get("differences", []):
        if row[2] == "network, short - no attention, short":
            gaps = ((name, row[columns.index(name)]) for name in ("aligned PSNR", "boundary F", "twin recall"))
            each = (f"{name} {mean:+.2f} ({low:+.2f} to {high:+.2f})" for name, (mean, low, high) in gaps)
            lines.append(f"With attention less without, both briefly trained, {row[0]} pairs: {', '.join(each)}.")
    return [*lines, "Trained for long, the network without attention was not." * bool(lines), ""]


def at_ends(table: dict) -> list[str]:
    """Which filters might do better beyond what was tried of their parameter."""
    if "at an end of the grid" not in table:
        return []
    ends = [f"{name} ({recipe})" for recipe, names in table["at an end of the grid"].items() for name in names]
    return [f"Tuned to the first or the last value tried: {', '.join(ends) or 'no filter'}.", ""]


def beside_psnr(table: dict) -> list[str]:
    """What PSNR over the image does not tell, a row for each measure, for untouched and network by recipe."""
    columns = table["columns"]
    rows = {f"{row[0]}, {row[2]}": row for row in table["rows"] if row[2] in (NOISY, OURS)}
    return markdown(["measure", *rows], []) + [
        line
        for name, digits in BESIDE.items()
        if name in columns
        for line in markdown([], [[name, *(row[columns.index(name)] for row in rows.values())]], digits)[2:]
    ]


def causes(rivals: dict, ablation: dict | None = None) -> list[str]:
    """Why targets are missed, as far as it is known, of those that are; the first words that a target's name holds."""
    table, missed = rivals.get("table", ABSENT), [row for row in rivals.get("targets", ABSENT)["rows"] if not row[3]]
    hard = rivals.get("hard_pair", ABSENT)
    of = {name: place for part in (table, hard) for place, name in enumerate(part["columns"])}
    if not missed:
        return []
    if not hard["rows"] or not {"grain recall", "G within 0.25, twins left out"} <= of.keys():
        return ["Why targets are missed is not measured here: `python benchmarks/rivals.py table hard_pair`.", ""]
    px, enough = hard["apart"], hard["enough"]

    def both(name: str, column: str, part: dict = hard, digits: int = 2) -> str:
        rows = {row[0]: row[of[column]][0] for row in part["rows"] if row[2] == name}
        told = (f"{'-' if value is None else f'{value:.{digits}f}'} ({recipe})" for recipe, value in rows.items())
        return " and ".join(told)

    bins = [name for name in hard["columns"] if name.startswith("apart, ")]
    by = "; ".join(f"{name[7:]} {both(OURS, name)} of {both('truth', name)}" for name in bins)
    steel = {name: steel_column(rivals, name)[1] for name in ("precision", "recall")}
    less = "; ".join(
        f"at {strength:g}"
        + f", {factor} times smaller" * (factor > 1)
        + ", "
        + " and ".join(
            f"{name} from {each[factor, strength][NOISY][0]:.2f} to {each[factor, strength][OURS][0]:.2f}"
            for name, each in steel.items()
        )
        for factor, strength in steel["recall"]
        if strength
    )
    known = {
        "steel": f"Steel with defects: F is what precision and recall make of it, untouched and after the network "
        f"{less}. Where recall falls, true boundaries went with the defects.",
        "briefly trained": "Over DnCNN, both briefly trained: early in a training the network finds fewer twins, at a "
        "higher precision.",
        "clean in": "Clean in: the network draws grooves and flattens grains as its training pairs have them; the "
        "share of clean crops in training lessens that and does not end it.",
        "raw PSNR": "Raw PSNR: where a whole magnitude is swapped and the histogram matched, the input does not tell "
        f"the truth's greys. With gain and offset fitted, {both(OURS, 'aligned PSNR', table)} dB instead of "
        f"{both(OURS, 'raw PSNR', table)}.",
        "G within": "Grain size: E112 leaves twin boundaries out, a user's segmentation cannot. Against E112's number "
        f"that of the clean image, segmented, is within 0.25 on a share of {both('truth', FROM_E112)} of the pairs, "
        f"the network's on {both(OURS, FROM_E112)}; where the truth tells which boundaries are twins', on "
        f"{both('truth', 'G within 0.25, twins left out', table)} and "
        f"{both(OURS, 'G within 0.25, twins left out', table)}. With twins as grains on both sides, which the detector "
        f"finds in part only, the clean image is within 0.25 on {both('truth', 'G within 0.25', table)}. A share of "
        f"{both(OURS, f'fewer than {enough} grains')} of the pairs holds fewer than the {enough} grains that E112 asks "
        "of a field.",
        "scratch": f"Scratches: of their pixels {both(OURS, 'on scratches, raw')} are within 0.1 of the truth, of the "
        f"pixels off them {both(OURS, 'off scratches, raw')}; after a fit of the greys "
        f"{both(OURS, 'on scratches')}, off them {both(OURS, 'off scratches')}. What is missing "
        "off scratches too is of greys, and of other defects; what more is missing on them is left of the scratch.",
        "blank field": "Blank field: little in training is without grains, and what fills the grey range of a blank "
        "field can be taken for boundaries.",
        "PSNR": "PSNR: not known.",
        "deviation": "Rescaled input: not known.",
        "": f"Boundary F, recall and twins: of grain boundaries the network keeps "
        f"{both(OURS, 'grain recall', table)}; of twin boundaries more than {px} px from these it "
        "finds "
        f"{both(OURS, 'apart')}, where {both('truth', 'apart')} are found on the truth and {both(NOISY, 'apart')} "
        f"untouched. (Of all twins {both(OURS, 'twins found')}, but grain boundaries alone would reach "
        f"{both('grain boundaries alone', 'twins found')}.) By width and by contrast, of what is found on the truth: "
        f"{by}. The least squared error of a line that may as well be noise is to leave it out."
        + coarse(both, mdn.load_denoiser().network.config)
        + halved(ablation or {}),
    }
    told = dict.fromkeys(known[next(words for words in known if words in row[0])] for row in missed)
    return ["Why targets are missed, as far as it is known:", "", *(f"- {cause}" for cause in told), ""]


def coarse(both: Callable[[str, str], str], config: mdn.NetworkConfig) -> str:
    """That the network sees a coarser grid than DnCNN does, where both were trained for equal time."""
    rival, ours = (both(name, "apart") for name in ("DnCNN, as long", "network, from nothing"))
    grid = f" The network works on a grid {config.scale} px wide, DnCNN does not: both from nothing for equal time, "
    return (grid + f"DnCNN finds {rival} of those apart, the network {ours}.") * bool(
        rival and ours and config.scale > 1
    )


def halved(ablation: dict) -> str:
    """What the ablation says of twins at full resolution."""
    row = next((row for row in ablation.get("rows", []) if row[0] == FULL), None)
    gaps = {kind: row[ablation["columns"].index(f"{kind}, twin gap")] for kind in ("paper", "varied")} if row else {}
    if not gaps or None in (value for gap in gaps.values() for value in gap):
        return ""
    told = " and ".join(f"{mean:+.2f} ({low:+.2f} to {high:+.2f}, {kind})" for kind, (mean, low, high) in gaps.items())
    seeds = f"{row[1]} seeds" if row[1] > 1 else "one seed"
    return f" Full resolution, and narrower, changes the share of twins found by {told} in the ablation ({seeds})."


def grouped(rivals: dict, part: str, first: int) -> list[str]:
    """Groups of the varied pairs: the first columns and those that the card shows."""
    found = rivals.get(part, ABSENT)
    places = [i for i, name in enumerate(found["columns"]) if i < first or name in SHOWN or name in BESIDE]
    head, *rows = ([row[i] for i in places] for row in (found["columns"], *found["rows"]))
    return markdown(head, rows)


def twins_lost(rivals: dict) -> str:
    """How many of the twins apart from grain boundaries the network leaves, and how many are found untouched."""
    hard = rivals.get("hard_pair", ABSENT)
    found = {(row[0], row[2]): row[hard["columns"].index("apart")][0] for row in hard["rows"]}
    told = [
        f"{100 * found[kind, OURS]:.0f} % on {kind} pairs ({100 * found[kind, NOISY]:.0f} % untouched)"
        for kind in dict.fromkeys(kind for kind, _ in found)
        if None not in (found.get((kind, OURS)), found.get((kind, NOISY)))
    ]
    apart = f" Of twins more than {hard.get('apart')} px from grain boundaries are found, by length, "
    return (apart + " and ".join(told) + ".") * bool(told)


def trust(uncertainty: dict) -> list[str]:
    """How well the uncertainty map ranks pixels and familiarity flags images, and what that means."""
    ranking, flagged = (uncertainty.get(name, ABSENT) for name in ("ranking", "familiarity"))
    rows = [[row[0], row[1], row[3], *row[4:7]] for row in ranking["rows"] if row[2] == "all"]
    areas = [row[3][0] for row in rows if row[2] == MAP]
    missing = ["Not measured here: `python benchmarks/uncertainty.py`.", ""]
    lines = missing if not areas and not flagged["rows"] else []
    if areas:
        best, worst = min(areas), max(areas)
        verdict = "no better than chance does" if worst >= 1 else "only weakly" if worst > 0.5 else "well"
        lines += [
            "Pixels of test pairs in the order of `mdn.uncertainty_map`, against their true error. AUSE is 0 for the "
            f"error's own order and 1 for chance: at {best:.2f} to {worst:.2f} the map ranks the pixels {verdict}. "
            "It says where to look twice; it is no error bar. Beside it, the standard deviation over the eight "
            "symmetries, over masks of dropout, and over both.",
            "",
            *markdown(["pairs", "n", "of", "AUSE", "Spearman", "error left without 10 % of the pixels"], rows),
            "",
        ]
    if flagged["rows"]:
        shares = ", ".join(
            f"{100 * share:.0f} % ({name.split(', ', 1)[1]})" for name, share in flagged["facts"].items()
        )
        unseen = [row[0] for row in flagged["rows"] if row[1] == "yes" and not row[4]]
        alarms = {row[0]: row[4] for row in flagged["rows"] if row[1] == "no" and row[4]}
        most = max(alarms, key=alarms.get, default="")
        lines += [
            "Images that `mdn.familiarity` flags, by whether they should be (new: first looked at once the measure was "
            f"chosen): {shares}."
            + f" Never flagged though it should be: {', '.join(unseen)}." * bool(unseen)
            + (f" Flagged most though it should not be: {most}, {100 * alarms[most]:.0f} %." if most else "")
            + " An image without a warning can still be unlike the training data.",
            "",
        ]
    if lines != missing and "command" in uncertainty:
        lines += [f"(`{uncertainty['command']}`, commit {uncertainty['commit']}{other(uncertainty)})", ""]
    return lines


def below_before(training: dict) -> str:
    """In what the weights that were shipped are below those they began with, on the pairs that settled it."""
    scores, name = training.get("validation", {}), training.get("settled", "")
    if not {"before", name} <= scores.keys():
        return ""
    now, then = scores[name], scores["before"]
    less, more = ([what for what in now if sign * (now[what] - then[what]) > 0] for sign in (-1, 1))
    told = f" Shipped are the weights {name}: above those before in {', '.join(more) or 'nothing'}"
    return f"{told}, below them in {', '.join(less) or 'nothing'}."


def passed(training: dict) -> str:
    """That its end was not shipped as it is, but a mean with what it began with."""
    settled = training.get("settled", "")
    return f", {settled} from what it began with" * ("of the way" in settled)


def beside_pairs(training: dict) -> str:
    """What a training saw that is no pair of the dataset."""
    told = [
        f"{training[what]} {text}"
        for what, text in (
            ("at edges", "of them again beside a dark mount, which is a grey in the truth as well"),
            ("without grains", "fields without grains, whose truth is their grey as the network sees it"),
        )
        if what in training
    ]
    return f"; beside the pairs {' and '.join(told)}" * bool(told)


def tried(trainings: list[dict]) -> list[str]:
    """What further trainings came to that are not shipped, since they gained too little on what is in the box."""
    lines = []
    for one in trainings:
        scores = "; ".join(
            f"{'in the box' if name == 'before' else name} {score['PSNR (dB)']:.2f} dB, F {score['boundary F']:.3f}"
            + (f", clean in {score[CLEAN]:.1f} dB" if CLEAN in score else "")
            + (f", edge {score[EDGE]:.1f} dB" if EDGE in score else "")
            for name, score in one["validation"].items()
        )
        lines.append(f"- `{one['command']}`, commit {one['commit']}, {one['steps']} steps, {one['hours']} h: {scores}.")
    return ["", "Trained as well and not shipped, by the rule of their commits:", "", *lines] * bool(lines)


def steps_kept(ablation: dict, network: mdn.NetworkConfig, recipe: mdn.TrainingConfig) -> list[str]:
    """What each step of the recipe is worth on its own, and whether it is taken."""
    rows, of, lines = {row[0]: row for row in ablation.get("rows", [])}, ablation.get("columns", []), []
    kinds, steel = ("aligned gap (dB)", "F gap", "twin gap", "clean in gap (dB)"), "steel with defects, F gap"
    gaps = [name for g in kinds for k in ("paper", "varied") if (name := f"{k}, {g}") in of]
    gaps += [steel] if steel in of else []

    def cells(variant: str, names: list[str]) -> list:
        return [rows[variant][of.index(name)] for name in names]

    as_the_row: dict[bool, list[str]] = {True: [], False: []}
    printed, unshown = training.RECIPES["paper"], []
    for step, variant in STEPS:
        if variant in rows:
            config, part, base = (
                (network, "network", "network") if hasattr(network, step) else (recipe, "training", "recipe")
            )
            value, row, first = (
                getattr(config, step),
                ablation["variants"][variant][part][step],
                ablation["setting"][base][step],
            )
            lines.append(
                [
                    f"`{step}`",
                    f"`{first}`",
                    f"`{row}`",
                    f"`{value}`",
                    variant,
                    *cells(variant, [*gaps, "seeds", MINUTES]),
                ]
            )
            where = [name for name, gap in zip(gaps, cells(variant, gaps), strict=True) if (gap[1] or 0) > 0]
            nearer = value == row if isinstance(row, str) else abs(value - row) < abs(value - first)
            seeds = ", one seed" * (cells(variant, ["seeds"]) == [1])
            taken = value != getattr(printed[0] if hasattr(network, step) else printed[1], step)
            pays = any(None not in gap and (gap[1] > 0 if nearer else gap[2] < 0) for gap in cells(variant, gaps))
            unshown += [f"`{step}` ({variant}{seeds})"] * (taken and not pays)
            as_the_row[nearer] += [f"{variant} ({'; '.join(where)}{seeds})"] * bool(where)
    parts = [[variant, *cells(variant, [*gaps, "seeds"])] for variant in PARTS if variant in rows]
    sown = [
        gap
        for name, row in list(rows.items())[1:]
        if row[of.index("seeds")] > 2
        for gap in cells(name, gaps)
        if None not in gap
    ]
    nothing = sum(low <= 0 <= high for _, low, high in sown)
    if not lines:
        return ["What each step of the recipe is worth is not measured here: `python -m benchmarks.ablation`.", ""]
    return [
        "Steps of the recipe one by one, early in the training of a smaller network (how: the ablation), on validation",
        "pairs, as gaps to the ablation's first row (*clean in*: a truth to itself; the steel, annotated, chose",
        "nothing). The rows have as many steps, not as much time, which stands beside them:",
        "",
        *markdown(["step", "first row", "this row", "last training", "variant", *gaps, "seeds", MINUTES], lines, 3),
        "",
        f"The last training is as the row, or nearer to it, which gains: {', '.join(as_the_row[True]) or 'none'}.",
        f"It is not, though the row gains: {', '.join(as_the_row[False]) or 'none'}.",
        f"Of {len(sown)} gaps over three seeds or more, {nothing} hold 0: what one seed shows can be its luck, and",
        "three are too few to show a small gap.",
        f"Steps beyond the paper's recipe of which a row shows no gain anywhere: {', '.join(unshown) or 'none'}.",
        *at_equal_work(ablation),
        "",
        "Parts of the pairs, left out or put in:",
        "",
        *markdown(["variant", *gaps, "seeds"], parts, 3),
        "",
    ]


def at_equal_work(ablation: dict) -> list[str]:
    """Half resolution against full at the work of the shipped network, pair by pair."""
    coarse, fine = (ablation.get("runs", {}).get(name, {}) for name in (WIDE, FULL_WORK))
    seeds = sorted(coarse.keys() & fine.keys())
    if not seeds:
        return []
    told = []
    for name in (f"{kind}, {what}" for kind in ("paper", "varied") for what in EQUAL_WORK):
        each = [np.subtract(*(np.array(runs[s]["scores"][name], float) for runs in (coarse, fine))) for s in seeds]
        mean, low, high = mean_interval(np.mean(each, axis=0))
        told.append(f"{name} {mean:+.2f} ({low:+.2f} to {high:+.2f})")
    return [
        "Half resolution less full, both at the work a pixel of the shipped network, as briefly trained: "
        f"{'; '.join(told)} ({len(seeds)} seed{'s' * (len(seeds) > 1)}).",
    ]


def kflop_a_pixel(network: mdn.DenoisingNetwork, side: int = 256) -> float:
    """Thousands of floating-point operations a pixel of one pass, as XLA counts them."""
    graph, state = nnx.split(nnx.view(network, deterministic=True, use_running_average=True))
    image = jax.ShapeDtypeStruct((1, side, side), np.float32)
    return training._apply.lower(graph, state, image).cost_analysis()["flops"] / side**2 / 1e3


def card(
    results: dict,
    rivals: dict,
    uncertainty: dict | None = None,
    borrowed: dict | None = None,
    ablation: dict | None = None,
) -> str:
    """The model card, every number from a run; borrowed: see `borrowed_references`."""
    history, registry, denoiser = results["history"], mdn.micrographs.sources(), mdn.load_denoiser()
    pairs, recipe = (
        as_config(kind, denoiser.metadata[name])
        for name, kind in (("trained_on", mdn.DatasetConfig), ("recipe", mdn.TrainingConfig))
    )
    counts, seed = pairs.counts(), denoiser.metadata["recipe"]["seed"]
    psnr = history["validation_psnr"]
    settled = results.get("shipped", {"at": int(np.argmax(psnr))})
    best, table, sittings = settled["at"], rivals.get("table", ABSENT), results.get("earlier", [])
    parameters, config = mdn.network.count_parameters(denoiser.network), denoiser.network.config
    earlier = sum(sitting["hours"] for sitting in sittings)
    used = [
        f"- `{n}`: {registry[n].material}. {registry[n].licence}, {registry[n].url}" for n in mdn.dataset.REFERENCES
    ]
    columns = [name for name in ("pairs", "n", "method", *SHOWN) if name in table["columns"]]
    places = [table["columns"].index(name) for name in columns]
    measured = markdown(columns, [[row[i] for i in places] for row in table["rows"] if row[2] != "truth"])
    named = {str(row[2]) for row in table["rows"]}
    targets = markdown(
        ["target", "wanted", "found", "", ""],
        [[*row[:3], "met" if row[3] else "**missed**", row[4]] for row in rivals.get("targets", ABSENT)["rows"]],
        3,
    )
    hard = markdown(["of the varied pairs", "%"], [[name, f"{share:.0f}"] for name, share in hard_kinds().items()])
    seconds = rivals.get("seconds", ABSENT)
    sizes = [f"{n} {split} ({v} varied)" for split, (n, v) in results["pairs"].items()]
    references = (
        "Test pairs whose reference is a procedural stand-in, not a region of a real micrograph: "
        + ", ".join(f"{n} of the {of} {name}" for name, (n, of) in borrowed.items())
        if borrowed
        else "Some of the varied pairs, of every split, have a procedural stand-in for a reference and not a region of "
        f"a real micrograph: a share of {pairs.stand_ins:g} is asked for (`DatasetConfig.stand_ins`)"
    ) + f". There are {len(STAND_INS)} stand-ins a split, of which crops are taken"
    return "\n".join(
        [
            "# Model card: denoiser.safetensors",
            "",
            f"The network of mdn {mdn.__version__} (Eqs. 1-10 of the paper), {parameters:,} parameters,",
            f"{kflop_a_pixel(denoiser.network):.0f} kFLOP a pixel, `{config}`.",
            "Written by `python benchmarks/shipped_weights.py --card`; every number below comes from a run. Studies",
            f'name these weights by `Denoiser.metadata["sha256"]`, {str(denoiser.metadata.get("sha256"))[:12]}.',
            "",
            "## For",
            "Optical micrographs of etched, polycrystalline, single-phase metals: lessening what polishing, etching,",
            "optics and camera add, while grain boundaries stay. How much of which defect goes is measured below; of",
            f"which little goes, under *Known failures*.{twins_lost(rivals)}",
            "Not for: measuring twins or what it removed (pores, pits, inclusions), two-phase structures, electron",
            "micrographs.",
            "`mdn.familiarity` says when an image is unlike the training data, `mdn.uncertainty_map` where to look",
            "twice; how far either can be relied on, and where the network does harm, is told below.",
            "",
            "## Known failures",
            "Means against means; ± is half the 95 % interval by image. Where those overlap, the images are too few to",
            "tell. The targets that were missed are at the end.",
            "",
            *failures(rivals),
            "## Trained on",
            f"Pairs of {pairs.shape[0]} x {pairs.shape[1]} px: {', '.join(sizes)}; {pairs.n_test} more to test; from",
            f"{pairs.n_runs} phase-field runs (`{pairs}`).",
            f"Every {CHOSEN_ON}th of the {counts['validation']} validation pairs chose the best checkpoint"
            + (
                f"; every {SETTLED_ON}th settled which are shipped, of those near the best ("
                + ", ".join(f"within {within:g} of the highest {what}" for what, within in WITHIN.items())
                + ") the best at a specimen's edge: "
                + ", ".join(
                    f"{name} (" + ", ".join(f"{what} {value:.3f}" for what, value in score.items()) + ")"
                    for name, score in settled["validation"].items()
                )
                if "validation" in settled
                else ""
            )
            + "."
            + below_before(settled),
            "Fourier magnitudes and histograms of procedural stand-ins and of:",
            "",
            *used,
            "",
            "Each is cut into disjoint regions for training, validation and test. The weights hold no image of them.",
            references + ".",
            "The truth of a pair: a grey for each grain and twin, a dark groove along boundaries, and nothing else"
            + "; at a specimen's edge the grey of the mount as well" * ("at edges" in settled)
            + ".",
            "",
            f"How hard the varied pairs are (shares of {DRAWN} recipes drawn by `PairConfig.draw`):",
            "",
            *hard,
            "",
            "## How",
            *[
                f"- `{as_config(mdn.TrainingConfig, one['recipe'])}`: {one['hours']} h, to step {one['step']} and "
                f"{one['validation_psnr_db']} dB on validation pairs as commit {one['commit']} makes them"
                + passed(one)
                + beside_pairs(one)
                + "."
                for one in sittings
            ],
            f"- `{recipe}`: {history['seconds'][-1] / 3600:.2f} h on pairs as commit {results['commit']} makes them, "
            f"seed {seed} ({results['machine']}){beside_pairs(settled)}." + f" {earlier:.2f} h before." * bool(earlier),
            "",
            f"Shipped are those of step {history['step'][best]}{passed(settled)}:"
            f" {settled.get('validation_psnr_db', psnr[best]):.2f} dB on the pairs that choose checkpoints."
            + f" They come from {len(sittings) + 1} trainings, each on the pairs of its commit, and not from one"
            " command: `make weights` trains the recipe from nothing, once." * bool(sittings),
            *tried(results.get("tried", [])),
            "",
            *steps_kept(ablation or {}, config, recipe),
            "What each part of network and pairs is worth: the table of the ablation, in",
            "[results/ablation.json](../../benchmarks/results/ablation.json) (`python -m benchmarks.ablation`), drawn",
            "in [notebook 04](../../notebooks/04_evaluation.ipynb).",
            "",
            "## Measured",
            "On test pairs (grains and regions never trained on); filters and boundary thresholds tuned on validation",
            "pairs, for each recipe apart. PSNR in dB, boundaries within 3 px; ± is half the 95 % interval by image,",
            "which takes images for independent, though several share a phase-field run or a micrograph. *Chance*: the",
            "true lines, shifted by half the field; the denser they are, the more a line says nothing.",
            *trained_beside(named, read_study(DNCNN)),
            "",
            *told(rivals, "table", measured),
            *at_ends(table),
            *attention_pays(table),
            "What a mean over the image hides: PSNR (aligned) inside and outside local defects and on the band around",
            "boundaries; variation of information of the segmented grains (split: invented boundaries, merge: lost",
            "ones); and how far the mean grey of a grain's interior is from the input's once the result takes the",
            "histogram of the input (Section III.b): median and 95th percentile.",
            "",
            *told(rivals, "table", beside_psnr(table)),
            "Each defect alone on the truth: share of its visible pixels restored to within 0.1, and twins found",
            "beside it. What is faint is within 0.1 untouched; the share of its squared error that is gone does not",
            "flatter there, and is below 0 where the network adds to it:",
            "",
            *told(rivals, "removal", removed(rivals.get("removal", ABSENT)["rows"])),
            "### Twins and scratches, both straight lines",
            f"Twins found, *apart*: those more than {rivals.get('hard_pair', {}).get('apart', 'some')} px from a grain "
            "boundary, whose line would else be taken for them;",
            "*grain boundaries alone*: what the true ones reach. Scratches, restored to within 0.1, and the pixels",
            "off them, other defects included, on the same pairs. G as segmented, twins and all, less that of E112,",
            "which counts none.",
            "",
            *told(
                rivals, "hard_pair", markdown(*(rivals.get("hard_pair", ABSENT)[part] for part in ("columns", "rows")))
            ),
            "### A specimen that ends within the field",
            "Beside a dark mount, drawn as in the last part of the training (`mdn.synthesis.mounted`); and the same",
            "pixels without it.",
            "",
            *told(rivals, "controls", at_the_edge(rivals)),
            "### The annotated steel",
            "Boundary F with defects added (all kinds but corrosion) at several strengths, as it is and at smaller",
            "magnifications; regained: the share of the F that the defects cost which the network brings back. PSNR",
            "and SSIM are to the micrograph before they were added; ± is over draws of the defects. The boundary",
            "detector was designed with this image at hand, which flatters every F here. What is regained is a ratio",
            "of means over few draws, and told without an interval.",
            "",
            *told(rivals, "steel", on_steel(rivals)),
            "### Large and small grains",
            "Varied test pairs by the mean diameter of their grains.",
            "",
            *told(rivals, "magnification", grouped(rivals, "magnification", 4)),
            "### Looks of etching, and contrast",
            "Varied test pairs by how their boundaries were drawn, and by the range of their grains' greys.",
            "",
            *told(rivals, "looks", grouped(rivals, "looks", 3)),
            "### Seconds a megapixel",
            f"On {seconds.get('machine', 'one machine')}, all in one sitting: compare within the table."
            + elsewhere(read_study(INFERENCE)),
            "",
            *told(rivals, "seconds", markdown(seconds["columns"], seconds["rows"])),
            "## Where not to trust it",
            *trust(uncertainty or {}),
            "## Targets",
            "*Set* before the training, or told *beside* these: what helps to read one. A mean is held to the target;",
            "± is half its 95 % interval by image.",
            "",
            *told(rivals, "targets", targets),
            *causes(rivals, ablation),
        ]
    )


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())


def main() -> None:
    """Make the pairs, train, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("data/shipped"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument(
        "--further", type=int, metavar="STEPS", help="from the box; the same number again resumes that run"
    )
    parser.add_argument("--card", action="store_true", help="write the model card and stop")
    arguments = parser.parse_args()
    if arguments.card:
        pairs = arguments.directory / "pairs.zarr"
        borrowed = borrowed_references(mdn.load_pairs(pairs, "test")) if pairs.exists() else {}
        told = card(*map(read_study, (RESULTS, RIVALS, UNCERTAINTY)), borrowed, read_study(ABLATION))
        write(SHIPPED.with_name("MODEL_CARD.md"), told)
        return
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # a share of the batch each: faster than threads within
    directory = arguments.directory
    grown = directory / "grown"
    if mdn.make_dataset(directory / "pairs.zarr", PAIRS, grown=grown, workers=arguments.workers) != "real":
        raise SystemExit("the real micrographs could not be had; set MDN_MICROGRAPHS to their folder")
    train, validation = (mdn.load_pairs(directory / "pairs.zarr", split) for split in ("train", "validation"))
    run = directory / (f"further_{arguments.further}" if arguments.further else "run")
    begun = run / "start.safetensors"  # the weights in the box soon may be this run's own
    start = mdn.load_denoiser(begun if begun.exists() else SHIPPED)
    if not begun.exists():
        made, told = read_study(RESULTS), {k: v for k, v in start.metadata["training"].items() if k != "earlier"}
        facts = {"recipe": start.metadata["recipe"], "commit": made["commit"]}
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
        ).stdout.strip()
        write(run / "begun.json", json.dumps({"commit": commit, "sittings": [*made["earlier"], told | facts]}))
        write_whole(begun, SHIPPED.read_bytes())
    origin = json.loads((run / "begun.json").read_text())
    commit = origin["commit"]
    model, sittings, recipe = mdn.DenoisingNetwork(NETWORK, rngs=nnx.Rngs(SEED)), [], RECIPE
    if arguments.further:
        recipe = replace(RECIPE, steps=arguments.further, evaluate_every=max(1, arguments.further // 4), **FURTHER)
        model, sittings = nnx.clone(start.network), origin["sittings"]
    data = with_edges_and_blanks(train) if arguments.further else (train.noisy, train.clean)
    few = validation.noisy[::CHOSEN_ON], validation.clean[::CHOSEN_ON]

    def reached(network: nnx.Module) -> float:
        outputs = predict(network, np.stack(list(map(stretch, few[0]))))
        return float(np.mean(list(map(psnr, outputs, few[1]))))

    before = reached(start.network)

    def report(history: mdn.History) -> None:
        if history.best == len(history.step) - 1 and history.validation_psnr[-1] > before:
            export(model, history, sittings, recipe)

    history = mdn.fit(
        model,
        data,
        few,
        config=recipe,
        directory=run,
        key=jax.random.key(SEED + len(sittings)),
        report=report,
    )
    ends = {"best": model, "last": last_weights(model, run, recipe), "before": start.network}
    ends |= {HALF: half_way(start.network, ends["last"])} if arguments.further else {}
    scores = {name: on_validation(network, validation) for name, network in ends.items()}
    settled = settle(scores)
    command = "python benchmarks/shipped_weights.py" + f" --further {arguments.further}" * bool(arguments.further)
    if settled == "before":
        if mdn.load_denoiser().metadata["recipe"] == {**asdict(recipe), "seed": SEED + len(sittings)}:
            write_whole(SHIPPED, begun.read_bytes())  # over this run's own, not over what another has put there since
        hours = round(history.seconds[-1] / 3600, 2)
        further = {"command": command, "commit": commit, "steps": history.step[-1], "hours": hours}
        held = read_study(RESULTS)
        others = [one for one in held.get("tried", []) if one["command"] != command]  # a rerun tells the same once
        held["tried"] = [*others, {**further, "recipe": asdict(recipe), "validation": scores}]
        write(RESULTS, json.dumps(held, indent=1))
        raise SystemExit(f"no gain on the weights in the box, which stay: {scores}")
    model, at = ends[settled], history.best if settled == "best" else len(history.step) - 1
    statistics = training_statistics(model, validation.noisy[:: max(1, len(validation) // 200)])
    shares = {"at edges": MOUNTED, "without grains": BLANK} if arguments.further else {}
    beside = {what: round(share * len(train)) for what, share in shares.items()}
    shipped = {"validation_psnr_db": round(reached(model), 2), "settled": settled, **beside}
    export(model, history, sittings, recipe, statistics, at, shipped)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__} on {jax.default_backend()}"
    results = {
        "tried": read_study(RESULTS).get("tried", []),
        "command": command,
        "commit": commit,
        "machine": machine,
        "earlier": sittings,
        "sources": list(train.sources),
        "pairs": {split: [len(p), int(p.varied.sum())] for split, p in (("train", train), ("validation", validation))},
        "history": asdict(history),
        "shipped": {**shipped, "at": at, "pairs": len(validation.noisy[::SETTLED_ON]), "validation": scores},
    }
    write(RESULTS, json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
