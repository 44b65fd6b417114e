"""How good is a denoised micrograph (beyond the paper): grey levels, defects, boundaries, grains.

Images are float [h, w] in [0, 1], labels int [h, w], boundaries bool [h, w]. All of this raises ValueError,
naming the argument, for another rank, an empty array, NaN, or shapes that differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from scipy import ndimage, stats
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
THRESHOLDS = tuple(np.geomspace(0.03, 0.5, 15))  # what `choose_threshold` tries first
FINER = 3  # then, between the best of them and each of its neighbours: a whole step can move F by 0.015
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


def masked_psnr(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """PSNR in dB over the pixels of a mask: inside the defects, outside them, on the band along boundaries.

    NaN where the mask is empty. `align` the whole image first, or grey calibration hides the rest. Blind to
    everything outside the mask, and to where in it the error lies.
    """
    image, truth, mask = _masked(image, truth, mask)
    if not mask.any():
        return float("nan")
    return psnr(image[mask][None], truth[mask][None])


def boundary_band(boundaries: np.ndarray, width: float | int = 3) -> Bool[np.ndarray, "h w"]:
    """The pixels within `width` px of a boundary; none where there is no boundary."""
    (boundaries,) = _checked("boundary", boundaries=boundaries)
    if not width >= 0:
        raise ValueError(f"width: {width}; accepted: from 0 px")
    if not boundaries.any():
        return boundaries.copy()
    return ndimage.distance_transform_edt(~boundaries) <= width


def restored_share(image: np.ndarray, truth: np.ndarray, mask: np.ndarray, within: float | int = 0.1) -> float:
    """Share of a mask's pixels, a defect's say, whose grey lies within `within` of the truth's; NaN without any.

    Blind to what was done elsewhere: a filter that blurs all of the image away scores well inside pits. A defect
    that changed its pixels by less counts as restored even untouched: compare with the share before.
    """
    image, truth, mask = _masked(image, truth, mask)
    if not within > 0:
        raise ValueError(f"within: {within}; accepted: above 0")
    return float((np.abs(image - truth)[mask] <= within).mean()) if mask.any() else float("nan")


def _masked(image, truth, mask) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    (image, truth), (mask,) = _checked("image", image=image, truth=truth), _checked("boundary", mask=mask)
    if mask.shape != image.shape:
        raise ValueError(f"mask: shape {mask.shape}; accepted: the image's, {image.shape}")
    return image, truth, mask


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


def boundary_recall(found: np.ndarray, truth: np.ndarray, tolerance: float | int = 3) -> float:
    """Share of the length of some true boundaries, twins alone say, found within `tolerance` px; NaN without any.

    Blind to what was invented, and to whether what was found near a twin is the twin: beside a scratch that was
    kept it counts too.
    """
    found, truth = _checked("boundary", found=found, truth=truth)
    return boundary_score(found, truth, tolerance).recall if truth.any() else float("nan")


def choose_threshold(
    images: Sequence | np.ndarray, truths: Sequence | np.ndarray, thresholds: Sequence = THRESHOLDS
) -> float:
    """The threshold of the highest mean boundary F over validation images, given their true boundaries.

    thresholds: rising, tried first; then three more, evenly by ratio, between the best and each of its neighbours.
    """
    if len(images) == 0 or len(images) != len(truths) or len(thresholds) == 0:
        raise ValueError(
            f"images: {len(images)}, truths: {len(truths)}, thresholds: {len(thresholds)}; "
            "accepted: as many truths as images, at least one of each"
        )
    strengths = list(map(boundary_strength, images))

    def mean_f(threshold):
        found = (_thin_boundaries(strength, threshold) for strength in strengths)
        return np.mean([boundary_score(*pair).f for pair in zip(found, truths, strict=True)])

    scores = {threshold: mean_f(threshold) for threshold in map(float, thresholds)}
    tried, best = list(scores), max(scores, key=scores.get)
    place = tried.index(best)
    for neighbour in (*tried[max(place - 1, 0) : place], *tried[place + 1 : place + 2]):
        scores |= {t: mean_f(t) for t in np.geomspace(best, neighbour, FINER + 2)[1:-1].tolist()}
    return max(scores, key=scores.get)


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


class GreyError(NamedTuple):
    """Median and 95th percentile, over grains, of the absolute difference of their mean greys."""

    median: float
    p95: float


def grain_grey_error(image: np.ndarray, noisy: np.ndarray, labels: np.ndarray, erode: int = 3) -> GreyError:
    """How far the mean grey of each grain's interior is from the input's (III.b: "very close"), image matched.

    Grains without interior are left out; NaN where all are. Blind to whether the input's greys are right: a defect
    that darkens a whole grain and stays costs nothing.
    """
    difference = np.abs(grain_greys(image, labels, erode) - grain_greys(noisy, labels, erode))
    difference = difference[np.isfinite(difference)]
    if not difference.size:
        return GreyError(float("nan"), float("nan"))
    return GreyError(*(float(v) for v in np.percentile(difference, (50, 95))))


class Interval(NamedTuple):
    """A mean over images and its 95 % interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: ArrayLike) -> Interval:
    """Mean over images with its 95 % interval, mean +- t s / sqrt(n) (Student); of differences too, image by image.

    NaN stands for an image without the thing measured and is left out; no interval (NaN) from fewer than two.
    Blind to what the images share: pairs of one phase-field run or one micrograph are not independent, and
    the interval is that of images like these.
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or values.size == 0 or np.isinf(values).any():
        raise ValueError(f"values: shape {values.shape}; accepted: one number an image, at least one, none infinite")
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return Interval(float(values.mean()) if len(values) else float("nan"), float("nan"), float("nan"))
    mean = float(values.mean())
    if not np.ptp(values):
        return Interval(mean, mean, mean)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return Interval(mean, float(low), float(high))
