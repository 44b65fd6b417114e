"""Where not to trust the result: an uncertainty map, and a word when an input is unlike the training data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike
from scipy import ndimage, stats

from mdn.inference import Denoiser, Passage, within
from mdn.micrographs import check_image, luminance
from mdn.network import DenoisingNetwork

SYMMETRIES = [(turn, mirrored) for turn in (0, 2, 1, 3) for mirrored in (False, True)]  # the first four keep the shape
NEIGHBOURHOOD = 2.0  # px, of the Gaussian that averages the spread
SHARES = tuple(np.arange(0, 1, 0.05).round(2).tolist())  # of the pixels that `sparsification` removes


def restorations(
    denoiser: Denoiser,
    image: ArrayLike,
    *,
    passes: int = 8,
    dropout: Array | None = None,
    symmetries: bool = True,
) -> Float[np.ndarray, "n h w"]:
    """The network's output again and again, each time under another symmetry of the square or another dropout mask.

    Args:
        denoiser: as of `load_denoiser`.
        image: a micrograph, [H, W] or [H, W, 3].
        passes: forward passes; up to four do not turn the image by 90 degrees.
        dropout: a key of the masks, where dropout is to be active.
        symmetries: whether the image is turned and mirrored, another of the eight ways each pass.

    Returns:
        float32 [passes, H, W], turned back.

    Raises:
        ValueError: for no image, or fewer than two passes.

    Source: Monte Carlo dropout, Gal and Ghahramani, ICML 2016.
    """
    if passes < 2:
        raise ValueError(f"passes must be at least 2, got {passes!r}")
    grey, outputs = luminance(check_image(image)), []
    for number in range(passes):
        turn, mirrored = SYMMETRIES[number % 8] if symmetries else (0, False)
        turned = np.rot90(grey[:, ::-1] if mirrored else grey, turn)
        output = denoiser.restore(turned, dropout=None if dropout is None else jax.random.fold_in(dropout, number))
        output = np.rot90(output, -turn)
        outputs.append(output[:, ::-1] if mirrored else output)
    return np.stack(outputs)


def uncertainty_map(denoiser: Denoiser, image: ArrayLike, *, passes: int = 8) -> Float[np.ndarray, "h w"]:
    """Where the network hesitates: a guess at the standard deviation of its grey.

    The geometric mean of two such guesses. One is the standard deviation of the output over the symmetries of the
    square, under which a micrograph is as likely as before, averaged over its neighbourhood. The other is the largest
    that a grey between black and white can have about its mean m, sqrt(m (1 - m)): trained for the least squared error,
    a network that cannot tell dark from bright answers with the grey between them.

    It does not say where the network is surely wrong: a grey that the input does not tell is wrong all over a grain,
    and steadily so. benchmarks/uncertainty.py measures how well it ranks pixels by their error, beside Monte Carlo
    dropout, which ranks them worse.

    Args:
        denoiser, image, passes: as of `restorations`.

    Returns:
        float32 [H, W], in units of the grey range that the network sees, the limits of `stretch`.

    Raises:
        ValueError: for no image, or fewer than two passes.

    Source: the bound is that of R. Bhatia and C. Davis, American Mathematical Monthly 107 (2000).
    """
    return hesitation(restorations(denoiser, image, passes=passes))


def hesitation(outputs: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "h w"]:
    """`uncertainty_map` of `restorations` [N, H, W], turned back and in [0, 1]: float [H, W], in their unit."""
    mean, spread = outputs.mean(0), ndimage.gaussian_filter(outputs.std(0), NEIGHBOURHOOD)
    return np.sqrt(spread * np.sqrt(np.clip(mean * (1 - mean), 0, None)))


@dataclass(frozen=True)
class Sparsification:
    """The error that is left once the most uncertain pixels are taken away.

    Attributes:
        removed: share of the pixels taken away.
        left: mean error of the others, the most uncertain taken first.
        oracle: the same, those of the largest error taken first: no order does better.
        random: the same, taken at random: the mean error.
        spearman: rank correlation of uncertainty and error over the pixels; 0 where one of them is constant.
    """

    removed: Float[np.ndarray, " k"]
    left: Float[np.ndarray, " k"]
    oracle: Float[np.ndarray, " k"]
    random: Float[np.ndarray, " k"]
    spearman: float

    @property
    def ause(self) -> float:
        """Area between the curve and the oracle's, as a share of that between random and oracle.

        0 ranks the pixels by their true error, 1 no better than chance. (Ilg et al. divide by the error at the
        start instead; that number also depends on how unevenly the error is spread.)
        """
        possible = np.trapezoid(self.random - self.oracle, self.removed)
        return float(np.trapezoid(self.left - self.oracle, self.removed) / possible) if possible > 0 else 0.0


def sparsification(
    error: np.ndarray, uncertainty: np.ndarray, fractions: Sequence[float | int] = SHARES
) -> Sparsification:
    """Does an uncertainty rank pixels by their true error?

    Args:
        error: of each pixel, not negative, of any shape: |output - truth|, say.
        uncertainty: of each pixel, of the same shape.
        fractions: rising shares in [0, 1) of the pixels to take away, from 0.

    Raises:
        ValueError: for arrays that are empty, not finite or of two shapes, a negative error, or other fractions.

    Source: E. Ilg et al., Uncertainty estimates and multi-hypotheses networks for optical flow, ECCV 2018.
    """
    error, uncertainty = (np.asarray(a, np.float64) for a in (error, uncertainty))
    if not error.size or error.shape != uncertainty.shape:
        raise ValueError(f"error and uncertainty must agree and hold pixels, got {error.shape}, {uncertainty.shape}")
    if not (np.isfinite(error).all() and np.isfinite(uncertainty).all() and error.min() >= 0):
        raise ValueError("error and uncertainty must be finite and error not negative")
    removed = np.asarray(fractions, np.float64)
    if removed.ndim != 1 or len(removed) < 2 or removed[0] != 0 or removed[-1] >= 1 or (np.diff(removed) <= 0).any():
        raise ValueError(f"fractions must rise from 0 and stay below 1, got {fractions!r}")
    error, uncertainty = error.ravel(), uncertainty.ravel()
    kept = np.maximum(1, np.round((1 - removed) * error.size)).astype(int)

    def left(order):
        return np.cumsum(error[order])[kept - 1] / kept

    varies = np.ptp(error) > 0 and np.ptp(uncertainty) > 0
    return Sparsification(
        removed,
        left(np.argsort(uncertainty, kind="stable")),
        left(np.argsort(error)),
        np.full(len(removed), error.mean()),
        float(stats.spearmanr(uncertainty, error).statistic) if varies else 0.0,
    )


@dataclass(frozen=True)
class Familiarity:
    """How an image compares with the training data.

    Attributes:
        distance: of the image's texture from that of the training images, about 1 for them in the root mean square.
        limit: the distance that 98 % of training images kept out of the fit stay below.
    """

    distance: float
    limit: float

    @property
    def warning(self) -> str | None:
        """A sentence for the user, or None where the image is like the training data."""
        if self.distance <= self.limit:
            return None
        return (
            "This image is unlike the training data "
            f"(distance {self.distance:.2f}, training images stay below {self.limit:.2f}): check the result by eye."
        )


AXES = 12  # directions in which the training images' features vary together
SHRINKAGE = 0.1  # of their covariance towards the identity
COARSE = 4  # px of the image to a block of the second scale
FLOOR = 1e-2  # of a standard deviation, for its logarithm
LEAST = 0.05  # spread of a feature: one that never varied is not infinitely far
KEPT_BELOW = 98  # %, of the training images


def _pooled(denoiser: Denoiser, image: Float[np.ndarray, "h w"]) -> Float[np.ndarray, " c"]:
    """Log of each channel's spread over the image, of x_1 (Eq. 3) and of its means over blocks.

    Spreads at two scales say how much texture there is of which size and direction, whatever the image's size.
    """
    passage = Passage(denoiser, image)
    parts = [_moments(*passage.whole, passage.seen(tile), *passage.bounds(tile)) for tile in passage.tiles]
    count, mean, variance = (np.array(values, np.float64) for values in zip(*parts, strict=True))
    share = (count / count.sum(0))[..., None]
    variance = (share * (variance + (mean - (share * mean).sum(0)) ** 2)).sum(0)
    return np.log(np.sqrt(variance) + FLOOR).ravel()


@partial(jax.jit, static_argnums=0)
def _moments(graph, state, image: Float[Array, "1 h w 1"], inside: Int[Array, "2 2"], core: Int[Array, "2 2"]):
    """Count, mean and variance of x_1 over a tile's core, cell by cell and in blocks: [2], [2, c] and [2, c]."""
    network = nnx.merge(graph, state)
    s = network.config.scale
    x = network.encode(image, within(inside, (image.shape[1] // s, image.shape[2] // s)))[0]
    x = jnp.roll(x, -core[:, 0], (0, 1))
    found = [_masked(x, core[:, 1] - core[:, 0])]
    n = max(2, COARSE // s)
    h, w, c = x.shape
    blocks = x[: h // n * n, : w // n * n].reshape(h // n, n, w // n, n, c).mean((1, 3))
    found.append(_masked(blocks, (core[:, 1] - core[:, 0]) // n))
    return tuple(jnp.stack(each) for each in zip(*found, strict=True))


def _masked(x: Float[Array, "h w c"], size: Int[Array, " 2"]):
    """Count [], mean [c] and variance [c] over so many of the first rows and columns; 1, 0 and 0 over none."""
    mask = within(jnp.stack([jnp.zeros_like(size), size], 1), x.shape[:2])[0]
    count = jnp.maximum(mask.sum(), 1.0)
    mean = (x * mask).sum((0, 1), keepdims=True) / count
    return count, mean[0, 0], ((x - mean) ** 2 * mask).sum((0, 1)) / count


def _fit(pooled: Float[np.ndarray, "n c"]) -> dict[str, np.ndarray]:
    """Mean, spread, the axes of most variance and the variance along each and, last, across them."""
    mean, std = pooled.mean(0), np.maximum(pooled.std(0), LEAST)
    z = (pooled - mean) / std
    variances, axes = np.linalg.eigh(z.T @ z / len(z))
    variances = (1 - SHRINKAGE) * variances[::-1] + SHRINKAGE
    k = min(AXES, len(variances) - 1)
    return {
        "mean": mean,
        "std": std,
        "axes": axes[:, ::-1][:, :k].T,
        "variances": np.append(variances[:k], variances[k:].mean()),
    }


def _distance(known: dict, pooled: Float[np.ndarray, "n c"]) -> Float[np.ndarray, " n"]:
    """Mahalanobis' distance under that covariance, over the root of the number of features."""
    z = (pooled - np.asarray(known["mean"])) / np.asarray(known["std"])
    along, variances = z @ np.asarray(known["axes"]).T, np.asarray(known["variances"])
    across = (z**2).sum(-1) - (along**2).sum(-1)
    return np.sqrt(((along**2 / variances[:-1]).sum(-1) + across / variances[-1]) / z.shape[-1])


def training_statistics(network: DenoisingNetwork, images: Float[np.ndarray, "n h w"]) -> dict:
    """What `familiarity` compares with, from images like those in training; it goes into the weights' metadata.

    Args:
        network: the trained network.
        images: a few hundred inputs, [n, H, W] in [0, 1]; each fifth is judged by the other four for the limit.

    Returns:
        mean, std, axes, variances and limit, as numbers and lists.

    Raises:
        ValueError: for fewer than two images.

    Source: a Gaussian of few axes, as M. Tipping and C. Bishop, Probabilistic principal component analysis,
    J. R. Stat. Soc. B 61 (1999).
    """
    if len(images) < 2:
        raise ValueError(f"images must be two or more, got {len(images)}")
    denoiser = Denoiser(network)
    pooled = np.stack([_pooled(denoiser, image) for image in images])
    fold = np.arange(len(pooled)) % min(5, len(pooled))
    apart = np.concatenate([_distance(_fit(pooled[fold != f]), pooled[fold == f]) for f in range(fold.max() + 1)])
    known = {name: value.round(4).tolist() for name, value in _fit(pooled).items()}
    return known | {"limit": float(np.percentile(apart, KEPT_BELOW))}


def familiarity(denoiser: Denoiser, image: ArrayLike) -> Familiarity:
    """Whether the network has seen images like this one.

    It compares texture, not content, and does not depend on the image's size from about 128 px a side; smaller
    images look stranger than they are.

    Args:
        denoiser: whose weights carry training statistics, as the shipped ones do.
        image: a micrograph, [H, W] or [H, W, 3].

    Raises:
        ValueError: for no image, or weights without training statistics.
    """
    known = denoiser.metadata.get("training_statistics")
    if known is None or "axes" not in known:
        raise ValueError("denoiser: its weights carry no training statistics to compare the image with")
    pooled = _pooled(denoiser, luminance(check_image(image)))
    return Familiarity(float(_distance(known, pooled[None])[0]), known["limit"])
