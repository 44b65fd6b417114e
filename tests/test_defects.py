"""Each defect: it grows with its strength, stays within [0, 1], and says where it is."""

import jax
import numpy as np
import pytest

from mdn import defects
from mdn.defects import KINDS, DefectStrengths, add_defects

KEY = jax.random.key(5)
IMAGE = np.full((128, 128), 0.7, np.float32)
BOUNDARIES = np.indices((128, 128))[1] % 32 == 0


def apply(kind, strength, key=KEY):
    arguments = (IMAGE, BOUNDARIES) if kind == "thick_boundary" else (IMAGE,)
    return getattr(defects, kind)(*arguments, strength=strength, key=key)


@pytest.mark.parametrize("kind", KINDS)
def test_stronger_changes_more(kind):
    change = [np.mean([np.abs(apply(kind, s, jax.random.key(k)) - IMAGE).mean() for k in range(6)]) for s in (0.1, 1.0)]
    assert change[1] > 1.2 * change[0]
    assert all(apply(kind, s).min() >= 0 and apply(kind, s).max() <= 1 for s in (0.1, 1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_follows_its_key_and_leaves_its_input(kind):
    before = IMAGE.copy()
    a, b, c = apply(kind, 0.5), apply(kind, 0.5), apply(kind, 0.5, jax.random.key(6))
    assert (a == b).all() and (a != c).any() and (before == IMAGE).all()


@pytest.mark.parametrize("kind", KINDS)
def test_mask_says_where_the_kind_is(kind):
    off = dict.fromkeys(KINDS, 0.0)
    image, bits = add_defects(IMAGE, BOUNDARIES, strengths=DefectStrengths(**{**off, kind: 1.0}), key=KEY)
    assert set(np.unique(bits)) == {0, 1 << KINDS.index(kind)}
    np.testing.assert_array_equal(bits > 0, np.abs(image - IMAGE) > defects.VISIBLE)


def test_no_strength_no_defect():
    image, bits = add_defects(IMAGE, BOUNDARIES, strengths=DefectStrengths(**dict.fromkeys(KINDS, 0.0)), key=KEY)
    assert (image == IMAGE).all() and not bits.any()


def test_corrosion_follows_boundaries():
    darker = IMAGE - apply("thick_boundary", 1.0)
    assert darker[BOUNDARIES].mean() > 3 * darker[:, 16::32].mean()


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_leaves_the_image_and_bad_input_is_named(kind):
    np.testing.assert_array_equal(apply(kind, 0), IMAGE)
    with pytest.raises(ValueError, match="strength"):
        apply(kind, 5)
    boundaries = (BOUNDARIES,) if kind == "thick_boundary" else ()
    for bad in (IMAGE * np.nan, IMAGE[0], (IMAGE * 255).astype(np.uint8)):
        with pytest.raises(ValueError, match="image"):
            getattr(defects, kind)(bad, *boundaries, strength=0.5, key=KEY)


def test_a_strength_outside_its_range_is_named():
    with pytest.raises(ValueError, match="etch_pit"):
        DefectStrengths(etch_pit=1.5)
