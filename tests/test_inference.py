"""Denoising an array: size, colour and dtype kept, histogram matched, exposure ignored."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

import mdn
from mdn.attention import attention_maps
from mdn.inference import load_denoiser
from mdn.uncertainty import familiarity, uncertainty_map

KEY = jax.random.key(0)


def picture(shape, dtype, seed=0):
    values = np.random.default_rng(seed).uniform(0.2, 0.9, shape)
    return (values * np.iinfo(dtype).max).astype(dtype) if np.issubdtype(dtype, np.integer) else values.astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(33, 47), (24, 24, 3), (1, 1), (1, 40)])
def test_shape_and_dtype_are_kept(denoiser, shape, dtype):
    image = picture(shape, dtype)
    before = image.copy()
    for match in (True, False):
        clean = denoiser(image, match_histogram=match)
        assert clean.shape == shape and clean.dtype == dtype
    np.testing.assert_array_equal(image, before)


def test_restoring_can_be_watched_and_stopped(denoiser):
    grey, shares = picture((31, 45), np.float32), []
    clean = denoiser.restore(grey, report=shares.append)
    np.testing.assert_allclose(clean, denoiser.restore(grey), atol=1e-5)
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] < 1 and len(shares) == 3  # two blocks, the end

    def stop(share):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        denoiser.restore(grey, report=stop)


def test_matched_output_has_the_inputs_histogram(denoiser):
    image = picture((64, 64), np.uint8)
    np.testing.assert_allclose(np.sort(denoiser(image).ravel()), np.sort(image.ravel()), atol=2)


def test_chroma_is_kept(denoiser):
    image = picture((32, 32, 3), np.float32) * 0.5 + 0.25
    clean = denoiser(image)
    for a, b in ((0, 1), (2, 1)):  # differences of channels carry the chroma, where nothing was clipped
        inside = ((clean > 0.01) & (clean < 0.99)).all(-1)
        np.testing.assert_allclose(
            (clean[..., a] - clean[..., b])[inside], (image[..., a] - image[..., b])[inside], atol=1e-5
        )


def test_result_is_blind_to_exposure(denoiser):
    image = picture((48, 48), np.float32)
    raw, dim = (denoiser(x, match_histogram=False) for x in (image, 0.1 + 0.5 * image))
    np.testing.assert_allclose(raw, dim, atol=1e-4)
    np.testing.assert_allclose(denoiser(0.1 + 0.5 * image), 0.1 + 0.5 * denoiser(image), atol=1e-3)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((0, 5)),
        np.zeros(7),
        np.zeros((4, 4, 4)),
        np.full((4, 4), np.nan),
        np.full((4, 4), np.inf, np.float32),
        np.array([["a"]]),
        np.zeros((4, 4), complex),
        "a.tif",
    ],
)
def test_bad_input_is_one_clear_error(denoiser, bad):
    for function in (denoiser, lambda x: attention_maps(denoiser, x), lambda x: uncertainty_map(denoiser, x, key=KEY)):
        with pytest.raises(ValueError, match="accepted"):
            function(bad)


def test_missing_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_denoiser(tmp_path / "nowhere.safetensors")


def test_shipped_weights_load_and_denoise():
    """The box holds what its card says, and it lifts a simulated pair well above its noise."""
    denoiser = mdn.load_denoiser()
    config = denoiser.network.config
    assert (config.width, config.blocks, config.gate, config.attention) == (64, 6, "sigmoid", True)
    kernels = [leaf for leaf in jax.tree.leaves(nnx.state(denoiser.network, nnx.Param)) if leaf.ndim == 4]
    assert sum(2 * kernel.size for kernel in kernels) / config.scale**2 < 300e3  # operations a pixel
    grains = mdn.grow(mdn.AllenCahn(shape=(128, 128)), n_grains=16, time=20.0, key=KEY)
    pair = mdn.make_pair(grains, mdn.synthesis.stand_in("etched", (128, 128), key=KEY), key=KEY)
    scores = [mdn.metrics.aligned_psnr(x, pair.clean) for x in (pair.noisy, denoiser.restore(pair.noisy))]
    assert scores[1] > scores[0] + 1
    assert familiarity(denoiser, pair.noisy).limit > 0


def test_public_names_resolve_lazily():
    code = "import sys, mdn; assert not {'jax', 'flax'} & set(sys.modules); mdn.AllenCahn; assert 'jax' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in mdn.__all__:
        assert getattr(mdn, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = mdn.nonsense


@pytest.mark.parametrize("match", [True, False])
def test_a_constant_image_comes_back_as_it_is(denoiser, match):
    grey = np.full((48, 40), 90, np.uint8)
    np.testing.assert_array_equal(denoiser(grey, match_histogram=match), grey)
