"""Training's speed beside PyTorch's: `python -m benchmarks.training`, or some of its parts by name.

step: seconds of a training step, same network, weights, batch and optimiser, in turn. pipeline: seconds of drawing a
batch beside those of its step. pairs: seconds of making pairs, growing included, on a part of the 3,000.
curve: validation PSNR against minutes, ours and PyTorch's trained for as long on the same crops of the same pairs of
`make weights`. sitting: the same of the whole recipe from nothing. Writes benchmarks/results/training.json.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

import mdn
from benchmarks.parts import RESULTS, Table, run_parts
from benchmarks.shipped_weights import CHOSEN_ON, NETWORK, PAIRS, RECIPE
from mdn import training
from mdn.training import RECIPES

SHIPPED = Path("data/shipped")
WHOLE = "the whole recipe, from nothing"
COLUMNS = ["method", "step", "minute", "validation PSNR (dB)"]
PAPER = replace(RECIPES["paper"][0], gate="sigmoid"), replace(RECIPES["paper"][1], crop=128)  # PyTorch's has that gate
SHARE = PAIRS.n_runs / (PAIRS.n_pairs + PAIRS.n_test)  # grown structures a pair


class Ours:
    """`fit`'s own step, on one network."""

    def __init__(self, network: mdn.NetworkConfig, config: mdn.TrainingConfig):
        self.model = mdn.DenoisingNetwork(network, rngs=nnx.Rngs(0))
        graph, params, statistics, rest = nnx.split(self.model, nnx.Param, nnx.BatchStat, ...)
        self.state = (params, statistics, config.optimiser().init(params), (params, statistics))
        self.config, self.one = config, training._step_function(config, graph, rest, True)

    def step(self, noisy: np.ndarray, clean: np.ndarray, number: int) -> float:
        """The loss of a step."""
        key = jax.random.fold_in(jax.random.key(0), number)
        self.state, value = self.one(self.state, key, noisy, clean, number)
        return float(value)

    def restored(self, images: np.ndarray) -> np.ndarray:
        """What the averaged weights make of noisy images."""
        nnx.update(self.model, *self.state[3])
        return training.predict(self.model, images)


class Theirs:
    """The same in PyTorch: its Adam, its autograd, the loss of Eq. 11 and the same schedule."""

    def __init__(self, network: mdn.NetworkConfig, config: mdn.TrainingConfig):
        import torch

        from benchmarks.pytorch import Network

        self.torch, self.config = torch, config
        self.model = Network(mdn.DenoisingNetwork(network, rngs=nnx.Rngs(0))).train()
        self.kernels = [p for p in self.model.parameters() if p.ndim > 1]
        self.adam = torch.optim.Adam(self.model.parameters(), config.learning_rate)
        self.rate = None
        if config.schedule == "cosine":
            warm_up = max(1, config.steps // 20)
            self.rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warm_up, config.steps)
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}

    def step(self, noisy: np.ndarray, clean: np.ndarray, number: int) -> float:
        """The loss of a step."""
        torch, config = self.torch, self.config
        for group in self.adam.param_groups:
            group["lr"] = float(self.rate(number)) if self.rate else config.learning_rate
        error = self.model(torch.from_numpy(noisy)[:, None]) - torch.from_numpy(clean)[:, None]
        value = (error**2).mean() + config.l2 * sum((w * w).sum() for w in self.kernels)
        if config.edges:
            value = value + config.edges * sum((torch.diff(error, dim=d) ** 2).mean() for d in (2, 3))
        self.adam.zero_grad()
        value.backward()
        self.adam.step()
        if config.average:
            decay = min(config.average, (1 + number) / (10 + number))
            with torch.no_grad():
                for name, now in self.model.state_dict().items():
                    if now.is_floating_point():
                        self.average[name].lerp_(now, 1 - decay)
        return value.item()

    def restored(self, images: np.ndarray) -> np.ndarray:
        """What the averaged weights make of noisy images."""
        now = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        outputs = np.stack([self.model.restore(image) for image in images])
        self.model.load_state_dict(now)
        self.model.train()
        return outputs


CONTENDERS = {"mdn": Ours} | ({"PyTorch": Theirs} if find_spec("torch") else {})


def step(repeats: int = 9, cases: dict | None = None) -> Table:
    """Seconds of a training step, in turn on the same batch; without dropout the first loss shows both do the same."""
    shipped = NETWORK, replace(RECIPE, crop=128)
    cases = cases or {"paper's, 16 x 128 x 128 px": PAPER, "shipped, 8 x 128 x 128 px": shipped}
    cases |= {f"{name}, no dropout": (replace(n, dropout=0.0), config) for name, (n, config) in cases.items()}
    rows, targets, rng = [], {}, np.random.default_rng(0)
    for case, (network, config) in cases.items():
        shape = config.batch, config.crop, config.crop
        noisy, clean = (rng.uniform(size=shape).astype(np.float32) for _ in range(2))
        both = {name: kind(network, config) for name, kind in CONTENDERS.items()}
        seconds, losses = {name: [] for name in both}, {name: [] for name in both}
        for number in range(1, repeats + 2):
            for name, contender in both.items():
                start = time.perf_counter()
                losses[name].append(contender.step(noisy, clean, number))
                seconds[name].append(time.perf_counter() - start)
        rows += [[case, n, float(np.median(s[1:])), s[0], losses[n][0]] for n, s in seconds.items()]
        if "PyTorch" in both:
            ours, theirs = (float(np.median(s[1:])) for s in seconds.values())
            targets[f"{case}: seconds over PyTorch's, at most 1.5"] = ours / theirs
    return {
        "columns": ["case", "method", "s a step, median", "first step (s)", "first loss"],
        "rows": rows,
        "targets": targets,
    }


def pipeline(repeats: int = 20, network: mdn.NetworkConfig = NETWORK) -> Table:
    """Drawing a batch beside the step it is for, of the shipped weights' recipe; the step does not wait for more."""
    images = np.random.default_rng(0).uniform(size=(200, *PAIRS.shape)).astype(np.float32)
    ours = Ours(network, RECIPE)
    seconds = {"batch": [], "step": []}
    for number in range(repeats + 1):
        start = time.perf_counter()
        batch = training._batch(images, images, RECIPE, np.zeros(2, np.uint32), number)
        drawn = time.perf_counter()
        ours.step(*batch, number)
        seconds["batch"].append(drawn - start)
        seconds["step"].append(time.perf_counter() - drawn)
    batch, one = (float(np.median(s[1:])) for s in seconds.values())
    return {
        "columns": ["part", "s"],
        "rows": [["batch", batch], ["step", one]],
        "targets": {"share of a step": batch / one},
    }


def pairs(count: int = 150, workers: int = os.cpu_count()) -> Table:
    """A part of the 3,000 pairs with its share of grown structures, and what the whole takes at that rate."""
    part = replace(PAIRS, n_pairs=count, n_test=0, n_runs=max(5, round(count * SHARE)))
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name in ("grown and made", "made, grains grown before"):
            start = time.perf_counter()
            mdn.make_dataset(
                f"{folder}/{len(rows)}.zarr", part, grown=f"{folder}/grown", workers=workers, progress=False
            )
            seconds = time.perf_counter() - start
            rows.append([name, count, seconds, seconds / count * PAIRS.n_pairs / 60])
    targets = {
        "3,000 pairs, growing included (minutes, extrapolated), at most 80": rows[0][3],
        "3,000 pairs, grains grown before (minutes, extrapolated), at most 20": rows[1][3],
    }
    columns = ["what", "pairs", "seconds", f"minutes for {PAIRS.n_pairs} (extrapolated)"]
    return {"columns": columns, "rows": rows, "targets": targets}


def curve(minutes: float = 8.0, evaluations: int = 8, directory: Path = SHIPPED) -> Table:
    """Validation PSNR against minutes of training: both for as long, each on its own schedule, one after the other."""
    held = mdn.load_pairs(directory / "pairs.zarr", "validation")
    noisy, truth = training._stretched((held.noisy[::CHOSEN_ON], held.clean[::CHOSEN_ON]))
    train = mdn.load_pairs(directory / "pairs.zarr", "train")
    data, rows, targets = training._stretched((train.noisy, train.clean)), [], {}

    def psnr(outputs: np.ndarray) -> float:
        return float(np.mean(-10 * np.log10(np.mean((outputs - truth) ** 2, axis=(1, 2)))))

    def timed(one, config: mdn.TrainingConfig, number: int) -> float:
        start = time.perf_counter()
        one.step(*training._batch(*data, config, np.zeros(2, np.uint32), number), number)
        return time.perf_counter() - start

    for name, kind in CONTENDERS.items():
        trial = kind(NETWORK, RECIPE)
        took = [timed(trial, RECIPE, number) for number in range(5)]
        steps = max(evaluations, round(60 * minutes / np.median(took[1:])))
        config = replace(RECIPE, steps=steps)
        one, clock = kind(NETWORK, config), 0.0
        for number in range(steps):
            clock += timed(one, config, number)
            if (number + 1) * evaluations // steps > number * evaluations // steps:
                rows.append([name, number + 1, clock / 60, psnr(one.restored(noisy))])
                print(rows[-1], flush=True)
        targets[f"{name}: steps in {minutes:g} minutes"] = steps
    return {"columns": COLUMNS, "rows": rows, "targets": targets}


def sitting(directory: Path = SHIPPED) -> Table:
    """The whole recipe from nothing by its own clock, of `make weights`; else as it was kept here before."""
    found, kept = directory / "run" / "history.json", RESULTS / "training.json"
    if not found.exists():
        return json.loads(kept.read_text(encoding="utf-8"))["sitting"]
    told = json.loads(found.read_text(encoding="utf-8"))
    minutes = [seconds / 60 for seconds in told["seconds"]]
    rows = [[WHOLE, *row] for row in zip(told["step"], minutes, told["validation_psnr"], strict=True)]
    best = mdn.load_denoiser().metadata["training"]["validation_psnr_db"]
    near = [minute for _, _, minute, value in rows if value >= best - 0.5]
    goal = f"minutes to within 0.5 dB of the shipped weights' {best} dB, at most 180"
    return {"columns": COLUMNS, "rows": rows, "targets": {goal: near[0] if near else None}, "goal": best - 0.5}


PARTS = {part.__name__: part for part in (step, pipeline, pairs, curve, sitting)}
TINY = mdn.NetworkConfig(width=8, blocks=1), mdn.TrainingConfig(batch=2, crop=32)
QUICK = {
    "step": {"repeats": 1, "cases": {"tiny": TINY}},
    "pipeline": {"repeats": 1, "network": TINY[0]},
    "pairs": {"count": 5, "workers": 1},
}


if __name__ == "__main__":
    run_parts("training", __doc__, PARTS, QUICK, ("torch",))
