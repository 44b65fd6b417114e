"""Training: Eq. 11, that it learns, and that an interrupted run ends where the whole one does."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mdn.baselines import DnCNN
from mdn.network import DenoisingNetwork, NetworkConfig, stretch
from mdn.training import History, TrainingConfig, _batch, fit, loss, predict, train_step

TINY = NetworkConfig(width=8, blocks=2)
KEY = jax.random.key(1)
CONFIG = TrainingConfig(steps=6, batch=4, crop=16, learning_rate=1e-3, evaluate_every=2)


def pairs(n=8, size=24, seed=0):
    rng = np.random.default_rng(seed)
    clean = (np.indices((size, size)).sum(0) // 6 % 2 * np.ones((n, 1, 1))).astype(np.float32) * 0.6 + 0.2
    return np.clip(clean + rng.normal(0, 0.2, clean.shape), 0, 1).astype(np.float32), clean


def network(seed=0):
    return DenoisingNetwork(TINY, rngs=nnx.Rngs(seed))


def leaves(model):
    return jax.tree.leaves(nnx.state(model, (nnx.Param, nnx.BatchStat)))


def test_defaults_are_the_papers():
    config = TrainingConfig()
    assert (config.learning_rate, config.schedule, config.l2) == (1e-4, "constant", 1e-6)


def test_loss_is_mse_plus_l2_of_kernels():
    model = nnx.view(network(), deterministic=True, use_running_average=True)
    x = jax.random.uniform(KEY, (2, 8, 8, 1))
    mse = float(((model(x) - x) ** 2).mean())
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    squares = sum(float((p[...] ** 2).sum()) for path, p in state if path[-1] == "kernel")
    assert float(loss(model, x, x, 0.0)) == pytest.approx(mse, rel=1e-5)
    assert float(loss(model, x, x, 1e-3)) == pytest.approx(mse + 1e-3 * squares, rel=1e-5)


def test_it_learns_a_pattern():
    train, validation = pairs(), pairs(2, seed=9)
    config = TrainingConfig(steps=80, batch=4, crop=16, learning_rate=5e-3, schedule="cosine", evaluate_every=40)
    model = network()
    history = fit(model, train, validation, config=config, key=KEY, progress=False)
    noisy = float(np.mean(-10 * np.log10(((validation[0] - validation[1]) ** 2).mean((1, 2)))))
    assert max(history.validation_psnr) > noisy + 1
    assert history.step == [40, 80] and history.train_loss[1] < history.train_loss[0]


def test_an_interrupted_run_ends_as_the_whole_one(tmp_path):
    train, validation = pairs(), pairs(2, seed=9)
    whole, parts = network(), network()
    expected = fit(whole, train, validation, config=CONFIG, key=KEY, progress=False)

    class Interrupted(Exception):
        pass

    def stop(history: History):
        if history.step[-1] == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(network(), train, validation, config=CONFIG, directory=tmp_path, key=KEY, progress=False, report=stop)
    history = fit(parts, train, validation, config=CONFIG, directory=tmp_path, key=KEY, progress=False)
    assert history.validation_psnr == expected.validation_psnr and history.train_loss == expected.train_loss
    for a, b in zip(leaves(whole), leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)
    again = fit(network(), train, validation, config=CONFIG, directory=tmp_path, key=KEY, progress=False)
    assert again == history  # nothing left to do
    assert (tmp_path / "history.json").is_file()


def test_it_stops_when_told_with_the_best_weights_and_can_go_on(tmp_path):
    train, validation, seen = pairs(), pairs(2, seed=9), []
    whole, stopped = network(), network()
    expected = fit(whole, train, validation, config=CONFIG, key=KEY, progress=False)
    options = {"config": CONFIG, "directory": tmp_path, "key": KEY, "progress": False}
    history = fit(stopped, train, validation, stop=lambda: len(seen) == 3 or seen.append(0), **options)
    assert history.step == [2, 4]
    output = predict(stopped, np.stack([stretch(x) for x in validation[0]]))
    psnr = float(np.mean(-10 * np.log10(((output - validation[1]) ** 2).mean((1, 2)))))
    assert psnr == pytest.approx(max(history.validation_psnr), abs=1e-3)
    assert fit(network(), train, validation, **options).validation_psnr == expected.validation_psnr


def test_an_interrupt_leaves_the_best_weights_in_the_model():
    def interrupt(history: History):
        if len(history.step) == 2:
            raise KeyboardInterrupt

    model, start = network(), leaves(network())
    with pytest.raises(KeyboardInterrupt):
        fit(model, pairs(), pairs(2, seed=9), config=CONFIG, key=KEY, progress=False, report=interrupt)
    assert any((a != b).any() for a, b in zip(leaves(model), start, strict=True))


def test_it_ends_with_the_best_weights():
    """A rate that wrecks the network after a good start: what comes back is the good start."""
    train, validation = pairs(), pairs(2, seed=9)
    config = TrainingConfig(steps=40, batch=4, crop=16, learning_rate=0.3, evaluate_every=4)
    model = network()
    history = fit(model, train, validation, config=config, key=KEY, progress=False)
    output = predict(model, np.stack([stretch(x) for x in validation[0]]))
    psnr = float(np.mean(-10 * np.log10(((output - validation[1]) ** 2).mean((1, 2)))))
    assert psnr == pytest.approx(max(history.validation_psnr), abs=1e-3)
    assert min(history.validation_psnr) < max(history.validation_psnr)


@pytest.fixture(scope="module")
def trained():
    """Weights worth keeping."""
    model, config = network(), TrainingConfig(steps=40, batch=4, crop=16, learning_rate=5e-3, evaluate_every=40)
    fit(model, pairs(), pairs(2, seed=9), config=config, key=KEY, progress=False)
    return nnx.state(model)


def fine_tuned(trained, rate, **options):
    model, config = network(), replace(CONFIG, learning_rate=rate)
    nnx.update(model, trained)
    before = [np.array(leaf) for leaf in leaves(model)]
    history = fit(model, pairs(), pairs(2, seed=9), config=config, key=KEY, progress=False, **options)
    return history, all(np.array_equal(a, b) for a, b in zip(leaves(model), before, strict=True))


def test_fine_tuning_keeps_its_start_where_nothing_is_better(trained):
    history, kept = fine_tuned(trained, 0.3, keep_start=True)
    assert history.step == [0, 2, 4, 6] and history.best == 0 and kept
    assert np.isfinite(history.train_loss).all()
    ordinary, kept = fine_tuned(trained, 0.3)
    assert not kept and ordinary.validation_psnr == history.validation_psnr[1:]
    history, kept = fine_tuned(trained, 1e-3, keep_start=True)
    assert history.best > 0 and not kept


def test_fine_tuning_goes_on_with_the_start_that_it_evaluated(trained, tmp_path):
    whole, _ = fine_tuned(trained, 0.3, keep_start=True)
    options = {"directory": tmp_path, "keep_start": True}
    fine_tuned(trained, 0.3, **options, stop=iter([False, False, True]).__next__)
    history, kept = fine_tuned(trained, 0.3, **options)
    assert history.validation_psnr[0] == whole.validation_psnr[0] and kept
    assert history.step == [0, 2, 3, 4, 6] and history.validation_psnr[3:] == whole.validation_psnr[2:]


def test_train_step_lowers_the_loss():
    noisy, clean = pairs(4)
    model, moments, values = network(), None, []
    config = TrainingConfig(learning_rate=3e-3)
    for number in range(8):
        key = jax.random.fold_in(KEY, number)
        moments, value = train_step(model, moments, noisy, clean, config=config, key=key, dropout=False)
        values.append(value)
    assert values[-1] < values[0]


def test_the_average_is_what_is_evaluated_and_kept():
    """After the first step a tenth of the start is left in it, as its decay then is."""
    config = TrainingConfig(steps=1, batch=4, crop=16, learning_rate=0.02, evaluate_every=1)
    ends = {}
    for average in (0.0, 0.99):
        model = network()
        fit(model, pairs(), pairs(2), config=replace(config, average=average), key=KEY, progress=False)
        ends[average] = leaves(model)
    for start, last, average in zip(leaves(network()), ends[0.0], ends[0.99], strict=True):
        np.testing.assert_allclose(average, 0.1 * start + 0.9 * last, atol=1e-6)


class Off(nnx.Module):
    """Adds an error."""

    def __init__(self, error):
        self.error = error

    def __call__(self, x):
        return x + self.error


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("step", [0.03, 0.3, -0.3])
def test_errors_beside_a_boundary_weigh_more_and_beside_a_faint_one_too(step, axis):
    at = jnp.arange(12).reshape((-1, 1, 1) if axis == 1 else (1, -1, 1))[None]
    truth = jnp.where(at < 6, 0.5, 0.5 + step) + jnp.zeros((1, 12, 12, 1))
    weight = 4 * abs(step) / (abs(step) + 0.03)
    for distance, expected in ((0, weight), (2, weight), (4, 0.0)):  # columns of the step and beside it
        error = jnp.where(at == 5 - distance, 0.1, 0.0) + 0 * truth
        value = loss(Off(error), truth, truth, 0.0, boundaries=4.0)
        assert value == pytest.approx((1 + expected) * 0.01 / 12, rel=1e-4)


def test_edges_weigh_the_differences_of_neighbours():
    x = jnp.zeros((1, 8, 8, 1))
    constant, step = jnp.full(x.shape, 0.1), jnp.where(jnp.arange(8)[None, None, :, None] < 4, 0.1, -0.1) + 0 * x
    assert loss(Off(constant), x, x, 0.0, 5.0) == pytest.approx(0.01)  # no edge is wrong
    assert loss(Off(step), x, x, 0.0, 5.0) == pytest.approx(0.01 + 5 * 0.2**2 / 7)


def test_grey_jitter_changes_the_input_and_not_the_truth():
    noisy, clean = pairs()
    plain = _batch(noisy, clean, CONFIG, np.array([0, 7], np.uint32), 0)
    other = _batch(noisy, clean, replace(CONFIG, grey_jitter=0.2), np.array([0, 7], np.uint32), 0)
    assert (plain[1][0] == other[1][0]).all() and (plain[0][0] != other[0][0]).any()
    inside = (other[0][0] > 0) & (other[0][0] < 1)
    fit_line = np.polyfit(plain[0][0][inside], other[0][0][inside], 1)
    np.testing.assert_allclose(np.polyval(fit_line, plain[0][0][inside]), other[0][0][inside], atol=1e-5)
    assert abs(fit_line[0] - 1) <= 0.2


def test_rows_of_a_batch_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    noisy, clean = (rng.uniform(size=(9, 20, 20)).astype(np.float32) for _ in range(2))
    config = replace(CONFIG, batch=8, crop=12, clean_share=0.3, grey_jitter=0.2)
    arguments = noisy, clean, config, np.array([0, 7], np.uint32), 3
    whole = _batch(*arguments)
    for rows in (slice(0, 4), slice(4, 8), slice(7, 8)):
        for all_of_it, part in zip(whole, _batch(*arguments, rows), strict=True):
            np.testing.assert_array_equal(part, all_of_it[rows])


def test_some_crops_are_clean_already():
    noisy, clean = pairs(64)
    x, y = _batch(noisy, clean, replace(CONFIG, batch=64, clean_share=0.25), np.array([0, 7], np.uint32), 0)
    same = [np.allclose(a, stretch(b)) for a, b in zip(x, y, strict=True)]
    assert 4 < sum(same) < 30


def test_dropout_masks_differ_from_step_to_step():
    noisy, clean = pairs(4)
    config = TrainingConfig(learning_rate=1e-12)
    values = []
    for number in range(3):
        model = DenoisingNetwork(NetworkConfig(width=8, blocks=2, dropout=0.5), rngs=nnx.Rngs(0))
        values.append(train_step(model, None, noisy, clean, config=config, key=jax.random.fold_in(KEY, number))[1])
    assert len(set(values)) == 3


def test_other_networks_train_too():
    model = DnCNN(width=8, depth=3, rngs=nnx.Rngs(0))
    history = fit(model, pairs(), pairs(2), config=CONFIG, key=KEY, progress=False)
    assert np.isfinite(history.validation_psnr).all()


def test_a_run_of_another_configuration_is_refused(tmp_path):
    fit(network(), pairs(), pairs(2), config=CONFIG, directory=tmp_path, key=KEY, progress=False)
    other = TrainingConfig(steps=7, batch=4, crop=16, learning_rate=1e-3, evaluate_every=2)
    gate = DenoisingNetwork(NetworkConfig(width=8, blocks=2, gate="leaky_relu"), rngs=nnx.Rngs(0))
    for model, data, config, key, odd in (
        (network(), pairs(), other, KEY, "training"),
        (gate, pairs(), CONFIG, KEY, "network"),
        (network(), pairs(seed=5), CONFIG, KEY, "pairs"),
        (network(), pairs(), CONFIG, jax.random.key(8), "key"),
    ):
        with pytest.raises(ValueError, match=f"another configuration: {odd}"):
            fit(model, data, pairs(2), config=config, directory=tmp_path, key=key, progress=False)


def test_bad_input_is_named():
    noisy, clean = pairs()
    with pytest.raises(ValueError, match="train must be"):
        fit(network(), (noisy, clean[:3]), (noisy, clean), config=CONFIG, key=KEY)
    with pytest.raises(ValueError, match="validation holds NaN"):
        fit(network(), (noisy, clean), (noisy * np.nan, clean), config=CONFIG, key=KEY)
    wrong = {"steps": 0, "crop": 0, "l2": -1.0, "schedule": "linear", "dropout_until": 2.0, "average": 1.0}
    wrong |= {"clean_share": 2.0}
    for bad in ({name: value} for name, value in wrong.items()):
        with pytest.raises(ValueError, match=next(iter(bad))):
            TrainingConfig(**bad)
