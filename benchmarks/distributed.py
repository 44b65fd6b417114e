"""What a training step costs on several devices: `python benchmarks/distributed.py`.

Compiles the step of `mdn.training.fit` for each number of virtual CPU devices, adds up what its collectives carry, and
times it with a share of the batch that does not grow. Virtual devices share this machine's cores: that measures what
partitioning adds, not how it scales. Writes benchmarks/results/distributed.json and the numbers of DISTRIBUTED.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "distributed.json"
PAGE = Path(__file__).parent / "DISTRIBUTED.md"
START, END = "<!-- numbers: written by benchmarks/distributed.py -->\n", "<!-- /numbers -->"
SHARE, SIDE = 16, 128  # images of a device and their side, as in distributed.sbatch
LATENCY, RATE = 20e-6, 20e12  # s an all-reduce within a node, operations a second of a GPU in float32: assumed
BYTES = {"f32": 4, "u32": 4, "s32": 4, "f64": 8, "pred": 1}
COLLECTIVE = re.compile(r" = (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def carried(hlo: str) -> tuple[int, int, int]:
    """Of a compiled step: bytes all-reduced, number of all-reduces, bytes of any other collective."""
    reduced = count = other = 0
    for shapes, kind in COLLECTIVE.findall(hlo):
        each = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        size = sum(BYTES[dtype] * math.prod(int(n) for n in sides.split(",") if n) for dtype, sides in each)
        reduced, other = (reduced + size, other) if kind == "all-reduce" else (reduced, other + size)
        count += kind == "all-reduce"
    return reduced, count, other


def measure(devices: int, batch: int, crop: int, rounds: int) -> dict:
    """One step of the default network on virtual devices, as `fit` runs it; in a process that has that many."""
    import jax
    import numpy as np
    from flax import nnx
    from jax.sharding import NamedSharding, PartitionSpec

    from mdn import network, training
    from mdn.network import DenoisingNetwork, count_parameters

    config = training.TrainingConfig(batch=batch * devices, crop=crop)
    graph, params, statistics, rest = nnx.split(DenoisingNetwork(rngs=nnx.Rngs(0)), nnx.Param, nnx.BatchStat, ...)
    mesh = training._mesh(config.batch)
    everywhere, shared = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    state = jax.device_put((params, statistics, config.optimiser().init(params), (params, statistics)), everywhere)
    images = np.random.default_rng(0).random((64, 2 * crop, 2 * crop), np.float32)
    noisy, clean = training._batch(images, images, config, np.zeros(2, np.uint32), 0)
    wide = training.TrainingConfig(batch=SHARE * 8, crop=SIDE)
    large = np.random.default_rng(0).random((SHARE * 8, 2 * SIDE, 2 * SIDE), np.float32)
    start = time.perf_counter()
    for number in range(rounds):
        training._batch(large, large, wide, np.zeros(2, np.uint32), number, slice(SHARE))
    cut = (time.perf_counter() - start) / rounds
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
    noisy, clean = (jax.make_array_from_callback(a.shape, shared, a.__getitem__) for a in (noisy, clean))
    step = training._step_function(config, graph, rest, True, everywhere)
    step = step.lower(state, jax.random.key(0), noisy, clean, 0).compile()  # weight gradients in strips: CPUs alone
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(step(state, jax.random.key(0), noisy, clean, 0))
        seconds.append(time.perf_counter() - start)
    reduced, count, other = carried(step.as_text())
    network._kernel_gradient = partial(network._strip_gradient, strips=1)
    jax.clear_caches()
    step = training._step_function(config, graph, rest, True, everywhere)
    whole = carried(step.lower(state, jax.random.key(0), noisy, clean, 0).compile().as_text())
    return {
        "parameters": count_parameters(nnx.merge(graph, params, statistics, rest)),
        "operations": 3 * sum(2 * kernel.size for kernel in kernels) / network.NetworkConfig().scale ** 2,
        "channels": sum(leaf.size for leaf in jax.tree.leaves(statistics)) // 2,
        "seconds": float(np.median(seconds[1:])), "cut": cut,
        "reduced": reduced, "all-reduces": count, "other": other + whole[2],
        "in one": whole[0], "all-reduces in one": whole[1],
    }  # fmt: skip


def facts_of(found: dict[int, dict]) -> dict:
    """What follows for devices of which each holds the network: bytes a step, what a processor cuts, where it ends."""
    one, most = found[min(found)], found[max(found)]
    # Forward, mean and mean square of each channel; backward, one sum more than the gradients of its scale and offset
    waits, pixel = most["all-reduces in one"], one["operations"] / RATE
    gradients, statistics = 4 * one["parameters"], 3 * 4 * one["channels"]
    return {
        "parameters": one["parameters"],
        "normalised channels": one["channels"],
        "bytes all-reduced a step: gradients": gradients,
        "bytes all-reduced a step: batch norm, forward and backward": statistics,
        "both and the loss, counted in the compiled step (weight gradients as off CPUs)": most["in one"],
        "all-reduces in that step": most["all-reduces in one"],
        "bytes sent by each of 8 devices in a ring, a step": round(2 * 7 / 8 * (gradients + statistics)),
        f"ms to cut a process's {SHARE} crops of {SIDE} px, of a batch for 8 such": 1e3 * one["cut"],
        "operations a pixel and step (thrice the forward pass's)": one["operations"],
        f"us a step that its all-reduces wait (estimate: {1e6 * LATENCY:g} us each)": 1e6 * LATENCY * waits,
        f"px of a share that take as long (estimate: {RATE / 1e12:g} TFLOP/s)": LATENCY * waits / pixel,
        f"us that a share of {SHARE} x {SIDE} x {SIDE} takes (same estimate)": 1e6 * SHARE * SIDE**2 * pixel,
    }


def page(table: dict) -> str:
    """The numbers of DISTRIBUTED.md as Markdown."""
    lines = [f"`{table['command']}` at {table['commit']}, {table['machine']}:", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value:,.0f} |" for name, value in table["facts"].items()]
    lines += ["", "| " + " | ".join(table["columns"]) + " |", "|---" * len(table["columns"]) + "|"]
    rows = [[f"{v:,.2f}" if isinstance(v, float) else f"{v:,}" for v in row] for row in table["rows"]]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure each number of devices in a process of its own; print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--batch", type=int, default=2, help="images on each device")
    parser.add_argument("--crop", type=int, default=32, help="side of the images in px")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.batch, args.crop, args.rounds)))
        return
    options = [f"--{name}={getattr(args, name)}" for name in ("batch", "crop", "rounds")]
    found = {}
    for n in args.devices:
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={n}", "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, __file__, f"--one={n}", *options]
        done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True, check=True)
        found[n] = json.loads(done.stdout.splitlines()[-1])
    first = found[min(found)]["seconds"] / min(found)
    columns = ["virtual devices", "images a step", "s a step", "over as many on one", "all-reduces"]
    columns += ["bytes all-reduced", "bytes of other collectives"]
    rows = [
        [n, n * args.batch, f["seconds"], f["seconds"] / (n * first), f["all-reduces"], f["reduced"], f["other"]]
        for n, f in found.items()
    ]
    given = f"--devices {' '.join(map(str, args.devices))} --batch {args.batch} --crop {args.crop}"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    import jax

    from mdn.files import write_whole

    table = {
        "command": f"python benchmarks/distributed.py {given} --rounds {args.rounds}",
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__} on virtual CPU devices",
        "facts": facts_of(found),
        "columns": columns,
        "rows": rows,
    }
    print(page(table))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    text = before + START + page(table) + END + rest.partition(END)[2]
    for path, new in ((RESULTS, json.dumps(table, indent=1)), (PAGE, text)):
        write_whole(path, new.encode())


if __name__ == "__main__":
    main()
