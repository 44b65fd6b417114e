"""Grain growth by the Allen-Cahn equation (Appendix A, Fig. 1a).

The free energy density solved for is

    f = sum_i (-alpha/2 eta_i^2 + beta/4 eta_i^4) + gamma sum_{i<j} eta_i^2 eta_j^2,

whose derivative is A4. The paper's A3 runs the last sum over i != j and so counts each pair twice;
A4 does not, and A4 is what is solved. Lengths are in units of dx, times in 1/(L alpha).

Three things make it fast. Grains far apart share an order parameter: a colouring lays any number of grains on
some eight fields. Time goes in supersteps of a stabilised Runge-Kutta method. And the halo of a superstep is
laid once: its stages run on rows laid end to end, losing a row at either end as they go, so that each is one
pass of loads at fixed distances.
"""

from __future__ import annotations

import cmath
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from numbers import Integral, Real

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import ndimage
from scipy.spatial import cKDTree

COLOUR_GAP = 18.0  # grains of one colour start this many tail lengths apart: both tails are then under 1e-4
TAIL = 1e-2  # ... and are coloured anew when their tails meet at this height, some 10 tail lengths apart
START = 4.0  # time, in 1/(L alpha), that the sharp start is given to relax in Euler steps
STAGES = (1, 4, 6, 8, 10, 12)
STRIP = 2**16  # cells of a strip: its fields stay in a core's cache over all stages of a superstep


@dataclass(frozen=True, kw_only=True)
class AllenCahn:
    """Parameters of A2-A4 and of their discretisation (five-point Laplacian, explicit steps).

    Args:
        shape: cells (H, W) of the periodic domain.
        alpha, beta, gamma: coefficients of the local free energy density, dimensionless.
            Grains exist where gamma > beta/2.
        kappa: gradient energy coefficient; the 10-90 % interface width is 3.8 sqrt(kappa/alpha) at gamma = beta.
        mobility: the kinetic coefficient L.
        dx: grid spacing.
        dt: step of explicit Euler; by default 80 % of `max_dt`.
        stages: evaluations of A4 in a superstep of the stabilised method, one of 1, 4, 6, 8, 10, 12; 1 is explicit
            Euler. By default the number that covers most time a stage, 8 at kappa = 2.

    Raises:
        ValueError: for a shape or coefficient that is not positive, a gamma at or below beta/2, a dt at or above
            `max_dt`, or other stages.

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
    stages: int | None = None

    def __post_init__(self):
        shape = tuple(self.shape) if isinstance(self.shape, tuple | list) else ()
        if len(shape) != 2 or not all(isinstance(n, Integral) and n >= 4 for n in shape):
            raise ValueError(f"shape must be two integers of at least 4 cells, got {self.shape!r}")
        object.__setattr__(self, "shape", (int(shape[0]), int(shape[1])))
        for name in ("alpha", "beta", "gamma", "kappa", "mobility", "dx"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive and finite number, got {value!r}")
        if self.gamma <= self.beta / 2:
            raise ValueError(f"gamma must exceed beta/2 = {self.beta / 2:g}, else grains mix, got {self.gamma!r}")
        if self.dt is None:
            object.__setattr__(self, "dt", 0.8 * self.max_dt)
        elif not (isinstance(self.dt, Real) and 0 < self.dt < self.max_dt):
            raise ValueError(f"dt must lie between 0 and the stability bound {self.max_dt:.4g}, got {self.dt!r}")
        if self.stages is None:
            object.__setattr__(self, "stages", max(STAGES[1:], key=lambda n: self._covered(n) / n))
        elif self.stages not in STAGES:
            raise ValueError(f"stages must be one of {STAGES}, got {self.stages!r}")

    @property
    def max_dt(self) -> float:
        """Explicit Euler is stable below 2 / (L [max(2 alpha, 2 gamma - alpha) + 8 kappa / dx^2]), at alpha = beta."""
        return 2 / (self._reaction + 8 * self.mobility * self.kappa / self.dx**2)

    @property
    def _reaction(self) -> float:
        a, b = self.alpha, self.beta  # inside a grain, of the others there, and of the start at 1
        return self.mobility * max(2 * a, 2 * self.gamma * a / b - a, 3 * b - a)

    @property
    def superstep(self) -> float:
        """Time that `stages` evaluations cover.

        The share of their stability bound that dt is of Euler's, as far as the longest stage leaves the reaction
        stable on its own: beyond that a grain that vanishes within a superstep can throw the fields off.
        """
        return self._covered(self.stages)

    def _covered(self, stages: int) -> float:
        """Time that a superstep of so many stages would cover."""
        if stages == 1:
            return self.dt
        tau, _, beta = _stable_pairs(stages)
        return min(self.dt / 2 * beta, 1.6 / (self._reaction * max(tau)))

    @property
    def interface_width(self) -> float:
        """10-90 % width of a flat boundary at gamma = beta: 3.8 sqrt(kappa/alpha)."""
        return 3.8 * math.sqrt(self.kappa / self.alpha)

    @property
    def _colour_gap(self) -> float:
        """How far apart, in cells, two grains of one colour are laid; tails fall by e in a tail length."""
        tail = math.sqrt(self.kappa / self.alpha / min(2 * self.gamma / self.beta - 1, 1))
        return COLOUR_GAP * tail / self.dx


@partial(jax.tree_util.register_dataclass, data_fields=["labels", "order", "time", "energy"], meta_fields=[])
@dataclass(frozen=True)
class Grains:
    """A grain structure at one time; under `jax.vmap`, a batch of them.

    Attributes:
        labels: int32 [H, W], the grain of each cell; a grain keeps its number while it lives.
        order: float32, or float64 if JAX is set to it, [H, W]: sum of eta squared, 1 inside a grain and 0.64 on a
            boundary at alpha = beta = gamma.
        time: in 1/(L alpha).
        energy: free energy F of A2, relative to a single grain.
    """

    labels: Int[np.ndarray, "*n h w"] | Int[Array, "*n h w"]
    order: Float[np.ndarray, "*n h w"] | Float[Array, "*n h w"]
    time: float | Array
    energy: float | Array

    @property
    def n_grains(self) -> int:
        """How many grains are left."""
        return len(np.unique(self.labels))


def _rate(params: AllenCahn, eta: Float[Array, "q m"], width: int) -> Float[Array, "q n"]:
    """Right-hand side of A4 on rows of `width` cells laid end to end, but for the first and the last row.

        L (alpha eta_i - beta eta_i^3 - 2 gamma eta_i sum_{j != i} eta_j^2 + kappa lap eta_i)

    Cells at the two ends of a row see the neighbouring rows: the caller's halo has to bear that.
    """
    p, size = params, eta.shape[1]
    cells = eta[:, width:-width]
    # the root is dear enough for XLA to keep the sum, and not to form it anew for each field
    amplitude = jnp.sqrt(sum(e * e for e in eta))[None, width:-width]
    neighbours = eta[:, : -2 * width] + eta[:, 2 * width :]
    neighbours += eta[:, width - 1 : size - width - 1] + eta[:, width + 1 : size - width + 1]
    reaction = p.alpha + (2 * p.gamma - p.beta) * cells * cells - 2 * p.gamma * amplitude * amplitude
    return p.mobility * (cells * reaction + p.kappa / p.dx**2 * (neighbours - 4 * cells))


@cache
def _stable_pairs(stages: int) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """The second-order Runge-Kutta-Chebyshev method as pairs of equal Euler steps, each pair with a pull back.

    Its stability polynomial a + b T_s(w0 + w1 z) has s/2 pairs of conjugate roots z_k, and a factor
    (1 - z/z_k)(1 - z/z_k*) is

        u = y + tau F(y),    y' = u + tau F(u) + pull (u - y),    tau = 1/|z_k|, pull = 2 cos(arg(-1/z_k)) - 2.

    Two is an order that the polynomial alone decides, so the product keeps it on a nonlinear F.

    Returns:
        tau and pull of each pair, in the order in which disturbances swell least on the way (those of the state
        counted in full, of rounding by their root), for a superstep of length 1; and beta: stable while the
        superstep times the largest rate stays below it.

    Source: B. P. Sommeijer, L. F. Shampine, J. G. Verwer, RKC, J. Comput. Appl. Math. 88 (1998), for the
        polynomial with damping 2/13; S. O'Sullivan, J. Comput. Phys. 300 (2015), for factored forms.
    """
    chebyshev = np.polynomial.chebyshev.Chebyshev.basis(stages)
    w0 = 1 + 2 / 13 / stages**2
    value, first, second = chebyshev(w0), chebyshev.deriv()(w0), chebyshev.deriv(2)(w0)
    w1, b = first / second, second / first**2
    angle = cmath.acos(value - 1 / b)
    roots = [(cmath.cos((angle + 2 * math.pi * k) / stages) - w0) / w1 for k in range(stages)]
    inverse = [-1 / z for z in roots if z.imag > 0]
    tau, pull, beta = [abs(z) for z in inverse], [2 * math.cos(cmath.phase(z)) - 2 for z in inverse], (w0 + 1) / w1

    def swell(order):
        z = np.linspace(-beta, 0, 200)
        factors = [(1 + tau[k] * z) ** 2 + pull[k] * tau[k] * z for k in order]
        halves = np.cumprod([np.ones_like(z), *factors[:-1]], 0) * [1 + tau[k] * z for k in order]
        before, after = np.cumprod(factors, 0), np.cumprod(factors[:0:-1], 0)
        return max(np.abs(before).max(), np.abs(halves).max(), np.sqrt(np.abs(after).max()))

    order = min(itertools.permutations(range(stages // 2)), key=swell)
    return tuple(tau[k] for k in order), tuple(pull[k] for k in order), beta


def _plan(params: AllenCahn, span: float, stages: int) -> tuple[int, np.ndarray, np.ndarray]:
    """How many equal halos fill a span of time, and tau and pull of the pairs of stages in each one."""
    if stages == 1:
        tau, pull, longest = np.ones(6) / 12, np.zeros(6), 12 * params.dt
    else:
        twice = max(12 // stages, 1)
        tau, pull, _ = _stable_pairs(stages)
        tau, pull, longest = np.tile(tau, twice) / twice, np.tile(pull, twice), twice * params.superstep
    count = max(1, math.ceil(span / longest - 1e-9))
    return count, tau * span / count, pull


def _halo(
    params: AllenCahn,
    eta: Float[Array, "q h w"],
    tau: Float[Array, " p"],
    pull: Float[Array, " p"],
    time: Float[Array, ""] | float = 0.0,
    source: Callable[[Array], Array] | None = None,
) -> Float[Array, "q h w"]:
    """The stages that one halo bears, in pairs u = y + tau F(y), y' = u + tau F(u) + pull (u - y), strip by strip."""
    (n_orders, height, columns), depth = eta.shape, 2 * len(tau)
    halo = [(0, 0), (depth, depth), (depth, depth)]
    width = columns + 2 * depth
    few = 1 if source or jax.default_backend() != "cpu" else math.ceil(height * columns / STRIP)
    n_strips = next(n for n in range(few, 0, -1) if height % n == 0)
    rows = height // n_strips
    padded = jnp.pad(eta, halo, mode="wrap")

    def rate(cells, stage, now):
        change = _rate(params, cells, width)
        if source is not None:  # cell x of this buffer is cell x + stage * width of the padded domain
            field = jnp.pad(jnp.pad(source(now), halo, mode="wrap").reshape(n_orders, -1), [(0, 0), (0, width * depth)])
            change += jax.lax.dynamic_slice_in_dim(field, (stage + 1) * width, change.shape[1], 1)
        return change

    def pair(k, state):
        # What a stage leaves starts a row later than what it took: the spent rows go to the end, where nothing
        # reads them again. XLA then joins the two without a copy between the stages.
        start, now = state
        spent, inside, shift = start[:, : 2 * width], slice(width, -width), tau[k] * (2 + pull[k])
        middle = jnp.concatenate([start[:, inside] + tau[k] * rate(start, 2 * k, now), spent], 1)
        moved = middle[:, inside] + tau[k] * rate(middle, 2 * k + 1, now + tau[k])
        moved += pull[k] * (middle[:, inside] - start[:, 2 * width :])
        return jnp.concatenate([moved, spent], 1), now + shift

    def strip(i):
        cells = jax.lax.dynamic_slice_in_dim(padded, i * rows, rows + 2 * depth, 1).reshape(n_orders, -1)
        cells, _ = jax.lax.fori_loop(0, len(tau), pair, (cells, jnp.asarray(time, eta.dtype)))
        return cells.reshape(n_orders, rows + 2 * depth, width)[:, :rows, depth:-depth]

    if n_strips == 1:
        return strip(0)
    strips = jax.lax.map(strip, jnp.arange(n_strips))
    return strips.swapaxes(0, 1).reshape(eta.shape)


@partial(jax.jit, static_argnames=("params", "source"))
def _advance(params, eta, count, tau, pull, start=0.0, source=None):
    """`count` halos of the same stages, from the time `start` on, which is in the units of A4."""
    length = (tau * (2 + pull)).sum()
    return jax.lax.fori_loop(0, count, lambda i, eta: _halo(params, eta, tau, pull, start + i * length, source), eta)


@partial(jax.jit, static_argnames="params")
def _advance_and_look(params, eta, seams, tau, pull):
    """One halo's stages; then in which fields two grains have come near each other."""
    eta = _halo(params, eta, tau, pull)
    return eta, jnp.max(jnp.where(seams, eta, 0), (1, 2)) > TAIL


def evolve(
    params: AllenCahn,
    eta: Float[Array, "q h w"] | Float[np.ndarray, "q h w"],
    *,
    time: float | int,
    start: float | int = 0.0,
    source: Callable[[Array], Array] | None = None,
) -> Float[Array, "q h w"]:
    """Solve A4 from given fields, one order parameter a field and no colouring.

    Args:
        params: coefficients and grid.
        eta: Q order parameters of [H, W] at time `start`.
        time: how long, in 1/(L alpha).
        start: when; up to 4/(L alpha) the steps are Euler's, since fields may start sharp.
        source: of a time, the Q fields that are added to the right-hand side of A4; that time is start and what
            has passed since, in the units of A4: in 1/(L alpha) at L = alpha = 1.

    Returns:
        The Q fields at start + time.

    Raises:
        ValueError: for a time that is negative or not finite, fields that are not on the grid, or fields that do not
            stay finite.

    Source: Eq. A4.
    """
    for name, value in (("time", time), ("start", start)):
        if not (isinstance(value, Real) and math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {value!r}")
    if np.ndim(eta) != 3 or not len(eta) or np.shape(eta)[1:] != params.shape:
        raise ValueError(f"eta must be one or more fields of {params.shape} cells, got {np.shape(eta)}")
    unit, eta = 1 / (params.mobility * params.alpha), jnp.asarray(eta, jnp.result_type(float))
    now, end = start * unit, (start + time) * unit
    for stages, until in ((1, min(end, START * unit)), (params.stages, end)):
        if until > now:
            eta, now = _advance(params, eta, *_plan(params, until - now, stages), now, source), until
    return _finite(eta)


def step(
    params: AllenCahn,
    eta: Float[Array, "q h w"] | Float[np.ndarray, "q h w"],
    dt: float | None = None,
) -> Float[Array, "q h w"]:
    """One explicit Euler step of A4 on a periodic grid.

        d eta_i/dt = -L (-alpha eta_i + beta eta_i^3 + 2 gamma eta_i sum_{j != i} eta_j^2 - kappa lap eta_i)

    Args:
        params: the coefficients.
        eta: Q order parameters of [H, W].
        dt: time step, `params.dt` unless given.

    Returns:
        The Q fields a step later.

    Source: Eq. A4.
    """
    padded = jnp.pad(jnp.asarray(eta), [(0, 0), (1, 1), (1, 1)], mode="wrap")
    rate = _rate(params, padded.reshape(len(padded), -1), padded.shape[2])
    rate = rate.reshape(len(padded), -1, padded.shape[2])[:, :, 1:-1]
    return padded[:, 1:-1, 1:-1] + (params.dt if dt is None else dt) * rate


def _energy(params: AllenCahn, eta, xp):
    p, squares = params, eta**2
    pairs = (squares.sum(0) ** 2 - (squares**2).sum(0)) / 2
    gradient = sum(((xp.roll(eta, -1, axis) - eta) / p.dx) ** 2 for axis in (1, 2)).sum(0)
    density = (-p.alpha / 2 * squares + p.beta / 4 * squares**2).sum(0) + p.gamma * pairs + p.kappa / 2 * gradient
    return (density + p.alpha**2 / (4 * p.beta)).sum() * p.dx**2


def free_energy(params: AllenCahn, eta: Float[Array, "q h w"] | Float[np.ndarray, "q h w"]) -> float:
    """Free energy of A2 relative to a single grain, summed in float64.

        F = sum dx^2 [-alpha/2 sum eta^2 + beta/4 sum eta^4 + gamma sum_{i<j} eta_i^2 eta_j^2
                      + alpha^2/(4 beta) + kappa/2 sum |grad eta|^2]

    Args:
        params: the coefficients.
        eta: Q order parameters of [H, W].

    Returns:
        F, in alpha dx^2 at alpha = 1 and dx = 1.

    Source: Eqs. A2-A3, each pair counted once.
    """
    return float(_energy(params, np.asarray(eta, np.float64), np))


def _tessellate(shape: tuple[int, int], relaxations: int, seeds) -> Int[np.ndarray, "h w"]:
    size, seeds = np.array(shape, float), np.asarray(seeds) * np.array(shape, float)
    cells = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 2) + 0.5
    for relaxation in range(relaxations + 1):
        _, labels = cKDTree(seeds % size, boxsize=size).query(cells, workers=-1)
        if relaxation < relaxations:
            offset = (cells - seeds[labels] + size / 2) % size - size / 2
            count = np.maximum(np.bincount(labels, minlength=len(seeds)), 1)
            moves = np.stack([np.bincount(labels, o, len(seeds)) for o in offset.T], -1)
            seeds = (seeds + moves / count[:, None]) % size
    return labels.reshape(shape).astype(np.int32)


def voronoi(
    shape: tuple[int, int], n_grains: int, *, key: Array, relaxations: int = 2
) -> Int[np.ndarray, "h w"] | Int[Array, "h w"]:
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
    seeds = jax.random.uniform(key, (n_grains, 2), jnp.float32)
    if _traced(seeds):
        labels = jax.ShapeDtypeStruct(shape, jnp.int32)
        return jax.pure_callback(partial(_tessellate, shape, relaxations), labels, seeds, vmap_method="sequential")
    return _tessellate(shape, relaxations, np.asarray(seeds))


def near_grains(labels: Int[np.ndarray, "h w"], gap: float) -> Bool[np.ndarray, "n n"]:
    """Which grains come within `gap` cells of each other on the torus, by label; none is near itself.

    The cells on grain boundaries are compared with those that lie within the gap, in blocks of 2 x 2 cells: finer
    than an interface, which is some five cells wide. Each block stands for the smallest grain in it, so that
    none is overlooked.
    """
    blocks = np.pad(labels, [(0, n % 2) for n in labels.shape], mode="wrap")
    blocks = np.stack([blocks[i::2, j::2] for i in (0, 1) for j in (0, 1)])
    smallest = np.bincount(labels.ravel())[blocks].argmin(0)
    coarse = np.take_along_axis(blocks, smallest[None], 0)[0]
    n, reach = int(labels.max()) + 1, math.ceil(gap / 2)
    (height, width), edge = coarse.shape, np.zeros(coarse.shape, bool)
    for shift, axis in ((1, 0), (-1, 0), (1, 1), (-1, 1)):
        edge |= coarse != np.roll(coarse, shift, axis)
    y, x = np.nonzero(edge)
    label, near = coarse[y, x], np.zeros(n * n, bool)
    for dy in range(reach + 1):
        row, side = (y + dy) % height * width, math.isqrt(reach * reach - dy * dy)
        for dx in range(-side, side + 1):
            near[label * n + coarse.ravel()[row + (x + dx) % width]] = True
    near = near.reshape(n, n)
    return (near | near.T) & ~np.eye(n, dtype=bool)


def colour_grains(labels: Int[np.ndarray, "h w"], gap: float) -> Int[np.ndarray, " n"]:
    """Colour of each grain such that equal colours lie further apart than `gap` cells.

    A handful of order parameters then carries any number of grains.

    Args:
        labels: int [H, W].
        gap: least distance between two grains of one colour, in cells.

    Returns:
        Colours indexed by label, int [labels.max() + 1]; -1 for a label that has no cell.
    """
    graph = nx.Graph(np.argwhere(near_grains(labels, gap)).tolist())
    graph.add_nodes_from(np.unique(labels).tolist())
    colours = np.full(int(labels.max()) + 1, -1)
    for grain, colour in nx.greedy_color(graph, "smallest_last").items():
        colours[grain] = colour
    return colours


def _fitting_colours(labels, gap: float, n_orders: int) -> Int[np.ndarray, " n"]:
    """Colours for so many order parameters, with like grains a little nearer if it must be."""
    for closer in (1.0, 0.85, 0.7):
        colours = colour_grains(labels, closer * gap)
        if colours.max() < n_orders:
            return colours
    raise ValueError(
        f"n_grains must be fewer under jax.vmap or jax.jit: they need more than {n_orders} order parameters"
    )


def _mended_colours(colours, labels, gap: float, n_orders: int) -> Int[np.ndarray, " n"] | None:
    """Colours in which no two like grains are near each other, changed for few grains; None if none fit."""
    near, mended = near_grains(labels, gap), colours.copy()
    for grain in np.unique(labels):
        taken = set(mended[near[grain]].tolist())
        if mended[grain] in taken:
            free = set(range(n_orders)) - taken
            if not free:
                return None
            mended[grain] = min(free)
    return mended


def _enough_orders(n_colours: int | float | np.integer) -> int:
    return 4 * math.ceil(n_colours / 4)  # few distinct numbers, so few compilations


def _owners(labels: np.ndarray, colours: np.ndarray, order: int, reach: int) -> Int[np.ndarray, "h w"]:
    """The nearest of the grains that have the order parameter, cell by cell (-1 where none has)."""
    if not (colours == order).any():
        return np.full_like(labels, -1)
    wrapped, inside = np.pad(labels, reach, mode="wrap"), (slice(reach, -reach),) * 2
    others = colours[wrapped] != order
    nearest = ndimage.distance_transform_edt(others, return_distances=False, return_indices=True)
    return wrapped[tuple(n[inside] for n in nearest)]


def _start(gap: float, n_orders: int | None, labels, dtype) -> tuple[np.ndarray, np.ndarray]:
    """Fields and owners of the sharp start: each grain's field is 1 inside it and 0 outside."""
    labels = np.asarray(labels)
    colours = colour_grains(labels, gap) if n_orders is None else _fitting_colours(labels, gap, n_orders)
    orders = range(n_orders or _enough_orders(colours.max() + 1))
    owners = np.stack([_owners(labels, colours, order, math.ceil(gap)) for order in orders])
    return np.stack([colours[labels] == order for order in orders]).astype(dtype), owners


def _present(eta: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and each grain's order parameter (-1 for none), of all grains that have more than a tail left.

    A grain that is about to vanish wins no cell: it is given its highest one, in a block of `near_grains` where no
    other such grain is.
    """
    order = eta.argmax(0)
    labels, colours = np.take_along_axis(owners, order[None], 0)[0], np.full(int(owners.max()) + 1, -1)
    colours[labels] = order
    rows, columns = np.indices(labels.shape) // 2
    block = rows * (columns.max() + 1) + columns
    given = np.zeros(block.max() + 1, bool)
    given[block[np.bincount(labels.ravel())[labels] < 5]] = True
    for q, (field, owner) in enumerate(zip(eta, owners, strict=True)):
        owned = np.bincount(owner.ravel() + 1, minlength=len(colours) + 1)[1:] > 0
        for grain in np.flatnonzero(owned & (colours < 0)):
            height = np.where(owner == grain, field, -1)
            if height.max() > TAIL:
                peak = np.unravel_index(np.where(given[block], -1, height).argmax(), owner.shape)
                labels[peak], colours[grain], given[block[peak]] = grain, q, True
    return labels, colours


def _recoloured(gap: float, fixed: bool, eta, owners, near) -> tuple[np.ndarray, np.ndarray]:
    """Fields and owners under new colours, if they are due: a grain takes its part of its field along.

    Unless their number is `fixed`, on as many order parameters as are enough.
    """
    eta, owners = np.asarray(eta), np.asarray(owners)
    if not np.any(near):
        return eta, owners
    labels, old = _present(_finite(eta), owners)
    live, n_orders = int(labels.max()) + 1, len(eta)
    new = _mended_colours(old[:live], labels, gap, n_orders)
    if fixed:
        new = _fitting_colours(labels, gap, n_orders) if new is None else new
    elif new is None or n_orders > 8:  # fewer than eight are hardly ever enough
        fresh = colour_grains(labels, gap)
        if new is None or _enough_orders(fresh.max() + 1) < n_orders:
            new, n_orders = fresh, _enough_orders(fresh.max() + 1)
    fields, domains = (
        np.full((max(n_orders, len(eta)), *labels.shape), fill, x.dtype) for fill, x in ((0, eta), (-1, owners))
    )
    domains[: len(eta)] = owners
    changed = {*np.flatnonzero(near).tolist()}
    colour_of = np.append(np.pad(new, (0, len(old) - live), constant_values=-1), -1)  # the last for owner -1
    for order, (field, owner) in enumerate(zip(eta, owners, strict=True)):
        to = colour_of[owner]
        to = np.where(to < 0, order, to).ravel()  # what is left of a vanished grain stays where it is
        fields.reshape(len(fields), -1)[to, np.arange(to.size)] += field.ravel()
        changed |= {order, *np.unique(to).tolist()} if (to != order).any() else set()
    for order in changed:
        domains[order] = _owners(labels, new, order, math.ceil(gap))
    return fields[:n_orders], domains[:n_orders]


def _finite(fields):
    """The arrays, if all of them are finite; under tracing, each depends on the check of all."""
    if _traced(fields):
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), fields)
        return jax.pure_callback(_finite, shapes, fields, vmap_method="sequential")
    if not all(np.isfinite(field).all() for field in jax.tree.leaves(fields)):
        raise ValueError("the fields are no longer finite: was dt too large?")
    return fields


def _traced(arrays) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arrays))


@jax.jit
def _seams(owners: Int[Array, "q h w"]) -> Bool[Array, "q h w"]:
    """Where the domains of two grains of one colour meet."""
    return (owners != jnp.roll(owners, 1, 1)) | (owners != jnp.roll(owners, 1, 2))


@jax.jit
def _look(eta: Float[Array, "q h w"], owners: Int[Array, "q h w"]) -> tuple[Int[Array, "h w"], Float[Array, "h w"]]:
    return jnp.take_along_axis(owners, jnp.argmax(eta, 0)[None], 0)[0], jnp.sum(eta * eta, 0)


def _grow(params, gap, state, count, tau, pull):
    """As `_advance`, with a look at the colouring after every halo.

    The state is eta, owners and seams, each [Q, H, W]; outside of a trace Q may change on the way.
    """
    traced, tau, pull = _traced(state[0]), jnp.asarray(tau, state[0].dtype), jnp.asarray(pull, state[0].dtype)

    def halo(_, state):
        eta, owners, seams = state
        eta, near = _advance_and_look(params, eta, seams, tau, pull)
        if traced:
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (eta, owners))
            recolour = partial(_recoloured, gap, True)
            eta, owners = jax.pure_callback(recolour, shapes, eta, owners, near, vmap_method="sequential")
        elif np.any(near):
            eta, owners = map(jnp.asarray, _recoloured(gap, False, eta, owners, near))
        else:
            return eta, owners, seams
        return eta, owners, _seams(owners)

    if traced:
        return jax.lax.fori_loop(0, count, halo, state)
    for i in range(count):
        state = halo(i, state)
    return state


def coarsen(params: AllenCahn, *, n_grains: int, times: Sequence[float | int], key: Array) -> list[Grains]:
    """Grow one Voronoi structure and look at it at several times.

    Grains are coloured onto few order parameters and coloured anew, between jitted supersteps, whenever two
    grains of one colour have come near each other. Under `jax.vmap` or `jax.jit` the colouring is a callback
    to the host after every superstep, on a number of order parameters that is set by the size of the grains.

    Args:
        params: coefficients and grid.
        n_grains: grains at the start, each at least two interface widths across: below that it has no inside.
        times: not decreasing, in 1/(L alpha), whatever the integrator's steps; 0 is the start.
        key: a `jax.random.key`.

    Returns:
        One `Grains` a time; its arrays are NumPy's, or traced if the key is.

    Raises:
        ValueError: naming the argument, what was given and what is accepted; or for fields that are no longer
            finite.

    Source: Appendix A.
    """
    return list(coarsening(params, n_grains=n_grains, times=times, key=key))


def coarsening(params: AllenCahn, *, n_grains: int, times: Sequence[float | int], key: Array) -> Iterator[Grains]:
    """`coarsen` one `Grains` at a time, as they come: for what shows its progress or may be stopped."""
    _check(params, n_grains, times, key)
    unit = 1 / (params.mobility * params.alpha)
    gap, dtype = params._colour_gap, jnp.result_type(float)
    labels = voronoi(params.shape, n_grains, key=key)
    if _traced(labels):
        n_orders = _enough_orders(7 + 4 * gap**2 * n_grains / math.prod(params.shape))  # with room to spare
        shape = (n_orders, *params.shape)
        shapes = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape, jnp.int32)
        start = partial(_start, gap, n_orders, dtype=dtype)
        eta, owners = jax.pure_callback(start, shapes, labels, vmap_method="sequential")
    else:
        eta, owners = map(jnp.asarray, _start(gap, None, labels, dtype))
    state, now = (eta, owners, _seams(owners)), 0.0
    for target in times:
        for stages, until in ((1, min(target, START) * unit), (params.stages, target * unit)):
            if until > now:
                state, now = _grow(params, gap, state, *_plan(params, until - now, stages)), until
        labels, order = _look(*state[:2])
        if _traced(labels):
            energy = _energy(params, state[0], jnp)
            labels, order, energy = _finite((labels, order, energy))
            yield Grains(labels, order, jnp.asarray(target, dtype), energy)
        else:
            energy = free_energy(params, _finite(state[0]))
            yield Grains(np.asarray(labels), np.asarray(order), float(target), energy)


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
    width = max(params.interface_width / params.dx, 2)
    limit = max(1, int(math.prod(params.shape) / (2 * width) ** 2))
    if not isinstance(n_grains, Integral) or not 1 <= n_grains <= limit:
        raise ValueError(
            f"n_grains must be an integer from 1 to {limit} on {params.shape} cells: a grain of less than two "
            f"interface widths of {width:.3g} cells across has no inside, got {n_grains!r}"
        )
    good = all(isinstance(t, Real) and math.isfinite(t) and t >= 0 for t in times)
    if not len(times) or not good or list(times) != sorted(times):
        raise ValueError(f"time must be finite, not negative and not decreasing, got {list(times)!r}")
    check_key(key)


def check_key(key) -> None:
    """Raise a ValueError for what is not one `jax.random.key`."""
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0):
        raise ValueError(f"key must be one jax.random.key, got {key!r}")
