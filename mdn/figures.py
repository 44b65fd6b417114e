"""One function a figure (Figs. 1-4 and what the notebooks show beside them): data in, Figure out.

No I/O, no state: a Figure belongs to no pyplot window, so a notebook shows it once, as the value of a cell, and
nothing is left to close. Images are [H, W] or [H, W, 3], floats in [0, 1] or unsigned integers, always drawn
between black = 0 and white = 1; what is no such image raises ValueError.
"""

from __future__ import annotations

import functools
import io
import math
import threading
from collections.abc import Sequence

import numpy as np
from cycler import cycler
from flax import nnx
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Patch, Polygon
from matplotlib.ticker import LogLocator, NullFormatter
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from scipy import ndimage

WIDTH = 9.0  # inches; 1080 px
# Okabe and Ito's colours, told apart under every kind of colour blindness, and five of them pale
BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, INK = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#222222")  # fmt: skip
CONV, NORM, ACT, ATTENTION, DROP = "#BBD7EA", "#E3E3E3", "#CDE8DD", "#F7DDA8", "#EBCFDE"
STYLE = {
    "figure.dpi": 120, "figure.facecolor": "white", "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8, "legend.frameon": False,
    "axes.titlelocation": "left", "axes.titlepad": 4, "axes.spines.top": False, "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=(BLUE, RED, GREEN, ORANGE, PINK, SKY, INK)), "lines.linewidth": 1.6,
    "lines.markersize": 4, "image.cmap": "gray", "mathtext.fontset": "stix", "axes.linewidth": 0.8,
}  # fmt: skip

DRAWING = threading.RLock()  # a demo draws in a thread while cells draw, and matplotlib's settings are global


class NotebookFigure(Figure):
    """A Figure that shows itself in a notebook whatever matplotlib's backend is."""

    def draw(self, renderer) -> None:
        with DRAWING:
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        return self.png()

    def png(self, *, dpi: float | int | str = "figure", level: int = 6) -> bytes:
        """The page as a PNG file; at compression level 1 it is some 5 % larger and made in half the time."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=dpi, pil_kwargs={"compress_level": level})
        return buffer.getvalue()


def _styled(plot):
    @functools.wraps(plot)
    def styled(*args, **options):
        with DRAWING, rc_context(STYLE):
            return plot(*args, **options)

    return styled


def _unit(image, name: str = "image") -> np.ndarray:
    """The image as floats in [0, 1]; an unsigned integer's largest value is white."""
    image = np.asarray(image)
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 3)) or not image.size:
        raise ValueError(f"{name}: shape {image.shape}; accepted: [H, W] or [H, W, 3], not empty")
    white = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1
    return np.clip(image.astype(np.float32) / white, 0, 1)


def _grid(n: int, columns: int, shape, *, bar: float = 0.0, foot: float = 0.0) -> tuple[Figure, np.ndarray]:
    """Axes for `n` images of `shape`, as high as they need; inches are left for a colour bar and a legend."""
    columns = min(n, columns)
    rows, width = math.ceil(n / columns), min(WIDTH, 4.6 * columns)
    height = rows * ((width - bar) / columns * shape[0] / shape[1] + 0.23) + foot
    fig = NotebookFigure(figsize=(width, height), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[n:]:
        ax.set_axis_off()
    return fig, axes[:n]


def _draw(ax: Axes, image, title: str = "", *, um_per_px: float | int | None = None, **options):
    """An image without ticks, with a scale bar where it has a calibration."""
    drawn = ax.imshow(image, **({"vmin": 0, "vmax": 1} | options))
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title)
    if um_per_px:
        room = image.shape[1] * um_per_px / 3
        decade = 10.0 ** math.floor(math.log10(room))
        um = next(m * decade for m in (5, 2, 1) if m * decade <= room)
        thick = image.shape[1] / 90
        bar = AnchoredSizeBar(ax.transData, um / um_per_px, f"{um:g} µm", 4, pad=0.4, sep=4, size_vertical=thick)
        bar.patch.set(alpha=0.85, linewidth=0)
        ax.add_artist(bar)
    return drawn


def _from_one(field: np.ndarray) -> tuple[float, float, float, float]:
    """The extent of an image whose rows and columns are counted from 1, as people count blocks and channels."""
    return 0.5, field.shape[1] + 0.5, field.shape[0] + 0.5, 0.5


def _edges(labels: np.ndarray) -> np.ndarray:
    return (labels != np.roll(labels, 1, 0)) | (labels != np.roll(labels, 1, 1))


@_styled
def plot_micrograph(
    image, *, title: str | None = None, um_per_px: float | int | None = None, ax: Axes | None = None
) -> Figure:
    """One micrograph, with a scale bar if `um_per_px` (um per pixel) is given."""
    image = _unit(image)
    ax = _grid(1, 1, image.shape)[1][0] if ax is None else ax
    _draw(ax, image, title or "", um_per_px=um_per_px)
    return ax.figure


@_styled
def plot_structures(structures: Sequence) -> Figure:
    """Grown structures (`Grains`) in a row: sum of eta squared, 1 in a grain and less on a boundary (Fig. 1a)."""
    fig, axes = _grid(len(structures), 5, structures[0].order.shape)
    for ax, grains in zip(axes, structures, strict=True):
        sharp = np.ptp(grains.order) < 0.01  # the start is 1 everywhere: its boundaries have no width yet
        order = np.where(_edges(grains.labels), 0.64, 1) if sharp else grains.order
        _draw(ax, order, f"time {grains.time:g}, {grains.n_grains} grains")
    if len(structures) == 1:
        dark = (
            "boundaries, without a width yet" if sharp else f"boundaries and junctions, Ση² down to {order.min():.2f}"
        )
        ax.set_xlabel("{1} × {0} cells; dark: {2}".format(*order.shape, dark))
    return fig


@_styled
def plot_coarsening(
    structures: Sequence, *, now: int | None = None, law: Sequence | None = None, stacked: bool = False
) -> Figure:
    """Free energy (A2, in alpha dx^2) and mean grain area (cells) of grown structures against time.

    now: which of the structures to mark. law: (A_0, k, from, to) of the parabolic law A = A_0 + k t, fitted between
    two times. stacked: one panel above the other.
    """
    fig = NotebookFigure(figsize=(4.6, 4.95) if stacked else (WIDTH, 3), layout="constrained")
    time, energy = [grains.time for grains in structures], [grains.energy for grains in structures]
    area = [grains.labels.size / grains.n_grains for grains in structures]
    panels = ("Free energy", "energy F (α dx²)", energy, BLUE), ("Mean grain area", "area (cells)", area, RED)
    axes = fig.subplots(*((2, 1) if stacked else (1, 2)))
    for ax, (title, name, values, colour) in zip(axes, panels, strict=True):
        ax.plot(time, values, "o-", color=colour)
        later = [value for value, t in zip(values, time, strict=True) if t > 0] or values
        ax.set(title=title, ylabel=name, xlabel="time (1/(Lα))", ylim=(0, 1.08 * max(*later, 1e-9)))
        if values[0] > 2 * max(later):  # the sharp start's energy, which is no interface's
            ax.set_title(f"at time 0, sharp: {values[0]:.0f}", loc="right", size=8)
        if now is not None:
            ax.plot(time[now], values[now], "o", color=INK, markersize=11, fillstyle="none", mew=2)
            ax.axvline(time[now], color=INK, lw=0.8, ls=":", zorder=0)
    if law is not None:
        start, rate, *span = law
        name = f"parabolic law ⟨A⟩ = A₀ + k t, k = {rate:.2g} Lα dx²"
        axes[1].plot(time, [start + rate * t for t in time], color=INK, lw=1, ls="--", label=name)
        axes[1].axvspan(*span, color="#EEEEEE", zorder=-1, label="where it is fitted")
        axes[1].legend(loc="lower right")
    return fig


@_styled
def plot_verification(
    flat: dict, circle: dict, junctions: dict, manufactured: dict, sides: dict, crowd: dict
) -> Figure:
    """Solver against theory, from the data of `verification`: dots and colours are measured, thin black is theory.

    flat, circle: by gamma; manufactured: by the name of the method; the others as they come.
    """
    fig = NotebookFigure(figsize=(WIDTH, 5.2), layout="constrained")
    axes = fig.subplots(2, 4).ravel()
    law = {"color": INK, "linewidth": 1, "zorder": 3}
    for (gamma, found), colour, mark in zip(flat.items(), (BLUE, RED), "os", strict=False):
        axes[0].plot(found["x"][::4], found["profile"][::4], mark, color=colour, label=f"γ = {gamma:g}")
    axes[0].plot(found["x"], (1 + np.tanh(found["x"] / math.sqrt(2))) / 2, **law, label="tanh")
    axes[0].set(title="(a) flat boundary", xlabel="x / √κ", ylabel="η", xlim=(-4, 4))
    for (gamma, found), colour, mark in zip(circle.items(), (BLUE, RED), "os", strict=False):
        axes[1].plot(found["time"], found["area"], mark, color=colour, label=f"γ = {gamma:g}")
    axes[1].plot(found["time"], found["law"], **law, label="A₀ − 2πLκt")
    axes[1].set(title="(b) circle", xlabel="time (1/(Lα))", ylabel="area (dx²)", ylim=(0, None))
    _draw(axes[2], junctions["order"], "(c) junctions at 120°", vmin=0.45)
    axes[3].plot(sides["sides"], sides["rate"], "o", color=BLUE, alpha=0.35, markeredgewidth=0, label="one grain")
    n = np.array([sides["sides"].min(), sides["sides"].max()])
    axes[3].plot(n, sides["offset"] + sides["slope"] * (n - 6), "--", color=RED, label="fit")
    axes[3].plot(n, sides["law"] * (n - 6), **law, label="π/3 Lκ (n − 6)")
    axes[3].set(title="(d) von Neumann-Mullins", xlabel="sides n", ylabel="dA/dt (Lα dx²)")
    for (name, found), colour, mark in zip(manufactured.items(), (BLUE, RED), "os", strict=False):
        axes[4].loglog(found["h"], found["error"], mark, color=colour, label=name)
    first = next(iter(manufactured.values()))
    h = first["h"]
    axes[4].loglog(h, first["error"][-1] * (h / h[-1]) ** 2, **law, label="slope 2")
    axes[4].set(title="(e) PFHub 7a", xlabel="grid spacing h", ylabel="L2 error", ylim=(1e-4, 3e-2))
    axes[4].set_xticks(h, [f"1/{1 / x:.0f}" for x in h])
    axes[4].minorticks_off()
    axes[5].plot(crowd["time"], crowd["energy"] / 1e3, "o-", color=BLUE)
    axes[5].set(title="(f) energy", xlabel="time (1/(Lα))", ylabel="energy F (10³ α dx²)", ylim=(0, None))
    axes[6].plot(crowd["time"], crowd["area"], "o", color=BLUE, label="mean area")
    axes[6].plot(crowd["time"], crowd["fit"], **law, label="straight line")
    axes[6].set(title="(g) mean grain area", xlabel="time (1/(Lα))", ylabel="area (cells)", ylim=(0, None))
    for name, colour, style in (("early", BLUE, "-"), ("late", RED, "--")):
        label, bins = f"{name}, {len(crowd[name])} grains", np.arange(0, 2.51, 0.25)
        axes[7].hist(crowd[name], bins, density=True, histtype="step", color=colour, lw=1.6, ls=style, label=label)
    axes[7].set(title="(h) grain sizes", xlabel="R / ⟨R⟩", ylabel="probability density", xlim=(0, 2.5))
    axes[7].set_ylim(0, 1.45 * axes[7].get_ylim()[1])
    for ax in axes[[0, 1, 3, 4, 6, 7]]:
        ax.legend(handlelength=1.2, borderpad=0, labelspacing=0.3)
    return fig


@_styled
def plot_colouring(labels: np.ndarray, colours: np.ndarray) -> Figure:
    """Grains (labels [H, W]) beside the order parameter that carries each (`colours[label]`)."""
    fig, axes = _grid(2, 2, labels.shape, bar=0.75)
    n = int(colours.max()) + 1
    few = ListedColormap([SKY, ORANGE, GREEN, YELLOW, BLUE, RED, PINK, "#999999"][:n])
    palette = few if n <= 8 else colormaps["viridis"].resampled(n)
    shades = np.random.default_rng(0).permutation(int(labels.max()) + 1)  # neighbours bear near numbers: mix them
    _draw(axes[0], shades[labels], f"{len(np.unique(labels))} grains", cmap="cividis", vmax=max(len(shades) - 1, 1))
    limits = {"norm": BoundaryNorm(np.arange(n + 1) - 0.5, n), "vmin": None, "vmax": None}
    drawn = _draw(axes[1], colours[labels], f"{n} order parameters", cmap=palette, **limits)
    edges = _edges(labels)
    for ax in axes:
        ax.imshow(np.ones((*edges.shape, 3)), alpha=edges.astype(float))
    ticks = range(0, n, 1 if n <= 12 else 2)
    fig.colorbar(drawn, ax=axes[1], ticks=ticks, label="order parameter", fraction=0.05, pad=0.02)
    return fig


def _canvas(height: float) -> tuple[Figure, Axes]:
    """A page to draw on, its coordinates in inches."""
    fig = NotebookFigure(figsize=(WIDTH, height))
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, height))
    ax.set_axis_off()
    return fig, ax


def _arrow(page: Axes, *points: tuple[float, float]) -> None:
    """A line through points, with a head at the last."""
    page.plot(*np.transpose(points[:-1]), color=INK, linewidth=1.2)
    style = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
    page.annotate("", points[-1], points[-2], arrowprops=style)


def _note(page: Axes, x: float, y: float, text: str, size: float | int = 8, **options) -> None:
    page.text(x, y, text, size=size, **({"ha": "center", "va": "center", "color": INK} | options))


@_styled
def plot_pair(pair, *, um_per_px: float | int | None = None) -> Figure:
    """How a training pair (`Pair`) is made, the six panels of Fig. 1; `um_per_px` is the reference's."""
    side, gap, left, low, lane = 2.2, 0.95, 0.25, 0.55, 0.75
    tall = side * pair.clean.shape[0] / pair.clean.shape[1]
    fig, page = _canvas(low + 2 * tall + lane + 0.35)
    x, high, height = [left + i * (side + gap) for i in range(3)], low + tall + lane, fig.get_figheight()
    for title, image, start, base in (
        ("(a) phase field", pair.phase_field, x[0], high), ("(b) ground truth", pair.clean, x[1], high),
        ("(c) with defects", pair.defective, x[2], high), ("(d) blended", pair.blended, x[2], low),
        ("(e) input of the network", pair.noisy, x[1], low), ("(f) micrograph", pair.reference, x[0], low),
    ):  # fmt: skip
        ax = fig.add_axes((start / WIDTH, base / height, side / WIDTH, tall / height))
        _draw(ax, _unit(image), um_per_px=um_per_px if base == low else None)
        _note(page, start, base + tall + 0.07, title, 10, ha="left", va="baseline")
    for start, end, base, text in (
        (x[0] + side, x[1], high, "a grey for\neach grain,\ngrooves,\ntwins"),
        (x[1] + side, x[2], high, "scratches,\npits, stains,\nspeckle"),
        (x[0] + side, x[1], low, "histogram\nof f"), (x[2], x[1] + side, low, "greys\nmatched"),
    ):  # fmt: skip
        inset = math.copysign(0.1, end - start)
        _arrow(page, (start + inset, base + tall / 2), (end - inset, base + tall / 2))
        _note(page, (start + end) / 2, base + tall / 2 + 0.1, text, 9, va="bottom")
    down, middle = x[2] + 0.75 * side, (x[0] + side / 2, x[2] + side / 2)
    _arrow(page, (down, high - 0.06), (down, low + tall + 0.06))
    _note(page, down - 0.08, high - lane / 2 + 0.1, "phase of c", 9, ha="right")
    _arrow(page, (middle[0], low - 0.06), (middle[0], 0.22), (middle[1], 0.22), (middle[1], low - 0.06))
    _note(page, WIDTH / 2, 0.28, "magnitude of f, in Fourier space", 9, va="bottom")
    return fig


@_styled
def plot_combinations(structures: Sequence, references: Sequence, blends: Sequence) -> Figure:
    """Every structure (down the side) blended with every reference (along the top), [n][m] images: Fig. 2."""
    n, m = len(structures), len(references)
    if len(blends) != n or any(len(row) != m for row in blends):
        raise ValueError(f"blends: rows of {[len(row) for row in blends]}; accepted: {n} rows of {m}")
    tall = (WIDTH - 0.2) / (m + 1) * structures[0].shape[0] / structures[0].shape[1]
    fig = NotebookFigure(figsize=(WIDTH, (n + 1) * tall + 0.2), layout="constrained")
    fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    axes = fig.subplots(n + 1, m + 1, squeeze=False)
    axes[0, 0].set_axis_off()
    axes[0, 0].text(0.5, 0.5, "phase of a row,\nmagnitude of\na column", ha="center", va="center", size=8)
    for i, image in enumerate(structures, start=1):
        _draw(axes[i, 0], _unit(image))
        axes[i, 0].set_ylabel(f"structure {i}")
        axes[i, 0].spines[:].set(visible=True, color=BLUE, linewidth=2)
    for j, image in enumerate(references, start=1):
        _draw(axes[0, j], _unit(image), f"micrograph {j}")
        axes[0, j].spines[:].set(visible=True, color=RED, linewidth=2)
    for i, j in np.ndindex(n, m):
        _draw(axes[i + 1, j + 1], _unit(blends[i][j]))
    return fig


@_styled
def plot_spectrum(image: np.ndarray, reference: np.ndarray, blended: np.ndarray) -> Figure:
    """Log Fourier magnitudes [H, W], zero frequency in the middle, of c, f and d (Fig. 1): d has those of f."""
    fig, axes = _grid(3, 3, image.shape, bar=0.7)
    low, high = np.percentile(np.stack([image, reference, blended]), (1, 99.9))
    titles = "(c) its phase is taken", "(f) its magnitude is taken", "(d) blended"
    for ax, title, spectrum in zip(axes, titles, (image, reference, blended), strict=True):
        drawn = _draw(ax, spectrum, title, cmap="viridis", vmin=low, vmax=high)
    fig.colorbar(drawn, ax=axes, label="log magnitude", fraction=0.02, pad=0.01)
    return fig


@_styled
def plot_defects(panels: dict) -> Figure:
    """Contact sheet of images by name: one panel a defect (Section III.a)."""
    fig, axes = _grid(len(panels), 5, next(iter(panels.values())).shape)
    for ax, (name, image) in zip(axes, panels.items(), strict=True):
        _draw(ax, _unit(image, name), name)
    return fig


@_styled
def plot_contact_sheet(inputs: Sequence, truths: Sequence, names: Sequence[str]) -> Figure:
    """Inputs [H, W], each named and above its truth, eight to a row."""
    columns = min(len(inputs), 8)
    rows = math.ceil(len(inputs) / columns)
    ratio = inputs[0].shape[0] / inputs[0].shape[1]
    fig = NotebookFigure(figsize=(WIDTH, rows * (2 * ratio * WIDTH / columns + 0.25)), layout="constrained")
    axes = fig.subplots(2 * rows, columns, squeeze=False)
    for ax in axes.ravel():
        ax.set_axis_off()
    for n, (image, truth, name) in enumerate(zip(inputs, truths, names, strict=True)):
        row, column = divmod(n, columns)
        _draw(axes[2 * row, column], _unit(image, name))
        axes[2 * row, column].set_title(name, fontsize=7)
        _draw(axes[2 * row + 1, column], _unit(truth, name))
    return fig


def _box(page: Axes, x: float, y: float, width: float, height: float, text: str = "", fill="white", edge=INK):
    """A rounded box from its left lower corner, its text in the middle."""
    style = {"boxstyle": "round,pad=0,rounding_size=0.04", "facecolor": fill, "edgecolor": edge, "linewidth": 0.8}
    page.add_patch(FancyBboxPatch((x, y), width, height, **style))
    _note(page, x + width / 2, y + height / 2, text, 7.5, linespacing=1.1)


def _count(module: nnx.Module) -> int:
    return sum(math.prod(leaf.shape) for _, leaf in nnx.to_flat_state(nnx.state(module, nnx.Param)))


def _layers(module: nnx.Module) -> list[nnx.Module]:
    """The module's convolutions in order, each alone or in a unit with its batch norm."""
    return [child for child in vars(module).values() if hasattr(child, "conv") or hasattr(child, "kernel")]


UNIT, STEP = 0.74, 0.17  # inches: width of a layer's box, and between two of them


def _draw_layers(page: Axes, x: float, middle: float, layers: Sequence, numbers: Sequence[str]) -> float:
    """Convolutions with what follows each, sizes from their kernels; returns where the last one ends."""
    for layer, number in zip(layers, numbers, strict=False):
        height, width, inputs, outputs = getattr(layer, "conv", layer).kernel.shape
        after = [("BN", NORM, 0.24), ("LeakyReLU", ACT, 0.24)] if hasattr(layer, "norm") else [("sigmoid", ACT, 0.24)]
        parts = [(f"Conv {height}×{width}\n{inputs} → {outputs}", CONV, 0.44), *after]
        y = middle + sum(part[2] for part in parts) / 2
        for text, fill, tall in parts:
            y -= tall
            _box(page, x, y, UNIT, tall, text, fill)
        _note(page, x + UNIT / 2, y - 0.12, number, 7, color="#555555")
        x += UNIT + STEP
        if layer is not layers[-1]:
            _arrow(page, (x - STEP, middle), (x, middle))
    return x - STEP


@_styled
def plot_architecture(model: nnx.Module) -> Figure:
    """Fig. 3, drawn from the modules and kernels of a `DenoisingNetwork`; in parentheses the paper's equations."""
    fig, page = _canvas(5.5)
    blocks, head, tail = list(model.blocks), _layers(model.features), _layers(model.reconstruction)
    middle, first, last = 4.1, *(len(layers) * (UNIT + STEP) - STEP + 0.24 for layers in (head, tail))
    starts = 0.85, 0.85 + first + 0.22, WIDTH - 0.85 - last
    widths = first, starts[2] - starts[1] - 0.22, last
    sizes = sorted({_count(block) for block in blocks})
    inside = f"{len(blocks)} × {sizes[0]:,}" if len(sizes) == 1 else f"{sum(map(_count, blocks)):,}"
    counts = f"{_count(model.features):,}", inside, f"{_count(model.reconstruction):,}"
    names = "(a) Feature extraction", "(b) Information extraction", "(c) Reconstruction"
    _note(page, 0.1, 5.3, f"Denoising network, {_count(model):,} trained parameters", 11, ha="left", weight="bold")
    for x, width, name, count in zip(starts, widths, names, counts, strict=True):
        _box(page, x, 3.1, width, 1.95, fill="#F8F8F8", edge="#BBBBBB")
        _note(page, x + width / 2, 4.9, name, 9, weight="bold")
        _note(page, x + width / 2, 3.22, count + " parameters", 7.5)
    _draw_layers(page, starts[0] + 0.12, middle, head, ("(2)", "(3)"))
    _draw_layers(page, starts[2] + 0.12, middle, tail, ("(8)", "(9)", "(10)"))
    shown = range(len(blocks)) if len(blocks) <= 9 else [0, 1, 2, 3, 4, 5, None, len(blocks) - 1]
    pitch = min((widths[1] - 0.2) / len(shown), 0.5)
    left = starts[1] + (widths[1] - pitch * len(shown)) / 2
    for place, number in enumerate(shown):
        x, fill = left + pitch * place, CONV if blocks[0].attention is None else ATTENTION
        if number is None:
            _note(page, x + pitch / 2, middle, "···", 12)
        else:
            _box(page, x + 0.03, middle - 0.46, pitch - 0.06, 0.92, f"{number + 1}", fill)
            _arrow(page, (x - 0.03, middle), (x + 0.03, middle))
    _note(page, starts[1] + widths[1] / 2, middle - 0.58, "(4)–(7) each", 7, color="#555555")
    _note(page, 0.36, middle, "$I_\\mathrm{noisy}$\nh×w×1", 9)
    _note(page, WIDTH - 0.36, middle, "$I_\\mathrm{clean}$\nh×w×1", 9)
    for start, end in (
        (0.65, starts[0] + 0.12), (starts[0] + first - 0.12, left + 0.03),
        (left + pitch * len(shown) - 0.03, starts[2] + 0.12), (WIDTH - 0.97, WIDTH - 0.65),
    ):  # fmt: skip
        _arrow(page, (start, middle), (end, middle))
    x = left + 0.03, left + pitch - 0.03
    zoom = [(x[0], middle - 0.46), (x[1], middle - 0.46), (x[1], 3.1), (8.9, 2.7), (0.1, 2.7), (x[0], 3.1)]
    page.add_patch(Polygon(zoom, facecolor=ATTENTION, alpha=0.35, linewidth=0))
    _draw_block(page, blocks[0], 1.1)
    return fig


def _draw_block(page: Axes, block: nnx.Module, y: float) -> None:
    """The inside of one attention-residual block, along a line at height y."""
    layers, attention = _layers(block), block.attention
    x = 0.42 if attention else 2.2
    start, plus = x + 0.38, x + 0.96 + len(layers) * (UNIT + STEP)
    times = plus + 3.35 if attention else plus
    drop = times + 0.95
    _box(page, 0.1, 0.12, 8.8, 2.58, fill="#FFFBF2", edge="#DDBB77")
    _note(page, 0.25, 2.5, f"One block, {_count(block):,} parameters", 9, ha="left", weight="bold")
    _note(page, x, y, "$x_n$", 12)
    end = _draw_layers(page, x + 0.58, y, layers, [""] * len(layers))
    _arrow(page, (x + 0.2, y), (x + 0.58, y))
    _arrow(page, (end, y), (plus - 0.12, y))
    _arrow(page, (start, y), (start, 0.3), (plus, 0.3), (plus, y - 0.12))
    _note(page, (start + plus) / 2, 0.4, "skip")
    _note(page, plus + 0.15, y - 0.2, "$x_\\mathrm{res}$ (4)", 9, ha="left")
    if attention is not None:
        (wide, narrow), (_, back) = attention.squeeze.kernel.shape, attention.excite.kernel.shape
        gate = {"leaky_relu": "LeakyReLU"}.get(attention.gate, attention.gate)
        at, top = plus + 0.35, 2.0
        _arrow(page, (plus + 0.12, y), (times - 0.12, y))
        for text, fill, width in (
            ("GAP\nh×w → 1", NORM, 0.62), (f"$W_1$  {wide} → {narrow}\nLeakyReLU", ATTENTION, 0.82),
            (f"$W_2$  {narrow} → {back}\n{gate}", ATTENTION, 0.82),
        ):  # fmt: skip
            _arrow(page, *([(at, y), (at, top)] if fill == NORM else [(at, top)]), (at + 0.2, top))
            _box(page, at + 0.2, top - 0.23, width, 0.46, text, fill)
            at += 0.2 + width
        _arrow(page, (at, top), (times, top), (times, y + 0.12))
        _note(page, times + 0.08, 1.62, f"$y$ (5)\n{back} weights", ha="left")
        _note(page, times + 0.02, y - 0.28, "$x_\\mathrm{att}$ (6)", 9, ha="left")
    for place, sign in {plus: "+", times: "×" if attention else "+"}.items():
        page.add_patch(Circle((place, y), 0.12, facecolor="white", edgecolor=INK, linewidth=0.8))
        _note(page, place, y, sign, 10)
    _arrow(page, (times + 0.12, y), (drop, y))
    _box(page, drop, y - 0.23, 0.7, 0.46, f"Dropout\n{block.dropout.rate:g}", DROP)
    _note(page, drop + 0.35, y - 0.35, "(7)", 7, color="#555555")
    _arrow(page, (drop + 0.7, y), (drop + 0.95, y))
    _note(page, drop + 1.2, y, "$x_{n+1}$", 12)


@_styled
def plot_history(history) -> Figure:
    """Losses (Eq. 11) and validation PSNR in dB against optimiser steps (`History`), the best weights marked."""
    fig = NotebookFigure(figsize=(WIDTH, 3.1), layout="constrained")
    losses, psnr = fig.subplots(1, 2)
    losses.semilogy(history.step, history.train_loss, ".-", label="training, MSE + L2")
    losses.semilogy(history.step, history.validation_loss, ".-", label="validation, MSE")
    losses.set(xlabel="optimiser step", ylabel="loss", title="Loss")
    losses.legend()
    psnr.plot(history.step, history.validation_psnr, ".-", color=RED)
    psnr.set(xlabel="optimiser step", ylabel="PSNR (dB)", title="Validation PSNR")
    if history.step:
        step, best = history.step[history.best], history.validation_psnr[history.best]
        psnr.plot(step, best, "o", color=INK, markersize=8, fillstyle="none", label=f"best: {best:.2f} dB at {step}")
        psnr.legend(loc="lower right")
    return fig


@_styled
def plot_clock(rows: Sequence, *, goal: float | int | None = None) -> Figure:
    """Validation PSNR against minutes of training: rows (method, step, minute, dB), `goal` in dB as a line."""
    fig = NotebookFigure(figsize=(WIDTH, 3.1), layout="constrained")
    ax = fig.subplots()
    looks = ((RED, "-"), (BLUE, "--"), (INK, ":"))
    for name, (colour, dashes) in zip(dict.fromkeys(row[0] for row in rows), looks, strict=False):
        minutes, psnr = zip(*[row[2:4] for row in rows if row[0] == name], strict=True)
        ax.plot(minutes, psnr, dashes, marker=".", color=colour, label=name)
    if goal is not None:
        ax.axhline(goal, color=INK, lw=0.8, label=f"goal: {goal:.1f} dB")
    ax.set(xlabel="minutes of training", ylabel="PSNR (dB)", xscale="log", title="Validation PSNR by the clock")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend(loc="lower right")
    return fig


REMOVED, GREYS = "removed: original − denoised", "grey (white − black = 1)"


def _removed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    change = before - after
    return change if change.ndim == 2 else change.mean(-1)


def _reach(change: np.ndarray) -> float:
    """The grey at which the colours of what was removed end."""
    return max(0.05, float(np.percentile(np.abs(change), 99.5)))


@_styled
def plot_before_after(rows: Sequence[dict]) -> Figure:
    """Fig. 4: original, denoised, and what was removed, for rows {"name", "before", "after", "um_per_px"}."""
    pairs = [(_unit(row["before"], "before"), _unit(row["after"], "after")) for row in rows]
    removed = [_removed(*pair) for pair in pairs]
    limit = max(map(_reach, removed))
    heights = [before.shape[0] / before.shape[1] for before, _ in pairs]
    fig = NotebookFigure(figsize=(WIDTH, 2.7 * sum(heights) + 0.3 * len(rows)), layout="constrained")
    axes = fig.subplots(len(rows), 3, squeeze=False, height_ratios=heights)
    for line, row, (before, after), change in zip(axes, rows, pairs, removed, strict=True):
        _draw(line[0], before, row["name"], um_per_px=row.get("um_per_px"))
        _draw(line[1], after, "denoised")
        drawn = _draw(line[2], change, REMOVED, cmap="PuOr", vmin=-limit, vmax=limit)
    fig.colorbar(drawn, ax=axes[:, 2], label=GREYS, fraction=0.05, pad=0.02, aspect=30)
    return fig


@_styled
def plot_removed(before, after, *, um_per_px: float | int | None = None) -> Figure:
    """What a denoiser took from an image: `before` - `after`, purple what was too bright and orange too dark."""
    change = _removed(_unit(before, "before"), _unit(after, "after"))
    limit = _reach(change)
    fig, (ax,) = _grid(1, 1, change.shape, foot=0.75)
    drawn = _draw(ax, change, REMOVED, um_per_px=um_per_px, cmap="PuOr", vmin=-limit, vmax=limit)
    fig.colorbar(drawn, ax=ax, label=GREYS, location="bottom", fraction=0.05, pad=0.02)
    return fig


@_styled
def plot_quality(
    before,
    after,
    uncertainty: np.ndarray,
    boundaries_before: np.ndarray,
    boundaries_after: np.ndarray,
    sizes: dict,
    *,
    um_per_px: float | int | None = None,
) -> Figure:
    """One micrograph's quality at a glance: before, after, removed, uncertainty, boundaries, grain size.

    Images and uncertainty [H, W], NaN where it says nothing; boundaries bool [H, W]; sizes: {"before": {"astm_g",
    "g_low", "g_high"}, "after": ...}, or {"intercept_px", "ra_percent"} without a calibration, or nothing.
    """
    before, after = _unit(before, "before"), _unit(after, "after")
    height = (WIDTH - 0.3) / 2 * min(max(before.shape[0] / before.shape[1], 0.25), 2.0)
    heights = height + 0.25, height + 0.75, height + 0.55
    fig = NotebookFigure(figsize=(WIDTH, sum(heights) + 0.3), layout="constrained")
    fig.get_layout_engine().set(h_pad=0.1)
    axes = fig.subplots(3, 2, height_ratios=heights).ravel()
    _draw(axes[0], before, "before", um_per_px=um_per_px)
    _draw(axes[1], after, "after", um_per_px=um_per_px)
    removed = before - after
    limit = max(0.05, float(np.percentile(np.abs(removed), 99.5)))
    bar = {"location": "bottom", "fraction": 0.05, "pad": 0.02, "aspect": 50}
    drawn = _draw(axes[2], removed, "removed: before − after", cmap="PuOr", vmin=-limit, vmax=limit)
    fig.colorbar(drawn, ax=axes[2], label="grey (white − black = 1); brown: it was darker", **bar)
    top = float(np.nanpercentile(uncertainty, 99.5)) if np.isfinite(uncertainty).any() else 0.0
    drawn = _draw(axes[3], uncertainty, "uncertainty: where the network hesitates", cmap="viridis", vmax=max(top, 1e-6))
    fig.colorbar(drawn, ax=axes[3], label="grey (white − black = 1)", **bar)
    names = ("before and after", "before only", "after only")
    plot_boundaries(0.5 * after, boundaries_after, boundaries_before, names=names, ax=axes[4])
    axes[4].set_title("boundaries between the grains found")
    _draw_sizes(axes[5], sizes)
    return fig


def _draw_sizes(ax: Axes, sizes: dict) -> None:
    """Grain size before and after with its 95 % interval: G, or the mean intercept in px."""
    name = "astm_g" if any("astm_g" in size for size in sizes.values()) else "intercept_px"
    for place, state, colour in ((1, "before", BLUE), (0, "after", RED)):
        size = sizes.get(state, {})
        if name not in size:
            continue
        value = size[name]
        half = size["ra_percent"] / 100 * value
        low, high = (size["g_low"], size["g_high"]) if name == "astm_g" else (value - half, value + half)
        ax.errorbar(value, place, xerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=4, markersize=7)
        text = f"{value:.2f}\n{low:.2f} to {high:.2f}" if name == "astm_g" else f"{value:.1f}\n{low:.1f} to {high:.1f}"
        ax.annotate(text, (value, place), (0, 9), textcoords="offset points", ha="center", color=colour)
    if not any(name in size for size in sizes.values()):
        ax.text(0.5, 0.5, "no grain size", ha="center", va="center", transform=ax.transAxes)
    labels = {"astm_g": "ASTM grain size number G (E112): larger is finer"}
    label = labels.get(name, "mean intercept (px): no calibration")
    ax.set(title="grain size, 95 % interval", xlabel=label, ylim=(-0.6, 1.7))
    ax.set_yticks([1, 0], ["before", "after"])
    ax.margins(x=0.3)


@_styled
def plot_scores(table: dict) -> Figure:
    """Methods against metrics, {"columns": names, "rows": [[method, value, ...], ...]}; the network stands out."""
    names, values = [str(row[0]) for row in table["rows"]], np.array([row[1:] for row in table["rows"]], float)
    places = np.arange(len(names))[::-1]
    fig = NotebookFigure(figsize=(WIDTH, 0.5 + 0.3 * len(names)), layout="constrained")
    axes = fig.subplots(1, values.shape[1], sharey=True, squeeze=False)[0]
    for ax, title, column in zip(axes, table["columns"][-values.shape[1] :], values.T, strict=True):
        low, high = np.nanmin(column), np.nanmax(column)
        for place, name, value in zip(places, names, column, strict=True):
            look = {"color": RED, "weight": "bold"} if "network" in name.lower() else {"color": BLUE}
            ax.plot(value, place, "o", color=look["color"], markersize=6)
            if np.isfinite(value):
                text = f"{value:.2f}" if high > 2 else f"{value:.3f}"
                ax.annotate(text, (value, place), (6, 0), textcoords="offset points", va="center", size=8, **look)
        span = high - low or 1
        ax.set(title=title, xticks=[], xlim=(low - 0.12 * span, high + 0.65 * span), ylim=(-0.6, len(names) - 0.4))
        ax.set_yticks(places, names)
        ax.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        ax.tick_params(left=False)
        ax.spines["bottom"].set_visible(False)
    for label in axes[0].get_yticklabels():
        label.set(weight="bold" if "network" in label.get_text().lower() else "normal")
    return fig


@_styled
def plot_boundaries(
    image,
    found: np.ndarray,
    truth: np.ndarray | None = None,
    *,
    tolerance: float | int = 3,
    names: Sequence[str] = ("kept", "lost", "invented"),
    title: str = "",
    um_per_px: float | int | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Boundaries (bool [H, W]) over an image; with a truth, which of them were kept, lost and invented (`names`).

    A pixel is right within `tolerance` px of the others, as `metrics.boundary_score` counts.
    """
    image, found = _unit(image), np.asarray(found, bool)
    ax = _grid(1, 1, image.shape, foot=0.3)[1][0] if ax is None else ax
    kinds = {"found": (found, YELLOW)}
    if truth is not None:
        true, far = np.asarray(truth, bool), np.full(found.shape, np.inf)
        to_true, to_found = (ndimage.distance_transform_edt(~mask) if mask.any() else far for mask in (true, found))
        kept, invented = found & (to_true <= tolerance), found & (to_true > tolerance)
        lost = true & (to_found > tolerance)
        kinds = dict(zip(names, ((kept, SKY), (lost, RED), (invented, YELLOW)), strict=True))
    _draw(ax, image, title, um_per_px=um_per_px)
    for mask, colour in kinds.values():
        wide = ndimage.maximum_filter(mask, 1 + 2 * round(max(mask.shape) / 700))  # so that large images show it
        layer = np.concatenate([np.broadcast_to(to_rgb(colour), (*mask.shape, 3)), wide[..., None]], -1)
        ax.imshow(layer, interpolation="nearest")
    handles = [Patch(facecolor=colour, edgecolor="#777777", label=name) for name, (_, colour) in kinds.items()]
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3)
    return ax.figure


@_styled
def plot_attention(maps, *, block: int | None = None, um_per_px: float | int | None = None) -> Figure:
    """Where the network looks (`AttentionMaps`): spatial maps over the image, channel weights y of Eq. 5.

    block: index of the one laid over the image; their mean where None.
    """
    n, ratio = len(maps.spatial), maps.image.shape[0] / maps.image.shape[1]
    columns = min(n, 6)
    rows = math.ceil(n / columns)
    heights = ratio * 3.6 + 0.3, rows * (ratio * WIDTH / max(columns, 3) + 0.25), 0.6 + 0.22 * n
    fig = NotebookFigure(figsize=(WIDTH, sum(heights)), layout="constrained")
    top, strip, bottom = fig.subfigures(3, 1, height_ratios=heights)
    left, right = top.subplots(1, 2)
    _draw(left, maps.image, "what the network sees", um_per_px=um_per_px)
    _draw(right, maps.image, f"mean over {n} blocks" if block is None else f"block {block + 1}")
    drawn = _draw(right, maps.overall if block is None else maps.spatial[block], cmap="viridis", alpha=0.65)
    top.colorbar(drawn, ax=right, label="change × channel weight", fraction=0.05, pad=0.02)
    for number, ax in enumerate(strip.subplots(rows, columns, squeeze=False).ravel()):
        ax.set_axis_off()
        if number < n:
            _draw(ax, maps.spatial[number], cmap="viridis")
            ax.set_title(f"block {number + 1}", weight="bold" if number == block else "normal")
    ax = bottom.subplots()
    drawn = ax.imshow(maps.channel_weights, cmap="cividis", aspect="auto", extent=_from_one(maps.channel_weights))
    ax.set(xlabel="channel", ylabel="block", yticks=range(1, n + 1), title="channel weights y")
    bottom.colorbar(drawn, ax=ax, label="weight", pad=0.01)
    return fig


@_styled
def plot_block(maps, *, block: int, channel: int, um_per_px: float | int | None = None) -> Figure:
    """One block of the network (`AttentionMaps`): where it changes the image, its channel weights, one channel.

    block, channel: indices; of the channel the features under their weight (x_att of Eq. 6) are shown.
    """
    shape, weights = maps.image.shape, maps.channel_weights[block]
    tall = WIDTH / 3 * shape[0] / shape[1]
    fig = NotebookFigure(figsize=(WIDTH, tall + 2.2), layout="constrained")
    grid = fig.add_gridspec(2, 3, height_ratios=(tall, 1.9))
    seen, spatial, features = (fig.add_subplot(grid[0, i]) for i in range(3))
    _draw(seen, maps.image, "what the network sees", um_per_px=um_per_px)
    _draw(spatial, maps.image, f"where block {block + 1} changes it")
    drawn = _draw(spatial, maps.spatial[block], cmap="viridis", alpha=0.65)
    look = {"orientation": "horizontal", "fraction": 0.05, "pad": 0.02}
    fig.colorbar(drawn, ax=spatial, label="change × channel weight (99 % = 1)", **look)
    field = maps.x_att[block, :, :, channel]
    limit = max(float(np.percentile(np.abs(field), 99.5)), 1e-9)
    drawn = _draw(features, field, f"channel {channel + 1}", cmap="PuOr", vmin=-limit, vmax=limit)
    fig.colorbar(drawn, ax=features, label="feature × its weight", **look)
    ax, numbers = fig.add_subplot(grid[1, :]), np.arange(1, len(weights) + 1)
    ax.bar(numbers, weights, color=[RED if number == channel + 1 else BLUE for number in numbers])
    ax.set(title=f"channel weights y of block {block + 1}", xlabel="channel", ylabel="weight (gate, Eq. 5)")
    ax.set(xticks=numbers[:: max(1, len(numbers) // 32)], xlim=(0.3, len(weights) + 0.7))
    ax.set_ylim(min(0, 1.05 * float(weights.min())), max(1, 1.05 * float(weights.max())))
    return fig


@_styled
def plot_uncertainty(image, denoised, uncertainty: np.ndarray) -> Figure:
    """An image, its denoised picture, and the `uncertainty_map` [H, W] of it."""
    fig, axes = _grid(3, 3, np.shape(image), bar=0.75)
    _draw(axes[0], _unit(image), "original")
    _draw(axes[1], _unit(denoised, "denoised"), "denoised")
    limit = max(float(np.percentile(uncertainty, 99.5)), 1e-6)
    drawn = _draw(axes[2], uncertainty, "uncertainty", cmap="viridis", vmax=limit)
    fig.colorbar(drawn, ax=axes[2], label="grey (the network's range = 1)", fraction=0.05, pad=0.02)
    return fig


@_styled
def plot_grain_sizes(areas: dict) -> Figure:
    """Distribution of the grains' equivalent radii over their mean, R / <R>, for arrays of areas by name."""
    fig = NotebookFigure(figsize=(5.4, 3.2), layout="constrained")
    ax = fig.subplots()
    for name, area in areas.items():
        radius, label = np.sqrt(np.asarray(area, float)), f"{name}, {len(area)} grains"
        ax.hist(radius / radius.mean(), np.arange(0, 3.01, 0.2), density=True, histtype="step", lw=1.8, label=label)
    ax.set(xlabel="R / ⟨R⟩", ylabel="probability density", xlim=(0, 3))
    ax.legend()
    return fig


@_styled
def plot_grain_shapes(sizes: dict, sides: dict, curvatures: dict) -> Figure:
    """How grains look, whatever their size: R / <R>, sides, and curvature times <R>; arrays by the structure's name.

    Three structures at most, the third filled, as what the others are held against. What lies beyond an axis
    counts in its last bin.
    """
    fig = NotebookFigure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = fig.subplots(1, 3)
    panels = (
        (sizes, np.arange(0, 3.41, 0.2), "Grain size", "R / ⟨R⟩", "probability density"),
        (sides, np.arange(0.5, 14), "Sides of a grain", "sides", "share of the grains"),
        (curvatures, np.arange(-2.7, 2.71, 0.2), "Curvature of its boundaries", "κ⟨R⟩", "probability density"),
    )
    looks = (
        {"histtype": "step", "color": BLUE, "ls": "--", "zorder": 3},
        {"histtype": "step", "color": RED, "zorder": 4},
        {"histtype": "stepfilled", "facecolor": "#D5D5D5", "edgecolor": "#888888", "zorder": 2},
    )
    for ax, (values, bins, title, name, density) in zip(axes, panels, strict=True):
        for (structure, one), look in zip(values.items(), looks, strict=False):
            ax.hist(np.clip(one, bins[0], bins[-1]), bins, density=True, lw=1.8, label=structure, **look)
        pad = (bins[-1] - bins[0]) / 60
        ax.set(title=title, xlabel=name, ylabel=density, xlim=(bins[0] - pad, bins[-1] + pad))
    axes[1].set_xticks(range(1, 14, 2), [*range(1, 12, 2), "13+"])
    axes[2].axvline(0, color=INK, lw=0.8, ls=":", zorder=5)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


@_styled
def plot_swipe(before, after, position: float | int, *, um_per_px: float | int | None = None) -> Figure:
    """Two pictures as one: `before` left of `position` (0 to 1 across the width), `after` right of it."""
    before, after = _unit(before, "before"), _unit(after, "after")
    column = round(min(max(position, 0), 1) * before.shape[1])
    fig, (ax,) = _grid(1, 1, before.shape)
    _draw(ax, np.concatenate([before[:, :column], after[:, column:]], 1), um_per_px=um_per_px)
    ax.axvline(column - 0.5, color=ORANGE)
    ax.set_title("◂ before", loc="left")
    ax.set_title("after ▸", loc="right")
    return fig


@_styled
def plot_strengths(rows: Sequence, ylabel: str) -> Figure:
    """What methods reach against the strength of a defect, a panel a kind: rows (kind, strength, method, value).

    value: a number up to 1, or (mean, low, high), whose interval is then shaded; below -0.5 it is not seen. The network
    stands out.
    """
    panels, methods = (list(dict.fromkeys(str(row[i]) for row in rows)) for i in (0, 2))
    columns = min(len(panels), 4)
    lines = math.ceil(len(panels) / columns)
    fig = NotebookFigure(figsize=(WIDTH, 1.75 * lines + 0.5), layout="constrained")
    axes = fig.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    others = iter(((INK, ":"), (BLUE, "--"), (GREEN, "-."), (ORANGE, "--"), (PINK, "-.")))
    looks = {name: (RED, "-") if "network" in name.lower() else next(others, (SKY, "--")) for name in methods}
    for ax, panel in zip(axes, panels, strict=False):
        for name, (colour, dashes) in looks.items():
            found = [row for row in rows if (str(row[0]), str(row[2])) == (panel, name)]
            strength, value = [row[1] for row in found], [np.array(row[3], float).ravel() for row in found]
            ax.plot(strength, [v[0] for v in value], dashes, marker="o", color=colour, label=name)
            low, high = ([v[i] if v.size > 1 else np.nan for v in value] for i in (1, -1))
            ax.fill_between(strength, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.axhline(0, color=INK, linewidth=0.5)
        ax.set(title=panel, ylim=(-0.53, 1.03), xlim=(-0.03, 1.03))
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for ax in axes[max(len(panels) - columns, 0) : len(panels)]:
        ax.tick_params(labelbottom=True)
    fig.supxlabel("strength", size=9)
    fig.supylabel(ylabel, size=9)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(methods))
    return fig


@_styled
def plot_gaps(gaps: dict, label: str) -> Figure:
    """What is gained or lost, a row a variant and a panel a group: {group: {variant: (gap, half its 95 % interval)}}.

    Grey where the interval holds zero, else red for a loss and blue for a gain.
    """
    names = list(next(iter(gaps.values())))
    fig = NotebookFigure(figsize=(WIDTH, 0.24 * len(names) + 0.8), layout="constrained")
    axes = fig.subplots(1, len(gaps), sharey=True, squeeze=False).ravel()
    for ax, (group, found) in zip(axes, gaps.items(), strict=True):
        for row, name in enumerate(names):
            gap, half = (0.0 if value is None else value for value in found[name])
            colour = "#888888" if abs(gap) <= half else BLUE if gap > 0 else RED
            ax.errorbar(gap, row, xerr=half, fmt="o", color=colour, capsize=2, lw=1.4)
        ax.axvline(0, color=INK, lw=0.8)
        ax.set(title=group, xlabel=label, yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
        ax.grid(axis="x", color="#E5E5E5", lw=0.6)
        ax.set_axisbelow(True)
    return fig


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A table as Markdown: floats in two digits, (mean, low, high) as a mean and its interval, None as a gap."""

    def text(value) -> str:
        if isinstance(value, list | tuple):
            mean, low, high = map(text, value)
            return mean if "" in (low, high) or low == high else f"{mean} ({low} to {high})"
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    lines = [list(columns), ["---"] * len(columns), *(list(map(text, row)) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


@_styled
def plot_sparsification(curve, *, ax: Axes | None = None) -> Figure:
    """Error left once the most uncertain pixels are taken away (`Sparsification`, or several by name).

    Over the error of all pixels; beside each, thin, what the true error's own order leaves, and what chance leaves.
    """
    curves = dict(curve) if isinstance(curve, dict) else {"uncertainty": curve}
    if ax is None:
        ax = NotebookFigure(figsize=(4.8, 3.4), layout="constrained").subplots()
    for name, one in curves.items():
        (line,) = ax.plot(
            100 * one.removed, one.left / one.random, "o-", markersize=3, label=f"{name}, AUSE {one.ause:.2f}"
        )
        own = {} if len(curves) > 1 else {"label": "the true error's order"}
        ax.plot(100 * one.removed, one.oracle / one.random, color=line.get_color() if not own else INK, lw=1, **own)
    if len(curves) > 1:
        ax.plot([], [], color=INK, lw=1, label="the true error's order")
    ax.plot(100 * one.removed, np.ones(len(one.removed)), color=INK, lw=1, ls=":", label="at random")
    ax.set(xlabel="most uncertain pixels taken away (%)", ylabel="error left / error of all", ylim=(0, None))
    ax.legend()
    return ax.figure


@_styled
def plot_channels(panels: dict, label: str) -> Figure:
    """A number for each channel of each block, fields [blocks, width] by name, on one scale about zero."""
    blocks = max(len(field) for field in panels.values())
    limit = max(1e-9, *(float(np.nanmax(np.abs(field))) for field in panels.values()))
    fig = NotebookFigure(figsize=(WIDTH, len(panels) * (0.45 + 0.17 * blocks) + 0.4), layout="constrained")
    axes = fig.subplots(len(panels), 1, sharex=True, squeeze=False).ravel()
    for ax, (name, field) in zip(axes, panels.items(), strict=True):
        look = {"cmap": "RdBu", "aspect": "auto", "interpolation": "nearest", "extent": _from_one(field)}
        drawn = ax.imshow(field, vmin=-limit, vmax=limit, **look)
        ax.set(title=name, ylabel="block", yticks=range(1, len(field) + 1))
        ax.grid(False)
    axes[-1].set_xlabel("channel")
    fig.colorbar(drawn, ax=list(axes), label=label, fraction=0.05, pad=0.01)
    return fig
