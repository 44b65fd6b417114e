"""Attention maps: those of the very pass that denoises, and what changes when the weights are set otherwise."""

import numpy as np
import pytest
from flax import nnx

from mdn import attention
from mdn.attention import (
    attention_maps,
    correlations,
    gated,
    image_content,
    local_defects,
    map_correlations,
    silence,
    silencing,
)
from mdn.defects import KINDS
from mdn.inference import Denoiser
from mdn.metrics import psnr
from mdn.micrographs import luminance
from mdn.network import DenoisingNetwork, NetworkConfig

RNG = np.random.default_rng(0)


def picture(shape, seed=0):
    return np.random.default_rng(seed).uniform(0.2, 0.9, shape).astype(np.float32)


@pytest.fixture(scope="module")
def coarse():
    """A network on a grid of half the image's pixels."""
    return Denoiser(DenoisingNetwork(NetworkConfig(width=8, blocks=2, scale=2), rngs=nnx.Rngs(1)))


@pytest.mark.parametrize("which", ["denoiser", "coarse"])
def test_attention_maps_are_those_of_the_pass(which, request):
    denoiser, image = request.getfixturevalue(which), picture((37, 52))
    maps = attention_maps(denoiser, image)
    assert maps.channel_weights.shape == (2, 8) and maps.spatial.shape == (2, 37, 52)
    assert maps.features.shape == (2, 37, 52, 8) and maps.overall.shape == (37, 52)
    assert ((maps.channel_weights > 0) & (maps.channel_weights < 1)).all() and (maps.spatial >= 0).all()
    np.testing.assert_allclose(maps.output, denoiser.restore(luminance(image)), atol=1e-5)
    np.testing.assert_allclose(np.percentile(maps.spatial, 99, axis=(1, 2)), 1, rtol=1e-5)


def test_maps_of_a_coarse_grid_lie_where_the_image_has_them(coarse):
    image = np.full((32, 32), 0.5, np.float32)
    image[20:22, 8:10] = 0.0
    image[0, 0] = 1.0
    maps = attention_maps(coarse, image)
    assert (maps.spatial[:, ::2] == maps.spatial[:, 1::2]).all()
    away = np.abs(maps.spatial[1] - np.median(maps.spatial[1]))
    y, x = np.unravel_index(away[8:28, 4:28].argmax(), (20, 24))  # far from the borders and the other spot
    assert abs(y + 8 - 20.5) < 8 and abs(x + 4 - 8.5) < 8


def test_no_attention_no_maps():
    without = Denoiser(DenoisingNetwork(NetworkConfig(width=8, blocks=2, attention=False), rngs=nnx.Rngs(0)))
    image = picture((16, 16))
    for function in (attention_maps, gated, lambda d, i: silence(d, i, 0, 0), lambda d, i: silencing(d, i, i, {})):
        with pytest.raises(ValueError, match="without attention"):
            function(without, image)


def test_only_defects_of_a_place_count():
    bits = np.array([[1 << KINDS.index(kind) for kind in KINDS]], np.uint16)
    assert [kind for kind, hit in zip(KINDS, local_defects(bits)[0], strict=True) if hit] == [
        kind for kind in KINDS if kind in attention.LOCAL
    ]
    assert set(attention.LOCAL) < set(KINDS)


def test_content_follows_what_is_in_the_image():
    image = np.tile(np.repeat([0.3, 0.8], 16).astype(np.float32), (64, 2))
    defects, boundaries = np.zeros((64, 64), np.uint16), np.zeros((64, 64), bool)
    defects[:16], boundaries[:, 15::16] = 1 << KINDS.index("etch_pit"), True
    plain = image_content(image, defects, boundaries)
    noisy = image_content(image + RNG.normal(0, 0.05, image.shape).astype(np.float32), defects, boundaries)
    assert plain["defects"] == 0.25 and plain["boundaries"] == 1 / 16
    assert noisy["noise"] > plain["noise"] + 0.05


def test_correlations_are_pearsons():
    content, values = RNG.random(20), RNG.random((20, 2, 3))
    values[:, 0, 1], values[:, 1, 2] = 3 - 2 * content, 0.7
    r = correlations(values, content)
    assert r.shape == (2, 3) and r[0, 1] == pytest.approx(-1) and r[1, 2] == 0
    assert r[0, 0] == pytest.approx(np.corrcoef(values[:, 0, 0], content)[0, 1])
    assert (correlations(values, np.ones(20)) == 0).all()
    with pytest.raises(ValueError, match="two rows"):
        correlations(values[:1], content[:1])


def test_maps_are_held_against_masks(denoiser):
    maps = attention_maps(denoiser, picture((24, 32)))
    r = map_correlations(maps, maps.spatial[1])
    assert r.shape == (2,) and r[1] == pytest.approx(1) and r[0] < 0.999
    mask = maps.spatial[0] > 0.5
    expected = np.corrcoef(maps.spatial[0].ravel(), mask.ravel())[0, 1]
    assert map_correlations(maps, mask)[0] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="mask"):
        map_correlations(maps, mask[:, 1:])


@pytest.mark.parametrize("which", ["denoiser", "coarse"])
def test_weights_set_otherwise(which, request):
    denoiser, image = request.getfixturevalue(which), picture((24, 32))
    maps = attention_maps(denoiser, image)
    np.testing.assert_allclose(gated(denoiser, image), maps.output, atol=1e-6)
    frozen = gated(denoiser, image, scale=0, offset=maps.channel_weights)  # to what they are anyway
    np.testing.assert_allclose(frozen, maps.output, atol=1e-5)
    assert np.abs(gated(denoiser, image, scale=0, offset=0.1) - maps.output).max() > 1e-3
    with pytest.raises(ValueError, match="offset"):
        gated(denoiser, image, offset=np.zeros((2, 7), np.float32))


def test_a_silent_channel_is_one_whose_features_are_gone(denoiser):
    image = picture((24, 32))
    silent = silence(denoiser, image, 1, 3)
    other = Denoiser(nnx.clone(denoiser.network))  # the tests' own is left as it was
    kernel = other.network.reconstruction.first.conv.kernel
    kernel[...] = kernel[...].at[:, :, 3].set(0)  # the last block's channel 3 is read by nothing
    np.testing.assert_allclose(silent, other.restore(image), atol=1e-6)
    with pytest.raises(ValueError, match="block and channel"):
        silence(denoiser, image, 2, 0)


@pytest.mark.parametrize("which", ["denoiser", "coarse"])
def test_silencing_agrees_with_silence(which, request):
    denoiser, image, truth = request.getfixturevalue(which), picture((20, 24)), picture((20, 24), 1)
    region = np.zeros(image.shape, bool)
    region[4:9, 10:20] = True
    found = silencing(denoiser, image, truth, {"region": region, "all": ~np.zeros_like(region), "none": region & False})
    usual = gated(denoiser, image)
    for block, channel in ((0, 5), (1, 2)):
        output = silence(denoiser, image, block, channel)
        change = np.abs(output - usual)
        assert found.psnr_drop[block, channel] == pytest.approx(psnr(usual, truth) - psnr(output, truth), abs=1e-4)
        assert found.change["region"][block, channel] == pytest.approx(change[region].mean(), rel=1e-3)
        assert found.change["all"][block, channel] == pytest.approx(change.mean(), rel=1e-3)
    assert np.isnan(found.change["none"]).all() and found.change["all"].min() > 0
    with pytest.raises(ValueError, match="truth"):
        silencing(denoiser, image, truth[1:], {})
