"""Uncertainty follows its key and ranks errors; an image unlike the training data is told from one that is like it."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import ndimage

from mdn import inference, uncertainty
from mdn.inference import Denoiser
from mdn.network import DenoisingNetwork, NetworkConfig, stretch
from mdn.uncertainty import familiarity, hesitation, restorations, sparsification, training_statistics, uncertainty_map

KEY = jax.random.key(0)


def picture(shape, seed=0):
    return np.random.default_rng(seed).uniform(0.2, 0.9, shape).astype(np.float32)


def texture(shape, seed, size=2.0):
    noise = np.random.default_rng(seed).standard_normal(shape)
    return ndimage.gaussian_filter(noise, size, mode="wrap").astype(np.float32)


@pytest.fixture(scope="module")
def coarse():
    """A network on a grid of half the image's pixels."""
    return Denoiser(DenoisingNetwork(NetworkConfig(width=8, blocks=2, scale=2), rngs=nnx.Rngs(0)))


def test_uncertainty_is_a_map_and_the_same_again(denoiser):
    image = picture((32, 24))
    a, b, c = (uncertainty_map(denoiser, image, passes=n) for n in (8, 8, 4))
    assert a.shape == image.shape and a.dtype == np.float32 and a.max() > 0
    assert (a == b).all() and (a != c).any()
    with pytest.raises(ValueError, match="passes"):
        uncertainty_map(denoiser, image, passes=1)


def test_hesitation_is_between_the_spread_and_the_most_that_a_grey_can_vary():
    greys = np.array([0.25, 0.75, 0.25, 0.75], np.float32)[:, None, None] * np.ones((4, 8, 8), np.float32)
    np.testing.assert_allclose(hesitation(greys), np.sqrt(0.25 * 0.5), rtol=1e-5)  # spread 1/4, at most 1/2
    assert (hesitation(np.full((4, 8, 8), 0.5, np.float32)) == 0).all()  # they agree
    np.testing.assert_allclose(hesitation(np.stack([np.zeros((8, 8)), np.ones((8, 8))])), 0.5)  # as far as can be
    peak = np.zeros((2, 33, 33), np.float32)
    peak[0, 16, 16] = 1.0
    assert hesitation(0.5 + 0.1 * peak)[16, 18] > 0  # of its neighbourhood


def test_dropout_and_symmetries_are_switched_apart(denoiser):
    image = picture((24, 32))
    alone = restorations(denoiser, image, symmetries=False, passes=2)
    assert (alone[0] == alone[1]).all()
    np.testing.assert_allclose(alone[0], denoiser.restore(image), atol=1e-6)
    for switched in ({}, {"dropout": KEY, "symmetries": False}):
        first, *others = restorations(denoiser, image, **switched)
        assert len(others) == 7 and all((one != first).any() for one in others)


def test_restorations_are_turned_back(denoiser, monkeypatch):
    image = picture((24, 32))
    monkeypatch.setattr(Denoiser, "restore", lambda self, grey, dropout: grey)
    first, *others = restorations(denoiser, image)
    assert first.shape == image.shape and all((one == first).all() for one in others)


def test_the_eight_symmetries_differ_and_four_keep_the_shape():
    image = picture((6, 4))
    turned = [np.rot90(image[:, ::-1] if m else image, t) for t, m in uncertainty.SYMMETRIES]
    assert len({each.tobytes() for each in turned}) == 8
    assert [each.shape == image.shape for each in turned] == [True] * 4 + [False] * 4


def test_uncertainty_turns_with_the_image(denoiser):
    image = picture((32, 24))
    both = [restorations(denoiser, each).std(0) for each in (image, np.rot90(image).copy())]
    np.testing.assert_allclose(both[1], np.rot90(both[0]), atol=1e-6)


def test_sizes_near_each_other_compile_once(denoiser):
    counts = []
    for seed, shape in enumerate([(100, 120), (97, 99), (128, 111), (120, 100)]):
        uncertainty_map(denoiser, picture(shape, seed), passes=5)  # the fifth is turned
        uncertainty._pooled(denoiser, picture(shape, seed))
        counts.append((inference._restore._cache_size(), uncertainty._moments._cache_size()))
    assert set(counts) == {counts[0]}


@pytest.mark.parametrize("shape", [(64, 64), (150, 231)])
def test_dropout_of_tiles_is_like_that_of_the_whole(coarse, shape):
    """Not the same masks, but as strong; and another mask each key."""
    network = DenoisingNetwork(NetworkConfig(width=8, blocks=2, scale=2, dropout=0.3), rngs=nnx.Rngs(0))
    denoiser, grey = Denoiser(network), picture(shape)
    plain = denoiser.restore(grey)
    moved = {
        largest: [denoiser.restore(grey, largest=largest, dropout=jax.random.key(k)) - plain for k in (0, 0, 1)]
        for largest in (48, inference.LARGEST)
    }
    for first, same, other in moved.values():
        np.testing.assert_array_equal(first, same)
        assert (first != other).any()
    tiled, at_once = (np.std(parts[0]) for parts in moved.values())
    assert at_once > 0.01 and 0.8 < tiled / at_once < 1.25
    np.testing.assert_array_equal(denoiser.restore(grey), plain)  # nothing of it stays


@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (64, 64), (150, 231)])
def test_texture_of_tiles_is_that_of_the_whole(coarse, monkeypatch, shape):
    image = picture(shape)
    network = nnx.view(coarse.network, deterministic=True, use_running_average=True)
    x = np.asarray(network.encode(jnp.asarray(stretch(image))[None, :, :, None])[0], np.float64)
    h, w = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
    blocks = x[:h, :w].reshape(h // 2, 2, w // 2, 2, x.shape[2]).mean((1, 3)).reshape(-1, x.shape[2])
    spreads = [x.std((0, 1)), blocks.std(0) if blocks.size else np.zeros(x.shape[2])]
    expected = np.log(np.concatenate(spreads) + uncertainty.FLOOR)
    np.testing.assert_allclose(uncertainty._pooled(coarse, image), expected, atol=1e-4)
    monkeypatch.setattr(uncertainty, "Passage", functools.partial(inference.Passage, largest=48))
    np.testing.assert_allclose(uncertainty._pooled(coarse, image), expected, atol=0.02 if max(shape) > 96 else 1e-4)


def test_sparsification_of_known_orders():
    error = np.arange(100.0).reshape(10, 10)
    perfect, useless, wrong = (sparsification(error, u) for u in (error**3, np.ones((10, 10)), -error))
    assert perfect.ause == pytest.approx(0) and perfect.spearman == pytest.approx(1)
    np.testing.assert_array_equal(perfect.left, perfect.oracle)
    assert wrong.ause > 1.5 and wrong.spearman == pytest.approx(-1)
    assert useless.spearman == 0
    shuffled = sparsification(error, np.random.default_rng(0).permutation(error.ravel()).reshape(10, 10))
    assert 0.6 < shuffled.ause < 1.4
    half = sparsification(error, error, (0, 0.5))
    assert half.left.tolist() == [49.5, 24.5] and half.random.tolist() == [49.5, 49.5]


@pytest.mark.parametrize(
    ("error", "fractions"),
    [(np.ones(5), (0, 0.5)), (-np.ones(4), (0, 0.5)), (np.full(4, np.nan), (0, 0.5)), (np.ones(4), (0, 1)),
     (np.ones(4), (0.1, 0.5)), (np.ones(4), (0, 0.5, 0.5))],
)  # fmt: skip
def test_what_cannot_be_sparsified_is_refused(error, fractions):
    with pytest.raises(ValueError, match="error|fractions"):
        sparsification(error, np.ones(4), fractions)


@pytest.mark.parametrize("which", ["denoiser", "coarse"])
def test_familiar_and_unfamiliar_images(which, request):
    network = request.getfixturevalue(which).network
    images = np.stack([texture((64, 64), seed) for seed in range(24)])
    statistics = json.loads(json.dumps(training_statistics(network, images)))
    known = Denoiser(network, {"training_statistics": statistics})
    like = [familiarity(known, texture((64, 64), seed)) for seed in range(50, 60)]
    assert sum(one.warning is None for one in like) >= 9
    stripes = np.tile(np.linspace(0, 1, 64).astype(np.float32), (64, 1))
    for strange in (stripes, picture((64, 64)), texture((64, 64), 1, 0.7), np.ones((64, 64), np.float32)):
        assert "unlike" in familiarity(known, strange).warning
        assert familiarity(known, strange).distance > 2 * np.mean([one.distance for one in like])


def test_distance_does_not_depend_on_size_or_exposure(coarse):
    images = np.stack([texture((64, 64), seed) for seed in range(24)])
    known = Denoiser(coarse.network, {"training_statistics": training_statistics(coarse.network, images)})
    large = texture((192, 256), 99)
    assert familiarity(known, large).warning is None
    exposed = 0.2 + 0.5 * (large - large.min()) / np.ptp(large)
    assert familiarity(known, exposed).distance == pytest.approx(familiarity(known, large).distance, rel=1e-3)


def test_distance_is_mahalanobis_where_no_axis_is_left_out():
    rng = np.random.default_rng(0)
    pooled = rng.standard_normal((60, 5)) @ rng.standard_normal((5, 5)) + 3
    z = (pooled - pooled.mean(0)) / pooled.std(0)
    covariance = (1 - uncertainty.SHRINKAGE) * z.T @ z / len(z) + uncertainty.SHRINKAGE * np.eye(5)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", z, np.linalg.inv(covariance), z) / 5)
    np.testing.assert_allclose(uncertainty._distance(uncertainty._fit(pooled), pooled), expected)


def test_statistics_are_small_and_needed(denoiser):
    network = DenoisingNetwork(NetworkConfig(width=64, blocks=1, scale=2), rngs=nnx.Rngs(0))
    images = np.stack([texture((32, 32), seed) for seed in range(20)])
    assert len(json.dumps(training_statistics(network, images))) < 30_000
    with pytest.raises(ValueError, match="images"):
        training_statistics(network, images[:1])
    for metadata in ({}, {"training_statistics": {"mean": [0.0], "std": [1.0], "limit": 1.0}}):
        with pytest.raises(ValueError, match="statistics"):
            familiarity(Denoiser(denoiser.network, metadata), images[0])
