"""Denoising a micrograph (Section III.b): any size, colour and dtype kept, histogram matched to the input.

A large image is worked on in tiles. A cell of the last feature map depends on `Denoiser.reach` cells around it, and
by so much tiles overlap; the attention's mean over the image (Eq. 5) is taken over all tiles before any goes on to the
next block.
Tiles and small images are laid on grids of a few sizes, `SIDES`, so that a new size of image seldom compiles anew.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike
from skimage.exposure import match_histograms

from mdn.micrographs import check_image, from_float, grey_range, luminance, to_float, with_luminance
from mdn.network import MAX_BYTES, DenoisingNetwork, folded, load_weights, read_metadata, stretch, stretch_limits

SHIPPED = Path(__file__).parent / "weights" / "denoiser.safetensors"
SIDES = (32, 64, 96, *range(128, 513, 64))  # of grids, in cells: pixels of the feature maps
LARGEST = SIDES[-1]
HELD = 16  # a power of two; tiles whose features are held in memory from block to block
HELD_WITH_DROPOUT = 4  # the same under dropout, which moves the weights more than the tiles left out


@dataclass(frozen=True)
class Tile:
    """A part of an image, in cells of the features: `core` is what it gives of the result, seen on a grid of size
    `sides` whose first cell is `start` of the image, outside it where negative."""

    core: tuple[slice, slice]
    start: tuple[int, int]
    sides: tuple[int, int]


def tiles(shape: tuple[int, int], reach: int, largest: int = LARGEST) -> list[Tile]:
    """The tiles of an image of `shape` cells: on grids of at most `largest` a side, overlapping by `reach`."""
    axes = []
    for n in shape:
        rim = reach if n > largest else 0
        core = -(-n // -(-n // (largest - 2 * rim)))
        side = next((s for s in SIDES if s >= core + 2 * rim), core + 2 * rim)
        axes.append([(slice(a, min(a + core, n)), a - rim, side) for a in range(0, n, core)])
    return [Tile(*zip(*pair, strict=True)) for pair in itertools.product(*axes)]


class Denoiser:
    """A trained network as a function of micrographs.

    Attributes:
        network: the `DenoisingNetwork`; its weights are taken as they are at the first image.
        metadata: what the weights' file says of their training.
    """

    def __init__(self, network: DenoisingNetwork, metadata: dict | None = None):
        self.network, self.metadata = network, metadata or {}

    @cached_property
    def _network(self) -> DenoisingNetwork:
        return folded(self.network)

    @cached_property
    def _parts(self):
        """Graph and state of the network's parts, batch norms folded; a compiled block serves all blocks."""
        return [nnx.split(part) for part in (self._network, *self._network.blocks)]

    def _with_dropout(self, key: Array):
        """Graph and state of the network with dropout; the graph is the same under every key."""
        network = nnx.view(self._network, deterministic=False)
        nnx.reseed(network, dropout=key)
        return nnx.split(network)

    @property
    def reach(self) -> int:
        """Cells around a cell that its result depends on: one a convolution."""
        return 2 * len(self.network.blocks) + 5

    def restore(
        self,
        grey: Float[np.ndarray, "h w"],
        *,
        report: Callable[[float], None] | None = None,
        exact: bool = False,
        largest: int = LARGEST,
        dropout: Array | None = None,
        limits: tuple[float, float] | None = None,
        out: Float[np.ndarray, "h w"] | None = None,
    ) -> Float[np.ndarray, "h w"]:
        """The network's own intensities in [0, 1] for a luminance in [0, 1], its 1-99 % range stretched first.

        A constant luminance has nothing in it to restore and comes back as it is.

        Args:
            grey: the luminance; a memory map will do, it is read tile by tile.
            report: called with the share done after each part of the work; what it raises stops it.
            exact: whether the attention's mean (Eq. 5) is that of the whole image, for which a tile is gone through
                once a block; else that of `HELD` tiles spread over it, and a tile is gone through once. Images of
                up to `HELD` tiles (16 megapixels at scale 2) are held in memory, exact and gone through once.
            largest: side of a tile's grid, in cells.
            dropout: a key, and dropout stays active under it (Eq. 7), as in training; every tile has the same mask.
                Of several tiles the attention's mean is that of `HELD_WITH_DROPOUT` of them, taken without dropout.
            limits: the grey levels to stretch to 0 and 1, where they are known already.
            out: float32 array to write to, a memory map say.

        Returns:
            `out`, or a new float32 [H, W].

        Raises:
            ValueError: for tiles that are no larger than their overlap.

        Source: Eqs. 1-10.
        """
        if largest <= 2 * self.reach:
            raise ValueError(f"largest must be above {2 * self.reach}, by which tiles overlap, got {largest}")
        output = np.empty(grey.shape, np.float32) if out is None else out
        if grey.min() == grey.max():
            output[:] = grey
            return output
        passage = Passage(self, grey, largest=largest, report=report, dropout=dropout, limits=limits)
        return passage.restored(exact, output)

    def __call__(self, image: ArrayLike, *, match_histogram: bool = True) -> np.ndarray:
        """Denoise a micrograph.

        Any size from 1 x 1 up, strips too. A constant image comes back as it is.
        12 bits in 16 stay within their range: the image's own grey range is what the network sees. Floats within
        [0, 1] are taken as they are; others, negative ones too, on their own range, which the result keeps.
        Either byte order is taken and the machine's returned; a memory map is read and never written to.

        Args:
            image: [H, W] or [H, W, 3]; bool, uint8, uint16 or float of 16 to 64 bits.
            match_histogram: whether the result takes the input's grey levels (Section III.b); without, the
                network's own [0, 1] scaled to the dtype.

        Returns:
            The clean micrograph, of the same shape and dtype. Of a colour image the luminance is denoised and
            the chroma kept.

        Raises:
            ValueError: for an array of another rank or dtype, an empty one, or one that holds NaN or infinity.

        Source: Eq. 1; Section III.b.
        """
        image = check_image(image)
        return self.finish(image, self.restore(luminance(image)), match_histogram=match_histogram)

    @staticmethod
    def finish(image: np.ndarray, clean: Float[np.ndarray, "h w"], *, match_histogram: bool = True) -> np.ndarray:
        """The result for a micrograph of which `restore` made `clean`: greys matched, chroma and dtype kept."""
        if match_histogram:
            clean = match_histograms(clean, luminance(image)).astype(np.float32)
        return finished(to_float(image), clean, image.dtype, grey_range(image))


def finished(image: np.ndarray, clean: Float[np.ndarray, "h w"], dtype, levels: tuple[float, float]) -> np.ndarray:
    """`clean` with the chroma of `image`, both in [0, 1], in a dtype whose black and white are `levels`."""
    return from_float(with_luminance(to_float(image), clean) if image.ndim == 3 else clean, dtype, levels)


class Passage:
    """One image on its way through the network, tile by tile; arguments as of `Denoiser.restore`."""

    def __init__(
        self,
        denoiser: Denoiser,
        grey: Float[np.ndarray, "h w"],
        *,
        largest: int = LARGEST,
        report: Callable[[float], None] | None = None,
        dropout: Array | None = None,
        limits: tuple[float, float] | None = None,
    ):
        self.network, self.grey, self.report = denoiser.network, grey, report or (lambda share: None)
        self.whole, *self.blocks = denoiser._parts
        self.with_dropout = None if dropout is None else denoiser._with_dropout(dropout)
        self.scale, self.limits = self.network.config.scale, limits or stretch_limits(grey)
        self.shape = tuple(-(-n // self.scale) for n in grey.shape)
        self.tiles = tiles(self.shape, denoiser.reach, largest)
        one = jnp.ones((1, self.network.config.width))
        self.weights = [one] if self.network.config.attention else [one] * (len(self.blocks) + 1)
        self.held: dict[int, tuple[Array, Array, int]] = {}
        self.done = 0

    def restored(self, exact: bool, output: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
        """The result, written to `output`; of several tiles the attention's weights first, block by block."""
        count, n = len(self.tiles), len(self.blocks)
        missing = n + 1 - len(self.weights) if count > 1 else 0
        hold, some = count <= HELD or not exact, HELD if self.with_dropout is None else HELD_WITH_DROPOUT
        chosen = range(count) if exact or count <= some else self.spread(some)
        self.work = count + (len(chosen) * missing if hold else count * missing * (missing + 1) // 2)
        cells = sum(math.prod(c.stop - c.start for c in self.tiles[i].core) for i in chosen)
        for block in self.blocks[:missing]:
            self.weights.append(_gated(*block, sum(self.features(i, hold)[1] for i in chosen), cells))
        if self.with_dropout is not None:
            self.held.clear()  # features of before dropout
        for i, tile in enumerate(self.tiles):
            inside = self.bounds(tile)[0]
            if i in self.held:
                image = _decode(*self.whole, self.held.pop(i)[0], self.weights[-1], inside)
            else:
                image = _restore(*(self.with_dropout or self.whole), self.seen(tile), self.weights, inside)
            (rows, columns), s = tile.core, self.scale
            part = output[rows.start * s : rows.stop * s, columns.start * s : columns.stop * s]
            top, left = ((c.start - start) * s for c, start in zip(tile.core, tile.start, strict=True))
            part[:] = np.asarray(image)[top : top + part.shape[0], left : left + part.shape[1]]
            self.tick()
        return output

    def spread(self, some: int) -> list[int]:
        """Tiles of all rows and columns alike, a power of two in number or a few less: Hammersley's points."""
        rows, columns = (len({tile.core[axis].start for tile in self.tiles}) for axis in (0, 1))
        bits = some.bit_length() - 1
        mirrored = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(some)]
        points = [(int((i + 0.5) / some * rows), int((m + 0.5) / some * columns)) for i, m in enumerate(mirrored)]
        return list(dict.fromkeys(row * columns + column for row, column in points))

    def features(self, index: int, hold: bool) -> tuple[Float[Array, "1 _h _w c"], Float[Array, "1 c"]]:
        """x_res of a tile's last block that known weights lead to, and its sum over the core."""
        tile = self.tiles[index]
        inside, core = self.bounds(tile)
        x, total, done = self.held.pop(index, (None, None, 0))
        if x is None:
            x = _encode(*self.whole, self.seen(tile), inside)
        for (graph, state), y in list(zip(self.blocks, self.weights, strict=False))[done:]:
            x, total = _residual(graph, state, x, y, inside, core)
            x.block_until_ready()
            self.tick()
        if hold:
            self.held[index] = x, total, min(len(self.weights), len(self.blocks))
        return x, total

    def tick(self) -> None:
        self.done += 1
        self.report(self.done / self.work)

    def bounds(self, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        """First and last row and column, on the tile's grid, of the image and of the tile's core."""
        inside = [
            (max(0, -start), min(side, n - start))
            for start, side, n in zip(tile.start, tile.sides, self.shape, strict=True)
        ]
        core = [(c.start - start, c.stop - start) for c, start in zip(tile.core, tile.start, strict=True)]
        return np.array(inside, np.int32), np.array(core, np.int32)

    def seen(self, tile: Tile) -> Float[np.ndarray, "1 _h _w 1"]:
        """The tile's grid of pixels, stretched; 0 around the image."""
        s, inside = self.scale, self.bounds(tile)[0]
        image = np.zeros([n * s for n in tile.sides], np.float32)
        (top, bottom), (left, right) = inside * s
        row, column = (start * s for start in tile.start)
        part = stretch(self.grey[row + top : row + bottom, column + left : column + right], self.limits)
        short = [(0, n - m) for n, m in zip((bottom - top, right - left), part.shape, strict=True)]
        image[top:bottom, left:right] = np.pad(part, short, mode="edge")
        return image[None, :, :, None]


def within(bounds: Int[Array, "2 2"], shape: tuple[int, int]) -> Float[Array, "1 _h _w 1"]:
    """1 within the bounds, each axis's first and last, on a grid of `shape`; 0 elsewhere."""
    rows, columns = ((jnp.arange(n) >= b[0]) & (jnp.arange(n) < b[1]) for n, b in zip(shape, bounds, strict=True))
    return (rows[:, None] & columns[None, :]).astype(jnp.float32)[None, :, :, None]


@partial(jax.jit, static_argnums=0)
def _restore(graph, state, image, weights, inside):
    """A tile from end to end, compiled as one: its feature maps then share their memory, and the operating system has
    a fifth of it to lay out. Where the weights of a block are missing, the tile is the image and tells them."""
    network = nnx.merge(graph, state)
    shape, s = image.shape[1:3], network.config.scale
    mask = within(inside, (shape[0] // s, shape[1] // s))
    x = network.encode(image, mask) * weights[0][:, None, None, :]
    for number, block in enumerate(network.blocks, 1):
        x = block.residual(x, mask)
        y = weights[number] if number < len(weights) else block.attention.gated(x.sum((1, 2)) / mask.sum())
        x = block.dropout(x * y[:, None, None, :])
    return network.decode(x, shape, mask)[0, :, :, 0]


@partial(jax.jit, static_argnums=0)
def _encode(graph, state, image, inside):
    network = nnx.merge(graph, state)
    s = network.config.scale
    return network.encode(image, within(inside, (image.shape[1] // s, image.shape[2] // s)))


@partial(jax.jit, static_argnums=0)
def _residual(graph, state, x, y, inside, core):
    """x_res of a block from the one before and its weights, x_att = x_res y (Eqs. 4, 6), and its sum for Eq. 5."""
    x = nnx.merge(graph, state).residual(x * y[:, None, None, :], within(inside, x.shape[1:3]))
    return x, (x * within(core, x.shape[1:3])).sum(2).sum(1)


@partial(jax.jit, static_argnums=0)
def _gated(graph, state, total, cells):
    """y of Eq. 5 from the sum of x_res over so many cells."""
    return nnx.merge(graph, state).attention.gated(total / cells)


@partial(jax.jit, static_argnums=0)
def _decode(graph, state, x, y, inside):
    network = nnx.merge(graph, state)
    shape = tuple(n * network.config.scale for n in x.shape[1:3])
    return network.decode(x * y[:, None, None, :], shape, within(inside, x.shape[1:3]))[0, :, :, 0]


def load_denoiser(path: str | Path | None = None, *, max_bytes: int = MAX_BYTES) -> Denoiser:
    """The denoiser with the shipped weights, or with those of a safetensors file; max_bytes: as of `load_weights`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file and cause, if it holds no weights of this network or is damaged.
    """
    path = Path(path) if path is not None else SHIPPED
    told = read_metadata(path, max_bytes=max_bytes)
    return Denoiser(load_weights(path, max_bytes=max_bytes), {name: _parsed(text) for name, text in told.items()})


def _parsed(text: str):
    """JSON where an entry of the header looks like it, text otherwise."""
    try:
        return json.loads(text) if text.startswith(("{", "[")) else text
    except (ValueError, RecursionError):
        return text
