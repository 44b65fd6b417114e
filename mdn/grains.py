"""Grains of a micrograph (III.b, "could be extended"): segmentation, grain size after ASTM E112, and their shapes.

Twin boundaries are not counted in E112: labels given here are of grains, not of twins.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np
from jaxtyping import Float, Int
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage, stats
from scipy.spatial import cKDTree
from skimage.measure import label as connected
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from mdn.metrics import THRESHOLD, detect_boundaries

CLOSES = 0.75  # octaves: a gap in a boundary closes if narrower than 0.6 of the grain beside it
SMALLEST_RADIUS = 2.5  # px: what no circle of this radius fits into is no grain
ARC = 0.75  # of <R>: a boundary's curvature is that of the circle through what lies this near on either side
CLEAR = 0.25  # of <R>: nearer to a triple junction there is too little boundary on one side
STEPS = 3  # px: over this distance the steps of the pixels add up to the boundary's direction
FEWEST = 5  # points to draw a circle through


def segment_grains(image: np.ndarray, threshold: float | int = THRESHOLD) -> Int[np.ndarray, "h w"]:
    """Grains of a grey image [H, W] as labels int32 from 1, without background.

    d = distance to the nearest of `metrics.detect_boundaries`; a grain grows from each maximum of log2 d that
    stands 0.75 above the pass to a higher one, so that gaps close in proportion to the grains beside them.
    No boundary: one grain. ValueError for another rank, an empty image, NaN, or a threshold not above 0.
    """
    edge = detect_boundaries(image, threshold)
    distance = ndimage.distance_transform_edt(~edge)
    octaves = np.log2(np.maximum(distance, 1))
    tops = local_maxima(reconstruction(octaves - CLOSES, octaves)) & (distance >= SMALLEST_RADIUS)
    markers, n = ndimage.label(tops, np.ones((3, 3)))
    if n == 0:
        return np.ones(edge.shape, np.int32)
    return watershed(-octaves, markers).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class GrainSize:
    """ASTM grain size number G, by Heyn's intercepts and by the planimetric count, and how sure it is."""

    astm_g: float
    mean_intercept_um: float
    interval_95: tuple[float, float]  # of astm_g
    relative_accuracy: float  # %, of the mean intercept at 95 %
    astm_g_planimetric: float
    n_grains: int
    n_intercepts: int
    warnings: tuple[str, ...] = ()


def grain_size(labels: np.ndarray, um_per_px: float | int | None = None) -> GrainSize:
    """ASTM grain size of a label image, with a 95 % interval.

    Heyn: G = 16.644 - 6.644 log10 l, l = mean intercept in um.
    Planimetric: G = 3.322 log10 N_A - 2.954, N_A = grains per mm^2.
    Test lines run at 0, 45, 90 and 135 degrees, a mean intercept apart, at least five of each; the interval
    comes from how far lines of one direction differ.
    labels: int [H, W], at least 32 px a side, every value a grain (0 too); like labels apart are two grains.
    Raises ValueError without a calibration, for another rank or dtype, or where no line meets a boundary.
    Source: ASTM E112-13, sections 11 and 13 to 15, table 4.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or min(labels.shape) < 32:
        raise ValueError(
            f"labels: shape {labels.shape}, dtype {labels.dtype}; accepted: integers [H, W], at least 32 px a side"
        )
    if not (isinstance(um_per_px, Real) and np.isfinite(um_per_px) and um_per_px > 0):
        raise ValueError(f"um_per_px: {um_per_px!r}; accepted: the calibration, finite um per pixel above 0")

    labels = labels.astype(np.int64)
    rate, _, _ = _crossings(labels, 5)
    n_lines = int(np.clip(min(labels.shape) * rate, 5, min(labels.shape) // 4))  # a mean intercept apart
    rate, relative, n_intercepts = _crossings(labels, n_lines)
    if n_intercepts == 0:
        raise ValueError("labels: no test line meets a boundary; accepted: at least two grains")
    intercept = um_per_px / rate
    g = 16.644 - 6.644 * np.log10(intercept)
    spread = 6.644 / np.log(10) * relative

    n_grains, n_counted = _planimetric_count(labels)
    per_mm2 = n_counted / (labels.size * um_per_px**2 * 1e-6)
    warnings = []
    if n_grains < 50:
        warnings.append(f"{n_grains} grains: fewer than the 50 that one field should hold")
    if n_intercepts < 500:
        warnings.append(f"{n_intercepts} intercepts: fewer than 500, use more or larger fields")
    if relative > 0.1:
        warnings.append(f"relative accuracy {100 * relative:.0f} %: E112 asks for 10 % or better")
    return GrainSize(
        astm_g=float(g),
        mean_intercept_um=float(intercept),
        interval_95=(float(g - spread), float(g + spread)),
        relative_accuracy=float(100 * relative),
        astm_g_planimetric=float(3.322 * np.log10(per_mm2) - 2.954),
        n_grains=n_grains,
        n_intercepts=n_intercepts,
        warnings=tuple(warnings),
    )


def _crossings(labels: Int[np.ndarray, "h w"], n_lines: int) -> tuple[float, float, int]:
    """Boundary crossings a pixel of line, the 95 % half-width relative to it, and the number of crossings.

    In a direction of n lines, P_i crossings on lengths L_i: r = sum P / sum L, and its variance (a ratio's)
    n / (n - 1) sum (P_i - r L_i)^2 / (sum L)^2. The four directions weigh alike and cross the same grains:
    their errors are taken as one, not as independent (on Voronoi grains, that interval was half too narrow).
    """
    h, w = labels.shape
    rows, columns = (((np.arange(n_lines) + 0.5) * n / n_lines).astype(int) for n in (h, w))
    shortest = min(h, w) // 2  # of the diagonals
    offsets = np.linspace(shortest - h, w - shortest, n_lines).astype(int)
    directions = [
        ([labels[i] for i in rows], 1.0),
        ([labels[:, j] for j in columns], 1.0),
        ([labels.diagonal(k) for k in offsets], 2**0.5),
        ([labels[:, ::-1].diagonal(k) for k in offsets], 2**0.5),
    ]
    rates, variances, total = [], [], 0
    for lines, step in directions:
        p = np.array([np.count_nonzero(np.diff(line)) for line in lines])
        length = np.array([(line.size - 1) * step for line in lines])
        r = p.sum() / length.sum()
        rates.append(r)
        variances.append(n_lines / (n_lines - 1) * ((p - r * length) ** 2).sum() / length.sum() ** 2)
        total += int(p.sum())
    rate = float(np.mean(rates))
    half_width = stats.t.ppf(0.975, n_lines - 1) * np.mean(np.sqrt(variances))
    return rate, float(half_width / rate) if rate else 0.0, total


def _planimetric_count(labels: Int[np.ndarray, "h w"]) -> tuple[int, float]:
    """Grains seen, and their number: inside + half of those cut by an edge + 1 for the corners (Saltykov)."""
    grains = connected(labels, background=labels.min() - 1, connectivity=1)
    corners = {int(grains[i, j]) for i in (0, -1) for j in (0, -1)}
    border = set(np.concatenate([grains[0], grains[-1], grains[:, 0], grains[:, -1]]).tolist())
    n = int(grains.max())
    return n, n - len(border) + len(border - corners) / 2 + 1.0


def traced_grains(boundaries: np.ndarray) -> Int[np.ndarray, "h w"]:
    """Grains between traced boundaries [H, W] as labels int32 from 1, without background.

    A grain is what hangs together, side by side, between the lines; specks that no circle of 2.5 px fits into
    (gaps in the hatching of a particle) are none. Lines, specks and filled particles go to the nearest grain.
    A line that ends within a grain parts nothing.
    Raises ValueError for another rank or dtype, or where no grain is left.
    """
    boundaries = np.asarray(boundaries)
    if boundaries.ndim != 2 or boundaries.dtype != bool:
        raise ValueError(f"boundaries: shape {boundaries.shape}, dtype {boundaries.dtype}; accepted: bool [H, W]")
    grains, n = ndimage.label(~boundaries)
    padded = np.pad(boundaries, 1, mode="edge")
    widest = ndimage.maximum(ndimage.distance_transform_edt(~padded)[1:-1, 1:-1], grains, np.arange(n + 1))
    grains[np.asarray(widest)[grains] < SMALLEST_RADIUS] = 0
    if not grains.any():
        raise ValueError(f"boundaries: {boundaries.mean():.0%} of the pixels; accepted: lines with grains between them")
    return watershed(ndimage.distance_transform_edt(grains == 0), grains).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class GrainStatistics:
    """How grains look, whatever their size: each number is free of units."""

    sizes: Float[np.ndarray, " grains"]  # R / <R>, R = sqrt(A / pi)
    sides: Int[np.ndarray, " grains"]  # neighbours that share an edge
    curvatures: Float[np.ndarray, " points"]  # kappa <R> along boundaries, above 0 where the smaller grain bulges
    mean_radius: float  # <R>, px


def grain_statistics(labels: np.ndarray, *, periodic: bool) -> GrainStatistics:
    """Sizes, sides and boundary curvatures of the grains of a label image.

    R = sqrt(A / pi). |kappa| = 1 / radius of the circle fitted (Taubin) to the boundary between two grains, as far
    as it lies within 0.75 <R> of a point, for points at least 0.25 <R> from any triple junction: one value for
    the middle of each edge between two pixels. kappa > 0 where the smaller grain lies on the hollow side, so
    that motion by curvature makes it smaller still.

    Discs of 8 to 40 px come out within 2 % in the mean. What the steps of the pixels leave on straight boundaries is
    a mean |kappa| <R> of 0.04 at <R> = 20 px, 0.1 at 10 px; bends sharper than the arc are rounded. Compare structures
    of like <R>.
    Not periodic: like labels apart are two grains; grains at the border are left out, and their boundaries, which
    takes the large ones more often. periodic: opposite sides are neighbours, a label is one grain wherever it is.
    labels: int [H, W], every value a grain (0 too). Raises ValueError for another rank or dtype, or where no
    grain is whole.
    Source: G. Taubin, IEEE Trans. Pattern Anal. Mach. Intell. 13 (1991) 1115, his fit from moments.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels: shape {labels.shape}, dtype {labels.dtype}; accepted: integers [H, W], not empty")
    grains = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    if not periodic:
        grains = connected(grains, background=-1, connectivity=1) - 1
    areas = np.bincount(grains.ravel())
    whole = np.ones(len(areas), bool)
    if not periodic:
        whole[np.concatenate([grains[0], grains[-1], grains[:, 0], grains[:, -1]])] = False
    if not whole.any():
        raise ValueError("labels: every grain touches the border; accepted: at least one whole grain")
    radii = np.sqrt(areas / np.pi)
    mean = float(radii[whole].mean())

    size = np.array(grains.shape, float) if periodic else None
    points, pairs, towards = _edges(grains, areas, periodic)
    kinds, kind = np.unique(pairs, axis=0, return_inverse=True)
    sides = np.bincount(kinds.ravel(), minlength=len(areas))
    inside = whole[pairs].all(1)
    points, kind, towards = points[inside], kind.ravel()[inside], towards[inside]
    kappa, count = _curvatures(points, kind, towards, ARC * mean, size)
    kept = (_to_junctions(grains, points, size) >= CLEAR * mean) & (count >= FEWEST)
    return GrainStatistics(
        sizes=radii[whole] / mean, sides=sides[whole], curvatures=kappa[kept] * mean, mean_radius=mean
    )


def _edges(grains, areas, periodic) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Middles of the edges between pixels of two grains; (smaller, larger) grain; the way to the smaller one."""
    points, pairs, towards = [], [], []
    for axis in (0, 1):
        two = np.stack([grains, np.roll(grains, -1, axis)], -1)
        differs = two[..., 0] != two[..., 1]
        if not periodic:
            np.moveaxis(differs, axis, 0)[-1] = False
        two, step = two[differs], np.eye(2)[axis]
        order = np.lexsort((two, areas[two]), -1)
        points.append(np.argwhere(differs) + step / 2)
        pairs.append(np.take_along_axis(two, order, 1))
        towards.append(np.where(order[:, :1], step, -step))
    return np.concatenate(points), np.concatenate(pairs), np.concatenate(towards)


def _to_junctions(grains, points, size) -> Float[np.ndarray, " points"]:
    """Distance from points to the nearest corner at which three grains or more meet."""
    around = grains if size is None else np.pad(grains, (0, 1), mode="wrap")
    corners = np.sort(sliding_window_view(around, (2, 2)).reshape(-1, 4), -1)
    meet = (np.diff(corners) != 0).sum(-1).reshape(np.array(around.shape) - 1) > 1
    if not meet.any():
        return np.full(len(points), np.inf)
    corners = np.argwhere(meet) + 0.5
    return cKDTree(corners if size is None else corners % size, boxsize=size).query(points)[0]


def _curvatures(points, kind, towards, reach, size) -> tuple[np.ndarray, np.ndarray]:
    """At each point, curvature of the circle a |p|^2 + b . p + c = 0 through those of its kind within reach; how many.

    The least eigenvector of the covariance of (|p|^2 - z) / (2 sqrt z), p_1 and p_2, once p is taken from its mean
    and with z the mean of |p|^2, is (2 a sqrt z, b), and c = -a z.
    """
    n, tree = len(points), cKDTree(points if size is None else points % size, boxsize=size)
    i, j = tree.query_pairs(reach, output_type="ndarray").T
    i, j = np.concatenate([np.arange(n), i, j]), np.concatenate([np.arange(n), j, i])
    i, j = i[kind[i] == kind[j]], j[kind[i] == kind[j]]
    p = points[j] - points[i]
    p = p if size is None else (p + size / 2) % size - size / 2

    def total(values, of):
        return np.stack([np.bincount(i[of], v, n) for v in values[of].T], -1)

    normals = total(towards[j], (p**2).sum(1) <= STEPS**2)
    near = (normals[i] * normals[j]).sum(1) > 0  # and not the far side of a thin grain
    near |= i == j
    i, j, p = i[near], j[near], p[near]
    count = np.bincount(i, minlength=n)

    def mean(values):
        return total(values, slice(None)) / count[:, None]

    middle = mean(p)
    p -= middle[i]
    square = (p**2).sum(1)
    z = np.maximum(mean(square[:, None])[:, 0], 1e-9)
    terms = np.column_stack([(square - z[i]) / (2 * np.sqrt(z[i])), p])
    covariance = mean((terms[:, :, None] * terms[:, None, :]).reshape(-1, 9)).reshape(n, 3, 3)
    least = np.linalg.eigh(covariance)[1][:, :, 0]
    a, b = least[:, 0] / (2 * np.sqrt(z)), least[:, 1:]
    outwards = 2 * a[:, None] * -middle + b  # at the point itself, where a > 0
    side = -np.sign((outwards * normals).sum(1))
    return side * 2 * a / np.sqrt((b**2).sum(1) + 4 * a**2 * z), count
