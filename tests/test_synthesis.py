"""Fig. 1 step by step: what each panel must share with the one before it."""

import jax
import numpy as np
import pytest

from mdn.phase_field import AllenCahn, grow
from mdn.synthesis import (
    STAND_INS,
    PairConfig,
    fourier_blend,
    make_pair,
    match_histogram,
    periodic_component,
    shade,
    stand_in,
    twin_bands,
)

KEY = jax.random.key(3)
SHAPE = (96, 96)


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
    assert changed[pair.defect_mask].mean() > 3 * changed[~pair.defect_mask].mean()


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


def test_twins_are_bands_within_their_grain(grains):
    inside, edge = twin_bands(grains.labels, fraction=1.0, key=KEY)
    assert 0.1 < inside.mean() < 0.7
    assert not twin_bands(grains.labels, fraction=0.0, key=KEY)[0].any()
    assert edge[inside].min() >= 0 and np.isfinite(edge[inside]).all()


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
    assert any(c.groove_depth == 0 for c in drawn) and any(c.groove_depth > 0.7 for c in drawn)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda g, r: make_pair(g, r[:50], key=KEY), "reference"),
        (lambda g, r: make_pair(g, r * np.nan, key=KEY), "reference"),
        (lambda g, r: make_pair(g, r + 3, key=KEY), "reference"),
        (lambda g, r: fourier_blend(r, r, magnitude=1.5), "magnitude"),
        (lambda g, r: PairConfig(groove_depth=2.0), "groove_depth"),
        (lambda g, r: PairConfig(grey=(0.9, 0.2)), "grey"),
        (lambda g, r: stand_in("marble", SHAPE, key=KEY), "kind"),
    ],
)
def test_bad_input_is_named(make, named, grains, reference):
    with pytest.raises(ValueError, match=named):
        make(grains, reference)
