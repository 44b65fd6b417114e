"""Grain size on geometry whose answer is known, and segmentation of drawn grains."""

import numpy as np
import pytest
from test_metrics import grooved, stepped, voronoi

from mdn.grains import grain_size, segment_grains
from mdn.metrics import variation_of_information


def squares(side, n):
    i = np.arange(side * n) // side
    return (i[:, None] * n + i).astype(np.int32)


def hexagons(spacing, size):
    from scipy.spatial import cKDTree

    rows = np.arange(-1, int(size / (spacing * 0.75**0.5)) + 2)
    columns = np.arange(-1, int(size / spacing) + 2)
    points = [(r * spacing * 0.75**0.5, (c + r % 2 / 2) * spacing) for r in rows for c in columns]
    yy, xx = np.mgrid[:size, :size]
    return cKDTree(points).query(np.stack([yy, xx], -1))[1].astype(np.int32)


def test_squares():
    size = grain_size(squares(20, 30)[10:-10, 10:-10], um_per_px=2.0)
    four_directions = 2 * 20 / ((1 + 1 + 2**0.5 + 2**0.5) / 4)  # a diagonal crosses root 2 as many sides
    assert size.mean_intercept_um == pytest.approx(four_directions, rel=0.02)
    assert size.astm_g == pytest.approx(16.644 - 6.644 * np.log10(size.mean_intercept_um))
    assert size.n_grains == 900
    inside = 28 * 28 + 4 * 28 / 2 + 1
    assert size.astm_g_planimetric == pytest.approx(3.322 * np.log10(inside / 1.16**2) - 2.954)
    assert size.warnings == ()


def test_hexagons():
    spacing, um_per_px = 24.0, 0.5
    size = grain_size(hexagons(spacing, 640), um_per_px)
    side = spacing / 3**0.5
    boundary_per_area = 2 / (3**0.5 * side)  # S = pi / 2 P: Crofton
    assert size.mean_intercept_um == pytest.approx(um_per_px * np.pi / 2 / boundary_per_area, rel=0.04)
    per_mm2 = 1 / (3**0.5 / 2 * (spacing * um_per_px * 1e-3) ** 2)
    assert size.astm_g_planimetric == pytest.approx(3.322 * np.log10(per_mm2) - 2.954, abs=0.05)


def test_the_two_numbers_agree_on_random_grains_and_the_interval_covers():
    density, covered = 300 / 400**2, 0
    truth = 16.644 - 6.644 * np.log10(np.pi / (4 * np.sqrt(density)))  # Poisson-Voronoi: S = 2 sqrt(density)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        labels = voronoi(int(rng.poisson(300 * 1.25**2)), 500, seed)[50:450, 50:450]
        size = grain_size(labels, 1.0)
        assert abs(size.astm_g - size.astm_g_planimetric) < 0.6
        assert size.interval_95[0] < size.astm_g < size.interval_95[1]
        assert size.relative_accuracy < 15
        covered += size.interval_95[0] <= truth <= size.interval_95[1]
    assert covered >= 7


def test_halving_the_scale_adds_two_to_g():
    labels = voronoi(200, 256)
    assert grain_size(labels, 0.5).astm_g == pytest.approx(grain_size(labels, 1.0).astm_g + 2, abs=1e-3)


def test_names_of_labels_do_not_matter_and_like_labels_apart_are_two():
    labels = voronoi(100, 256)
    assert grain_size(labels, 1.0) == grain_size((labels * 7 % 1009).astype(np.uint16), 1.0)
    stripes = (np.arange(128) // 16 % 2)[None].repeat(128, 0)
    assert grain_size(stripes, 1.0).n_grains == 8
    assert grain_size(stripes.astype(np.uint8), 1.0).n_grains == 8


def test_few_grains_are_warned_of():
    size = grain_size(voronoi(12, 128), 1.0)
    assert any("fewer than the 50" in warning for warning in size.warnings)
    assert any("500" in warning for warning in size.warnings)


@pytest.mark.parametrize("um_per_px", [None, 0, -0.5, float("nan"), float("inf")])
def test_no_grain_size_without_a_calibration(um_per_px):
    with pytest.raises(ValueError, match="um_per_px"):
        grain_size(squares(10, 10), um_per_px=um_per_px)


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros((64, 64, 3), int),
        np.zeros((64, 64)),
        np.zeros((64, 64), bool),
        np.zeros((0, 64), int),
        np.zeros((8, 8), int),
        np.zeros((64, 64), int),
    ],
)
def test_bad_labels_are_named(labels):
    with pytest.raises(ValueError, match="labels"):
        grain_size(labels, 1.0)


def test_segmentation_gives_the_grains_back():
    labels = voronoi(40, 256)
    found = segment_grains(grooved(labels))
    assert found.dtype == np.int32
    assert found.min() == 1
    split, merge = variation_of_information(found, labels)
    assert split + merge < 0.5
    assert abs(grain_size(found, 1.0).astm_g - grain_size(labels, 1.0).astm_g) < 0.4


def test_segmentation_of_steps_and_of_nothing():
    columns = np.broadcast_to(np.arange(256) // 32, (256, 256)).astype(np.int32)
    split, merge = variation_of_information(segment_grains(stepped(columns)), columns)
    assert split + merge < 0.4
    assert (segment_grains(np.full((64, 64), 0.5)) == 1).all()
    with pytest.raises(ValueError, match="threshold"):
        segment_grains(stepped(columns), 0)
    with pytest.raises(ValueError, match="image"):
        segment_grains(np.zeros((4, 4, 3)))
