"""Fig. 1 step by step: what each panel must share with the one before it."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from mdn import synthesis
from mdn.defects import KINDS, DefectStrengths
from mdn.phase_field import AllenCahn, grow, voronoi
from mdn.synthesis import (
    STAND_INS,
    PairConfig,
    annealing_twins,
    blank_field,
    fourier_blend,
    make_pair,
    match_histogram,
    mounted,
    periodic_component,
    shade,
    stand_in,
)

KEY = jax.random.key(3)
SHAPE = (96, 96)
NONE = DefectStrengths(**dict.fromkeys(KINDS, 0.0))


@pytest.fixture(scope="module")
def grains():
    return grow(AllenCahn(shape=SHAPE), n_grains=16, time=20.0, key=KEY)


@pytest.fixture(scope="module")
def reference():
    return stand_in("etched", SHAPE, key=KEY)


def test_a_pair_carries_every_panel(grains, reference):
    pair = make_pair(grains, reference, key=KEY)
    for name in ("phase_field", "clean", "defective", "noisy", "reference"):
        panel = getattr(pair, name)
        assert panel.shape == SHAPE and panel.dtype == np.float32, name
        assert panel.min() >= 0 and panel.max() <= 1 + 1e-6, name
    assert (pair.defect_mask == (pair.defects > 0)).all() and 0.01 < pair.defect_mask.mean() < 0.9
    assert pair.boundaries.any() and pair.twins.any() and (pair.labels == grains.labels).all()
    changed = np.abs(pair.defective - pair.clean)
    assert changed[pair.defect_mask].mean() > 2 * changed[~pair.defect_mask].mean()


def test_truth_is_grey_times_groove_and_nothing_else(grains):
    config = PairConfig(groove_depth=0.6, twin_fraction=0.0)
    clean, twins = shade(grains, config=config, key=KEY)
    assert not twins.any()
    inside = grains.order > 0.995
    for grain in np.unique(grains.labels):
        greys = clean[inside & (grains.labels == grain)]
        if greys.size:
            assert np.ptp(greys) < 0.02
        edge = clean[(grains.order < 0.66) & (grains.labels == grain)]
        if greys.size and edge.size:
            assert edge.mean() == pytest.approx(0.4 * greys.mean(), rel=0.12)


def test_without_depth_a_boundary_is_a_mere_step(grains):
    clean, _ = shade(grains, config=PairConfig(groove_depth=0.0, twin_fraction=0.0), key=KEY)
    assert len(np.unique(clean)) <= len(np.unique(grains.labels))


def test_full_swap_has_the_phase_of_one_and_the_magnitude_of_the_other(grains, reference):
    clean, _ = shade(grains, key=KEY)
    blend = np.fft.fft2(fourier_blend(clean, reference))
    wanted = np.abs(np.fft.fft2(periodic_component(reference)))
    strong = np.abs(np.fft.fft2(clean)) > 1e-2
    np.testing.assert_allclose(np.abs(blend)[strong], wanted[strong], rtol=1e-3, atol=1e-2)
    angle = np.angle(blend * np.conj(np.fft.fft2(clean)))
    assert np.abs(angle[strong & (wanted > 1)]).max() < 1e-2


def test_no_magnitude_leaves_the_image(grains, reference):
    clean, _ = shade(grains, key=KEY)
    np.testing.assert_allclose(fourier_blend(clean, reference, magnitude=0.0), clean, atol=1e-5)


def test_periodic_component_has_no_cross():
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[:, None].repeat(64, 1)
    image = ramp + 0.05 * np.asarray(jax.random.normal(KEY, (64, 64)))
    cross = [np.abs(np.fft.fft2(x))[1:, 0].mean() for x in (image, periodic_component(image))]
    assert cross[1] < 0.3 * cross[0]
    assert periodic_component(image).mean() == pytest.approx(image.mean(), abs=1e-5)


def test_histogram_is_the_references(grains, reference):
    clean, _ = shade(grains, key=KEY)
    matched = match_histogram(clean, reference)
    np.testing.assert_allclose(np.percentile(matched, [10, 50, 90]), np.percentile(reference, [10, 50, 90]), atol=0.02)


def diameters(labels):
    return 2 * np.sqrt(np.bincount(labels.ravel()) / np.pi)


def carriers(labels, depth):
    return np.bincount(labels.ravel(), (depth > 0).any(0).ravel()) > 0


@pytest.mark.parametrize("fraction", [0.0, 0.37, 1.0])
def test_as_many_grains_carry_twins_as_stated(fraction):
    labels = voronoi((96, 96), 100, key=KEY, relaxations=0)
    able = diameters(labels) >= 8
    assert 50 < able.sum() < 95
    found = [carriers(labels, annealing_twins(labels, fraction=fraction, key=jax.random.key(k))) for k in range(30)]
    assert not np.any(found & ~able)
    counts, wanted = np.sum(found, axis=1), fraction * able.sum()
    assert set(counts) <= {int(np.floor(wanted)), int(np.ceil(wanted))}
    assert np.mean(counts) == pytest.approx(wanted, abs=0.3)


def test_twins_go_on_across_the_border(grains):
    shift = (41, 67)
    depth = annealing_twins(grains.labels, fraction=1.0, key=KEY)
    moved = annealing_twins(np.roll(grains.labels, shift, (0, 1)), fraction=1.0, key=KEY)
    assert carriers(grains.labels, depth).all()
    np.testing.assert_allclose(np.roll(depth, shift, (1, 2)), moved, atol=1e-3)


def test_a_grain_round_the_torus_carries_none():
    assert not (annealing_twins(np.zeros((64, 64), np.int32), fraction=1.0, key=KEY) > 0).any()


def test_traces_are_those_of_two_111_planes():
    (y, x), sine = synthesis._traces(500, np.random.default_rng(0))
    assert (sine >= synthesis.FLATTEST).all() and sine.max() <= 1 + 1e-9
    np.testing.assert_allclose(np.hypot(y, x), 1)
    level, steep = sine.prod(0) * (y.prod(0) + x.prod(0)), np.sqrt(1 - np.minimum(sine, 1) ** 2).prod(0)
    nearer = np.minimum(abs(abs(level + steep) - 1 / 3), abs(abs(level - steep) - 1 / 3))
    assert nearer.max() < 1e-6  # {111} planes meet at an angle whose cosine is 1/3


def test_a_lamella_on_a_flatter_plane_looks_thicker(grains, monkeypatch):
    traces, share = synthesis._traces, []
    for tilt in (1.0, 0.5):
        monkeypatch.setattr(synthesis, "_traces", lambda n, rng, tilt=tilt: (traces(n, rng)[0], np.full((2, n), tilt)))
        share.append((annealing_twins(grains.labels, fraction=1.0, key=KEY) > 0).mean())
    assert share[1] > 1.2 * share[0]


@pytest.fixture
def known(monkeypatch):
    """First variants where each crystal's cube axis is the section's normal and its {111} traces are known."""
    turned = Rotation.from_euler("z", 20, degrees=True).as_quat()
    all_alike = SimpleNamespace(from_quat=lambda quats: Rotation.from_quat(np.tile(turned, (len(quats), 1))))
    monkeypatch.setattr(synthesis, "Rotation", all_alike)
    labels = voronoi((160, 160), 12, key=KEY)
    return labels, [annealing_twins(labels, fraction=1.0, key=jax.random.key(k))[0] for k in range(4)]


def edge_points(labels, depth):
    """Where the depth crosses 0 between two rows of one grain: (row, column) to a fraction of a pixel, and grains."""
    crosses = (depth[:-1] * depth[1:] < 0) & (labels[:-1] == labels[1:])
    row, column = np.nonzero(crosses)
    row_exact = row + depth[row, column] / (depth[row, column] - depth[row + 1, column])
    return np.stack([row_exact, column]), labels[row, column]


def test_lamellae_are_straight_parallel_and_on_a_trace(known):
    labels, depths = known
    across = np.stack([np.cos(np.radians([65, -25])), np.sin(np.radians([65, -25]))], 1)
    edges, tilts = 0, set()
    for depth in depths:
        points, owners = edge_points(labels, depth)
        for grain in np.unique(owners):
            mine = points[:, owners == grain]
            where = [np.sort(normal @ mine) for normal in across]  # of one edge all are the same
            alike = [np.mean(np.diff(w) < 0.01) for w in where]
            plane = int(np.argmax(alike))
            tilts.add(plane)
            for w in np.split(where[plane], np.flatnonzero(np.diff(where[plane]) > 0.01) + 1):
                if len(w) < 12:
                    continue
                edges += 1
                line = mine[:, np.abs(across[plane] @ mine - w.mean()) < 0.01]
                direction = np.linalg.svd(line - line.mean(1, keepdims=True))[0][:, 0]
                assert abs(direction @ across[plane]) < np.sin(np.radians(0.2))
    assert edges > 60 and tilts == {0, 1}


def test_some_lamellae_end_bluntly_and_none_hangs_free(known):
    labels, depths = known
    inner = np.setdiff1d(labels, np.concatenate([labels[[0, -1]].ravel(), labels[:, [0, -1]].ravel()]))
    ends = []
    for depth in depths:
        slope = np.stack(np.gradient(depth))
        for grain in inner:
            mine = labels == grain
            heart = ndimage.binary_erosion(mine, np.ones((3, 3)), 2)
            parts, n = ndimage.label(mine & (depth > 0))
            reach = np.unique(parts[mine & ~ndimage.binary_erosion(mine)])
            assert set(range(1, n + 1)) <= set(reach)
            near = slope[:, heart & (np.abs(depth) < 0.5)]
            if near.shape[1] > 10:
                angle = np.degrees(np.arctan2(near[1], near[0]))
                on_trace = [np.abs((angle - trace + 90) % 180 - 90) < 1 for trace in (65, -25)]
                ends.append(min(on_trace[0].mean(), on_trace[1].mean()))
                assert (on_trace[0] | on_trace[1]).mean() > 0.75  # the rest are corners
    assert len(ends) > 10 and 0.15 < np.mean(np.array(ends) > 0.02) < 0.9


def test_a_second_variant_ends_at_the_first_and_both_at_the_grain():
    labels, both = voronoi((160, 160), 12, key=KEY), 0
    for k in range(6):
        depth = annealing_twins(labels, fraction=1.0, key=jax.random.key(k))
        assert not (depth > 0).all(0).any()
        for grain in np.unique(labels[depth[1] > 1]):
            both += (depth[0][labels == grain] > 0).any()
            touch = ndimage.binary_dilation(depth[1] > 0) & (depth[0] > -1) & (labels == grain)
            assert touch.any() or depth[1][labels == grain].max() < 3
    assert both > 4


def test_a_variant_has_one_grey_and_grooves_lie_where_grey_changes(grains):
    flat, groove = (PairConfig(groove_depth=d, twin_fraction=1.0, twin_groove=0.9) for d in (0.0, 0.6))
    steps, variants = shade(grains, config=flat, key=KEY)
    grooves = shade(grains, config=groove, key=KEY)[0] / steps
    boundaries = synthesis._boundaries(grains.labels)
    edges = synthesis._boundaries(variants) & ~boundaries
    assert set(np.unique(variants)) == {0, 1, 2}
    for grain in np.unique(grains.labels):
        greys = {}
        for variant in range(3):
            inside = ndimage.binary_erosion((variants == variant) & (grains.labels == grain), np.ones((3, 3)), 2)
            if inside.any():
                greys[variant] = steps[inside].mean()
                assert np.ptp(steps[inside]) < 1e-6
        assert len(greys) < 2 or np.min(np.diff(sorted(greys.values()))) > 0.05
    clear = (grains.order > 0.99) & (ndimage.distance_transform_edt(~boundaries) > 5)
    clear[[*range(5), *range(-5, 0)]], clear[:, [*range(5), *range(-5, 0)]] = False, False  # distances end there
    far = ndimage.distance_transform_edt(~edges)
    assert grooves[clear & (far > 4)].min() > 0.95 and grooves[clear & edges].max() < 0.75


def test_a_pair_tells_twin_boundaries_from_grain_boundaries(grains, reference):
    pair = make_pair(grains, reference, config=PairConfig(twin_fraction=1.0), key=KEY)
    assert pair.twins.dtype == bool and pair.twin_boundaries.dtype == bool
    assert pair.twin_boundaries.any() and not (pair.twin_boundaries & pair.boundaries).any()
    changes = synthesis._boundaries(pair.twins.astype(int)) & ~pair.boundaries
    assert not (changes & ~pair.twin_boundaries).any()
    bare = make_pair(grains, reference, config=PairConfig(twin_fraction=0.0), key=KEY)
    assert not bare.twins.any() and not bare.twin_boundaries.any()
    assert (bare.boundaries == pair.boundaries).all()


@pytest.mark.parametrize("kind", STAND_INS)
def test_stand_ins_follow_their_key(kind):
    a, b, c = (stand_in(kind, (128, 160), key=jax.random.key(k)) for k in (0, 0, 1))
    assert a.shape == (128, 160) and (a == b).all() and (a != c).any()
    assert 0 <= a.min() < a.max() <= 1 and a.std() > 0.05


def test_same_key_same_pair(grains, reference):
    config = PairConfig.draw(KEY)
    a, b = (make_pair(grains, reference, config=config, key=KEY) for _ in range(2))
    assert (a.noisy == b.noisy).all() and (a.defects == b.defects).all()


def test_drawn_configurations_span_the_range():
    drawn = [PairConfig.draw(jax.random.key(k)) for k in range(60)]
    assert {c.magnitude == 1 for c in drawn} == {True, False} and any(c.magnitude == 0 for c in drawn)
    assert any(c.groove_depth < 0.3 for c in drawn) and any(c.groove_depth > 0.7 for c in drawn)
    assert {c.look for c in drawn} == set(synthesis.LOOKS) and {c.missing > 0 for c in drawn} == {True, False}
    assert any(c.grey[1] - c.grey[0] < 0.15 for c in drawn) and any(c.grey[1] - c.grey[0] > 0.5 for c in drawn)
    assert all(any(getattr(c.defects, kind) > 0 for c in drawn) for kind in KINDS)


def test_a_blank_field_is_one_grey_under_defects():
    keys = jax.random.split(KEY, 40)
    fields = [blank_field((64, 72), key=key) for key in keys]
    for noisy, truth in fields:
        assert noisy.shape == truth.shape == (64, 72) and noisy.dtype == truth.dtype == np.float32
        assert np.ptp(truth) == 0 and noisy.min() >= 0 and noisy.max() <= 1
    apart = [abs(float(np.median(noisy)) - truth[0, 0]) for noisy, truth in fields]
    assert np.median(apart) < 0.02  # most of a field is its grey
    assert any((noisy != truth).any() for noisy, truth in fields)
    np.testing.assert_array_equal(blank_field((64, 72), key=keys[3])[0], fields[3][0])


def test_a_mount_is_dark_beside_the_specimen_and_changes_nothing_in_it():
    noisy, clean = (np.random.default_rng(k).uniform(0.4, 1, (64, 80)).astype(np.float32) for k in (0, 1))
    sides = set()
    for key in jax.random.split(KEY, 24):
        dirty, truth = mounted(noisy, clean, key=key)
        assert dirty.shape == truth.shape == (64, 80) and dirty.dtype == truth.dtype == np.float32
        mount = truth != clean
        assert 0.08 < mount.mean() < 0.52 and np.ptp(truth[mount]) == 0 and truth[mount].max() <= 0.25
        far = ndimage.binary_erosion(~mount, iterations=9, border_value=1)
        np.testing.assert_allclose(dirty[far], noisy[far], atol=1e-4)
        inner = ndimage.binary_erosion(mount, iterations=9, border_value=1)
        assert abs(np.median(dirty[inner]) - truth[mount][0]) < 0.06
        sides.add(tuple(np.sign(np.round(np.array(ndimage.center_of_mass(mount)) / (64, 80) - 0.5, 1)).tolist()))
    assert len(sides) >= 3
    again = mounted(noisy, clean, key=key)
    assert (again[0] == dirty).all() and (again[1] == truth).all()


CLEAN = {"twin_fraction": 0.0, "magnitude": 0.0, "match": False, "defects": NONE}


@pytest.mark.parametrize("look", synthesis.LOOKS)
def test_the_truth_does_not_follow_what_etching_shows(grains, reference, look):
    plain, other = (
        make_pair(grains, reference, config=PairConfig(look=which, **CLEAN), key=KEY) for which in ("groove", look)
    )
    np.testing.assert_array_equal(plain.clean, other.clean)
    np.testing.assert_array_equal(plain.defective, plain.clean)
    middle, far = grains.order < 0.66, grains.order > 0.995
    darker = 1 - other.defective[middle].mean() / other.defective[far].mean()
    if look == "step":
        assert abs(darker) < 0.1
    else:
        assert darker > 0.4
    np.testing.assert_allclose(other.defective[far], plain.clean[far], atol=0.03)
    flank = (grains.order > 0.8) & (grains.order < 0.9)
    assert (other.defective[flank].mean() > plain.clean[flank].mean()) == (look != "groove")


def test_some_boundaries_are_missing_where_they_are_said_to_be(grains, reference):
    middle = grains.order < 0.7
    seen = {}
    for missing in (0.0, 0.4, 1.0):
        config = PairConfig(missing=missing, grey=(0.8, 0.8), **CLEAN)
        pair = make_pair(grains, reference, config=config, key=KEY)
        seen[missing] = float((pair.defective[middle] < 0.6).mean())
        assert (pair.clean[middle] < 0.6).mean() > 0.95
    assert seen[0.0] > 0.95 and 0.3 < seen[0.4] < 0.85 and seen[1.0] < 0.05


def test_a_sharper_groove_is_narrower_and_as_deep(grains):
    wide, thin = (
        shade(grains, config=PairConfig(sharpness=s, grey=(0.8, 0.8), twin_fraction=0.0), key=KEY)[0] for s in (1, 4)
    )
    assert (thin < 0.7).mean() < 0.75 * (wide < 0.7).mean()
    assert thin.min() == pytest.approx(wide.min(), abs=0.02)


def test_small_grains_are_grown_larger_and_made_smaller(reference):
    fine = grow(AllenCahn(shape=(192, 192)), n_grains=100, time=15.0, key=KEY)
    pair = make_pair(fine, reference, config=PairConfig(**CLEAN), key=KEY)
    assert pair.clean.shape == pair.labels.shape == SHAPE and set(np.unique(pair.labels)) <= set(np.unique(fine.labels))
    whole, _ = shade(fine, config=PairConfig(**CLEAN), key=jax.random.split(KEY)[0])
    np.testing.assert_allclose(pair.clean, whole.reshape(96, 2, 96, 2).mean((1, 3)), atol=1e-6)
    assert pair.clean[pair.boundaries].mean() < 0.8 * pair.clean[~pair.boundaries].mean()


def test_gamma_bends_the_greys_and_keeps_their_order(grains, reference):
    plain, bent = (make_pair(grains, reference, config=PairConfig(gamma=g), key=KEY).noisy for g in (1.0, 1.4))
    np.testing.assert_allclose(bent, plain**1.4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda g, r: make_pair(g, r[:50], key=KEY), "reference"),
        (lambda g, r: make_pair(g, r * np.nan, key=KEY), "reference"),
        (lambda g, r: make_pair(g, r + 3, key=KEY), "reference"),
        (lambda g, r: fourier_blend(r, r, magnitude=1.5), "magnitude"),
        (lambda g, r: PairConfig(groove_depth=2.0), "groove_depth"),
        (lambda g, r: annealing_twins(g.labels, fraction=1.1, key=KEY), "fraction"),
        (lambda g, r: annealing_twins(g.labels, fraction=-0.1, key=KEY), "fraction"),
        (lambda g, r: annealing_twins(g.labels.astype(float), fraction=0.5, key=KEY), "labels"),
        (lambda g, r: annealing_twins(g.labels, fraction=0.5, key=jax.random.split(KEY)), "key"),
        (lambda g, r: PairConfig(grey=(0.9, 0.2)), "grey"),
        (lambda g, r: PairConfig(look="painted"), "look"),
        (lambda g, r: PairConfig(missing=1.2), "missing"),
        (lambda g, r: PairConfig(gamma=0.0), "gamma"),
        (lambda g, r: PairConfig(sharpness=-1), "sharpness"),
        (lambda g, r: PairConfig(blur=-1), "blur"),
        (lambda g, r: stand_in("marble", SHAPE, key=KEY), "kind"),
    ],
)
def test_bad_input_is_named(make, named, grains, reference):
    with pytest.raises(ValueError, match=named):
        make(grains, reference)


def test_twins_do_not_depend_on_the_labels_type(grains):
    wide, narrow = (annealing_twins(grains.labels.astype(t), fraction=0.5, key=KEY) for t in (np.int32, np.uint8))
    assert (wide == narrow).all()
