"""Seconds a micrograph: `python -m benchmarks.inference`, or some of its parts by name.

speed: the network beside PyTorch's of the same architecture and weights, its batch norms folded too, and beside
classical filters; in turn, on the same image, outputs compared. First calls, which compile, are of a fresh process.
profile: how near the network comes to the machine's fastest matrix product, whose multiplications it is made of.
sizes: images of many sizes one after another; how many of them compile.
large: 100 megapixels from disk to disk, with the memory over time. deviation: what one pass with the attention of some
tiles changes. Writes benchmarks/results/inference.json. PyTorch is left out, loudly, where it is not installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np

import mdn
from benchmarks.parts import Table, run_parts
from mdn.baselines import BASELINES
from mdn.synthesis import stand_in

KEY = jax.random.key(0)


def first_call(size: int) -> float:
    """Seconds of the first denoised image of a fresh process, compilation included, import left out."""
    code = (
        "import time, jax, mdn; from mdn.synthesis import stand_in; "
        f"image = stand_in('etched', ({size}, {size}), key=jax.random.key(0)); model = mdn.load_denoiser(); "
        "start = time.perf_counter(); model.restore(image); print(time.perf_counter() - start)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return float(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout
    )


def speed(sizes: tuple[int, ...] = (256, 512, 1024), repeats: int = 5) -> Table:
    """Network, PyTorch's and classical filters, in turn on the same image."""
    rows, targets = [], {}
    denoiser = mdn.load_denoiser()
    for size in sizes:
        image = stand_in("etched", (size, size), key=KEY)
        seen = mdn.network.stretch(image)
        methods = {"network": partial(denoiser.restore, image)}
        if find_spec("torch"):
            from benchmarks.pytorch import Network

            methods["network, PyTorch"] = partial(Network(denoiser.network).fold().restore, seen)
        if size == max(sizes):
            methods |= {
                n: partial(b.apply, image, b.grid[len(b.grid) // 2]) for n, b in BASELINES.items() if n != "BM3D"
            }
        seconds, outputs = {name: [] for name in methods}, {}
        for _ in range(repeats + 1):
            for name, method in methods.items():
                start = time.perf_counter()
                outputs[name] = method()
                seconds[name].append(time.perf_counter() - start)
        later = {name: float(np.median(s[1:])) for name, s in seconds.items()}
        first = first_call(size)
        rows += [
            [size, name, first if name == "network" else None, value, value / image.size * 1e6]
            for name, value in later.items()
        ]
        targets[f"{size} px: first call of a process (s), below 8"] = first
        if "network, PyTorch" in methods:
            ratio = [a / b for a, b in zip(seconds["network"][1:], seconds["network, PyTorch"][1:], strict=True)]
            targets[f"{size} px: seconds over PyTorch's, median of {repeats} rounds, at most 0.7 at 1024"] = float(
                np.median(ratio)
            )
            difference = np.abs(outputs["network"] - outputs["network, PyTorch"]).max()
            targets[f"{size} px: largest difference to PyTorch's output"] = float(difference)
    columns = ["px a side", "method", "first call (s)", "later calls, median (s)", "s a megapixel"]
    return {"columns": columns, "rows": rows, "targets": targets}


def profile(size: int = 1024, product: int = 2048, repeats: int = 7) -> Table:
    """Why not faster: beside the network its convolutions, each in its own memory, and the fastest matrix products."""
    denoiser = mdn.load_denoiser()
    image, config = stand_in("etched", (size, size), key=KEY), denoiser.network.config
    cells, ends, width = size // config.scale, config.scale**2, config.width
    channels = [(ends, width), *[(width, width)] * (2 * config.blocks + 3), (width, ends)]
    work = sum(2 * 9 * a * b for a, b in channels) * cells**2 / 1e9
    rng = np.random.default_rng(0)
    x = {n: rng.normal(size=(1, cells, cells, n)).astype(np.float32) for n in {ends, width}}
    kernels = {pair: rng.normal(size=(3, 3, *pair)).astype(np.float32) for pair in set(channels)}
    ours, ours_kernels = jax.device_put(x), jax.device_put(kernels)
    a = rng.normal(size=(product, product)).astype(np.float32)
    convolution, multiplied = jax.jit(mdn.network.conv3x3), jax.jit(jax.numpy.matmul)
    methods = {
        "network": (work, lambda: denoiser.restore(image)),
        "its convolutions, one by one": (
            work,
            lambda: [convolution(ours[p[0]], ours_kernels[p]).block_until_ready() for p in channels],
        ),
        "matrix product, XLA": (2 * product**3 / 1e9, lambda: multiplied(a, a).block_until_ready()),
        "matrix product, NumPy": (2 * product**3 / 1e9, lambda: a @ a),
    }
    if find_spec("torch"):
        import torch

        from benchmarks.pytorch import Network

        theirs, seen = Network(denoiser.network).fold(), mdn.network.stretch(image)
        last = {"memory_format": torch.channels_last}
        maps = {n: torch.from_numpy(value).permute(0, 3, 1, 2).contiguous(**last) for n, value in x.items()}
        theirs_kernels = {p: torch.from_numpy(k).permute(3, 2, 0, 1).contiguous(**last) for p, k in kernels.items()}
        convolve = partial(torch.nn.functional.conv2d, padding=1)
        one_by_one = lambda: [convolve(maps[p[0]], theirs_kernels[p]) for p in channels]  # noqa: E731
        methods |= {
            "network, PyTorch": (work, lambda: theirs.restore(seen)),
            "its convolutions, one by one, PyTorch": (work, one_by_one),
        }
    seconds = {name: [] for name in methods}
    for _ in range(repeats + 1):
        for name, (_, method) in methods.items():
            start = time.perf_counter()
            method()
            seconds[name].append(time.perf_counter() - start)
    later = {name: float(np.median(s[1:])) for name, s in seconds.items()}
    rows = [[name, methods[name][0], later[name], methods[name][0] / later[name]] for name in methods]
    fastest = max(row[3] for row in rows if "product" in row[0])
    targets = {"network's GFLOP a second over the fastest matrix product's": rows[0][3] / fastest}
    if "network, PyTorch" in later:
        wanted = work / (0.7 * later["network, PyTorch"])
        targets["GFLOP a second that 0.7 of PyTorch's time takes, over the fastest matrix product's"] = wanted / fastest
    return {"columns": ["what", "GFLOP", "s, median", "GFLOP a second"], "rows": rows, "targets": targets}


def sizes(count: int = 30, side: tuple[int, int] = (150, 700)) -> Table:
    """Images of random sizes, one after another: those that compile take longer."""
    denoiser, rng, rows = mdn.load_denoiser(), np.random.default_rng(0), []
    for number in range(count):
        shape, before = tuple(int(n) for n in rng.integers(*side, 2)), mdn.inference._restore._cache_size()
        image = rng.uniform(size=shape).astype(np.float32)
        start = time.perf_counter()
        denoiser.restore(image)
        seconds = time.perf_counter() - start
        rows.append([number, f"{shape[0]} x {shape[1]}", seconds, mdn.inference._restore._cache_size() > before])
    targets = {f"of {count} sizes, compiled": sum(row[-1] for row in rows)}
    return {"columns": ["image", "shape", "seconds", "compiled"], "rows": rows, "targets": targets}


def deviation(side: int = 2800, largest: int = 128) -> Table:
    """The attention of some tiles against that of all, on micrographs of uneven kinds; grey levels of [0, 1]."""
    denoiser, rows = mdn.load_denoiser(), []
    for kind in mdn.synthesis.STAND_INS:
        parts = [stand_in(kind, (512, 512), key=jax.random.fold_in(KEY, n)) for n in range(4)]
        image = np.tile(np.block([parts[:2], parts[2:]]), (-(-side // 1024),) * 2)[:side, :side]
        image = np.ascontiguousarray(image * np.linspace(0.6, 1, side, dtype=np.float32))  # darker to the left
        outputs = [denoiser.restore(image, exact=exact, largest=largest) for exact in (True, False)]
        difference = np.abs(outputs[0] - outputs[1])
        rows.append([kind, float(difference.mean()), float(np.quantile(difference, 0.999)), float(difference.max())])
    return {"columns": ["stand-in", "mean", "99.9 %", "largest"], "rows": rows, "targets": {}}


def large(megapixels: int = 100, exact: bool = False) -> Table:
    """A TIFF of that many megapixels, in a process of its own: seconds, and resident memory (GB) over time."""
    side, rows = round((megapixels * 1e6) ** 0.5), []
    with tempfile.TemporaryDirectory() as folder:
        part = stand_in("etched", (1000, 1000), key=KEY)
        source, target = Path(folder) / "a.tif", Path(folder) / "b.tif"
        image = (np.tile(part, (-(-side // 1000),) * 2)[:side, :side] * 255).astype(np.uint8)
        mdn.write_micrograph(source, image)
        code = f"import mdn; mdn.denoise_large({str(source)!r}, {str(target)!r}, exact={exact}, progress=False)"
        start = time.perf_counter()
        child = subprocess.Popen([sys.executable, "-c", code])
        peak = 0.0
        while child.poll() is None:
            status = Path(f"/proc/{child.pid}/status")
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.exists() else {}
            held, own, peak = (
                (float(fields.get(n, "0").split()[0]) / 1e6 for n in ("VmRSS", "RssAnon", "VmHWM"))
                if fields.get("VmRSS")
                else (0.0, 0.0, peak)
            )
            rows.append([round(time.perf_counter() - start, 1), held, own, peak])
            time.sleep(1)
        seconds = time.perf_counter() - start
        if child.returncode:
            raise RuntimeError(f"denoise_large ended with {child.returncode}")
        assert mdn.read_micrograph(target).pixels.shape == image.shape
    kept = rows[:: max(1, len(rows) // 60)]
    peak = max(row[3] for row in rows)
    targets = {"seconds": seconds, "s a megapixel": seconds / megapixels, "peak memory (GB), below 3": peak}
    columns = ["second", "resident (GB)", "of it not of mapped files (GB)", "peak so far (GB)"]
    return {"columns": columns, "rows": kept, "targets": targets}


PARTS = {part.__name__: part for part in (speed, profile, sizes, deviation, large)}
QUICK = {
    "speed": {"sizes": (64,), "repeats": 1},
    "profile": {"size": 64, "product": 64, "repeats": 1},
    "sizes": {"count": 4, "side": (40, 90)},
    "deviation": {"side": 300, "largest": 64},
    "large": {"megapixels": 1},
}


if __name__ == "__main__":
    run_parts("inference", __doc__, PARTS, QUICK, ("torch",))
