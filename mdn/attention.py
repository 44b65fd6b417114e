"""Where the network looks, and what its attention does (Section I).

The attention of Eq. 5 weighs channels, not places. What it does in space shows in what each block adds to the
features under those weights:

    A_n(p) = sum_c y_c |x_res,c(p) - x_c(p)|

What a weight is for shows in what it goes with over many images, and in what changes when it is set otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt16
from numpy.typing import ArrayLike
from skimage.restoration import estimate_sigma

from mdn.defects import KINDS
from mdn.inference import Denoiser
from mdn.micrographs import check_image, luminance
from mdn.network import stretch

Weights = float | int | Float[np.ndarray, "b c"]
LOCAL = ("deep_scratch", "faint_scratch", "etch_pit", "water_stain", "dust", "pore")  # kinds that lie somewhere


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of one image.

    Attributes:
        channel_weights: y of Eq. 5, float32 [blocks, width].
        spatial: A_n, float32 [blocks, H, W]; each block's map is scaled to a 99th percentile of 1.
        image: what the network saw, float32 [H, W].
        output: the network's own intensities, float32 [H, W].
        x_att: of Eq. 6, float32 [blocks, h, w, width], on the network's own grid.
        scale: pixels of the image to one of that grid's, a side.
    """

    channel_weights: Float[np.ndarray, "b c"]
    spatial: Float[np.ndarray, "b h w"]
    image: Float[np.ndarray, "h w"]
    output: Float[np.ndarray, "h w"]
    x_att: Float[np.ndarray, "b _h _w c"]
    scale: int

    @property
    def overall(self) -> Float[np.ndarray, "h w"]:
        """Mean of the blocks' spatial maps."""
        return self.spatial.mean(0)

    @property
    def features(self) -> Float[np.ndarray, "b h w c"]:
        """x_att at the image's own size, float32 [blocks, H, W, width]."""
        return _enlarged(self.x_att, self.image.shape, self.scale)


def _enlarged(fields: np.ndarray, shape: tuple[int, int], scale: int) -> np.ndarray:
    """[blocks, h, w, ...] to [blocks, H, W, ...], each pixel as wide as `scale`, of an image of `shape` (H, W)."""
    return fields.repeat(scale, 1).repeat(scale, 2)[:, : shape[0], : shape[1]]


def _parts(denoiser: Denoiser):
    """The evaluated network's graph and state, if it has attention."""
    if not denoiser.network.config.attention:
        raise ValueError("denoiser has a network without attention; there are no weights to show")
    return nnx.split(nnx.view(denoiser.network, deterministic=True, use_running_average=True))


@partial(jax.jit, static_argnums=0)
def _encode(graph, state, image: Float[Array, "h w"]) -> Float[Array, "1 _h _w c"]:
    return nnx.merge(graph, state).encode(image[None, :, :, None])


@partial(jax.jit, static_argnums=(0, 3, 4))
def _onward(graph, state, x: Float[Array, "1 _h _w c"], start: int, shape: tuple[int, int], scale, offset):
    """From the features that block `start` takes to the output: y of each block, A_n, x_att, and I_clean."""
    network = nnx.merge(graph, state)
    weights, spatial, features = [], [], []
    for block, a, b in list(zip(network.blocks, scale, offset, strict=True))[start:]:
        residual = block.residual(x)
        y = a * block.attention.weights(residual)[0] + b
        spatial.append((abs(residual - x) @ y)[0])
        x = residual * y.reshape(1, 1, 1, -1)
        weights.append(y)
        features.append(x[0])
    return weights, spatial, features, network.decode(x, shape)[0, :, :, 0]


def _neutral(denoiser: Denoiser) -> tuple[np.ndarray, np.ndarray]:
    """scale and offset [blocks, width] that leave the weights as they are."""
    size = len(denoiser.network.blocks), denoiser.network.config.width
    return np.ones(size, np.float32), np.zeros(size, np.float32)


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
    graph, state = _parts(denoiser)
    seen = stretch(luminance(check_image(image)))
    x = _encode(graph, state, seen)
    weights, spatial, features, output = _onward(graph, state, x, 0, seen.shape, *_neutral(denoiser))
    scale = denoiser.network.config.scale
    spatial = _enlarged(np.stack(spatial), seen.shape, scale)
    spatial = spatial / np.maximum(np.percentile(spatial, 99, axis=(1, 2), keepdims=True), 1e-12)
    return AttentionMaps(np.stack(weights), spatial, seen, np.asarray(output), np.stack(features), scale)


# ---- what it goes with


def local_defects(defects: UInt16[np.ndarray, "*s"]) -> Bool[np.ndarray, "*s"]:
    """Where a defect of a place of its own lies, from a bit mask: no noise, no shading, nothing along boundaries."""
    return (defects & np.uint16(sum(1 << KINDS.index(kind) for kind in LOCAL if kind in KINDS))) > 0


def image_content(
    noisy: Float[np.ndarray, "h w"], defects: UInt16[np.ndarray, "h w"], boundaries: Bool[np.ndarray, "h w"]
) -> dict[str, float]:
    """How much an image holds of what a channel weight may answer to.

    Args:
        noisy: the input, in [0, 1].
        defects: bit mask of its pair.
        boundaries: grain and twin boundaries.

    Returns:
        defects: share of pixels in a local defect. noise: standard deviation of white noise in the stretched
        input, from its finest wavelets (Donoho 1995). boundaries: share of pixels on a boundary. contrast:
        standard deviation of the stretched input.
    """
    seen = stretch(noisy)
    return {
        "defects": float(local_defects(defects).mean()),
        "noise": float(estimate_sigma(seen)),
        "boundaries": float(boundaries.mean()),
        "contrast": float(seen.std()),
    }


def correlations(values: Float[np.ndarray, n * s], with_what: Float[np.ndarray, " n"]) -> Float[np.ndarray, "*s"]:
    """Pearson's r of each value with a quantity, over the first axis; 0 where one of them does not vary.

    Serves both questions: of maps [pixels, blocks] with a mask [pixels], and of channel weights [images, blocks,
    width] with what the images hold [images].

    Raises:
        ValueError: for fewer than two rows.
    """
    if len(values) < 2:
        raise ValueError(f"values must have at least two rows, got {len(values)}")
    a = values - values.mean(0)
    b = with_what - with_what.mean()
    norm = np.sqrt((a**2).sum(0) * (b**2).sum())
    return np.divide(np.tensordot(b, a, 1), norm, out=np.zeros(np.shape(norm)), where=norm > 1e-12)


def map_correlations(maps: AttentionMaps, mask: np.ndarray) -> Float[np.ndarray, " b"]:
    """Pearson's r, over pixels, of each block's spatial map with a mask or a field [H, W].

    Raises:
        ValueError: for a mask of another shape.
    """
    if np.shape(mask) != maps.image.shape:
        raise ValueError(f"mask must have the image's shape {maps.image.shape}, got {np.shape(mask)}")
    flat = maps.spatial.reshape(len(maps.spatial), -1).T.astype(np.float64)
    return correlations(flat, np.asarray(mask, np.float64).ravel())


# ---- what changes with it


def gated(
    denoiser: Denoiser, image: ArrayLike, *, scale: Weights = 1.0, offset: Weights = 0.0
) -> Float[np.ndarray, "h w"]:
    """The network's output with its channel weights set otherwise: scale x y + offset in the place of y (Eq. 5).

    One compiled function, whatever the weights: scale 0 at a channel silences it; scale 0 and an offset freezes
    the weights to that offset, whatever the image.

    Args:
        denoiser: with a network that has attention.
        image: a micrograph, [H, W] or [H, W, 3].
        scale, offset: numbers, or [blocks, width].

    Returns:
        The network's own intensities, float32 [H, W].

    Raises:
        ValueError: for no image, a network without attention, or a scale or offset of another shape.
    """
    graph, state = _parts(denoiser)
    seen = stretch(luminance(check_image(image)))
    size = _neutral(denoiser)[0].shape
    for name, value in (("scale", scale), ("offset", offset)):
        if np.shape(value) not in ((), size):
            raise ValueError(f"{name} must be a number or {list(size)}, blocks and width, got {np.shape(value)}")
    scale, offset = (np.broadcast_to(np.asarray(a, np.float32), size) for a in (scale, offset))
    return np.asarray(_onward(graph, state, _encode(graph, state, seen), 0, seen.shape, scale, offset)[-1])


def silence(denoiser: Denoiser, image: ArrayLike, block: int, channel: int) -> Float[np.ndarray, "h w"]:
    """The network's output, float32 [H, W], with the weight of one channel of one block (from 0) set to 0.

    Raises:
        ValueError: as `gated`, or for a block or channel that is not there.
    """
    scale, _ = _neutral(denoiser)
    if not (0 <= block < scale.shape[0] and 0 <= channel < scale.shape[1]):
        raise ValueError(f"block and channel must lie in {list(scale.shape)}, got {block}, {channel}")
    scale[block, channel] = 0
    return gated(denoiser, image, scale=scale)


@dataclass(frozen=True)
class Silencing:
    """What silencing each channel does to one image; arrays are float [blocks, width].

    Attributes:
        psnr_drop: raw PSNR lost, in dB; negative where the output is better without the channel.
        change: by region, mean |output - output as it is| in it, in grey; NaN in a region without pixels.
    """

    psnr_drop: Float[np.ndarray, "b c"]
    change: dict[str, Float[np.ndarray, "b c"]]


def silencing(
    denoiser: Denoiser, image: ArrayLike, truth: Float[np.ndarray, "h w"], regions: Mapping[str, np.ndarray]
) -> Silencing:
    """Silence every channel of every block in turn: blocks x width forward passes, each from its block on.

    Args:
        denoiser: with a network that has attention.
        image: a micrograph, [H, W] or [H, W, 3].
        truth: its clean image.
        regions: bool [H, W] by name, such as defects and boundaries.

    Raises:
        ValueError: for no image, a network without attention, or a truth or region of another shape.
    """
    graph, state = _parts(denoiser)
    seen = stretch(luminance(check_image(image)))
    for name, array in {"truth": truth, **regions}.items():
        if np.shape(array) != seen.shape:
            raise ValueError(f"{name} must have the image's shape {seen.shape}, got {np.shape(array)}")
    scale, offset = _neutral(denoiser)
    masks = np.array(list(regions.values()), np.float32).reshape(-1, *seen.shape)
    x = _encode(graph, state, seen)
    drop, change = np.zeros(scale.shape), np.zeros((len(regions), *scale.shape))
    usual = _onward(graph, state, x, 0, seen.shape, scale, offset)[-1]
    for block in range(len(scale)):
        for channel in range(scale.shape[1]):
            without = scale.copy()
            without[block, channel] = 0
            output = _onward(graph, state, x, block, seen.shape, without, offset)[-1]
            drop[block, channel], change[:, block, channel] = _compare(output, usual, truth, masks)
        x = _onward(graph, state, x, block, seen.shape, scale, offset)[2][0][None]
    return Silencing(drop, dict(zip(regions, change, strict=True)))


@jax.jit
def _compare(output, usual, truth, masks):
    """PSNR lost in dB, and the mean change in each mask."""
    error, before = jnp.mean((output - truth) ** 2), jnp.mean((usual - truth) ** 2)
    return 10 * jnp.log10(error / before), jnp.tensordot(masks, abs(output - usual), 2) / masks.sum((1, 2))
