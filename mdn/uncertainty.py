"""Where not to trust the result: an uncertainty map, and a word when an input is unlike the training data."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from mdn.inference import Denoiser
from mdn.micrographs import check_image, luminance
from mdn.network import DenoisingNetwork, stretch


def uncertainty_map(denoiser: Denoiser, image: ArrayLike, *, key: Array, passes: int = 8) -> Float[np.ndarray, "h w"]:
    """Standard deviation of the network's output over dropout masks and the symmetries of the square.

    Args:
        denoiser: as of `load_denoiser`.
        image: a micrograph, [H, W] or [H, W, 3].
        key: of the dropout masks.
        passes: forward passes, each under another symmetry and mask.

    Returns:
        float32 [H, W], in units of the grey range.

    Raises:
        ValueError: for no image, or fewer than two passes.

    Source: Monte Carlo dropout, Gal and Ghahramani, ICML 2016.
    """
    if passes < 2:
        raise ValueError(f"passes must be at least 2, got {passes!r}")
    seen = stretch(luminance(check_image(image)))
    network = nnx.clone(nnx.view(denoiser.network, deterministic=False, use_running_average=True))
    outputs = []
    for number in range(passes):
        nnx.reseed(network, dropout=jax.random.fold_in(key, number))
        turned = np.rot90(seen[:, ::-1] if number % 8 > 3 else seen, number % 4)
        output = np.rot90(np.asarray(_forward(network, turned[None, :, :, None]))[0, :, :, 0], -(number % 4))
        outputs.append(output[:, ::-1] if number % 8 > 3 else output)
    return np.std(outputs, axis=0).astype(np.float32)


@nnx.jit
def _forward(network: DenoisingNetwork, x: Float[Array, "n h w 1"]) -> Float[Array, "n h w 1"]:
    return network(x)


@dataclass(frozen=True)
class Familiarity:
    """How an image compares with the training data.

    Attributes:
        distance: root-mean-square z-score of the image's mean first features.
        limit: the distance that 99 % of the training images stay below.
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
            f"(distance {self.distance:.1f}, training images stay below {self.limit:.1f}): check the result by eye."
        )


def _pooled(network: DenoisingNetwork, image: Float[np.ndarray, "h w"]) -> Float[np.ndarray, " c"]:
    """Mean and spread of each channel of x_1 (Eq. 3) over the image."""
    network = nnx.view(network, deterministic=True, use_running_average=True)
    features = network.features(jnp.asarray(stretch(image))[None, :, :, None])
    return np.asarray(jnp.concatenate([features.mean((0, 1, 2)), features.std((0, 1, 2))]), np.float64)


def training_statistics(network: DenoisingNetwork, images: Float[np.ndarray, "n h w"]) -> dict:
    """What `familiarity` compares with, from training images; it goes into the weights' metadata.

    Returns:
        mean and std of each pooled feature, and the 99th percentile of the training images' own distances.
    """
    pooled = np.stack([_pooled(network, image) for image in images])
    mean, std = pooled.mean(0), pooled.std(0) + 1e-6
    limit = np.percentile(np.sqrt((((pooled - mean) / std) ** 2).mean(1)), 99)
    return {"mean": mean.round(6).tolist(), "std": std.round(6).tolist(), "limit": float(limit)}


def familiarity(denoiser: Denoiser, image: ArrayLike) -> Familiarity:
    """Whether the network has seen images like this one.

    Args:
        denoiser: whose weights carry training statistics, as the shipped ones do.
        image: a micrograph, [H, W] or [H, W, 3].

    Raises:
        ValueError: for no image, or weights without training statistics.
    """
    known = denoiser.metadata.get("training_statistics")
    if known is None:
        raise ValueError("denoiser: its weights carry no training statistics to compare the image with")
    z = (_pooled(denoiser.network, luminance(check_image(image))) - known["mean"]) / np.asarray(known["std"])
    return Familiarity(float(np.sqrt((z**2).mean())), known["limit"])
