"""Grain growth by its invariants: energy, symmetry, the circle's area law, and what the colouring must not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdn import phase_field
from mdn.phase_field import (
    STAGES,
    AllenCahn,
    coarsen,
    coarsening,
    colour_grains,
    evolve,
    free_energy,
    grow,
    near_grains,
    step,
    voronoi,
)

KEY = jax.random.key(0)


def fields(n_orders=4, shape=(32, 32)):
    return jax.random.uniform(KEY, (n_orders, *shape))


def test_energy_never_rises():
    params = AllenCahn(shape=(64, 64))
    eta, energies = fields(5, (64, 64)), []
    for _ in range(60):
        energies.append(free_energy(params, eta))
        eta = step(params, eta)
    assert (np.diff(energies) <= 1e-6 * np.abs(energies[:-1])).all()
    assert energies[-1] < 0.5 * energies[0]


def test_a_step_follows_minus_the_gradient_of_the_energy():
    """A4 is L times minus the derivative of F: checked by finite differences of `free_energy`."""
    params = AllenCahn(shape=(8, 8), gamma=1.3, mobility=0.7)
    eta = np.asarray(fields(3, (8, 8)), np.float64)
    rate = (np.asarray(step(params, jnp.asarray(eta, jnp.float32), 1e-2)) - eta) / 1e-2
    for index in [(0, 3, 4), (1, 0, 0), (2, 7, 5)]:
        nudge = np.zeros_like(eta)
        nudge[index] = 1e-4
        slope = (free_energy(params, eta + nudge) - free_energy(params, eta - nudge)) / 2e-4
        assert rate[index] == pytest.approx(-params.mobility * slope, rel=2e-3, abs=2e-4)


def test_shift_transpose_and_relabelling_commute_with_step(strict_dtypes):
    params, eta = AllenCahn(shape=(32, 32)), fields()
    after = step(params, eta)
    for change in (
        lambda e: jnp.roll(e, (5, -9), (1, 2)),
        lambda e: e.swapaxes(1, 2),
        lambda e: e[jnp.array([2, 0, 3, 1])],
    ):
        np.testing.assert_allclose(step(params, change(eta)), change(after), atol=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 1.5])
def test_circle_shrinks_by_its_area_law(gamma):
    """A(t) = A0 - 2 pi L kappa t, whatever gamma: within 3 % between radii of 30 and 20 cells."""
    params = AllenCahn(shape=(96, 96), gamma=gamma)
    y, x = np.indices(params.shape) - 47.5
    inside = np.hypot(x, y) < 32
    eta = jnp.asarray(np.stack([inside, ~inside]), jnp.float32)
    areas, times, time = [], [], 0.0
    for _ in range(27):
        eta = evolve(params, eta, time=8.0, start=time)
        time += 8.0
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
    eta = evolve(params, jnp.asarray(np.stack([left, ~left]), jnp.float32), time=180.0)
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


def test_growth_comes_one_structure_at_a_time():
    params = AllenCahn(shape=(48, 48))
    run = coarsening(params, n_grains=6, times=[0.0, 4.0, 1e9], key=KEY)  # the last would take for ever
    assert [next(run).time, next(run).time] == [0.0, 4.0]


def test_time_does_not_depend_on_the_step():
    ends = [grow(AllenCahn(shape=(64, 64), dt=dt), n_grains=16, time=20.0, key=KEY) for dt in (0.08, 0.04)]
    assert (ends[0].labels == ends[1].labels).mean() > 0.99


def sharp(labels):
    return jnp.asarray(labels[None] == np.arange(labels.max() + 1)[:, None, None], jnp.float32)


def relaxed(shape=(96, 96), n_grains=12):
    """Fields whose boundaries have their profile, where the methods can be held to their order."""
    return evolve(AllenCahn(shape=shape), sharp(voronoi(shape, n_grains, key=KEY)), time=6.0)


@pytest.mark.parametrize("stages", STAGES[1:])
def test_a_superstep_is_second_order(stages):
    """Half the superstep, a quarter of the error; Euler has half of it."""
    eta = relaxed((48, 48), 5)
    with jax.enable_x64(True):
        eta = jnp.asarray(np.asarray(eta, np.float64))
        ends = []
        for dt in (0.04, 0.02, 0.002):  # dt scales the superstep
            tau, pull, beta = phase_field._stable_pairs(stages)
            count = round(4 / (dt * beta / 2 * 0.5))
            ends.append(
                phase_field._advance(AllenCahn(shape=(48, 48)), eta, count, np.array(tau) * 4 / count, np.array(pull))
            )
        coarse, fine = (float(jnp.abs(end - ends[2]).max()) for end in ends[:2])
    assert 3.2 < coarse / fine < 9, (coarse, fine)  # 2 would be first order


def test_supersteps_agree_with_short_euler_steps():
    """The stabilised method does a third as well as Euler at 80 % of its bound, or better, with half the stages."""
    shape, eta = (96, 96), relaxed()
    exact = evolve(AllenCahn(shape=shape, stages=1, dt=0.005), eta, time=30.0, start=6.0)
    euler, stable = (evolve(AllenCahn(shape=shape, stages=s), eta, time=30.0, start=6.0) for s in (1, 8))
    assert float(jnp.abs(stable - exact).max()) < 3 * float(jnp.abs(euler - exact).max())
    assert (stable.argmax(0) != exact.argmax(0)).mean() < 1e-3
    params = AllenCahn(shape=shape)
    assert params.stages == 8 and params.superstep > 2 * 8 * params.dt


@pytest.mark.parametrize(("shape", "kappa"), [((512, 384), 2.0), ((37, 51), 1.0), ((8, 5), 4.0)])
def test_supersteps_without_pull_are_euler_steps(shape, kappa):
    """The halo laid once, the rows laid end to end and the strips of a large domain change nothing."""
    params = AllenCahn(shape=shape, kappa=kappa, stages=1)
    start, one = fields(3, shape), jax.jit(lambda eta: step(params, eta))
    eta = start
    for _ in range(24):
        eta = one(eta)
    np.testing.assert_allclose(evolve(params, start, time=24 * params.dt), eta, atol=2e-6)


def test_a_source_is_added_at_its_time():
    params = AllenCahn(shape=(16, 24), stages=1)
    ramp = jnp.linspace(0, 1, 24)[None, None, :] * jnp.ones((2, 16, 1))
    forced = evolve(params, jnp.zeros((2, 16, 24)), time=0.5, source=lambda t: ramp * jnp.cos(t))
    eta, dt = jnp.zeros((2, 16, 24)), 0.5 / 12
    for i in range(12):
        eta = step(params, eta, dt) + dt * ramp * np.cos(i * dt)
    np.testing.assert_allclose(forced, eta, atol=1e-6)


def test_few_colours_agree_with_one_order_parameter_a_grain():
    """Labels from the colouring against the oracle that needs none, up to L kappa t = 120."""
    params = AllenCahn(shape=(96, 96))
    coloured = grow(params, n_grains=22, time=60.0, key=KEY)
    oracle = evolve(params, sharp(voronoi((96, 96), 22, key=KEY)), time=60.0)
    assert (np.asarray(oracle.argmax(0)) != coloured.labels).mean() < 1e-3


@pytest.mark.parametrize("seed", [1, 2])
def test_recolouring_loses_nothing(seed):
    """Small grains, a dozen recolourings, most grains gone: each look against the oracle."""
    params, key, now = AllenCahn(shape=(96, 96)), jax.random.key(seed), 0.0
    oracle = sharp(voronoi((96, 96), 40, key=key))
    for grains in coarsen(params, n_grains=40, times=[60.0, 120.0, 200.0, 350.0], key=key):
        oracle, now = evolve(params, oracle, time=grains.time - now, start=now), grains.time
        assert (np.asarray(oracle.argmax(0)) != grains.labels).mean() < 1e-3, now
    assert grains.n_grains <= 12


@pytest.mark.parametrize("key", [jax.random.split(KEY, 4)[3], jax.random.key(2)])
def test_a_dense_crowd_grows_cleanly(key):
    """Grains of eleven cells, several vanishing in one block at a time: none is laid upon another's field."""
    for grains in coarsen(AllenCahn(shape=(192, 192)), n_grains=307, times=[20.0, 60.0, 100.0], key=key):
        assert grains.order.min() > 0.45 and grains.order.max() < 1.003
    assert 95 < grains.n_grains < 120 and merges(grains) == 0


def merges(grains):
    """Pairs of neighbouring grains without a boundary between them: one order parameter fills them both."""
    count = {}
    for axis in (0, 1):
        a, b = grains.labels, np.roll(grains.labels, -1, axis)
        order = np.minimum(grains.order, np.roll(grains.order, -1, axis))
        for i, j, o in zip(a[a != b], b[a != b], order[a != b], strict=True):
            count.setdefault((min(i, j), max(i, j)), []).append(o)
    return sum(np.mean(orders) > 0.85 for orders in count.values())


def test_no_coalescence_down_to_a_tenth_of_the_grains():
    params, times = AllenCahn(shape=(160, 160)), [30.0, 60.0, 120.0, 240.0, 480.0, 800.0, 1400.0]
    structures = coarsen(params, n_grains=220, times=times, key=KEY)
    assert [merges(grains) for grains in structures] == [0] * len(times)
    assert structures[-1].n_grains <= 22


def test_a_merge_would_be_seen(monkeypatch):
    """Random colours, never mended: the count above finds what they do."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(phase_field, "colour_grains", lambda labels, gap: rng.integers(0, 8, labels.max() + 1))
    monkeypatch.setattr(phase_field, "TAIL", 2.0)
    shape = (100, 100)  # of its own: TAIL is compiled in
    structures = coarsen(AllenCahn(shape=shape), n_grains=60, times=[30.0, 60.0], key=KEY)
    assert min(merges(grains) for grains in structures) >= 3


def test_float32_agrees_with_float64():
    params = AllenCahn(shape=(96, 96))
    single = grow(params, n_grains=22, time=120.0, key=KEY)
    with jax.enable_x64(True):
        double = grow(params, n_grains=22, time=120.0, key=KEY)
    assert double.order.dtype == np.float64 and single.order.dtype == np.float32
    assert (single.labels != double.labels).mean() < 1e-3


def test_grow_under_vmap_and_jit():
    params, keys = AllenCahn(shape=(64, 64)), jax.random.split(KEY, 3)
    batch = jax.jit(jax.vmap(lambda key: grow(params, n_grains=10, time=80.0, key=key)))(keys)
    assert batch.labels.shape == batch.order.shape == (3, 64, 64)
    for i, key in enumerate(keys):
        alone = grow(params, n_grains=10, time=80.0, key=key)
        assert (np.asarray(batch.labels[i]) == alone.labels).mean() > 0.999
        assert float(batch.energy[i]) == pytest.approx(alone.energy, rel=1e-4)


def test_units():
    """alpha = beta = gamma and kappa scaled together change the unit of time alone; mobility likewise."""
    plain = grow(AllenCahn(shape=(64, 64)), n_grains=12, time=60.0, key=KEY)
    for scaled in (
        AllenCahn(shape=(64, 64), alpha=3, beta=3, gamma=3, kappa=6),
        AllenCahn(shape=(64, 64), mobility=5),
        AllenCahn(shape=(64, 64), dx=2, kappa=8),
    ):
        assert (grow(scaled, n_grains=12, time=60.0, key=KEY).labels == plain.labels).mean() > 0.999
        assert scaled.interface_width == pytest.approx(AllenCahn().interface_width * scaled.dx)


@pytest.mark.slow
def test_two_thousand_grains():
    grains = grow(AllenCahn(shape=(2048, 2048)), n_grains=2000, time=20.0, key=KEY)
    assert grains.n_grains > 1900 and merges(grains) == 0


def test_growth_stays_bounded_at_95_percent_of_the_bound():
    for kappa in (1.0, 2.0, 6.0):
        bound = AllenCahn(kappa=kappa).max_dt
        grains = grow(AllenCahn(shape=(96, 96), kappa=kappa, dt=0.95 * bound), n_grains=20, time=200.0, key=KEY)
        assert grains.order.min() > 0.3 and grains.order.max() < 1.02


def test_fields_that_blow_up_are_never_returned():
    params = AllenCahn(shape=(32, 32))
    with pytest.raises(ValueError, match="no longer finite"):
        evolve(params, 1e3 * fields(), time=5.0)
    object.__setattr__(params, "dt", 0.5)  # past the check that refuses it
    with pytest.raises(ValueError, match="no longer finite"):
        grow(params, n_grains=4, time=50.0, key=KEY)
    with pytest.raises(Exception, match="no longer finite"):
        jax.jit(lambda key: grow(params, n_grains=4, time=50.0, key=key).labels)(KEY).block_until_ready()
    with pytest.raises(Exception, match="no longer finite"):
        jax.jit(lambda eta: evolve(AllenCahn(shape=(32, 32)), eta, time=1.0))(jnp.nan * fields()).block_until_ready()


def test_grains_may_vanish_whatever_their_number():
    """Many small grains: those with the highest labels vanish between two colourings, too."""
    start, end = coarsen(AllenCahn(shape=(96, 96)), n_grains=75, times=[0.0, 80.0], key=KEY)
    assert end.labels.max() < start.labels.max() and end.n_grains < start.n_grains
    assert end.order.min() > 0.2 and end.order.max() < 1.05


def test_colouring_keeps_equal_colours_apart():
    labels = voronoi((256, 256), 120, key=KEY)
    colours = colour_grains(labels, 25.0)
    near = near_grains(labels, 24.0)
    assert colours.max() + 1 < 30
    assert near.any() and not (near & (colours[:, None] == colours[None])).any()


def test_near_grains_against_distances():
    """By brute force on the torus, to within the two cells of a block; a grain of one cell is not overlooked."""
    labels = voronoi((40, 56), 12, key=KEY)
    labels[21, 33] = 12
    cells = [np.argwhere(labels == i) for i in range(13)]
    near = near_grains(labels, 10.0)
    for a in range(13):
        for b in range(a):
            offset = np.abs(cells[a][:, None] - cells[b][None])
            distance = np.hypot(*np.minimum(offset, np.array(labels.shape) - offset).transpose(2, 0, 1)).min()
            assert distance > 7 or near[a, b]
            assert distance < 14 or not near[a, b]


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
        (lambda: AllenCahn(stages=5), "stages"),
        (lambda: AllenCahn(gamma=0.5), "gamma must exceed"),
        (lambda: evolve(AllenCahn(shape=(32, 32)), fields(), time=1.0, start=float("nan")), "start"),
        (lambda: evolve(AllenCahn(shape=(32, 32)), fields()[:0], time=1.0), "eta"),
        (lambda: evolve(AllenCahn(shape=(32, 32)), fields(), time=-1.0), "time"),
        (lambda: evolve(AllenCahn(shape=(32, 30)), fields(), time=1.0), "eta"),
        (lambda: grow(AllenCahn(shape=(32, 32)), n_grains=4, time=1.0, key=jax.random.split(KEY)), "key"),
        (lambda: grow(AllenCahn(shape=(32, 32)), n_grains=4, time=1.0, key=jnp.arange(2)), "key"),
        (lambda: grow(AllenCahn(shape=(32, 32)), n_grains=0, time=1.0, key=KEY), "n_grains"),
        (lambda: grow(AllenCahn(shape=(32, 32)), n_grains=500, time=1.0, key=KEY), "from 1 to"),
        (lambda: grow(AllenCahn(shape=(32, 32)), n_grains=4, time=-1.0, key=KEY), "time"),
        (lambda: coarsen(AllenCahn(shape=(32, 32)), n_grains=4, times=[2.0, 1.0], key=KEY), "decreasing"),
    ],
)
def test_bad_input_is_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_stability_bound():
    assert AllenCahn().max_dt == pytest.approx(2 / 18)
