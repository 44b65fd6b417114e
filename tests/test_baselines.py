"""The classical filters on a photograph with known noise, and DnCNN's shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from skimage.data import camera

from mdn.baselines import BASELINES, Baseline, DnCNN, score_methods, tune, tuned_filters
from mdn.metrics import aligned_psnr, psnr


@pytest.fixture(scope="module")
def pair():
    clean = (camera()[100:356, 100:356] / 255).astype(np.float32)
    noise = 25 / 255 * np.random.default_rng(0).standard_normal(clean.shape)
    return np.clip(clean + noise, 0, 1).astype(np.float32), clean


def test_every_filter_denoises_and_non_local_means_beats_gaussian(pair):
    noisy, clean = pair
    best = {}
    for name, baseline in BASELINES.items():
        best[name] = psnr(baseline.apply(noisy, tune(baseline, [noisy], [clean], psnr)), clean)
    assert set(best) == {"gaussian", "median", "wavelet", "non-local means", "total variation"}
    assert min(best.values()) > psnr(noisy, clean) + 3
    assert best["non-local means"] > best["gaussian"] + 1


@pytest.mark.parametrize("name", BASELINES)
def test_filters_keep_shape_range_and_a_blank_image(name):
    baseline = BASELINES[name]
    image = np.random.default_rng(1).random((40, 31)).astype(np.float32)
    blank = np.full((40, 31), 0.4, np.float32)
    for parameter in baseline.grid:
        out = baseline.apply(image, parameter)
        assert (out.shape, out.dtype) == (image.shape, np.float32)
        assert out.min() >= 0
        assert out.max() <= 1
        assert np.allclose(baseline.apply(blank, parameter), blank, atol=1e-3)
    with pytest.raises(ValueError, match="image"):
        baseline.apply(image[None], 1.0)
    with pytest.raises(ValueError, match="image"):
        baseline.apply(np.full((8, 8), np.nan), 1.0)
    with pytest.raises(ValueError, match="parameter"):
        baseline.apply(image, -1.0)


def test_tune_returns_the_grid_value_of_the_highest_mean_score():
    shift = Baseline("shift", lambda x, p: x + p, (0.1, 0.2, 0.3))
    noisy, clean = np.zeros((2, 8, 8)), np.stack([np.full((8, 8), 0.15), np.full((8, 8), 0.22)])
    assert tune(shift, noisy, clean, score=psnr) == 0.2
    assert tune(BASELINES["gaussian"], noisy, clean) in BASELINES["gaussian"].grid
    with pytest.raises(ValueError, match="noisy"):
        tune(shift, noisy, clean[:1])
    with pytest.raises(ValueError, match="noisy"):
        tune(shift, [], [])


def test_dncnn_counts_shapes_and_modes():
    model = DnCNN(width=8, depth=5, rngs=nnx.Rngs(0))
    n_parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert n_parameters == (9 * 8 + 8) + 3 * (9 * 64 + 2 * 8) + (9 * 8 + 1)
    x = jnp.asarray(np.random.default_rng(0).random((2, 20, 17, 1)), jnp.float32)
    evaluated = nnx.view(model, deterministic=True, use_running_average=True)
    before = evaluated(x)
    assert before.shape == x.shape
    assert jnp.array_equal(before[:1], evaluated(x[:1]))  # no batch statistics in evaluation
    trained = model(x)  # moves the running statistics
    assert not jnp.allclose(trained, before)
    assert not jnp.allclose(evaluated(x), before)
    with pytest.raises(ValueError, match="depth"):
        DnCNN(depth=2, rngs=nnx.Rngs(0))


def test_dncnn_learns_to_remove_noise():
    model = DnCNN(width=8, depth=4, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    clean = jnp.asarray(np.repeat(np.repeat(rng.random((8, 4, 4, 1)), 8, 1), 8, 2), jnp.float32)
    noisy = clean + 0.2 * jnp.asarray(rng.standard_normal(clean.shape), jnp.float32)
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        value, gradients = nnx.value_and_grad(lambda m: jnp.mean((m(noisy) - clean) ** 2))(model)
        optimizer.update(model, gradients)
        return value

    for _ in range(150):
        value = step(model, optimizer)
    assert value < 0.5 * jnp.mean((noisy - clean) ** 2)
    out = np.asarray(nnx.view(model, deterministic=True, use_running_average=True)(noisy))
    assert aligned_psnr(out[0, ..., 0], np.asarray(clean[0, ..., 0])) > aligned_psnr(
        np.asarray(noisy[0, ..., 0]), np.asarray(clean[0, ..., 0])
    )


def test_methods_are_scored_on_test_pairs():
    """The truth itself scores best and a tuned filter better than the noise."""
    rng = np.random.default_rng(0)
    regions = np.indices((3, 64, 64))[1] // 16 * 4 + np.indices((3, 64, 64))[2] // 16
    clean = rng.permutation(16)[regions].astype(np.float32) / 20 + np.float32(0.1)
    noisy = np.clip(clean + rng.normal(0, 0.1, clean.shape), 0, 1).astype(np.float32)
    filters = tuned_filters(noisy[:1], clean[:1])
    assert len(filters) == len(BASELINES)
    truth = {image.tobytes(): target for image, target in zip(noisy, clean, strict=True)}
    methods = {"noisy": lambda x: x, **filters, "truth": lambda x: truth[x.tobytes()] + np.float32(1e-3)}
    scores = score_methods(methods, (noisy[:1], clean[:1], regions[:1]), (noisy[1:], clean[1:], regions[1:]))
    assert all(len(rows) == 2 for rows in scores.values())
    for column in ("raw PSNR", "aligned PSNR", "SSIM"):
        means = {name: np.mean([row[column] for row in rows]) for name, rows in scores.items()}
        assert means["truth"] == max(means.values()), column
    aligned = {name: np.mean([row["aligned PSNR"] for row in rows]) for name, rows in scores.items()}
    assert max(aligned[name] for name in filters) > aligned["noisy"]
