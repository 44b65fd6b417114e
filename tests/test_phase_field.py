"""Grain growth by its invariants: energy, symmetry, the circle's area law, and what the colouring must not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdn.phase_field import AllenCahn, _advance, coarsen, colour_grains, free_energy, grow, near_pairs, step, voronoi

KEY = jax.random.key(0)


def fields(n_orders=4, shape=(32, 32)):
    return jax.random.uniform(KEY, (n_orders, *shape))


def test_energy_never_rises():
    params = AllenCahn(shape=(64, 64))
    eta, energies = fields(5, (64, 64)), []
    for _ in range(60):
        energies.append(free_energy(params, eta))
        eta = jnp.stack(step(params, eta))
    assert (np.diff(energies) <= 1e-6 * np.abs(energies[:-1])).all()
    assert energies[-1] < 0.5 * energies[0]


def test_a_step_follows_minus_the_gradient_of_the_energy():
    """A4 is L times minus the derivative of F: checked by finite differences of `free_energy`."""
    params = AllenCahn(shape=(8, 8), gamma=1.3, mobility=0.7)
    eta = np.asarray(fields(3, (8, 8)), np.float64)
    rate = (np.stack(step(params, jnp.asarray(eta, jnp.float32), 1e-2)) - eta) / 1e-2
    for index in [(0, 3, 4), (1, 0, 0), (2, 7, 5)]:
        nudge = np.zeros_like(eta)
        nudge[index] = 1e-4
        slope = (free_energy(params, eta + nudge) - free_energy(params, eta - nudge)) / 2e-4
        assert rate[index] == pytest.approx(-params.mobility * slope, rel=2e-3, abs=2e-4)


def test_shift_transpose_and_relabelling_commute_with_step(strict_dtypes):
    params, eta = AllenCahn(shape=(32, 32)), fields()
    after = jnp.stack(step(params, eta))
    for change in (
        lambda e: jnp.roll(e, (5, -9), (1, 2)),
        lambda e: e.swapaxes(1, 2),
        lambda e: e[jnp.array([2, 0, 3, 1])],
    ):
        np.testing.assert_allclose(jnp.stack(step(params, change(eta))), change(after), atol=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 1.5])
def test_circle_shrinks_by_its_area_law(gamma):
    """A(t) = A0 - 2 pi L kappa t, whatever gamma: within 3 % between radii of 30 and 20 cells."""
    params = AllenCahn(shape=(96, 96), gamma=gamma)
    y, x = np.indices(params.shape) - 47.5
    inside = np.hypot(x, y) < 32
    eta = jnp.asarray(np.stack([inside, ~inside]), jnp.float32)
    areas, times, time = [], [], 0.0
    for _ in range(24):
        eta = _advance(params, eta, 100, params.dt)
        time += 100 * params.dt
        areas.append(float((eta[0] > eta[1]).sum()))
        times.append(time)
    areas, times = np.array(areas), np.array(times)
    window = (areas < np.pi * 30**2) & (areas > np.pi * 20**2)
    assert window.sum() > 5
    slope = np.polyfit(times[window], areas[window], 1)[0]
    assert slope == pytest.approx(-2 * np.pi * params.kappa, rel=0.03)


def test_flat_boundary_has_the_order_that_the_truth_is_made_from():
    from mdn.synthesis import ORDER_ON_BOUNDARY

    params = AllenCahn(shape=(16, 128))
    left = np.arange(128)[None].repeat(16, 0) < 64
    eta = _advance(params, jnp.asarray(np.stack([left, ~left]), jnp.float32), 2000, params.dt)
    assert float((eta**2).sum(0).min()) == pytest.approx(ORDER_ON_BOUNDARY, abs=0.02)  # half a cell off centre


def test_growth_coarsens_and_time_zero_is_the_start():
    params = AllenCahn(shape=(96, 96))
    start, middle, end = coarsen(params, n_grains=40, times=[0.0, 30.0, 120.0], key=KEY)
    assert (start.labels == voronoi((96, 96), 40, key=KEY)).all() and (start.order == 1).all()
    assert start.n_grains == 40 > end.n_grains
    assert start.energy > middle.energy > end.energy > 0
    assert set(np.unique(end.labels)) <= set(np.unique(start.labels))
    assert end.labels.dtype == np.int32 and end.order.dtype == np.float32 and end.time == 120.0
    assert (grow(params, n_grains=40, time=0.0, key=KEY).labels == start.labels).all()


def test_time_does_not_depend_on_the_step():
    ends = [grow(AllenCahn(shape=(64, 64), dt=dt), n_grains=16, time=20.0, key=KEY) for dt in (0.08, 0.04)]
    assert (ends[0].labels == ends[1].labels).mean() > 0.99


def test_few_colours_agree_with_one_order_parameter_a_grain():
    """Labels from the colouring against the oracle that needs none, up to L kappa t = 120."""
    params = AllenCahn(shape=(96, 96))
    coloured = grow(params, n_grains=22, time=60.0, key=KEY)
    labels = voronoi((96, 96), 22, key=KEY)
    oracle = jnp.asarray(labels[None] == np.arange(22)[:, None, None], jnp.float32)
    n_steps = int(np.ceil(60.0 / params.dt))
    oracle = _advance(params, oracle, n_steps, 60.0 / n_steps)
    assert (np.asarray(oracle.argmax(0)) != coloured.labels).mean() < 1e-3


def test_grains_may_vanish_whatever_their_number():
    """Many small grains: those with the highest labels vanish between two colourings, too."""
    start, end = coarsen(AllenCahn(shape=(96, 96)), n_grains=110, times=[0.0, 60.0], key=KEY)
    assert end.labels.max() < start.labels.max() and end.n_grains < start.n_grains
    assert end.order.min() > 0.2 and end.order.max() < 1.05


def test_colouring_keeps_equal_colours_apart():
    labels = voronoi((256, 256), 120, key=KEY)
    colours = colour_grains(labels, 25.0)
    assert colours.max() + 1 < 30
    assert all(colours[a] != colours[b] for a, b in near_pairs(labels, 24.0))


def test_voronoi_grains_are_almost_equal_and_periodic():
    relaxed, random = (voronoi((128, 128), 64, key=KEY, relaxations=n) for n in (4, 0))
    spread = [np.bincount(labels.ravel()).std() for labels in (relaxed, random)]
    assert spread[0] < 0.5 * spread[1]
    seam = (relaxed[0] == relaxed[-1]).mean(), (relaxed[:, 0] == relaxed[:, -1]).mean()
    assert min(seam) > 0.6  # most grains go on across the border


def test_same_key_same_grains_other_key_other_grains():
    params = AllenCahn(shape=(64, 64))
    a, b, c = (grow(params, n_grains=12, time=5.0, key=jax.random.key(k)) for k in (1, 1, 2))
    assert (a.order == b.order).all() and (a.labels != c.labels).any()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: AllenCahn(shape=(0, 64)), "shape"),
        (lambda: AllenCahn(shape=(64, 64, 64)), "shape"),
        (lambda: AllenCahn(kappa=-1.0), "kappa"),
        (lambda: AllenCahn(gamma=float("nan")), "gamma"),
        (lambda: AllenCahn(dt=0.2), "dt must lie between 0 and the stability bound 0.1111"),
        (lambda: grow(AllenCahn(shape=(32, 32)), n_grains=0, time=1.0, key=KEY), "n_grains"),
        (lambda: grow(AllenCahn(shape=(32, 32)), n_grains=500, time=1.0, key=KEY), "from 1 to"),
        (lambda: grow(AllenCahn(shape=(32, 32)), n_grains=4, time=-1.0, key=KEY), "time"),
        (lambda: coarsen(AllenCahn(shape=(32, 32)), n_grains=4, times=[2.0, 1.0], key=KEY), "increasing"),
    ],
)
def test_bad_input_is_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_stability_bound():
    assert AllenCahn().max_dt == pytest.approx(2 / 18)
