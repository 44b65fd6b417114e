"""Seconds a micrograph, network beside classical filters: `python benchmarks/inference.py`.

Each method denoises the same square image several times in turn; the first call of each, which compiles, is told
apart. Writes benchmarks/results/inference.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

import mdn
from mdn.baselines import BASELINES
from mdn.synthesis import stand_in

RESULTS = Path(__file__).parent / "results" / "inference.json"


def main() -> None:
    """Time every method on the same image, in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024, help="side of the image in px")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    image = stand_in("etched", (args.size, args.size), key=jax.random.key(0))
    methods = {"network": mdn.load_denoiser()}
    methods |= {n: partial(b.apply, parameter=b.grid[len(b.grid) // 2]) for n, b in BASELINES.items()}
    seconds = {name: [] for name in methods}
    for _ in range(args.repeats + 1):
        for name, method in methods.items():
            start = time.perf_counter()
            method(image)
            seconds[name].append(time.perf_counter() - start)
    later = {name: float(np.median(s[1:])) for name, s in seconds.items()}
    rows = [[name, s[0], later[name], later[name] / image.size * 1e6] for name, s in seconds.items()]
    columns = ["method", "first call (s)", "median of later calls (s)", "s a megapixel"]
    for row in (columns, *rows):
        print(" | ".join(f"{v:10.3f}" if isinstance(v, float) else f"{v:>26}" for v in row))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    facts = {
        "command": f"python benchmarks/inference.py --size {args.size} --repeats {args.repeats}",
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__} on {jax.default_backend()}",
        "columns": columns,
        "rows": rows,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    part = RESULTS.with_name(RESULTS.name + ".part")
    part.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    part.replace(RESULTS)


if __name__ == "__main__":
    main()
