"""Answers known in closed form, and what the solver makes of them (notebook 01, tests/test_verification.py).

Every experiment runs `phase_field` as it stands, and returns what a figure needs together with its checks: what
was measured, what theory expects, and between which limits the two are taken to agree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import stats

from mdn import phase_field as pf


class Check(NamedTuple):
    """One number against its expectation; it holds between `low` and `high`."""

    what: str
    measured: float
    expected: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        """Whether the number lies within its limits."""
        return bool(self.low <= self.measured <= self.high)

    @property
    def limits(self) -> str:
        """The limits in words, for a table."""
        one_sided = self.low == -math.inf or (self.low == 0 and self.high > 0)
        return f"at most {self.high:.3g}" if one_sided else f"{self.low:.4g} to {self.high:.4g}"


class Result(NamedTuple):
    """What an experiment found: its checks, and by name the arrays that a figure draws."""

    checks: tuple[Check, ...]
    data: dict[str, Any]


def _near(what: str, measured: float | np.floating, expected: float | int, share: float) -> Check:
    band = share * abs(expected)
    return Check(what, float(measured), float(expected), expected - band, expected + band)


# ---- one flat boundary ----

FLAT = {1.0: (0.387487, 0.63557, 3.793), 1.5: (math.sqrt(2) / 3, 0.5, 3.107)}  # by gamma, see flat_boundary


def flat_boundary(gamma: float | int, *, kappa: float | int = 64) -> Result:
    """Energy, lowest sum of eta squared, 10-90 % width and profile of a boundary at rest, in units of sqrt(kappa).

        gamma = 3/2:  eta = 1/2 [1 + tanh(x / sqrt(2 kappa))], of energy sqrt(2)/3 sqrt(kappa)

    At gamma = 1 there is no closed form: expected is what an independent solver in float64 found.

    Args:
        gamma: 1 or 3/2.
        kappa: in dx^2; a large one leaves little of the grid's own error.
    """
    energy, lowest, width = FLAT[gamma]
    root = math.sqrt(kappa)
    half = round(16 * root)
    params = pf.AllenCahn(shape=(4, 2 * half), gamma=gamma, kappa=kappa)
    place = np.arange(2 * half)
    grain = np.where(place % half == 0, 0.5, place < half)  # the boundaries lie on cells 0 and `half`
    eta = np.broadcast_to(np.stack([grain, 1 - grain])[:, None], (2, *params.shape)).astype(np.float32)
    eta = np.asarray(pf.evolve(params, eta, time=40.0))
    x = (place - half)[half // 2 : -half // 2] / root
    profile = eta[1, 0, half // 2 : -half // 2]
    low, high = np.interp((0.1, 0.9), profile, x)
    found = pf.free_energy(params, eta) / (2 * params.shape[0]) / root
    checks = [
        _near(f"flat boundary, γ = {gamma:g}: energy / √κ", found, energy, 0.005),
        _near(f"flat boundary, γ = {gamma:g}: lowest Σ η²", (eta[:, 0, half] ** 2).sum(), lowest, 0.005),
        _near(f"flat boundary, γ = {gamma:g}: 10-90 % width / √κ", high - low, width, 0.005),
    ]
    if gamma == 1.5:
        error = np.abs(profile - (1 + np.tanh(x / math.sqrt(2))) / 2).max()
        checks.append(Check("flat boundary, γ = 1.5: largest error of the profile", float(error), 0, 0, 0.002))
    return Result(tuple(checks), {"x": x, "profile": profile})


# ---- PFHub benchmark 7a ----

KAPPA, A1, B1, A2, B2, C2 = 4e-4, 0.0075, 8 * math.pi, 0.03, 22 * math.pi, 0.0625 * math.pi
LISTED = {100: 6.76e-3, 200: 1.39e-3, 400: 3.38e-4}  # L2 of an independent solver: five points, Euler, float64


@cache
def _manufactured(cells: int, start: float) -> tuple[Callable, Callable]:
    """Solution and source on the unit square, cells [y, x], for a clock that shows `start` at time 0.

    The problem stands on y from 0 to 1/2; mirrored at 1/2 it is periodic.
    """
    centres = (np.arange(cells) + 0.5) / cells
    x, y = jnp.asarray(centres[None], jnp.float32), jnp.asarray(np.minimum(centres, 1 - centres)[:, None], jnp.float32)

    def front(t):
        return 0.25 + A1 * t * jnp.sin(B1 * x) + A2 * jnp.sin(B2 * x + C2 * t)

    def solution(clock):
        eta = (1 - jnp.tanh((y - front(clock - start)) / math.sqrt(2 * KAPPA))) / 2
        return jnp.stack([eta, 1 - eta])

    def source(clock):
        t = clock - start
        wave = B2 * x + C2 * t
        al_t = A1 * jnp.sin(B1 * x) + A2 * C2 * jnp.cos(wave)
        al_x = A1 * B1 * t * jnp.cos(B1 * x) + A2 * B2 * jnp.cos(wave)
        al_xx = -A1 * B1**2 * t * jnp.sin(B1 * x) - A2 * B2**2 * jnp.sin(wave)
        tanh = jnp.tanh((y - front(t)) / math.sqrt(2 * KAPPA))
        bend = -2 * math.sqrt(KAPPA) * tanh * al_x**2 + math.sqrt(2) * (al_t - KAPPA * al_xx)
        s = (1 - tanh**2) / (4 * math.sqrt(KAPPA)) * bend
        return jnp.stack([s, -s])

    return solution, source


def manufactured(cells: Sequence[int], *, stages: int | None = None) -> Result:
    """PFHub benchmark 7a, a moving front with a known solution, through the two-grain kernel.

        d eta/dt = -[4 eta (eta - 1)(eta - 1/2) - kappa lap eta] + S,    eta = 1/2 [1 - tanh((y - al) / sqrt(2 kappa))],
        al = 1/4 + A1 t sin(B1 x) + A2 sin(B2 x + C2 t)

    is A4 at gamma = 3/2 with eta_1 = eta, eta_2 = 1 - eta and the sources S and -S.

    Args:
        cells: a unit of length on each grid, ascending; with three or more, the last two give the order.
        stages: 1 for explicit Euler, what the listed errors are from; else of the supersteps, which then go from
            the first moment on.

    Source: PFHub benchmark 7a, https://pages.nist.gov/pfhub/benchmarks/benchmark7.ipynb
    """
    start, errors, method = 0.0 if stages == 1 else pf.START, [], "Euler" if stages == 1 else "supersteps"
    for n in cells:
        params = pf.AllenCahn(shape=(n, n), gamma=1.5, kappa=KAPPA, dx=1 / n, stages=stages)
        solution, source = _manufactured(n, start)
        eta = pf.evolve(params, solution(start), time=8.0, start=start, source=source)
        error = np.asarray(eta[0] - solution(start + 8.0)[0], np.float64)
        errors.append(math.sqrt((error**2).sum() / 2) / n)  # over half the square
    checks = []
    if stages == 1:
        for n, error in zip(cells, errors, strict=True):
            checks.append(Check(f"PFHub 7a, h = 1/{n}: L2 error", error, LISTED[n], 0, 1.1 * LISTED[n]))
    if len(cells) > 2:
        order = math.log(errors[-2] / errors[-1]) / math.log(cells[-1] / cells[-2])
        checks.append(Check(f"PFHub 7a, {method}: order of the two finer grids", order, 2, 1.8, 2.2))
    return Result(tuple(checks), {"h": 1 / np.array(cells), "error": np.array(errors)})


# ---- one circle, one junction ----


def circle(params: pf.AllenCahn, *, radius: float | int) -> Result:
    """A circular grain loses area at a constant rate, whatever gamma, until three tenths of it are left.

        A(t) = A0 - 2 pi L kappa t

    Args:
        params: coefficients; the grid is as large as the circle asks for.
        radius: at the start, in dx.
    """
    side = 4 * round(radius)
    params = replace(params, shape=(side, side))
    y, x = np.indices(params.shape) - side / 2
    inside = np.hypot(x, y) < radius
    law = -2 * math.pi * params.mobility * params.kappa
    time = np.linspace(0, -0.7 * math.pi * (radius * params.dx) ** 2 / law, 25)
    eta, area, energy = jnp.asarray(np.stack([inside, ~inside]), jnp.float32), [], []
    for now, then in zip(time, [*time[1:], None], strict=True):
        area.append(float((eta[0] > eta[1]).sum()) * params.dx**2)
        energy.append(pf.free_energy(params, eta))
        eta = eta if then is None else pf.evolve(params, eta, time=then - now, start=now)
    area, settled = np.array(area), time > time[-1] / 10
    name, rise = f"circle, γ = {params.gamma:g}:", float(np.diff(energy).max())
    checks = (
        _near(f"{name} dA/dt", np.polyfit(time[settled], area[settled], 1)[0], law, 0.03),
        Check(f"{name} largest rise of the energy", rise, 0, -math.inf, 0),
    )
    return Result(checks, {"time": time, "area": area, "law": area[0] + law * time})


def _crossings(eta: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Points [n, 2], (y, x) in cells, at which two grains are equal, by the two fields that are."""
    first = eta.argmax(0)
    points: dict[tuple[int, int], list] = {}
    for axis in (0, 1):
        second = np.roll(first, -1, axis)
        for y, x in np.argwhere(first != second):
            a, b = int(first[y, x]), int(second[y, x])
            there = (y + 1) % first.shape[0] if axis == 0 else y, (x + 1) % first.shape[1] if axis == 1 else x
            here, next_ = eta[a, y, x] - eta[b, y, x], eta[a, *there] - eta[b, *there]
            point = np.array([y, x], float)
            point[axis] += here / (here - next_)
            points.setdefault((min(a, b), max(a, b)), []).append(point)
    return {pair: np.array(found) for pair, found in points.items()}


def junction_angles(
    eta: Float[np.ndarray, "q h w"], *, near: float | int, far: float | int
) -> Float[np.ndarray, "n 3"]:
    """The three angles, in degrees, of every triple junction: between lines fitted to its boundaries.

    Args:
        eta: one field a grain.
        near, far: a boundary's points between these distances of the junction, in cells, make its line.
    """
    size, points = np.array(eta.shape[1:]), _crossings(eta)
    labels, angles = eta.argmax(0), []
    corners = np.stack([np.roll(labels, (-i, -j), (0, 1)) for i in (0, 1) for j in (0, 1)])
    for y, x in np.argwhere((np.diff(np.sort(corners, 0), axis=0) != 0).sum(0) == 2):
        grains, directions = np.unique(corners[:, y, x]).tolist(), []
        for pair in [(grains[0], grains[1]), (grains[0], grains[2]), (grains[1], grains[2])]:
            arm = (points[pair] - (y + 0.5, x + 0.5) + size / 2) % size - size / 2
            distance = np.hypot(*arm.T)
            arm = arm[(distance > near) & (distance < far)]
            line = np.linalg.svd(arm - arm.mean(0))[2][0]
            directions.append(np.arctan2(*(line * np.sign(line @ arm.mean(0)))))
        turns = np.sort(np.degrees(directions))
        angles.append(np.diff([*turns, turns[0] + 360]))
    return np.array(angles)


def triple_junctions(params: pf.AllenCahn, *, brick: tuple[int, int] = (48, 40), time: float | int = 400.0) -> Result:
    """A brick wall, whose junctions are T's of 90 and 180 degrees, relaxes to junctions of 120 degrees.

    Each course is set off by a third of a brick, so that no symmetry of the wall, and no direction of the grid,
    helps the angles: at rest the boundaries are straight and run askew to the grid.

    Args:
        params: coefficients; the grid is two bricks long and three high.
        brick: length, a multiple of 3, and height, in cells.
        time: given to come to rest, in 1/(L alpha).
    """
    long, high = brick
    params = replace(params, shape=(3 * high, 2 * long))
    y, x = np.indices(params.shape)
    course = y // high
    labels = 2 * course + (x - course * long // 3) // long % 2
    eta = jnp.asarray(labels == np.arange(6)[:, None, None], jnp.float32)
    eta = np.asarray(pf.evolve(params, eta, time=time))
    root = math.sqrt(params.kappa) / params.dx
    angles = junction_angles(eta, near=4 * root, far=9 * root)
    worst = angles.ravel()[np.abs(angles - 120).argmax()]
    checks = (Check("triple junctions: the angle furthest from 120°", float(worst), 120, 118, 122),)
    return Result(checks, {"labels": eta.argmax(0), "order": (eta**2).sum(0), "angles": angles})


# ---- many grains ----


def neighbours(labels: Int[np.ndarray, "h w"]) -> np.ndarray:
    """Which grains share a side, bool [n, n] by label.

    Grains share a side where cells of theirs do. Where four grains meet in one point, the side between two of
    them has no length: it is given to the pair on the falling diagonal, so that each point is a pair of junctions.
    """
    n = int(labels.max()) + 1
    share = np.zeros((n, n), bool)
    below, right = np.roll(labels, -1, 0), np.roll(labels, -1, 1)
    across = np.roll(below, -1, 1)
    share[labels, below] = share[labels, right] = True
    four = (labels != below) & (labels != right) & (labels != across) & (below != right)
    four &= (across != below) & (across != right)
    share[labels[four], across[four]] = True
    return (share | share.T) & ~np.eye(n, dtype=bool)


def _areas(structures: Sequence[pf.Grains], n: int) -> np.ndarray:
    return np.array([np.bincount(grains.labels.ravel(), minlength=n) for grains in structures], float)


def neumann_mullins(params: pf.AllenCahn, structures: Sequence[pf.Grains]) -> Result:
    """Rate of a grain's area against its number of sides, over times in which it keeps its neighbours.

        dA/dt = pi/3 L kappa (n - 6)

    Args:
        params: with which the structures were grown.
        structures: of one run, at three times or more. Counted are grains that stay larger than a circle three
            interface widths wide.
    """
    n = int(structures[0].labels.max()) + 1
    shared = [np.pad(s, (0, n - len(s))) for s in (neighbours(grains.labels) for grains in structures)]
    steady = np.all([(s == shared[0]).all(1) for s in shared], 0)
    area = _areas(structures, n) * params.dx**2
    time = np.array([grains.time for grains in structures]) / (params.mobility * params.alpha)
    counted = steady & (area.min(0) > math.pi * (1.5 * params.interface_width) ** 2)
    sides, rate = shared[0].sum(1)[counted], np.polyfit(time, area, 1)[0][counted]
    law = math.pi / 3 * params.mobility * params.kappa
    slope, offset = np.polyfit(sides - 6.0, rate, 1)
    checks = (_near("von Neumann-Mullins: slope of dA/dt against n - 6", slope, law, 0.1),)
    return Result(checks, {"sides": sides, "rate": rate, "slope": slope, "offset": offset, "law": law})


def topology(structures: Sequence[pf.Grains]) -> Result:
    """Grains on a torus have six sides on average, as three boundaries meet in a point."""
    sides = [neighbours(grains.labels).sum() / grains.n_grains for grains in structures]
    worst = max(sides, key=lambda n: abs(n - 6))
    return Result((_near("topology: mean number of sides, worst look", worst, 6, 0.01),), {"sides": np.array(sides)})


def coarsening(structures: Sequence[pf.Grains], *, linear: float | int = 0.98) -> Result:
    """The energy falls, the mean area grows as a straight line, and R / <R> keeps its distribution.

    The distributions are those of the middle and of the last look; they agree if a Kolmogorov-Smirnov test on
    5 % does not tell them apart. No rate is asserted: none is universal.

    Args:
        structures: of one run, from the time on at which the start is forgotten.
        linear: least correlation of mean area and time.
    """
    time, energy = np.array([(grains.time, grains.energy) for grains in structures]).T
    areas = [area[area > 0] for area in _areas(structures, 1 + max(int(g.labels.max()) for g in structures))]
    mean = np.array([area.mean() for area in areas])
    spread = [np.sqrt(area) / np.sqrt(area).mean() for area in areas]
    early, late = spread[len(spread) // 2], spread[-1]
    limit = 1.358 * math.sqrt(1 / len(early) + 1 / len(late))
    apart = stats.ks_2samp(early, late).statistic
    checks = (
        Check("energy: largest rise between two looks", float(np.diff(energy).max()), 0, -math.inf, 0),
        Check("mean area: its correlation with time", float(np.corrcoef(time, mean)[0, 1]), 1, linear, 1),
        Check("R / ⟨R⟩: largest distance of two distributions", float(apart), 0, 0, limit),
    )
    fit = np.polyval(np.polyfit(time, mean, 1), time)
    return Result(checks, {"time": time, "energy": energy, "area": mean, "fit": fit, "early": early, "late": late})


# ---- the method itself ----


def symmetry(params: pf.AllenCahn, eta: Float[Array, "q h w"], *, time: float | int = 10.0) -> Result:
    """A periodic shift, a transpose and a relabelling of the grains commute with a step and with an evolution."""
    turned = replace(params, shape=params.shape[::-1])
    change = {
        "shift": (params, lambda e: jnp.roll(e, (5, -9), (1, 2))),
        "transpose": (turned, lambda e: e.swapaxes(1, 2)),
        "relabelling": (params, lambda e: jnp.roll(e, 1, 0)),
    }
    step, later = pf.step(params, eta), pf.evolve(params, eta, time=time)
    checks = []
    for name, (other, turn) in change.items():
        apart = jnp.abs(pf.step(other, turn(eta)) - turn(step)).max()
        far = jnp.abs(pf.evolve(other, turn(eta), time=time) - turn(later)).max()
        checks.append(Check(f"{name}: largest difference", float(jnp.maximum(apart, far)), 0, 0, 1e-4))
    return Result(tuple(checks), {})


def stability(params: pf.AllenCahn, *, n_grains: int, key: Array, time: float | int = 30.0) -> Result:
    """A dt above the bound is refused, by an error that states the bound; growth at 95 % of it stays bounded.

        dt < 2 / (L [max(2 alpha, 2 gamma - alpha) + 8 kappa / dx^2])

    Args:
        params: coefficients and grid.
        n_grains, key, time: of the growth.
    """
    p, refusal = params, "nothing was refused: nan"
    try:
        replace(params, dt=1.001 * params.max_dt)
    except ValueError as error:
        refusal = str(error)
    bound = 2 / (p.mobility * (max(2 * p.alpha, 2 * p.gamma - p.alpha) + 8 * p.kappa / p.dx**2))
    stated = float(re.search(r"bound (\S+?),|nan", refusal)[1] or "nan")
    checks = [_near("bound on dt, as the refusal states it", stated, bound, 0.001)]
    for name, stages in (("Euler", 1), ("supersteps", None)):
        at = replace(params, dt=0.95 * params.max_dt, stages=stages)
        order = pf.grow(at, n_grains=n_grains, time=time, key=key).order
        checks.append(Check(f"growth at 95 % of the bound, {name}: largest Σ η²", float(order.max()), 1, 0.95, 1.05))
    return Result(tuple(checks), {"refusal": refusal})
