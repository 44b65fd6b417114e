"""Grain size and shape on geometry whose answer is known, and segmentation of drawn grains."""

import os

import jax
import numpy as np
import pytest
from scipy import ndimage
from test_metrics import grooved, stepped, voronoi

from mdn import phase_field
from mdn.grains import grain_size, grain_statistics, segment_grains, traced_grains
from mdn.metrics import label_boundaries, variation_of_information
from mdn.micrographs import traced_boundaries


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


# ---- how grains look ----


def disc(radius, side, centre=(0.3, 0.2)):
    """A disc that lies across the corners of a periodic domain."""
    y, x = np.mgrid[:side, :side] - side / 2
    rolled = np.hypot(y - centre[0], x - centre[1]) < radius
    return np.roll(rolled, side // 2, (0, 1)).astype(np.int32)


@pytest.mark.parametrize("radius", [8, 12, 20, 30, 40])
@pytest.mark.parametrize("share", [2.7, 4])
def test_the_boundary_of_a_disc_is_as_curved_as_the_disc(radius, share):
    found = grain_statistics(disc(radius, int(share * radius)), periodic=True)
    kappa = found.curvatures / found.mean_radius
    assert len(kappa) > 6 * radius  # above 0: it bulges out of the smaller grain
    assert kappa.mean() * radius == pytest.approx(1, rel=0.02)
    assert kappa.std() * radius < 0.1
    assert found.sides.tolist() == [1, 1]
    outside = (int(share * radius) ** 2 / np.pi - radius**2) ** 0.5  # the equivalent radius of the rest
    assert found.mean_radius == pytest.approx((radius + outside) / 2, rel=0.02)


def test_who_is_smaller_decides_the_sign():
    here, there = (grain_statistics(x, periodic=True).curvatures for x in (disc(20, 60), 1 - disc(20, 60)))
    assert (here > 0).all() and np.allclose(np.sort(here), np.sort(there))
    large = disc(30, 64)  # more than half of the domain: now the rest is the smaller one, and it is dented
    assert large.mean() > 0.5
    assert (grain_statistics(large, periodic=True).curvatures < 0).all()


@pytest.mark.parametrize("degrees", [0, 3, 10, 22, 30, 45])
def test_straight_boundaries_are_straight(degrees):
    y, x = np.mgrid[:300, :300] + 0.3
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    tilted = ((c * y - s * x) // 36 * 1000 + (s * y + c * x) // 36).astype(int)
    found = grain_statistics(tilted, periodic=False)
    assert len(found.curvatures) > 1000 and found.mean_radius == pytest.approx(36 / np.pi**0.5, rel=0.01)
    assert abs(found.curvatures).mean() < 0.12 and abs(found.curvatures.mean()) < 0.02


def test_a_tessellation_has_straight_sides_and_six_of_them():
    labels = phase_field.voronoi((512, 512), 200, key=jax.random.key(0))
    found = grain_statistics(labels, periodic=True)
    assert found.sizes.mean() == pytest.approx(1) and len(found.sizes) == 200
    assert found.mean_radius == pytest.approx(512 / (200 * np.pi) ** 0.5, rel=0.02)
    assert found.sides.mean() == pytest.approx(6, abs=0.1)
    assert abs(found.curvatures).mean() < 0.06 and abs(found.curvatures.mean()) < 0.01
    half = grain_statistics(labels[::2, ::2], periodic=True)
    assert abs(half.curvatures).mean() < 0.13


def test_sides_are_shared_edges_and_not_corners():
    inner = grain_statistics(squares(20, 9), periodic=False)
    assert len(inner.sides) == 49 and (inner.sides == 4).all() and np.allclose(inner.sizes, 1)
    assert (abs(inner.curvatures) < 1e-6).all()
    around = grain_statistics(squares(20, 9), periodic=True)
    assert len(around.sides) == 81 and (around.sides == 4).all()
    assert (grain_statistics(hexagons(30, 300), periodic=False).sides == 6).all()


def test_what_lies_across_the_border_is_one_grain_only_if_periodic():
    labels = phase_field.voronoi((128, 128), 30, key=jax.random.key(1))
    moved = np.roll(labels, (40, 70), (0, 1))
    here, there = (grain_statistics(x, periodic=True) for x in (labels, moved))
    assert np.allclose(here.sizes, there.sizes) and (here.sides == there.sides).all()
    assert np.allclose(np.sort(here.curvatures), np.sort(there.curvatures), atol=1e-6)
    cut = grain_statistics(labels, periodic=False)
    assert len(cut.sizes) < 30


def test_like_labels_apart_are_two_grains():
    few = squares(16, 8) % 3
    split, whole = (grain_statistics(x, periodic=False) for x in (few, squares(16, 8)))
    assert len(split.sizes) == len(whole.sizes) == 36 and np.allclose(split.sizes, whole.sizes)


def test_shapes_do_not_depend_on_names_or_scale():
    labels = voronoi(60, 256)
    found = grain_statistics(labels, periodic=False)
    renamed = grain_statistics((1000 - 7 * labels).astype(np.int64), periodic=False)
    assert np.allclose(np.sort(found.sizes), np.sort(renamed.sizes))
    twice = grain_statistics(np.kron(labels, np.ones((2, 2), int)), periodic=False)
    assert np.allclose(np.sort(found.sizes), np.sort(twice.sizes)) and twice.mean_radius == 2 * found.mean_radius
    disc_once, disc_twice = (grain_statistics(disc(r, 3 * r), periodic=True).curvatures for r in (12, 24))
    assert disc_once.mean() == pytest.approx(disc_twice.mean(), rel=0.03)


def test_grown_grains_bulge_where_they_shrink():
    params = phase_field.AllenCahn(shape=(96, 96))
    start, grown = phase_field.coarsen(params, n_grains=50, times=[0, 40], key=jax.random.key(0))
    before, after = (grain_statistics(grains.labels, periodic=True) for grains in (start, grown))
    assert after.curvatures.mean() > 0.05 > abs(before.curvatures.mean())
    assert after.sizes.std() > 1.3 * before.sizes.std()


def test_one_grain_has_no_boundary():
    one = grain_statistics(np.zeros((32, 32), int), periodic=True)
    assert one.sizes.tolist() == [1] and one.sides.tolist() == [0] and one.curvatures.size == 0
    with pytest.raises(ValueError, match="border"):
        grain_statistics(np.zeros((32, 32), int), periodic=False)


@pytest.mark.parametrize("labels", [np.zeros((64, 64)), np.zeros(64, int), np.zeros((0, 64), int)])
def test_bad_labels_have_no_shape(labels):
    with pytest.raises(ValueError, match="labels"):
        grain_statistics(labels, periodic=True)


def test_traced_lines_become_grains():
    labels = voronoi(40, 256)
    lines = ndimage.binary_dilation(label_boundaries(labels), np.ones((2, 2)))
    hatched = lines.copy()
    y, x = np.argwhere(ndimage.distance_transform_edt(~lines) > 12)[0]
    hatched[y - 6 : y + 6, x - 6 : x + 6] = True  # a particle, with gaps in its hatching
    hatched[y - 4 : y + 4 : 3, x - 4 : x + 4] = False
    for drawn in (lines, hatched):
        found = traced_grains(drawn)
        assert found.dtype == np.int32 and found.min() == 1
        split, merge = variation_of_information(found, labels)
        assert split + merge < 0.6  # a pixel on either side of each boundary
        assert len(np.unique(found)) == 40


def test_what_is_no_tracing_is_named():
    with pytest.raises(ValueError, match="boundaries"):
        traced_grains(np.zeros((64, 64)))
    with pytest.raises(ValueError, match="boundaries"):
        traced_grains(np.ones((64, 64), bool))
    assert (traced_grains(np.zeros((64, 64), bool)) == 1).all()


@pytest.mark.skipif("MDN_MICROGRAPHS" not in os.environ, reason="needs the annotated steel")
def test_grains_of_the_annotated_steel():
    try:
        traced = traced_boundaries("steel_nist")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    found = grain_statistics(traced_grains(traced), periodic=False)
    assert 120 < len(found.sizes) < 180
    assert found.sizes.std() > 0.45 and 5 < found.sides.mean() < 6 and abs(found.curvatures).mean() > 0.4
