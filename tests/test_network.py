"""The network: its size, its shapes, what training and evaluation change, and its weights on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from mdn.network import (
    AttentionResidualBlock,
    ChannelAttention,
    DenoisingNetwork,
    FeatureExtraction,
    NetworkConfig,
    Reconstruction,
    conv3x3,
    count_parameters,
    load_weights,
    read_metadata,
    save_weights,
    stretch,
)

TINY = NetworkConfig(width=8, blocks=2)


def noise(*shape, seed=0):
    return jax.random.uniform(jax.random.key(seed), shape)


def plain(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_default_network_has_143153_parameters():
    model = DenoisingNetwork(rngs=nnx.Rngs(0))
    assert count_parameters(model) == 143_153
    assert len(model.blocks) == 6


def test_parameters_by_block():
    w, r, rngs = 32, 4, nnx.Rngs(0)
    assert count_parameters(FeatureExtraction(w, rngs=rngs)) == 9 * w + 9 * w * w + 2 * 2 * w
    attention = ChannelAttention(w, r, "sigmoid", rngs=rngs)
    assert count_parameters(attention) == 2 * w * w // r + w // r + w
    block = AttentionResidualBlock(NetworkConfig(), rngs=rngs)
    assert count_parameters(block) == 2 * (9 * w * w + 2 * w) + count_parameters(attention)
    assert count_parameters(Reconstruction(w, rngs=rngs)) == 2 * (9 * w * w + 2 * w) + 9 * w + 1
    without = DenoisingNetwork(NetworkConfig(attention=False), rngs=rngs)
    assert count_parameters(without) == 143_153 - 6 * count_parameters(attention)


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (32, 48)])
def test_every_shape(size):
    model = DenoisingNetwork(TINY, rngs=nnx.Rngs(0))
    image = noise(3, *size, 1)
    x = model.features(image)
    assert x.shape == (3, *size, 8)
    for block in model.blocks:
        residual = block.residual(x)
        weights = block.attention.weights(residual)
        assert weights.shape == (3, 8) and (weights > 0).all() and (weights < 1).all()
        np.testing.assert_array_equal(block.attention(residual), residual * weights[:, None, None])
        x = block(x)
        assert x.shape == (3, *size, 8)
    clean = model.reconstruction(x)
    assert clean.shape == (3, *size, 1) and (clean > 0).all() and (clean < 1).all()


@pytest.mark.parametrize("rows", [7, 32, 48])
def test_custom_convolution_gradient_is_the_automatic_one(rows):
    x, kernel = noise(2, rows, 20, 3), noise(3, 3, 3, 5, seed=1) - 0.5
    ours, theirs = (jax.grad(lambda x, k, f=f: jnp.sin(f(x, k)).sum(), (0, 1))(x, kernel) for f in (conv3x3, plain))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def test_batch_norm_learns_in_training_and_rests_in_evaluation():
    model = DenoisingNetwork(TINY, rngs=nnx.Rngs(0))
    statistics = lambda: np.asarray(model.features.first.norm.mean[...])  # noqa: E731
    before = statistics()
    nnx.view(model, deterministic=True, use_running_average=True)(noise(2, 16, 16, 1))
    np.testing.assert_array_equal(statistics(), before)
    nnx.view(model, deterministic=True, use_running_average=False)(noise(2, 16, 16, 1))
    assert (statistics() != before).any()


def test_dropout_acts_in_training_alone():
    model = DenoisingNetwork(NetworkConfig(width=8, blocks=2, dropout=0.5), rngs=nnx.Rngs(0))
    image = noise(1, 16, 16, 1)
    train = nnx.view(model, deterministic=False, use_running_average=True)
    evaluate = nnx.view(model, deterministic=True, use_running_average=True)
    assert (train(image) != train(image)).any()
    np.testing.assert_array_equal(evaluate(image), evaluate(image))


def test_evaluation_does_not_depend_on_the_rest_of_the_batch():
    model = nnx.view(DenoisingNetwork(TINY, rngs=nnx.Rngs(0)), deterministic=True, use_running_average=True)
    images = noise(3, 16, 16, 1)
    np.testing.assert_allclose(model(images)[1:2], model(images[1:2]), atol=1e-6)


def test_printed_gate_is_unbounded():
    attention = ChannelAttention(8, 4, "leaky_relu", rngs=nnx.Rngs(0))
    assert float(attention.weights(100 * noise(4, 4, 4, 8)).max()) > 1


def test_weights_survive_the_disk(tmp_path):
    model = DenoisingNetwork(TINY, rngs=nnx.Rngs(3))
    nnx.view(model, deterministic=True, use_running_average=False)(noise(2, 16, 16, 1))  # move the statistics
    save_weights(tmp_path / "w.safetensors", model, metadata={"note": "for a test"})
    again = load_weights(tmp_path / "w.safetensors")
    assert again.config == TINY and read_metadata(tmp_path / "w.safetensors")["note"] == "for a test"
    image = noise(1, 12, 12, 1)
    both = [nnx.view(m, deterministic=True, use_running_average=True)(image) for m in (model, again)]
    np.testing.assert_array_equal(*both)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]  # nothing half-written beside it


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, DenoisingNetwork(TINY, rngs=nnx.Rngs(0)))
    header, tensors = read_metadata(path), {}
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {**header, "config": header["config"].replace('"blocks": 2', '"blocks": 3')})
    with pytest.raises(ValueError, match="another architecture"):
        load_weights(path)


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_file_that_is_no_weights_is_named(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="broken.safetensors"):
        load_weights(path)


@pytest.mark.parametrize("bad", [{"width": 30}, {"blocks": 0}, {"dropout": 1.0}, {"gate": "relu"}])
def test_bad_configuration_is_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        NetworkConfig(**bad)


def test_stretch_is_blind_to_exposure():
    image = np.asarray(noise(40, 40), np.float32)
    np.testing.assert_allclose(stretch(image), stretch(0.3 + 0.4 * image), atol=1e-5)
    assert (stretch(np.full((4, 4), 0.2, np.float32)) == 0.5).all()


@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (1, 1)])
def test_a_coarser_grid_keeps_the_images_size(shape):
    model = DenoisingNetwork(NetworkConfig(width=8, blocks=1, scale=2), rngs=nnx.Rngs(0))
    model = nnx.view(model, deterministic=True, use_running_average=True)
    image = jax.random.uniform(jax.random.key(0), (2, *shape, 1))
    features = model.encode(image)
    assert features.shape == (2, -(-shape[0] // 2), -(-shape[1] // 2), 8)
    assert model(image).shape == image.shape


def test_each_pixel_of_a_cell_has_a_place_of_its_own():
    """Unshuffle, then shuffle, with a network that does nothing in between: the image comes back."""
    model = DenoisingNetwork(NetworkConfig(width=4, blocks=1, scale=2), rngs=nnx.Rngs(0))
    model.features, model.reconstruction = (lambda x, inside: x), (lambda x, inside: x)
    image = jax.random.uniform(jax.random.key(0), (1, 5, 7, 1))
    np.testing.assert_array_equal(model.decode(model.encode(image), (5, 7)), image)


def test_the_coarser_network_sees_twice_as_far():
    def reach(scale):
        model = DenoisingNetwork(NetworkConfig(width=8, blocks=1, scale=scale, attention=False), rngs=nnx.Rngs(0))
        model = nnx.view(model, deterministic=True, use_running_average=True)
        image = jnp.full((1, 64, 64, 1), 0.5)
        return int((np.abs(model(image.at[0, 32, 32, 0].set(1.0)) - model(image))[0, 32, :, 0] > 0).sum())

    assert reach(2) > 1.7 * reach(1)
