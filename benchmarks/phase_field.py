"""Grain growth beside its rivals: `python -m benchmarks.phase_field`, or some of its parts by name.

    rates      an Euler step: mdn, a fused parallel Numba loop, plain jnp.roll, PyTorch, in turn and compared
    accuracy   seconds to a grown structure, and how far it is from a reference
    grains     what 100 and 1,000 grains cost on one domain
    many       many small structures in two processes, a core each
    precision  labels of float32 against float64
    large      one large structure: seconds and memory
    floor      bytes a step against the bandwidth of the machine

Numba and PyTorch are no dependencies of the project; without them their rows are left out, and the script says so.
Each part goes into benchmarks/results/phase_field.json when it is done. `--quick` tries the parts at a tiny size and
writes nothing.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import sys
import time as clock
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.parts import Table, run_parts
from mdn import phase_field as pf
from mdn.phase_field import AllenCahn

ORDERS = 12  # of the rates and the floor
MDN, NUMBA, PLAIN, ROLL, TORCH = "mdn, Euler", "Numba loop", "Numba loop, no guard", "jnp.roll", "PyTorch"
GUARD = np.float32(1e-18)  # added to each update: no field then has denormal tails, nor have its squares
RELAXED = 4.0  # time by which the sharp start has relaxed; from then on `evolve` keeps to the stages asked for


# ---- the contenders: one Euler step of A4, again and again


@cache
def numba_step() -> Callable:
    """One pass a row: the sum of squares of a row first, then each field of it."""
    from numba import get_num_threads, njit, prange

    @njit(parallel=True, fastmath=True, error_model="numpy")
    def step(eta, new, here, cubic, others, neighbours, guard, threads):
        n_orders, height, width = eta.shape
        for thread in prange(threads):
            squares = np.empty(width, np.float32)
            for y in range(thread * height // threads, (thread + 1) * height // threads):
                above, below = (y if y > 0 else height) - 1, (y + 1 if y + 1 < height else 0)
                squares[:] = 0
                for q in range(n_orders):
                    row = eta[q, y]
                    for x in range(width):
                        squares[x] += row[x] * row[x]
                for x in range(width):
                    squares[x] = here - others * squares[x]
                for q in range(n_orders):
                    row, out, north, south = eta[q, y], new[q, y], eta[q, above], eta[q, below]
                    for x in range(1, width - 1):
                        around = north[x] + south[x] + row[x - 1] + row[x + 1]
                        out[x] = row[x] * (squares[x] + cubic * row[x] * row[x]) + (neighbours * around + guard)
                    for x, west, east in ((0, width - 1, 1), (width - 1, width - 2, 0)):
                        around = north[x] + south[x] + row[west] + row[east]
                        out[x] = row[x] * (squares[x] + cubic * row[x] * row[x]) + (neighbours * around + guard)

    return partial(step, threads=get_num_threads())


def coefficients(params: AllenCahn, dt: float) -> list[np.float32]:
    """A4 as eta (here + cubic eta^2 - others sum eta^2) + neighbours (sum of the four): an Euler step of dt."""
    p, diffusion = params, params.kappa / params.dx**2
    factors = (p.alpha - 4 * diffusion, 2 * p.gamma - p.beta, 2 * p.gamma, diffusion)
    return [np.float32(i + dt * p.mobility * f) for i, f in zip((1, 0, 0, 0), factors, strict=True)]


def run_numba(params, eta: np.ndarray, buffers, steps: int, dt: float, guard=GUARD) -> np.ndarray:
    """`steps` of the Numba loop, between two buffers."""
    for n in range(steps):
        numba_step()(eta, buffers[n % 2], *coefficients(params, dt), guard)
        eta = buffers[n % 2]
    return eta


@partial(jax.jit, static_argnames=("params", "steps"))
def run_roll(params: AllenCahn, eta: jax.Array, steps: int) -> jax.Array:
    """The equation as one would write it first."""

    def step(_, eta):
        others = (eta**2).sum(0, keepdims=True) - eta**2
        laplacian = sum(jnp.roll(eta, shift, axis) for shift in (1, -1) for axis in (1, 2)) - 4 * eta
        rate = params.alpha * eta - params.beta * eta**3 - 2 * params.gamma * eta * others
        return eta + params.dt * params.mobility * (rate + params.kappa / params.dx**2 * laplacian)

    return jax.lax.fori_loop(0, steps, step, eta)


def torch_runner(params: AllenCahn, eta: np.ndarray) -> Callable[[int], np.ndarray]:
    """A padded buffer, slices of it, and every operation in place; started clear of denormal tails."""
    import torch

    here, cubic, others, neighbours = map(float, coefficients(params, params.dt))
    start, squares, around = (torch.tensor(eta) for _ in range(3))
    padded, total = torch.empty([len(eta), *(n + 2 for n in params.shape)]), torch.empty(params.shape)
    inside = padded[:, 1:-1, 1:-1]

    @torch.inference_mode()
    def run(steps):
        torch.clamp(start, min=1e-12, out=inside)
        for _ in range(steps):
            padded[:, 0], padded[:, -1] = padded[:, -2], padded[:, 1]
            padded[:, :, 0], padded[:, :, -1] = padded[:, :, -2], padded[:, :, 1]
            torch.mul(inside, inside, out=squares)
            torch.sum(squares, 0, out=total)
            torch.add(padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], out=around)
            around.add_(padded[:, 1:-1, :-2]).add_(padded[:, 1:-1, 2:])
            squares.mul_(cubic).sub_(total.mul_(others).sub_(here)).mul_(inside)
            torch.add(squares, around, alpha=neighbours, out=inside)
        return inside.numpy()

    return run


def contenders(params: AllenCahn, eta: np.ndarray) -> dict[str, Callable[[int], np.ndarray]]:
    """Of a number of steps, the fields after them; everything that can be laid out beforehand is."""
    on_device, euler = jnp.asarray(eta), replace(params, stages=1)
    dt = params.dt * params.mobility * params.alpha  # in evolve's unit of time
    runs = {
        MDN: lambda steps: pf.evolve(euler, on_device, start=RELAXED, time=steps * dt).block_until_ready(),
        ROLL: lambda steps: run_roll(params, on_device, steps).block_until_ready(),
    }
    if find_spec("numba"):
        buffers = [np.empty_like(eta) for _ in range(2)]
        runs[NUMBA] = lambda steps: run_numba(params, eta, buffers, steps, params.dt)
        runs[PLAIN] = lambda steps: run_numba(params, eta, buffers, steps, params.dt, np.float32(0))
    if find_spec("torch"):
        runs[TORCH] = torch_runner(params, eta)
    return runs


def race(params: AllenCahn, eta: np.ndarray, steps: int, rounds: int) -> dict[str, tuple[np.ndarray, float]]:
    """Seconds of each contender in each round, one after another, and its distance from the Numba loop or else mdn."""
    runs = contenders(params, eta)
    ends = {name: np.array(run(steps)) for name, run in runs.items()}
    standard = ends.get(NUMBA, ends[MDN])
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(timed(run, steps)[0])
    return {name: (np.array(seconds[name]), float(np.abs(end - standard).max())) for name, end in ends.items()}


# ---- the parts


def rates(*, sides=(512, 256), steps=120, rounds=8, grown=100.0) -> Table:
    """Million cell updates a second, all orders counted."""
    rows, targets = [], {}
    for side in sides:
        params = AllenCahn(shape=(side, side))
        fields = {
            "random": 0.3 * np.random.default_rng(0).random((ORDERS, side, side), np.float32),
            "grown": grown_fields(params, side * side // 1024, grown),
        }
        for kind, eta in fields.items():
            seconds = race(params, eta, steps, rounds)
            for name, (times, difference) in seconds.items():
                rate = eta.size * steps / times / 1e6
                share = float(np.median(seconds[NUMBA][0] / times)) if NUMBA in seconds else None
                rows.append([kind, side, name, float(rate.max()), float(np.median(rate)), share, difference])
            for rival, wanted in ((NUMBA, 0.8), (ROLL, 10)):
                if rival in seconds:
                    ratio = float(np.median(seconds[rival][0] / seconds[MDN][0]))
                    targets[f"{kind}, {side}: mdn over {rival} at least {wanted}"] = ratio
    columns = ["fields", "side", "method", "best (M/s)", "median (M/s)", "of Numba", "largest difference"]
    targets["largest difference at most 1e-4"] = max(row[-1] for row in rows)
    return {"columns": columns, "rows": rows, "targets": targets}


def accuracy(*, side=256, n_grains=64, time=100.0, repeats=3) -> Table:
    """Seconds from the relaxed start to a grown structure; the reference is second order and 16 times finer."""
    params = AllenCahn(shape=(side, side))
    start = np.asarray(pf.evolve(params, sharp_fields(params, n_grains), time=RELAXED))
    span = time - RELAXED

    def grown(fields=start, **changes):
        method = AllenCahn(shape=params.shape, **changes)
        return lambda: pf.evolve(method, fields, start=RELAXED, time=span).block_until_ready()

    with jax.enable_x64(True):
        finest, doubled = AllenCahn().max_dt / 16, start.astype(np.float64)
        reference = np.array(grown(doubled, stages=4, dt=finest)())
        finer_euler = np.array(grown(doubled, stages=1, dt=finest)())
    least, buffers = math.ceil(span / params.dt - 1e-9), [np.empty_like(start) for _ in range(2)]

    def rival(finer=1):
        return run_numba(params, start, buffers, finer * least, span / (finer * least))

    rows, methods = [], {MDN: grown(stages=1)} | {f"mdn, {n} stages": grown(stages=n) for n in (4, 6, 8)}
    if find_spec("numba"):
        methods["Numba loop, Euler"] = rival

    def measure(name, method):
        end, seconds = np.array(method()), min(timed(method)[0] for _ in range(repeats))
        rows.append([name, seconds, *distance(end, reference)])

    for name, method in methods.items():
        measure(name, method)
    if find_spec("numba"):  # Euler's error goes with its step: as accurate as 6 stages
        finer = math.ceil(rows[0][-1] / rows[2][-1])
        measure(f"Numba loop, Euler, {finer} times the steps", partial(rival, finer))
    rows.append(["mdn, Euler, dt = max/16, float64", None, *distance(finer_euler, reference)])
    columns = ["method", "best (s)", "labels that differ (%)", "rms of the difference"]
    return {"columns": columns, "rows": rows, "targets": {}, "orders": len(start)}


def grains(*, side=1024, counts=(100, 1000), time=40.0, repeats=3) -> Table:
    """The whole of `grow`, tessellation and colouring included."""
    params, rows = AllenCahn(shape=(side, side)), []
    for count in counts:
        grow = partial(pf.grow, params, n_grains=count, key=jax.random.key(0))
        grow(time=time)
        start = min(timed(grow, time=0.0)[0] for _ in range(repeats))
        seconds = min(timed(grow, time=time)[0] for _ in range(repeats))
        orders = 4 * math.ceil(len(sharp_fields(params, count)) / 4)
        rows.append([count, orders, start, seconds, seconds / (side * side * time) * 1e9])
    columns = ["grains", "orders", "start alone (s)", "all (s)", "ns a cell and time unit"]
    ratio = rows[-1][3] / rows[0][3]
    return {"columns": columns, "rows": rows, "targets": {"cost of many over few grains at most 1.3": ratio}}


def many(*, side=256, n_grains=64, time=390.0, runs=150, few=10, wanted=3000) -> Table:
    """Structures of their own key each, in processes that start and compile within the time taken."""
    cores = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
    grow, rows = partial(grow_each, AllenCahn(shape=(side, side)), n_grains, time), []
    for places, n in (([[core] for core in cores] or [[], []], runs), ([cores], few)):
        began = clock.perf_counter()
        pending = [apart(place, grow, range(i, n, len(places)), platform="cpu") for i, place in enumerate(places)]
        workers = [future.result() for future in pending]
        wall = clock.perf_counter() - began
        later = float(np.mean([seconds for worker in workers for seconds, _ in worker[1:]])) / len(places)
        left = float(np.mean([count for worker in workers for _, count in worker]))
        rows.append([len(places), max(map(len, places)), n, wall, later, left, (wall + (wanted - n) * later) / 60])
    columns = ["processes", "cores of each", "structures", "wall (s)", "s a later structure", "grains left"]
    columns.append(f"{wanted}, EXTRAPOLATED (min)")
    targets = {f"{runs} structures in s, at most {3600 / wanted * runs:g}": rows[0][3]}
    return {"columns": columns, "rows": rows, "targets": targets}


def precision(*, side=256, n_grains=64, times=(100.0, 390.0)) -> Table:
    """The same structure grown in both."""
    columns, key = ["time", "labels that agree (%)", "grains, float32", "grains, float64"], jax.random.key(0)
    grow = partial(pf.coarsen, AllenCahn(shape=(side, side)), n_grains=n_grains, times=list(times), key=key)
    single = grow()
    with jax.enable_x64(True):
        double = grow()
    if (single[0].order.dtype, double[0].order.dtype) != (np.float32, np.float64):
        raise TypeError("the two were not grown in the precisions that they are compared for")
    rows = [
        [time, 100 * float(np.mean(s.labels == d.labels)), s.n_grains, d.n_grains]
        for time, s, d in zip(times, single, double, strict=True)
    ]
    targets = {f"t = {time:g}: labels that agree at least 99.9 %": share for time, share, *_ in rows}
    return {"columns": columns, "rows": rows, "targets": targets}


def large(*, side=2048, n_grains=2000, time=20.0) -> Table:
    """In a process of its own, whose peak memory is then that of this structure; compilation included."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    seconds, left, memory = apart(cores, grow_one, AllenCahn(shape=(side, side)), n_grains, time).result()
    columns = ["side", "grains at the start", "grains left", "time", "seconds", "peak memory (GB)"]
    return {"columns": columns, "rows": [[side, n_grains, left, time, seconds, memory / 1e9]], "targets": {}}


def floor(*, side=512, steps=120, rounds=4, megabytes=128) -> Table:
    """A step has to read and to write each field once; what is moved, at what share of the bandwidth."""
    params, backend = AllenCahn(shape=(side, side), stages=1), jax.default_backend()
    eta = 0.3 * np.random.default_rng(0).random((ORDERS, side, side), np.float32)
    least, fields = 2 * eta.nbytes, jnp.asarray(eta)
    # XLA counts the body of a loop once, so a stage is compiled on its own: with the halo of twelve, in caches too
    rows, width = (n + 24 for n in params.shape)
    stage = jax.jit(lambda cells: cells[:, width:-width] + params.dt * pf._rate(params, cells, width))
    stage = stage.lower(jax.ShapeDtypeStruct((ORDERS, rows * width), np.float32)).compile()
    facts = {
        "floor (MB a step)": least / 1e6,
        "mdn, loads and stores of a stage, most of them in caches (MB)": stage.cost_analysis()["bytes accessed"] / 1e6,
    }
    measured = {name: seconds.min() / steps for name, (seconds, _) in race(params, eta, steps, rounds).items()}
    if backend != "cpu":
        _, tau, pull = pf._plan(params, 12 * params.dt, 1)
        halos = [
            timed(lambda: pf._advance(params, fields, steps, tau, pull).block_until_ready()) for _ in range(rounds)
        ]
        measured[f"{MDN}, fields left on the {backend}"] = min(seconds for seconds, _ in halos) / (12 * steps)
        facts[f"bandwidth of the {backend} (GB/s)"] = bandwidth = device_bandwidth(megabytes)
    elif find_spec("numba"):
        facts["bandwidth, triad beyond the caches (GB/s)"] = bandwidth = triad(megabytes)
        facts["bandwidth, triad of arrays as large as the fields (GB/s)"] = triad(eta.nbytes / 2**20)
    else:
        bandwidth = None
    rows = [
        [name, 1e3 * seconds, least / seconds / 1e9, bandwidth and least / seconds / 1e9 / bandwidth]
        for name, seconds in measured.items()
    ]
    columns = ["method", "ms a step", "floor (GB/s)", "of the bandwidth"]
    return {"columns": columns, "rows": rows, "targets": {}, "facts": facts}


# ---- what the parts share


def timed(function: Callable, *args, **kwargs) -> tuple[float, object]:
    """Seconds, and what came of it."""
    start = clock.perf_counter()
    result = function(*args, **kwargs)
    return clock.perf_counter() - start, result


def sharp_fields(params: AllenCahn, n_grains: int, n_orders: int | None = None) -> np.ndarray:
    """A coloured Voronoi start; with `n_orders`, coloured for as wide a gap as these allow."""
    labels, gap = pf.voronoi(params.shape, n_grains, key=jax.random.key(0)), pf.COLOUR_GAP * math.sqrt(params.kappa)
    gaps = [gap] if n_orders is None else [gap * wider for wider in (2, 1.75, 1.5, 1.25, 1, 0.75, 0.5)]
    colours = next(c for c in (pf.colour_grains(labels, g) for g in gaps) if not n_orders or c.max() < n_orders)
    return (colours[labels] == np.arange(n_orders or colours.max() + 1)[:, None, None]).astype(np.float32)


def grown_fields(params: AllenCahn, n_grains: int, time: float) -> np.ndarray:
    """Fields of a real structure: flat inside, and tails that fall to nothing."""
    return np.array(pf.evolve(params, sharp_fields(params, n_grains, ORDERS), time=time))


def distance(end: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Share of cells, in per cent, with another largest field; rms of the fields' difference."""
    differ = 100 * float(np.mean(end.argmax(0) != reference.argmax(0)))
    return differ, float(np.sqrt(np.mean((end - reference) ** 2)))


def apart(cores: list[int], function: Callable, *args, platform: str | None = None) -> Future:
    """Call in a new process that has these cores from its first instruction on, so that its JAX sees no others."""
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    before, asked = os.sched_getaffinity(0) if cores else None, os.environ.get("JAX_PLATFORMS")
    try:
        if cores:
            os.sched_setaffinity(0, cores)
        if platform:
            os.environ["JAX_PLATFORMS"] = platform
        future = pool.submit(function, *args)
    finally:
        if cores:
            os.sched_setaffinity(0, before)
        if platform:
            os.environ.pop("JAX_PLATFORMS")
            os.environ |= {"JAX_PLATFORMS": asked} if asked else {}
    pool.shutdown(wait=False)
    return future


def grow_each(params: AllenCahn, n_grains: int, time: float, keys: range) -> list[tuple[float, int]]:
    """Seconds and grains left of each structure."""
    grow = partial(pf.grow, params, n_grains=n_grains, time=time)
    grown = (timed(lambda key: grow(key=key), jax.random.key(i)) for i in keys)
    return [(seconds, structure.n_grains) for seconds, structure in grown]


def grow_one(params: AllenCahn, n_grains: int, time: float) -> tuple[float, int, int]:
    """Seconds, grains left, and the peak memory of this process in bytes."""
    ((seconds, left),) = grow_each(params, n_grains, time, range(1))
    status = Path("/proc/self/status")
    if status.exists():  # a child's ru_maxrss starts at what its parent held
        return seconds, left, 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return seconds, left, peak * (1 if sys.platform == "darwin" else 1024)


def triad(megabytes: float) -> float:
    """GB/s of a = b + s c on all threads, three arrays; what a write fetches first is not counted."""
    from numba import njit, prange

    @njit(parallel=True, fastmath=True)
    def add(a, b, c, s):
        for i in prange(a.size):
            a[i] = b[i] + s * c[i]

    a, b, c = (np.ones(int(megabytes * 2**18), np.float32) for _ in range(3))
    return 3 * a.nbytes / min(timed(add, a, b, c, np.float32(3))[0] for _ in range(10)) / 1e9


def device_bandwidth(megabytes: float) -> float:
    """GB/s of x + 1 on a large array, on the default backend."""
    x, add = jnp.ones(int(8 * megabytes * 2**18), jnp.float32), jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / min(timed(lambda: add(x).block_until_ready())[0] for _ in range(10)) / 1e9


PARTS = {part.__name__: part for part in (rates, accuracy, grains, many, precision, large, floor)}
QUICK = {
    "rates": {"sides": (64,), "steps": 24, "rounds": 2, "grown": 10.0},
    "accuracy": {"side": 64, "n_grains": 8, "time": 10.0, "repeats": 1},
    "grains": {"side": 128, "counts": (5, 20), "time": 6.0, "repeats": 1},
    "many": {"side": 64, "n_grains": 8, "time": 10.0, "runs": 4, "few": 2},
    "precision": {"side": 64, "n_grains": 8, "times": (10.0, 20.0)},
    "large": {"side": 256, "n_grains": 30, "time": 6.0},
    "floor": {"side": 64, "steps": 24, "rounds": 2, "megabytes": 4},
}


if __name__ == "__main__":
    run_parts("phase_field", __doc__, PARTS, QUICK, ("numba", "torch"))
