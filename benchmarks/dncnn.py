"""DnCNN for as long as the network: `python -m benchmarks.dncnn`, again to go on after an interruption.

On the same pairs, by the same recipe and on the same devices, for as many seconds as the network took that
`make weights` trained from nothing. Which size and learning rate: those of the highest validation PSNR after `PILOT`
seconds each. Both networks are written beside the pairs, where `benchmarks.rivals` finds them.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
from flax import nnx

import mdn
from benchmarks.parts import save, show
from benchmarks.shipped_weights import CHOSEN_ON, NETWORK, RECIPE, SEED, last_weights, write
from mdn.baselines import DnCNN, save_dncnn

RESULTS = Path(__file__).parent / "results" / "dncnn.json"
SIZES = ((32, 10), (32, 17))  # width and depth; the deeper costs what the network does, some 0.3 MFLOP a pixel
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
PILOT = 75.0  # s
TIMED = 10  # steps between two looks at the clock
Images = tuple[np.ndarray, np.ndarray]


def dncnn(size: tuple[int, int]) -> DnCNN:
    """A DnCNN of a width and a depth, before training."""
    return DnCNN(width=size[0], depth=size[1], rngs=nnx.Rngs(SEED))


def seconds_a_step(model: nnx.Module, data: Images, recipe: mdn.TrainingConfig) -> float:
    """Of training, without what compiles."""
    config = replace(recipe, steps=3 * TIMED, evaluate_every=TIMED)
    one = data[0][:1], data[1][:1]
    history = mdn.fit(model, data, one, config=config, key=jax.random.key(SEED), progress=False)
    return (history.seconds[2] - history.seconds[0]) / (2 * TIMED)


def plan(data: Images, validation: Images, seconds: float, pilot: float = PILOT, tried: Sequence[list] = ()) -> dict:
    """Size, rate and steps of a DnCNN for that many seconds, and what each came to in `pilot` seconds.

    tried: what an earlier plan has; of its sizes further rates get as many steps as its own.
    """
    recipe, tried = replace(RECIPE, dropout_until=1.0), [list(row) for row in tried]  # there is no dropout in it
    for size in SIZES:
        rates = [rate for rate in RATES if [*size, rate] not in [row[:3] for row in tried]]
        step, steps = next((row[3:5] for row in tried if row[:2] == list(size)), (None, None))
        if rates and step is None:
            step = seconds_a_step(dncnn(size), data, recipe)
            steps = max(1, round(pilot / step))
        for rate in rates:
            config = replace(recipe, steps=steps, evaluate_every=steps, learning_rate=rate)
            key = jax.random.key(SEED)
            history = mdn.fit(dncnn(size), data, validation, config=config, key=key, progress=False)
            tried.append([*size, rate, step, steps, history.validation_psnr[-1]])
            print(tried[-1], flush=True)
    width, depth, rate, step, _, _ = max(tried, key=lambda row: row[-1])
    steps = max(1, round(seconds / step))
    config = replace(recipe, steps=steps, evaluate_every=max(1, steps // 15), learning_rate=rate)
    return {"size": (width, depth), "recipe": asdict(config), "tried": tried, "pilot": pilot}


def main() -> None:
    """Choose, train, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("data/shipped"))
    directory = parser.parse_args().directory
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    ours, kept = directory / "run", directory / "long"
    told = json.loads((ours / "history.json").read_text()) if (ours / "history.json").exists() else {"step": [0]}
    if told["step"][-1] < RECIPE.steps:
        raise SystemExit(f"{ours} holds no finished training of the network from nothing: `make weights`")
    train, few = (mdn.load_pairs(directory / "pairs.zarr", split) for split in ("train", "validation"))
    data, few = (train.noisy, train.clean), (few.noisy[::CHOSEN_ON], few.clean[::CHOSEN_ON])
    held = json.loads((kept / "plan.json").read_text()) if (kept / "plan.json").exists() else {}
    found = plan(data, few, told["seconds"][-1], tried=held.get("tried", ()))
    chosen = {**found, **held, "tried": found["tried"]}  # what is trained, or half so, stays what it is
    write(kept / "plan.json", json.dumps(chosen))
    model, recipe = dncnn(chosen["size"]), mdn.TrainingConfig(**chosen["recipe"])
    history = mdn.fit(model, data, few, config=recipe, directory=kept / "run", key=jax.random.key(SEED))
    save_dncnn(kept / "DnCNN.safetensors", model)
    network = last_weights(mdn.DenoisingNetwork(NETWORK, rngs=nnx.Rngs(SEED)), ours, RECIPE)
    mdn.save_weights(kept / "network.safetensors", network)
    rows = [["network", told["step"][-1], told["seconds"][-1] / 3600, told["validation_psnr"][-1]]]
    rows.append(["DnCNN", history.step[-1], history.seconds[-1] / 3600, history.validation_psnr[history.best]])
    columns = ["trained from nothing", "steps", "hours", "validation PSNR (dB)"]
    targets = {"DnCNN's hours for one of the network's": rows[1][2] / rows[0][2]}
    facts = {"command": "python -m benchmarks.dncnn", **chosen, "history": asdict(history)}
    table = {"columns": columns, "rows": rows, "targets": targets, **facts}
    show("long", table)
    save(RESULTS, "long", table)


if __name__ == "__main__":
    main()
