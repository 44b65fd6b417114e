"""What the network is measured against (I): classical filters behind one signature, and DnCNN.

Filters take and give float images [h, w] in [0, 1]; each has one main parameter, tuned on validation pairs
before it is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from scipy import ndimage
from skimage.morphology import disk
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet, estimate_sigma

from mdn.metrics import (
    aligned_psnr,
    boundary_score,
    choose_threshold,
    detect_boundaries,
    image_scores,
    label_boundaries,
)

Number = float | int
Filter = Callable[[np.ndarray, Number], np.ndarray]
Triple = tuple[np.ndarray, np.ndarray, np.ndarray]  # noisy, clean and regions, each [N, H, W]


def gaussian(image: Float[np.ndarray, "h w"], sigma: Number) -> Float[np.ndarray, "h w"]:
    """Convolution with a Gaussian of standard deviation `sigma` in px."""
    return ndimage.gaussian_filter(image, sigma, mode="reflect")


def median(image: Float[np.ndarray, "h w"], radius: Number) -> Float[np.ndarray, "h w"]:
    """Median over a disc of `radius` px (Tukey 1977)."""
    return ndimage.median_filter(image, footprint=disk(int(radius)), mode="reflect")


def wavelet(image: Float[np.ndarray, "h w"], strength: Number) -> Float[np.ndarray, "h w"]:
    """Soft BayesShrink thresholds of db2 wavelets, `strength` x the estimated noise (Chang et al. 2000)."""
    sigma = strength * estimate_sigma(image)
    return denoise_wavelet(image, sigma, "db2", mode="soft", method="BayesShrink", rescale_sigma=True)


def non_local_means(image: Float[np.ndarray, "h w"], strength: Number) -> Float[np.ndarray, "h w"]:
    """Mean over like patches of 5 px within 13, h = `strength` x the estimated noise (Buades et al. 2005)."""
    sigma = estimate_sigma(image)
    if sigma == 0:
        return image
    return denoise_nl_means(image, patch_size=5, patch_distance=6, h=strength * sigma, sigma=sigma)


def total_variation(image: Float[np.ndarray, "h w"], weight: Number) -> Float[np.ndarray, "h w"]:
    """min_u |u - x|^2 / 2 + weight |grad u|_1 (Rudin, Osher, Fatemi 1992; Chambolle 2004)."""
    return denoise_tv_chambolle(image, weight=weight)


@dataclass(frozen=True)
class Baseline:
    """A filter by name: `apply(image, parameter)`, and the values of its parameter to try, rising."""

    name: str
    filter: Filter
    grid: tuple[Number, ...]

    def apply(self, image: np.ndarray, parameter: Number) -> np.ndarray:
        """The image [H, W] filtered, float32 in [0, 1]; ValueError for other ranks, NaN, a parameter <= 0."""
        image = np.asarray(image, np.float32)
        if image.ndim != 2 or image.size == 0 or not np.isfinite(image).all():
            raise ValueError(f"image: shape {image.shape}; accepted: [H, W], not empty, finite")
        if not parameter > 0:
            raise ValueError(f"parameter: {parameter}; accepted: above 0, {self.name} tries {self.grid}")
        return np.clip(self.filter(image, parameter), 0, 1).astype(np.float32)


BASELINES: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        Baseline("gaussian", gaussian, (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)),
        Baseline("median", median, (1, 2, 3, 4, 6)),
        Baseline("wavelet", wavelet, (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)),
        Baseline("non-local means", non_local_means, (0.4, 0.6, 0.8, 1.2, 2.0, 3.0, 5.0)),
        Baseline("total variation", total_variation, (0.03, 0.06, 0.1, 0.15, 0.22, 0.32, 0.5)),
    )
}


def tune(
    baseline: Baseline,
    noisy: Sequence[np.ndarray] | np.ndarray,
    clean: Sequence[np.ndarray] | np.ndarray,
    score: Callable[[np.ndarray, np.ndarray], float] = aligned_psnr,
) -> Number:
    """The parameter of the baseline's grid with the highest mean score(filtered, clean) on validation pairs.

    noisy, clean: as many images [H, W] of each, in [0, 1]. Raises ValueError for none, or unequal numbers.
    """
    if len(noisy) == 0 or len(noisy) != len(clean):
        raise ValueError(f"noisy: {len(noisy)} images, clean: {len(clean)}; accepted: as many, at least one")

    def mean_score(parameter: Number) -> float:
        pairs = zip(noisy, clean, strict=True)
        return float(np.mean([score(baseline.apply(x, parameter), y) for x, y in pairs]))

    return max(baseline.grid, key=mean_score)


def tuned_filters(noisy: np.ndarray, clean: np.ndarray) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Every classical filter with its parameter tuned on validation pairs [N, H, W], named with that parameter."""
    values = {name: tune(baseline, noisy, clean) for name, baseline in BASELINES.items()}
    return {f"{name} ({v:g})": partial(BASELINES[name].apply, parameter=v) for name, v in values.items()}


def score_methods(
    methods: dict[str, Callable[[np.ndarray], np.ndarray]], validation: Triple, test: Triple
) -> dict[str, list[dict[str, float]]]:
    """Score each method on test pairs; its boundary threshold is the one that suits it on validation pairs.

    Args:
        methods: from a name to a function of an image [H, W] in [0, 1].
        validation, test: (noisy, clean, regions), each [N, H, W]; where regions change, a boundary is true.

    Returns:
        For each method one dict a test pair: the columns of `metrics.image_scores`, boundary F, precision, recall.
    """
    truths, expected = ([label_boundaries(r, periodic=True) for r in triple[2]] for triple in (validation, test))
    scores = {}
    for name, method in methods.items():
        threshold = choose_threshold([method(x) for x in validation[0]], truths)
        scores[name] = []
        for noisy, clean, truth in zip(test[0], test[1], expected, strict=True):
            output = method(noisy)
            found = boundary_score(detect_boundaries(output, threshold), truth)
            shape = {"boundary F": found.f, "precision": found.precision, "recall": found.recall}
            scores[name].append(image_scores(output, noisy, clean) | shape | {"threshold": threshold})
    return scores


class DnCNN(nnx.Module):
    """A convolutional network without attention that predicts the noise (Zhang et al. 2017).

    x - W_L * relu(BN(W_{L-1} * ... relu(BN(W_2 * relu(W_1 * x + b_1))))) - b_L, all kernels 3 x 3, L = depth.
    Evaluated through nnx.view(model, deterministic=True, use_running_average=True), like every network here.
    """

    def __init__(self, *, width: int = 32, depth: int = 10, rngs: nnx.Rngs):
        if width < 1 or depth < 3:
            raise ValueError(f"width: {width}, depth: {depth}; accepted: width from 1, depth from 3")

        def conv(n, m, **options):
            return nnx.Conv(n, m, (3, 3), kernel_init=nnx.initializers.he_normal(), rngs=rngs, **options)

        self.first = conv(1, width)
        self.middle = nnx.List([conv(width, width, use_bias=False) for _ in range(depth - 2)])
        self.norms = nnx.List([nnx.BatchNorm(width, momentum=0.9, rngs=rngs) for _ in range(depth - 2)])
        self.last = conv(width, 1)

    def set_view(self, deterministic: bool | None = None):
        """Takes the flag of dropout, which DnCNN lacks: nnx.view refuses a flag that no module takes."""

    def __call__(self, image: Float[Array, "n h w 1"]) -> Float[Array, "n h w 1"]:
        x = jax.nn.relu(self.first(image))
        for conv, norm in zip(self.middle, self.norms, strict=True):
            x = jax.nn.relu(norm(conv(x)))
        return image - self.last(x)
