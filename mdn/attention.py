"""Where the network looks (Section I): channel weights and spatial maps of one forward pass.

The attention of Eq. 5 weighs channels, not places. What it does in space shows in what each block adds to the
features under those weights:

    A_n(p) = sum_c y_c |x_res,c(p) - x_c(p)|
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flax import nnx
from jaxtyping import Float
from numpy.typing import ArrayLike

from mdn.inference import Denoiser
from mdn.micrographs import check_image, luminance
from mdn.network import DenoisingNetwork, stretch


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of one image.

    Attributes:
        channel_weights: y of Eq. 5, float32 [blocks, width].
        spatial: A_n, float32 [blocks, H, W]; each block's map is scaled to a 99th percentile of 1.
        features: x_att of Eq. 6, float32 [blocks, H, W, width].
        image: what the network saw, float32 [H, W].
        output: the network's own intensities, float32 [H, W].
    """

    channel_weights: Float[np.ndarray, "b c"]
    spatial: Float[np.ndarray, "b h w"]
    features: Float[np.ndarray, "b h w c"]
    image: Float[np.ndarray, "h w"]
    output: Float[np.ndarray, "h w"]

    @property
    def overall(self) -> Float[np.ndarray, "h w"]:
        """Mean of the blocks' spatial maps."""
        return self.spatial.mean(0)


@nnx.jit
def _forward(network: DenoisingNetwork, x):
    weights, spatial, features = [], [], []
    x = network.features(x)
    for block in network.blocks:
        residual = block.residual(x)
        y = block.attention.weights(residual)
        spatial.append((y[:, None, None, :] * abs(residual - x)).sum(-1)[0])
        x = residual * y[:, None, None, :]
        weights.append(y[0])
        features.append(x[0])
    return weights, spatial, features, network.reconstruction(x)[0, :, :, 0]


def attention_maps(denoiser: Denoiser, image: ArrayLike) -> AttentionMaps:
    """Channel weights of every block and a map of where each block changes the image.

    Args:
        denoiser: with a network that has attention.
        image: a micrograph, [H, W] or [H, W, 3].

    Returns:
        Weights, maps and features of each block.

    Raises:
        ValueError: for no image, or a network without attention.

    Source: Eqs. 4-6.
    """
    if not denoiser.network.config.attention:
        raise ValueError("denoiser has a network without attention; there are no weights to show")
    seen = stretch(luminance(check_image(image)))
    network = nnx.view(denoiser.network, deterministic=True, use_running_average=True)
    weights, spatial, features, output = _forward(network, seen[None, :, :, None])
    spatial = np.stack(spatial)
    scale = np.percentile(spatial, 99, axis=(1, 2), keepdims=True)
    return AttentionMaps(
        np.stack(weights), spatial / np.maximum(scale, 1e-12), np.stack(features), seen, np.asarray(output)
    )
