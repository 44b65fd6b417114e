"""Grains of a micrograph (III.b, "could be extended"): segmentation, and grain size after ASTM E112.

Twin boundaries are not counted in E112: labels given here are of grains, not of twins.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np
from jaxtyping import Int
from scipy import ndimage, stats
from skimage.measure import label as connected
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from mdn.metrics import THRESHOLD, detect_boundaries

CLOSES = 0.75  # octaves: a gap in a boundary closes if narrower than 0.6 of the grain beside it
SMALLEST_RADIUS = 2.5  # px: what no circle of this radius fits into is no grain


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
