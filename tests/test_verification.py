"""The solver against answers known in closed form: each check of `mdn.verification` holds, and each can fail."""

import math
from dataclasses import replace

import jax
import numpy as np
import pytest

from mdn import verification
from mdn.phase_field import AllenCahn, coarsen, voronoi

KEY = jax.random.key(0)
PARAMS = AllenCahn()


def assert_holds(result, n_checks):
    assert len(result.checks) == n_checks
    for check in result.checks:
        assert check.holds, check


@pytest.fixture(scope="module")
def crowd():
    """Many grains that vanish one after the other."""
    return coarsen(AllenCahn(shape=(128, 128)), n_grains=136, times=[0, 30, 40, 50, 60, 80], key=KEY)


@pytest.mark.parametrize(("gamma", "n_checks"), [(1.0, 3), (1.5, 4)])
def test_flat_boundary_has_its_energy_width_and_profile(gamma, n_checks):
    result = verification.flat_boundary(gamma)
    assert_holds(result, n_checks)
    other = 2.5 - gamma
    for check, wrong in zip(result.checks, verification.flat_boundary(other).checks, strict=False):
        assert not check._replace(measured=wrong.measured).holds, wrong


def test_pfhub_7a_in_euler_steps_has_the_listed_errors():
    assert_holds(verification.manufactured([100, 200], stages=1), 2)


@pytest.mark.slow
def test_pfhub_7a_in_euler_steps_has_order_two_on_three_grids():
    result = verification.manufactured([100, 200, 400], stages=1)
    assert_holds(result, 4)
    assert [check.expected for check in result.checks] == [6.76e-3, 1.39e-3, 3.38e-4, 2]


def test_pfhub_7a_in_supersteps_has_order_two():
    """On the coarsest grid the supersteps are so long that their own error shows: a quarter more than listed."""
    result = verification.manufactured([100, 200, 400])
    assert_holds(result, 1)
    assert result.data["error"][0] < 1.3 * verification.LISTED[100]
    assert result.data["error"][1] < 1.1 * verification.LISTED[200]
    assert result.data["error"][2] < 1.1 * verification.LISTED[400]


@pytest.mark.parametrize("gamma", [1.0, 1.5])
def test_circle_shrinks_by_its_law_and_its_energy_falls(gamma):
    assert_holds(verification.circle(AllenCahn(gamma=gamma), radius=30), 2)


def test_junctions_open_to_120_degrees():
    assert_holds(verification.triple_junctions(PARAMS), 1)
    bricks = verification.triple_junctions(PARAMS, time=0).data["angles"]
    np.testing.assert_allclose(np.sort(bricks, 1), np.tile([90.0, 90.0, 180.0], (12, 1)), atol=1e-6)


def test_neumann_and_mullins_rate_a_grain_by_its_sides():
    params = AllenCahn(shape=(384, 384))
    structures = coarsen(params, n_grains=200, times=[20, 30, 40, 50], key=KEY)
    result = verification.neumann_mullins(params, structures)
    assert_holds(result, 1)
    assert len(result.data["sides"]) > 150 and np.ptp(result.data["sides"]) >= 4
    assert abs(result.data["offset"]) < 0.1 * result.data["law"]  # six sides: at rest
    other = verification.neumann_mullins(AllenCahn(shape=(384, 384), kappa=2.4), structures)
    assert not other.checks[0].holds


def test_grains_have_six_sides_on_average(crowd):
    assert_holds(verification.topology(crowd[1:]), 1)
    labels = voronoi((64, 64), 20, key=KEY)
    assert verification.neighbours(labels).sum() / 20 == 6


def test_four_grains_in_a_point_share_a_side_of_no_length():
    labels = (2 * (np.indices((8, 16))[0] // 4) + np.indices((8, 16))[1] // 4 % 2).astype(np.int32)
    labels += 4 * (np.indices((8, 16))[1] // 8).astype(np.int32)
    shared = verification.neighbours(labels)
    assert (shared.sum(0) <= 6).all() and shared[0, 3] and shared[0, 1] and not shared[0, 0]


def test_energy_falls_mean_area_grows_linearly_and_sizes_keep_their_distribution(crowd):
    start, *later = crowd
    assert_holds(verification.coarsening(later), 3)
    assert not verification.coarsening(later[::-1]).checks[0].holds
    cubed = [replace(grains, time=grains.time**3) for grains in later]
    assert not verification.coarsening(cubed).checks[1].holds
    assert not verification.coarsening([start, start, later[-1]]).checks[2].holds  # grains start almost equal


def test_shift_transpose_and_relabelling_commute_with_the_solver():
    params = AllenCahn(shape=(48, 48))
    assert_holds(verification.symmetry(params, jax.random.uniform(KEY, (4, 48, 48))), 3)


def test_dt_has_its_bound_and_growth_just_below_it_stays_bounded():
    params = AllenCahn(shape=(96, 96))
    with pytest.raises(ValueError, match="stability bound 0.1111, got 0.1112"):
        AllenCahn(dt=0.1112)
    result = verification.stability(params, n_grains=60, key=KEY)
    assert_holds(result, 3)
    assert "0.1111" in result.data["refusal"] and math.isclose(params.max_dt, 1 / 9)
