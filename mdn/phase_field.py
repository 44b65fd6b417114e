"""Grain growth by the Allen-Cahn equation (Appendix A, Fig. 1a).

The free energy density solved for is

    f = sum_i (-alpha/2 eta_i^2 + beta/4 eta_i^4) + gamma sum_{i<j} eta_i^2 eta_j^2,

whose derivative is A4. The paper's A3 runs the last sum over i != j and so counts each pair twice;
A4 does not, and A4 is what is solved. Lengths are in units of dx, times in 1/(L alpha).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import ndimage
from scipy.spatial import cKDTree

COLOUR_GAP = 18.0  # grains of one colour start this many sqrt(kappa) apart: both tails are then under 1e-4
RECOLOUR_GAP = 12.0  # ... and are coloured anew when they have come this close
CHUNK = 10.0  # time between two looks at the colouring; a boundary of radius 10 dx moves some 2 dx in it


@dataclass(frozen=True, kw_only=True)
class AllenCahn:
    """Parameters of A2-A4 and of their discretisation (five-point Laplacian, explicit Euler).

    Args:
        shape: cells (H, W) of the periodic domain.
        alpha, beta, gamma: coefficients of the local free energy density, dimensionless.
        kappa: gradient energy coefficient, in dx^2 alpha; the 10-90 % interface width is 3.8 sqrt(kappa).
        mobility: the kinetic coefficient L.
        dx: grid spacing.
        dt: time step; by default 80 % of `max_dt`.

    Raises:
        ValueError: for a shape or coefficient that is not positive, or a dt at or above `max_dt`.

    Source: Appendix A of the paper.
    """

    shape: Sequence[int] = (256, 256)
    alpha: float | int = 1.0
    beta: float | int = 1.0
    gamma: float | int = 1.0
    kappa: float | int = 2.0
    mobility: float | int = 1.0
    dx: float | int = 1.0
    dt: float | int | None = None

    def __post_init__(self):
        shape = tuple(self.shape) if isinstance(self.shape, tuple | list) else ()
        if len(shape) != 2 or not all(isinstance(n, Integral) and n >= 4 for n in shape):
            raise ValueError(f"shape must be two integers of at least 4 cells, got {self.shape!r}")
        object.__setattr__(self, "shape", (int(shape[0]), int(shape[1])))
        for name in ("alpha", "beta", "gamma", "kappa", "mobility", "dx"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive and finite number, got {value!r}")
        if self.dt is None:
            object.__setattr__(self, "dt", 0.8 * self.max_dt)
        elif not (isinstance(self.dt, Real) and 0 < self.dt < self.max_dt):
            raise ValueError(f"dt must lie between 0 and the stability bound {self.max_dt:.4g}, got {self.dt!r}")

    @property
    def max_dt(self) -> float:
        """Explicit Euler is stable below dt = 2 / (L [max(2 alpha, 2 gamma - alpha) + 8 kappa / dx^2])."""
        reaction = max(2 * self.alpha, 2 * self.gamma - self.alpha)
        return 2 / (self.mobility * (reaction + 8 * self.kappa / self.dx**2))

    @property
    def interface_width(self) -> float:
        """10-90 % width of a flat boundary at gamma = 1: 3.8 sqrt(kappa)."""
        return 3.8 * math.sqrt(self.kappa)


@dataclass(frozen=True)
class Grains:
    """A grain structure at one time.

    Attributes:
        labels: int32 [H, W], the grain of each cell; a grain keeps its number while it lives.
        order: float32 [H, W], sum of eta squared: 1 inside a grain, 0.64 on a boundary (gamma = 1).
        time: in 1/(L alpha).
        energy: free energy F of A2, relative to a single grain.
    """

    labels: Int[np.ndarray, "h w"]
    order: Float[np.ndarray, "h w"]
    time: float
    energy: float

    @property
    def n_grains(self) -> int:
        """How many grains are left."""
        return len(np.unique(self.labels))


def _laplacian(eta: Float[Array, "h w"], dx: float) -> Float[Array, "h w"]:
    neighbours = jnp.roll(eta, 1, 0) + jnp.roll(eta, -1, 0) + jnp.roll(eta, 1, 1) + jnp.roll(eta, -1, 1)
    return (neighbours - 4 * eta) / dx**2


def step(params: AllenCahn, eta: Sequence[Array] | Array, dt: float | Array | None = None) -> list[Array]:
    """One explicit Euler step of A4 on a periodic grid.

        d eta_i/dt = -L (-alpha eta_i + beta eta_i^3 + 2 gamma eta_i sum_{j != i} eta_j^2 - kappa lap eta_i)

    Args:
        params: the coefficients.
        eta: Q order parameters of [H, W], as a list of fields or stacked as [Q, H, W].
        dt: time step, `params.dt` unless given.

    Returns:
        The Q fields a step later, as a list: XLA fuses a list of fields into one pass a field.

    Source: Eq. A4.
    """
    dt = params.dt if dt is None else dt
    squares = sum(e * e for e in eta)
    return [
        e
        - dt
        * params.mobility
        * (
            e * (-params.alpha + params.beta * e * e + 2 * params.gamma * (squares - e * e))
            - params.kappa * _laplacian(e, params.dx)
        )
        for e in eta
    ]


@partial(jax.jit, static_argnames="params")
def _advance(
    params: AllenCahn, eta: Float[Array, "q h w"], n_steps: int | Array, dt: float | Array
) -> Float[Array, "q h w"]:
    return jnp.stack(jax.lax.fori_loop(0, n_steps, lambda _, e: step(params, e, dt), list(eta)))


def free_energy(params: AllenCahn, eta: Sequence[Array] | Array | np.ndarray) -> float:
    """Free energy of A2 relative to a single grain, summed in float64.

        F = sum dx^2 [-alpha/2 sum eta^2 + beta/4 sum eta^4 + gamma sum_{i<j} eta_i^2 eta_j^2
                      + alpha^2/(4 beta) + kappa/2 sum |grad eta|^2]

    Args:
        params: the coefficients.
        eta: Q order parameters of [H, W].

    Returns:
        F in units of alpha dx^2.

    Source: Eqs. A2-A3, each pair counted once.
    """
    p, eta = params, np.asarray(eta, np.float64)
    squares = eta**2
    pairs = (squares.sum(0) ** 2 - (squares**2).sum(0)) / 2
    gradient = sum(((np.roll(eta, -1, axis) - eta) / p.dx) ** 2 for axis in (1, 2)).sum(0)
    density = (-p.alpha / 2 * squares + p.beta / 4 * squares**2).sum(0) + p.gamma * pairs + p.kappa / 2 * gradient
    return float((density + p.alpha**2 / (4 * p.beta)).sum() * p.dx**2)


def voronoi(shape: tuple[int, int], n_grains: int, *, key: Array, relaxations: int = 2) -> Int[np.ndarray, "h w"]:
    """Periodic Voronoi tessellation of almost equal grains.

    Random seeds are moved to the centroids of their cells a few times (Lloyd), which evens the areas out.

    Args:
        shape: cells (H, W).
        n_grains: number of grains.
        key: a `jax.random.key`.
        relaxations: Lloyd iterations; 0 gives the Poisson-Voronoi tessellation.

    Returns:
        Labels 0 .. n_grains - 1, int32 [H, W].

    Source: Appendix A, "Voronoi tessellation with almost equal grain size".
    """
    size = np.array(shape, float)
    seeds = np.asarray(jax.random.uniform(key, (n_grains, 2)), float) * size
    cells = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 2) + 0.5
    for relaxation in range(relaxations + 1):
        _, labels = cKDTree(seeds % size, boxsize=size).query(cells)
        if relaxation < relaxations:
            offset = (cells - seeds[labels] + size / 2) % size - size / 2
            count = np.maximum(np.bincount(labels, minlength=n_grains), 1)
            moves = np.stack([np.bincount(labels, o, n_grains) for o in offset.T], -1)
            seeds = (seeds + moves / count[:, None]) % size
    return labels.reshape(shape).astype(np.int32)


def near_pairs(labels: Int[np.ndarray, "h w"], gap: float) -> set[tuple[int, int]]:
    """Pairs of grains that come within `gap` cells of each other on the torus.

    The label map is compared with itself shifted by the vectors of a disc, on every second cell:
    finer than an interface, which is some five cells wide.
    """
    stride = 2 if min(labels.shape) >= 64 else 1
    coarse, n, reach = labels[::stride, ::stride], int(labels.max()) + 1, math.ceil(gap / stride)
    near = np.zeros((n, n), bool)
    for dy in range(reach + 1):
        for dx in range(-reach, reach + 1):
            if dy * dy + dx * dx <= reach * reach:
                near[coarse, np.roll(coarse, (dy, dx), (0, 1))] = True
    return {(int(a), int(b)) for a, b in np.argwhere(np.triu(near | near.T, 1))}


def colour_grains(labels: Int[np.ndarray, "h w"], gap: float) -> Int[np.ndarray, " n"]:
    """Colour of each grain such that equal colours lie further apart than `gap` cells.

    A handful of order parameters then carries any number of grains.

    Args:
        labels: int [H, W].
        gap: least distance between two grains of one colour, in cells.

    Returns:
        Colours indexed by label, int [labels.max() + 1]; -1 for a label that has no cell.
    """
    graph = nx.Graph(near_pairs(labels, gap))
    graph.add_nodes_from(np.unique(labels).tolist())
    colours = np.full(int(labels.max()) + 1, -1)
    for grain, colour in nx.greedy_color(graph, "saturation_largest_first").items():
        colours[grain] = colour
    return colours


def _owners(labels: np.ndarray, colours: np.ndarray, n_orders: int) -> Int[np.ndarray, "q h w"]:
    """For each order parameter the nearest of its grains, cell by cell (-1 where it has none)."""
    pad = [(n // 2, n // 2) for n in labels.shape]
    wrapped = np.pad(labels, pad, mode="wrap")
    inside = tuple(slice(p, p + n) for (p, _), n in zip(pad, labels.shape, strict=True))
    owners = np.full((n_orders, *labels.shape), -1, np.int32)
    for q in range(colours.max() + 1):
        nearest = ndimage.distance_transform_edt(colours[wrapped] != q, return_distances=False, return_indices=True)
        owners[q] = wrapped[tuple(nearest)][inside]
    return owners


def coarsen(params: AllenCahn, *, n_grains: int, times: Sequence[float | int], key: Array) -> list[Grains]:
    """Grow one Voronoi structure and look at it at several times.

    Grains are coloured onto few order parameters and coloured anew, between jitted chunks of steps, whenever
    two grains of one colour have come near each other.

    Args:
        params: coefficients and grid.
        n_grains: grains at the start; each needs at least one squared interface width of cells.
        times: increasing, in 1/(L alpha), whatever the integrator's steps; 0 is the start.
        key: a `jax.random.key`.

    Returns:
        One `Grains` a time.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.

    Source: Appendix A.
    """
    _check(params, n_grains, times, key)
    labels = voronoi(params.shape, n_grains, key=key)
    unit = math.sqrt(params.kappa) / params.dx
    eta, owners, colours, structures, now = None, None, None, [], 0.0
    for target in times:
        while True:
            if colours is None or any(colours[a] == colours[b] for a, b in near_pairs(labels, RECOLOUR_GAP * unit)):
                colours = colour_grains(labels, COLOUR_GAP * unit)
                n_orders = 4 * math.ceil((colours.max() + 1) / 4)  # few distinct sizes, so few compilations
                eta = _recolour(eta, owners, labels, colours, n_orders)
                owners = _owners(labels, colours, n_orders)
            if now >= target:
                break
            span = min(CHUNK / (params.mobility * params.alpha), target - now)
            n_steps = math.ceil(span / params.dt - 1e-9)
            eta = _advance(params, eta, n_steps, span / n_steps)
            labels = np.take_along_axis(owners, np.asarray(eta.argmax(0))[None], 0)[0]
            now = target if target - now - span < 1e-9 else now + span
        order = np.asarray(jnp.sum(eta * eta, 0))
        if not np.isfinite(order).all():
            raise ValueError(f"the fields are no longer finite at time {now:g}; was dt={params.dt:g} too large?")
        structures.append(Grains(labels, order, float(now), free_energy(params, eta)))
    return structures


def _recolour(eta, owners, labels, colours, n_orders: int) -> Float[Array, "q h w"]:
    """Fields of a new colouring: each grain takes its own part of its old field along."""
    fields = np.zeros((n_orders, *labels.shape), np.float32)
    if eta is None:
        np.put_along_axis(fields, colours[labels][None], 1.0, 0)
    else:
        rows, columns = np.indices(labels.shape)
        for field, owner in zip(np.asarray(eta), owners, strict=True):
            owner = np.where(owner < len(colours), owner, -1)  # the last grains may have vanished
            colour = np.where(owner < 0, -1, colours[owner])
            np.add.at(fields, (colour[colour >= 0], rows[colour >= 0], columns[colour >= 0]), field[colour >= 0])
    return jnp.asarray(fields)


def grow(params: AllenCahn, *, n_grains: int, time: float | int, key: Array) -> Grains:
    """Grow one Voronoi structure for a time.

    Args:
        params: coefficients and grid.
        n_grains: grains at the start.
        time: in 1/(L alpha); 0 gives the start.
        key: a `jax.random.key`.

    Returns:
        The `Grains` at that time.

    Raises:
        ValueError: as `coarsen`.

    Source: Appendix A, Fig. 1a.
    """
    return coarsen(params, n_grains=n_grains, times=[time], key=key)[0]


def _check(params, n_grains, times, key) -> None:
    limit = int(np.prod(params.shape) // (params.interface_width / params.dx) ** 2)
    if not isinstance(n_grains, Integral) or not 1 <= n_grains <= limit:
        raise ValueError(
            f"n_grains must be an integer from 1 to {limit} on {params.shape} cells "
            f"(one squared interface width of {params.interface_width:.3g} a grain), got {n_grains!r}"
        )
    good = all(isinstance(t, Real) and math.isfinite(t) and t >= 0 for t in times)
    if not len(times) or not good or list(times) != sorted(times):
        raise ValueError(f"time must be finite, not negative and increasing, got {list(times)!r}")
    check_key(key)


def check_key(key) -> None:
    """Raise a ValueError for what is not one `jax.random.key`."""
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0):
        raise ValueError(f"key must be one jax.random.key, got {key!r}")
