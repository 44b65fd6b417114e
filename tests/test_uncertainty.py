"""Uncertainty follows its key; an image unlike the training data is told from one that is like it."""

import jax
import numpy as np
import pytest

from mdn.inference import Denoiser
from mdn.uncertainty import familiarity, training_statistics, uncertainty_map

KEY = jax.random.key(0)


def picture(shape, seed=0):
    return np.random.default_rng(seed).uniform(0.2, 0.9, shape).astype(np.float32)


def test_uncertainty_follows_its_key_and_turns_with_the_image(denoiser):
    image = picture((32, 24))
    a, b, c = (uncertainty_map(denoiser, image, key=jax.random.key(k)) for k in (0, 0, 1))
    assert a.shape == image.shape and (a == b).all() and (a != c).any() and a.max() > 0
    with pytest.raises(ValueError, match="passes"):
        uncertainty_map(denoiser, image, key=KEY, passes=1)


def test_familiar_and_unfamiliar_images(denoiser):
    images = np.stack([picture((48, 48), seed) for seed in range(20)])
    known = Denoiser(denoiser.network, {"training_statistics": training_statistics(denoiser.network, images)})
    stripes = np.tile(np.linspace(0, 1, 48).astype(np.float32), (48, 1))
    assert familiarity(known, stripes).distance > 5 * familiarity(known, images[3]).distance
    assert "unlike" in familiarity(known, stripes).warning
    assert familiarity(known, images[3]).warning is None
    with pytest.raises(ValueError, match="statistics"):
        familiarity(denoiser, stripes)
