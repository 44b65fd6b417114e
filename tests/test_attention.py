"""Attention maps: those of the very pass that denoises, and none where there is no attention."""

import numpy as np
import pytest
from flax import nnx

from mdn.attention import attention_maps
from mdn.inference import Denoiser
from mdn.micrographs import luminance
from mdn.network import DenoisingNetwork, NetworkConfig


def picture(shape, seed=0):
    return np.random.default_rng(seed).uniform(0.2, 0.9, shape).astype(np.float32)


def test_attention_maps_are_those_of_the_pass(denoiser):
    image = picture((40, 56))
    maps = attention_maps(denoiser, image)
    assert maps.channel_weights.shape == (2, 8) and maps.spatial.shape == (2, 40, 56)
    assert maps.features.shape == (2, 40, 56, 8) and maps.overall.shape == (40, 56)
    assert ((maps.channel_weights > 0) & (maps.channel_weights < 1)).all() and (maps.spatial >= 0).all()
    np.testing.assert_allclose(maps.output, denoiser.restore(luminance(image)), atol=1e-5)


def test_no_attention_no_maps():
    without = Denoiser(DenoisingNetwork(NetworkConfig(width=8, blocks=2, attention=False), rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="without attention"):
        attention_maps(without, picture((16, 16)))
