"""Denoising a micrograph (Section III.b): any size, colour and dtype kept, histogram matched to the input."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float
from numpy.typing import ArrayLike
from skimage.exposure import match_histograms

from mdn.micrographs import check_image, from_float, grey_range, luminance, to_float, with_luminance
from mdn.network import DenoisingNetwork, load_weights, read_metadata, stretch

SHIPPED = Path(__file__).parent / "weights" / "denoiser.safetensors"


class Denoiser:
    """A trained network as a function of micrographs.

    Attributes:
        network: the `DenoisingNetwork`.
        metadata: what the weights' file says of their training.
    """

    def __init__(self, network: DenoisingNetwork, metadata: dict | None = None):
        self.network, self.metadata = network, metadata or {}

    @cached_property
    def _apply(self):
        graph, state = nnx.split(nnx.view(self.network, deterministic=True, use_running_average=True))
        apply = jax.jit(lambda state, x: nnx.merge(graph, state)(x[None, :, :, None])[0, :, :, 0])
        return lambda image: np.asarray(apply(state, image))

    def restore(
        self, grey: Float[np.ndarray, "h w"], *, report: Callable[[float], None] | None = None
    ) -> Float[np.ndarray, "h w"]:
        """The network's own intensities in [0, 1] for a luminance in [0, 1], its 1-99 % range stretched first.

        A constant luminance has nothing in it to restore and comes back as it is.
        report: called with the share done after each part of the network; what it raises stops the work.
        """
        if grey.min() == grey.max():
            return grey.astype(np.float32)
        if report is None:
            return self._apply(stretch(grey))
        network = nnx.view(self.network, deterministic=True, use_running_average=True)
        parts = len(network.blocks) + 2
        x = _encode(network, jnp.asarray(stretch(grey))[None, :, :, None])
        for done, block in enumerate(network.blocks, start=1):
            report(done / parts)
            x = _block(block, x).block_until_ready()
        report(1 - 1 / parts)
        return np.asarray(_decode(network, x, grey.shape)[0, :, :, 0])

    def __call__(self, image: ArrayLike, *, match_histogram: bool = True) -> np.ndarray:
        """Denoise a micrograph.

        Any size from 1 x 1 up, strips too. A constant image comes back as it is.
        12 bits in 16 stay within their range: the image's own grey range is what the network sees. Floats within
        [0, 1] are taken as they are; others, negative ones too, on their own range, which the result keeps.
        Either byte order is taken and the machine's returned; a memory map is read and never written to.

        Args:
            image: [H, W] or [H, W, 3]; bool, uint8, uint16 or float of 16 to 64 bits.
            match_histogram: whether the result takes the input's grey levels (Section III.b); without, the
                network's own [0, 1] scaled to the dtype.

        Returns:
            The clean micrograph, of the same shape and dtype. Of a colour image the luminance is denoised and
            the chroma kept.

        Raises:
            ValueError: for an array of another rank or dtype, an empty one, or one that holds NaN or infinity.

        Source: Eq. 1; Section III.b.
        """
        image = check_image(image)
        return self.finish(image, self.restore(luminance(image)), match_histogram=match_histogram)

    @staticmethod
    def finish(image: np.ndarray, clean: Float[np.ndarray, "h w"], *, match_histogram: bool = True) -> np.ndarray:
        """The result for a micrograph of which `restore` made `clean`: greys matched, chroma and dtype kept."""
        grey = luminance(image)
        if match_histogram:
            clean = match_histograms(clean, grey).astype(np.float32)
        if image.ndim == 3:
            clean = with_luminance(to_float(image), clean)
        return from_float(clean, image.dtype, grey_range(image))


@nnx.jit
def _encode(network, image):
    return network.encode(image)


@nnx.jit
def _block(block, x):
    return block(x)


@nnx.jit(static_argnums=2)
def _decode(network, x, shape):
    return network.decode(x, shape)


def load_denoiser(path: str | Path | None = None) -> Denoiser:
    """The denoiser with the shipped weights, or with those of a safetensors file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file and cause, if it holds no weights of this network or is damaged.
    """
    path = Path(path) if path is not None else SHIPPED
    return Denoiser(load_weights(path), {name: _parsed(text) for name, text in read_metadata(path).items()})


def _parsed(text: str):
    """JSON where an entry of the header looks like it, text otherwise."""
    try:
        return json.loads(text) if text.startswith(("{", "[")) else text
    except (ValueError, RecursionError):
        return text
