"""How good is a denoised micrograph (beyond the paper): grey levels, boundaries, grains.

Images are float [h, w] in [0, 1], labels int [h, w], boundaries bool [h, w]. All of this raises ValueError,
naming the argument, for another rank, an empty array, NaN, or shapes that differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from skimage.exposure import match_histograms
from skimage.filters import apply_hysteresis_threshold
from skimage.metrics import structural_similarity
from skimage.metrics import variation_of_information as conditional_entropies
from skimage.morphology import skeletonize

# The one boundary detector, fixed before the first comparison.
SCALES = (1.5, 2.5)  # px: a groove of 2 to 6 px
STEP_WEIGHT = 0.7  # a step answers its gradient more than a groove its curvature
WEAK = 0.5  # of the threshold: goes on along a boundary, does not start one
SHORTEST = 25  # px of thinned length: a pit or a speck ends below it
SMALLEST_HOLE = 16  # px: the two flanks of one boundary, no grain
THRESHOLD = 0.12
THRESHOLDS = tuple(np.geomspace(0.03, 0.5, 15))  # what `choose_threshold` tries
DTYPES = {"boundary": "b", "labels": "iu", "image": "f"}  # numpy's letters for what each kind holds


def _checked(kind: str, **arrays) -> list[np.ndarray]:
    """The arrays, once they are all [H, W] of one shape, finite, not empty and of a `kind`."""
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    checked = []
    for name, array in arrays.items():
        array = np.asarray(array)
        given = f"{name}: shape {array.shape}, dtype {array.dtype}"
        if array.ndim != 2 or array.size == 0 or array.dtype.kind not in DTYPES[kind]:
            dtypes = {"boundary": "bool", "labels": "integer", "image": "float"}[kind]
            raise ValueError(f"{given}; accepted: [H, W], not empty, {dtypes}")
        if len(set(shapes.values())) > 1:
            raise ValueError(f"{given}; accepted: one shape for all, given {shapes}")
        if kind == "image":
            array = array.astype(np.float64)
            if not np.isfinite(array).all():
                raise ValueError(f"{given}, holds NaN or infinity; accepted: finite values")
        checked.append(array)
    return checked


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB for white = 1: -10 log10 mean (x - t)^2; infinite if equal."""
    image, truth = _checked("image", image=image, truth=truth)
    error = np.mean((image - truth) ** 2)
    return float(-10 * np.log10(error)) if error else float("inf")


def align(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The image under the gain a and offset b that bring it nearest to the truth: min_ab sum (a x + b - t)^2.

    a = cov(x, t) / var(x), b = mean t - a mean x; a constant image becomes the truth's mean.
    """
    image, truth = _checked("image", image=image, truth=truth)
    x, t = image - image.mean(), truth - truth.mean()
    gain = (x * t).sum() / ((x * x).sum() or 1.0)
    return gain * x + truth.mean()


def aligned_psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """PSNR after `align`, in dB: what is left once grey calibration, which no filter can know, is given."""
    return psnr(align(image, truth), truth)


def matched_psnr(image: np.ndarray, noisy: np.ndarray, truth: np.ndarray) -> float:
    """PSNR, in dB, of the image once it has the histogram of the noisy input (III.b)."""
    image, noisy, truth = _checked("image", image=image, noisy=noisy, truth=truth)
    return psnr(match_histograms(image, noisy), truth)


def ssim(image: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity as Wang et al. (2004) set it: Gaussian window, sigma 1.5 px, white = 1."""
    image, truth = _checked("image", image=image, truth=truth)
    if min(image.shape) < 11:
        raise ValueError(f"image: shape {image.shape}; accepted: at least 11 px a side, the window's width")
    return float(
        structural_similarity(
            image, truth, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
        )
    )


def image_scores(image: np.ndarray, noisy: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Raw, aligned and matched PSNR in dB, and SSIM, of one result [H, W]: the columns of notebook 04's table."""
    return {
        "raw PSNR": psnr(image, truth),
        "aligned PSNR": aligned_psnr(image, truth),
        "matched PSNR": matched_psnr(image, noisy, truth),
        "SSIM": ssim(image, truth),
    }


def boundary_strength(image: np.ndarray) -> Float[np.ndarray, "h w"]:
    """How much each pixel looks like a grain boundary: a dark groove, or a step between two greys.

    max_s max( s^2 lambda_1(H_s), 0.7 s |grad_s| ), lambda_1 the larger eigenvalue of the Hessian, s = 1.5 and
    2.5 px the widths of the Gaussians, once the 1-99 % range of greys is stretched to [0, 1]: gain and offset
    do not matter. Zero on a constant image. s^2 and s make the scales comparable (Lindeberg 1998).
    """
    (image,) = _checked("image", image=image)
    low, high = np.percentile(image, (1, 99))
    image = np.clip((image - low) / ((high - low) or 1.0), 0, 1) if high > low else np.zeros_like(image)
    strength = np.zeros(image.shape)
    for s in SCALES:
        yy, xx, xy, y, x = (
            ndimage.gaussian_filter(image, s, order, mode="nearest")
            for order in ((2, 0), (0, 2), (1, 1), (1, 0), (0, 1))
        )
        ridge = s**2 * ((xx + yy) / 2 + np.hypot((xx - yy) / 2, xy))
        strength = np.maximum(strength, np.maximum(ridge, STEP_WEIGHT * s * np.hypot(x, y)))
    return strength


def detect_boundaries(image: np.ndarray, threshold: float | int = THRESHOLD) -> Bool[np.ndarray, "h w"]:
    """Grain boundaries, a pixel thin: strength above the threshold, and above half of it where they go on.

    Strength as in `boundary_strength`. Holes of at most 16 px are filled, the rest thinned, pieces under
    25 px dropped.
    Raises ValueError unless threshold > 0.
    """
    return _thin_boundaries(boundary_strength(image), threshold)


def _thin_boundaries(strength: Float[np.ndarray, "h w"], threshold: float | int) -> Bool[np.ndarray, "h w"]:
    if not threshold > 0:
        raise ValueError(f"threshold: {threshold}; accepted: above 0")
    mask = apply_hysteresis_threshold(strength, WEAK * threshold, threshold)
    holes, _ = ndimage.label(~mask)
    mask |= (np.bincount(holes.ravel()) <= SMALLEST_HOLE)[holes]
    lines, _ = ndimage.label(skeletonize(mask), np.ones((3, 3)))
    length = np.bincount(lines.ravel())
    length[0] = 0
    return (length >= SHORTEST)[lines]


class BoundaryScore(NamedTuple):
    """precision: how much of what was found is true; recall: how much of the truth was found; F of both."""

    precision: float
    recall: float
    f: float


def boundary_score(found: np.ndarray, truth: np.ndarray, tolerance: float | int = 3) -> BoundaryScore:
    """Boundaries found against true ones: both thinned, a pixel right if within `tolerance` px of the others.

    F = 2 P R / (P + R). Nothing found: P = 1, nothing invented. Nothing to be found: R = 1, nothing lost.
    F = 1 where both are empty, 0 where one is.
    """
    found, truth = (skeletonize(mask) for mask in _checked("boundary", found=found, truth=truth))

    def near(a, b):
        if not a.any():
            return 1.0
        return float((ndimage.distance_transform_edt(~b)[a] <= tolerance).mean()) if b.any() else 0.0

    precision, recall = near(found, truth), near(truth, found)
    total = precision + recall
    return BoundaryScore(precision, recall, 2 * precision * recall / total if total else 0.0)


def choose_threshold(images: Sequence, truths: Sequence, thresholds: Sequence = THRESHOLDS) -> float:
    """The threshold of the highest mean boundary F over validation images, given their true boundaries."""
    if len(images) == 0 or len(images) != len(truths) or len(thresholds) == 0:
        raise ValueError(
            f"images: {len(images)}, truths: {len(truths)}, thresholds: {len(thresholds)}; "
            "accepted: as many truths as images, at least one of each"
        )
    scores = np.zeros(len(thresholds))
    for image, truth in zip(images, truths, strict=True):
        strength = boundary_strength(image)
        scores += [boundary_score(_thin_boundaries(strength, t), truth).f for t in thresholds]
    return float(thresholds[int(scores.argmax())])


def label_boundaries(labels: np.ndarray, periodic: bool = False) -> Bool[np.ndarray, "h w"]:
    """Pixels whose right or lower neighbour has another label; `periodic`: opposite sides are neighbours."""
    (labels,) = _checked("labels", labels=labels)
    edges = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        differs = labels != np.roll(labels, -1, axis)
        if not periodic:
            np.moveaxis(differs, axis, 0)[-1] = False
        edges |= differs
    return edges


def variation_of_information(labels: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """(split, merge) in bit: H(labels | truth), grains cut apart; H(truth | labels), grains together."""
    labels, truth = _checked("labels", labels=labels, truth=truth)
    split, merge = conditional_entropies(truth, labels)
    return float(split), float(merge)


def grain_greys(image: np.ndarray, labels: np.ndarray, erode: int = 3) -> Float[np.ndarray, " n"]:
    """Mean grey of each grain's interior, more than `erode` px from any other grain, by rising label.

    NaN where a grain has no such interior: too thin.
    """
    (image,), (labels,) = _checked("image", image=image), _checked("labels", labels=labels)
    if image.shape != labels.shape:
        raise ValueError(f"labels: shape {labels.shape}; accepted: the image's, {image.shape}")
    names, index = np.unique(labels, return_inverse=True)
    index = index.reshape(labels.shape)
    lowest, highest = (f(index, 2 * erode + 1) for f in (ndimage.minimum_filter, ndimage.maximum_filter))
    near = lowest != highest
    count = np.bincount(index[~near], minlength=len(names))
    total = np.bincount(index[~near], weights=image[~near], minlength=len(names))
    return np.divide(total, count, out=np.full(len(names), np.nan), where=count > 0)
