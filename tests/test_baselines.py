"""The classical filters on a photograph with known noise, and DnCNN's shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from skimage.data import camera

from mdn.baselines import (
    BASELINES,
    Baseline,
    DnCNN,
    as_method,
    load_dncnn,
    one_defect,
    save_dncnn,
    score_methods,
    score_removal,
    tune,
    tuned_filters,
)
from mdn.defects import KINDS, VISIBLE
from mdn.metrics import aligned_psnr, label_boundaries, psnr

CUTTERS = {"closing", "inpainting"}  # meant for spots and scratches, not for noise


@pytest.fixture(scope="module")
def pair():
    clean = (camera()[100:356, 100:356] / 255).astype(np.float32)
    noise = 25 / 255 * np.random.default_rng(0).standard_normal(clean.shape)
    return np.clip(clean + noise, 0, 1).astype(np.float32), clean


def test_filters_denoise_and_stand_in_the_order_of_the_literature(pair):
    """At sigma 25: BM3D above non-local means above Gaussian."""
    noisy, clean = pair
    best = {}
    for name in set(BASELINES) - CUTTERS - {"BM3D"}:
        best[name] = psnr(BASELINES[name].apply(noisy, tune(BASELINES[name], [noisy], [clean], psnr)), clean)
    assert set(best) == {"gaussian", "median", "bilateral", "wavelet", "non-local means", "total variation"}
    assert min(best.values()) > psnr(noisy, clean) + 3
    assert best["non-local means"] > best["gaussian"] + 1
    if "BM3D" in BASELINES:
        assert psnr(BASELINES["BM3D"].apply(noisy, 25 / 255), clean) > best["non-local means"] + 0.5


def test_spots_are_closed_and_scratches_cut_out_while_boundaries_stay():
    y, x = np.indices((96, 96))
    bent = 48 + 12 * np.sin(x / 9)
    boundary = np.abs(y - bent) < 1.5
    clean = np.where(boundary, 0.2, np.where(y < bent, 0.5, 0.7)).astype(np.float32)
    spots = ((y - 20) ** 2 + (x - 30) ** 2 < 6) | ((y - 80) ** 2 + (x - 60) ** 2 < 9)
    scratch = np.abs(x - 12 - 0.2 * y) < 1.2
    for name, parameter, dirt in (("closing", 32, spots), ("inpainting", 0.15, spots | (scratch & ~boundary))):
        out = BASELINES[name].apply(np.where(dirt, 0.1, clean).astype(np.float32), parameter)
        assert (np.abs(out - clean)[dirt] < 0.1).mean() > 0.9, name
        assert (np.abs(out - clean)[boundary & (np.abs(x - 14) > 8)] < 0.1).mean() > 0.95, name


@pytest.mark.parametrize("name", BASELINES)
def test_filters_keep_shape_range_and_a_blank_image(name):
    baseline = BASELINES[name]
    image = np.random.default_rng(1).random((40, 31)).astype(np.float32)
    blank = np.full((80, 62), 0.4, np.float32)  # larger than the largest spot that is closed
    for parameter in baseline.grid:
        out = baseline.apply(image, parameter)
        assert (out.shape, out.dtype) == (image.shape, np.float32)
        assert out.min() >= 0
        assert out.max() <= 1
        assert np.allclose(baseline.apply(blank, parameter), blank, atol=2e-3)
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


def test_the_ends_of_a_grid_are_told():
    pairs = Baseline("two", lambda x, a, b: x, ((0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2), (0.4, 1), (0.4, 4)))
    assert BASELINES["gaussian"].at_end(0.3) and BASELINES["gaussian"].at_end(4.0)
    assert not BASELINES["gaussian"].at_end(1.0)
    assert pairs.at_end((0.1, 2)) and pairs.at_end((0.2, 1)) and not pairs.at_end((0.2, 2))


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


def test_dncnn_comes_back_from_its_file(tmp_path):
    model = DnCNN(width=4, depth=4, rngs=nnx.Rngs(2))
    image = np.random.default_rng(0).random((20, 17)).astype(np.float32)
    model(jnp.asarray(image)[None, ..., None])  # moves the running statistics
    path = tmp_path / "dncnn.safetensors"
    save_dncnn(path, model)
    stored = load_dncnn(path)
    assert (stored.width, stored.depth) == (4, 4)
    assert np.array_equal(as_method(stored)(image), as_method(model)(image))
    assert np.allclose(as_method(stored)(0.5 * image + 0.2), as_method(stored)(image), atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(FileNotFoundError, match="none"):
        load_dncnn(tmp_path / "none")
    whole = path.read_bytes()
    for odd, cause in ((whole[:-9], ""), (whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], ".*damaged: its sha256")):
        path.write_bytes(odd)
        with pytest.raises(ValueError, match=f"does not hold a DnCNN{cause}"):
            load_dncnn(path)


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
    regions = np.indices((6, 64, 64))[1] // 16 * 4 + np.indices((6, 64, 64))[2] // 16
    clean = rng.permutation(16)[regions].astype(np.float32) / 20 + np.float32(0.1)
    noisy = np.clip(clean + rng.normal(0, 0.1, clean.shape), 0, 1).astype(np.float32)
    boundaries = np.stack([label_boundaries(each, periodic=True) for each in regions])
    filters = tuned_filters(noisy[:1], clean[:1])
    assert len(filters) == len(BASELINES)
    truth = {image.tobytes(): target for image, target in zip(noisy, clean, strict=True)}
    methods = {"noisy": lambda x: x, **filters, "truth": lambda x: truth[x.tobytes()] + np.float32(1e-3)}
    assert any(name.startswith("bilateral (") and "," in name for name in filters)
    scores = score_methods(methods, (noisy[:4], clean[:4], boundaries[:4]), (noisy[4:], clean[4:], boundaries[4:]))
    assert all(len(rows) == 2 for rows in scores.values())
    for column in ("raw PSNR", "aligned PSNR", "SSIM"):
        means = {name: np.mean([row[column] for row in rows]) for name, rows in scores.items()}
        assert means["truth"] == max(means.values()), column
    aligned = {name: np.mean([row["aligned PSNR"] for row in rows]) for name, rows in scores.items()}
    assert max(aligned[name] for name in filters) > aligned["noisy"]
    found = {name: np.mean([row["boundary F"] for row in rows]) for name, rows in scores.items()}
    assert found["truth"] > found["noisy"]


def test_one_defect_is_alone_and_its_mask_is_what_it_changed():
    clean, boundaries = np.full((64, 64), 0.6, np.float32), np.zeros((64, 64), bool)
    boundaries[32] = True
    for kind in KINDS:
        image, visible = one_defect(clean, boundaries, kind, 1.0, key=jax.random.key(3))
        assert np.array_equal(visible, np.abs(image - clean) > VISIBLE), kind
    untouched, visible = one_defect(clean, boundaries, "etch_pit", 0.0, key=jax.random.key(3))
    assert np.array_equal(untouched, clean) and not visible.any()
    with pytest.raises(ValueError, match="kind: 'rust'"):
        one_defect(clean, boundaries, "rust", 1.0, key=jax.random.key(3))


def test_removal_is_nothing_for_the_untouched_and_all_for_the_truth():
    clean = np.full((2, 64, 64), 0.6, np.float32)
    clean[:, 24:40] = 0.4
    twins = np.stack([label_boundaries((image < 0.5).astype(int)) for image in clean])
    twins[1] = False
    methods = {"noisy": lambda x: x, "truth": lambda x: clean[0] + 1e-4 * x}
    rows = score_removal(
        methods, dict.fromkeys(methods, 0.12), clean, twins, twins,
        key=jax.random.key(0), kinds=("deep_scratch", "etch_pit"), strengths=(0.5, 1),
    )  # fmt: skip
    assert len(rows) == 2 * 2 * 2 * 2
    for row in rows:
        assert np.isnan(row["twin recall"]) == (row["image"] == 1)
        if row["method"] == "truth":
            assert row["restored"] == 1 and (row["image"] == 1 or row["twin recall"] > 0.9)
        else:
            assert row["restored"] < 0.9
