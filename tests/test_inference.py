"""Denoising an array: size, colour and dtype kept, histogram matched, exposure ignored."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mdn
from mdn.attention import attention_maps
from mdn.inference import LARGEST, Denoiser, Passage, load_denoiser, tiles
from mdn.network import folded, stretch
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
    np.testing.assert_array_equal(clean, denoiser.restore(grey))
    assert shares == [1]  # one tile, one piece of work

    def stop(share):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        denoiser.restore(grey, report=stop)


@pytest.fixture(scope="module")
def trained():
    """A network of scale 2 whose batch norms and attention are not those of its start."""
    network = mdn.DenoisingNetwork(mdn.NetworkConfig(width=8, blocks=2, scale=2, dropout=0.2), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    state = nnx.state(network, (nnx.Param, nnx.BatchStat))
    for path, leaf in nnx.to_flat_state(state):
        noise = rng.uniform(0.5, 1.5, leaf.shape) if path[-1] in ("scale", "var") else rng.normal(0, 0.15, leaf.shape)
        leaf[...] = noise.astype(np.float32)
    nnx.update(network, state)
    return Denoiser(network)


def whole(denoiser, grey):
    """The network on the whole image at once, batch norms and all."""
    network = nnx.view(denoiser.network, deterministic=True, use_running_average=True)
    return np.asarray(network(jnp.asarray(stretch(grey))[None, :, :, None]))[0, :, :, 0]


def test_folding_changes_nothing(trained):
    image = jnp.asarray(picture((1, 40, 52, 1), np.float32))
    usual = nnx.view(trained.network, deterministic=True, use_running_average=True)(image)
    network = folded(trained.network)
    np.testing.assert_allclose(network(image), usual, atol=1e-5)
    assert not any("norm" in path for path, _ in nnx.to_flat_state(nnx.state(network)))
    assert trained.network.features.first.norm is not None  # the network itself is left as it was


@pytest.mark.parametrize("largest", [32, 48, LARGEST])
@pytest.mark.parametrize("shape", [(2, 2), (3, 200), (200, 3), (64, 64), (65, 63), (129, 77), (150, 231)])
def test_tiled_equals_whole(trained, shape, largest):
    grey = picture(shape, np.float32)
    clean = trained.restore(grey, largest=largest, exact=True)
    np.testing.assert_allclose(clean, whole(trained, grey), atol=1e-4)
    assert largest == LARGEST or max(shape) < 64 or np.ptp(clean) > 0.1


@pytest.mark.parametrize("shape", [(1, 1), (31, 32), (40, 700), (512, 512), (600, 900)])
@pytest.mark.parametrize("largest", [64, 512])
def test_tiles_cover_each_cell_once_and_see_what_it_depends_on(shape, largest):
    seen = np.zeros(shape, int)
    for tile in tiles(shape, 17, largest):
        seen[tile.core] += 1
        for core, start, side, n in zip(tile.core, tile.start, tile.sides, shape, strict=True):
            assert start <= max(0, core.start - 17) and start + side >= min(n, core.stop + 17)
            assert side <= largest
    assert (seen == 1).all()


def test_attention_of_some_tiles_is_near_that_of_all(trained, monkeypatch):
    """Above `HELD` tiles, the exact way is gone through once a block; the other samples, and says less exactly so."""
    monkeypatch.setattr(mdn.inference, "HELD", 4)
    grey, shares = picture((150, 231), np.float32), {True: [], False: []}
    exact, sampled = (
        trained.restore(grey, largest=48, exact=exact, report=shares[exact].append) for exact in (True, False)
    )
    np.testing.assert_allclose(exact, whole(trained, grey), atol=1e-4)
    assert 1e-6 < np.abs(sampled - exact).max() < 0.02
    assert len(shares[True]) > len(shares[False])
    assert all(s == sorted(s) and s[-1] == pytest.approx(1) for s in shares.values())


@pytest.mark.parametrize("some", [4, 16])
@pytest.mark.parametrize("grid", [(3, 3), (15, 15), (15, 7), (11, 11), (16, 16), (2, 40)])
def test_the_tiles_that_stand_for_all_lie_all_over(denoiser, grid, some):
    passage = Passage(denoiser, picture([70 * n for n in grid], np.float32), largest=denoiser.reach * 2 + 70)
    rows, columns = (len({tile.core[axis].start for tile in passage.tiles}) for axis in (0, 1))
    chosen = passage.spread(some)
    assert len(chosen) == len(set(chosen)) >= min(some, rows * columns) * 0.6 and max(chosen) < len(passage.tiles)
    for index, n in ((np.array(chosen) // columns, rows), (np.array(chosen) % columns, columns)):
        counts = np.histogram(index, bins=min(n, 4), range=(0, n))[0]
        assert counts.min() >= 0.4 * counts.max()


def test_tiles_smaller_than_their_overlap_are_refused(trained):
    with pytest.raises(ValueError, match="largest must be above 18.*got 18"):
        trained.restore(picture((40, 40), np.float32), largest=18)


def test_other_sizes_do_not_compile_again(trained):
    """Sizes near each other share a grid."""
    trained.restore(picture((100, 120), np.float32))
    compiled = mdn.inference._restore._cache_size()
    for shape in [(97, 99), (128, 128), (111, 70), (65, 66)]:
        trained.restore(picture(shape, np.float32))
    assert mdn.inference._restore._cache_size() == compiled


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
    for function in (denoiser, lambda x: attention_maps(denoiser, x), lambda x: uncertainty_map(denoiser, x)):
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
