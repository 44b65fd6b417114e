"""Each defect: it grows with its strength, stays within [0, 1], and says where it is."""

import jax
import numpy as np
import pytest

from mdn import defects
from mdn.defects import KINDS, ON_GRAINS, DefectStrengths, add_defects

TAKES_BOUNDARIES = {defect.__name__ for defect in ON_GRAINS}

KEY = jax.random.key(5)
IMAGE = np.full((128, 128), 0.7, np.float32)
BOUNDARIES = np.indices((128, 128))[1] % 32 == 0
IMAGES = dict.fromkeys(KINDS, IMAGE)  # a JPEG file shows nothing where there is nothing
IMAGES["jpeg"] = np.where(BOUNDARIES | BOUNDARIES.T | (np.indices(IMAGE.shape).sum(0) % 37 < 3), 0.2, IMAGE)
IMAGES["jpeg"] = IMAGES["jpeg"].astype(np.float32)


def apply(kind, strength, key=KEY):
    arguments = (IMAGES[kind], BOUNDARIES) if kind in TAKES_BOUNDARIES else (IMAGES[kind],)
    return getattr(defects, kind)(*arguments, strength=strength, key=key)


def mean_change(kind, strength, draws):
    changes = [apply(kind, strength, jax.random.key(k)) - IMAGES[kind] for k in range(draws)]
    return np.abs(changes).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_stronger_changes_more(kind):
    change = [mean_change(kind, s, 6) for s in (0.1, 1.0)]
    assert change[1] > 1.2 * change[0]
    assert all(apply(kind, s).min() >= 0 and apply(kind, s).max() <= 1 for s in (0.1, 1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_hardly_there_changes_hardly_anything(kind):
    assert mean_change(kind, 1e-3, 4) < 0.05 * mean_change(kind, 1.0, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_follows_its_key_and_leaves_its_input(kind):
    before = IMAGES[kind].copy()
    a, b, c = apply(kind, 0.5), apply(kind, 0.5), apply(kind, 0.5, jax.random.key(6))
    assert (a == b).all() and (a != c).any() and (before == IMAGES[kind]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_mask_says_where_the_kind_is(kind):
    off = dict.fromkeys(KINDS, 0.0)
    image, bits = add_defects(IMAGES[kind], BOUNDARIES, strengths=DefectStrengths(**{**off, kind: 1.0}), key=KEY)
    assert set(np.unique(bits)) == {0, 1 << KINDS.index(kind)}
    np.testing.assert_array_equal(bits > 0, np.abs(image - IMAGES[kind]) > defects.VISIBLE)


def test_no_strength_no_defect():
    image, bits = add_defects(IMAGE, BOUNDARIES, strengths=DefectStrengths(**dict.fromkeys(KINDS, 0.0)), key=KEY)
    assert (image == IMAGE).all() and not bits.any()


def test_a_kind_does_not_depend_on_the_others():
    off = dict.fromkeys(KINDS, 0.0)
    alone, _ = add_defects(IMAGE, BOUNDARIES, strengths=DefectStrengths(**{**off, "etch_pit": 1.0}), key=KEY)
    both, bits = add_defects(
        IMAGE, BOUNDARIES, strengths=DefectStrengths(**{**off, "etch_pit": 1.0, "thick_boundary": 1.0}), key=KEY
    )
    untouched = (bits >> KINDS.index("thick_boundary") & 1 == 0) & (np.abs(both - alone) < 1e-6)
    assert untouched.mean() > 0.3 and (alone[untouched] < IMAGE[untouched]).any()


def test_blur_comes_after_the_surface_and_before_the_camera():
    def roughness(kind, blur):
        strengths = DefectStrengths(**{**dict.fromkeys(KINDS, 0.0), kind: 1.0})
        return add_defects(IMAGE, BOUNDARIES, strengths=strengths, blur=blur, key=KEY)[0].std()

    assert roughness("speckle", 2.0) < 0.5 * roughness("speckle", 0.0)
    assert roughness("noise", 2.0) == pytest.approx(roughness("noise", 0.0))
    with pytest.raises(ValueError, match="blur"):
        roughness("noise", -1)


def test_rough_etching_differs_from_grain_to_grain():
    change = apply("mottle", 1.0) - IMAGE
    spread = [change[:, k + 2 : k + 31].std() for k in range(0, 128, 32)]
    assert max(spread) > 2 * min(spread)


def test_corrosion_follows_boundaries():
    darker = IMAGE - apply("thick_boundary", 1.0)
    assert darker[BOUNDARIES].mean() > 3 * darker[:, 16::32].mean()


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_corrosion_leaves_a_part_of_the_boundaries_alone(strength):
    spared = [(apply("thick_boundary", strength, jax.random.key(k)) == IMAGE)[BOUNDARIES].mean() for k in range(12)]
    assert 0.2 < np.mean(spared) < 0.8


def test_corrosion_swells_along_a_boundary_and_is_no_saw():
    layers = [IMAGE - apply("thick_boundary", 1.0, jax.random.key(k)) > 0.1 for k in range(6)]
    width = np.concatenate([layer[:, 48:81].sum(1) for layer in layers]).reshape(6, 128)
    thick = (width[:, :-1] > 2) & (width[:, 1:] > 2)
    assert np.abs(np.diff(width, axis=1))[thick].mean() < 0.6
    assert np.std(width[:, ::16][width[:, ::16] > 2]) > 2.5


@pytest.mark.parametrize("kind", ["deep_scratch", "faint_scratch"])
def test_scratches_come_alone_and_in_families(kind, monkeypatch):
    angles = []
    line = defects._line
    monkeypatch.setattr(
        defects, "_line", lambda shape, rng, angle, *rest: angles.append(angle) or line(shape, rng, angle, *rest)
    )
    drawn = []
    for k in range(60):
        angles.clear()
        apply(kind, 0.5, jax.random.key(k))
        drawn.append(np.array(angles))
    alone, families = [a for a in drawn if len(a) == 1], [a for a in drawn if len(a) >= 4 and np.std(a) < 0.15]
    assert len(alone) >= 3 and len(families) >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_leaves_the_image_and_bad_input_is_named(kind):
    np.testing.assert_array_equal(apply(kind, 0), IMAGES[kind])
    with pytest.raises(ValueError, match="strength"):
        apply(kind, 5)
    boundaries = (BOUNDARIES,) if kind in TAKES_BOUNDARIES else ()
    for bad in (IMAGE * np.nan, IMAGE[0], (IMAGE * 255).astype(np.uint8)):
        with pytest.raises(ValueError, match="image"):
            getattr(defects, kind)(bad, *boundaries, strength=0.5, key=KEY)


def test_a_strength_outside_its_range_is_named():
    with pytest.raises(ValueError, match="etch_pit"):
        DefectStrengths(etch_pit=1.5)
