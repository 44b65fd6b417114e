"""Demos: a control moves, its picture changes; a bad upload is told in the demo."""

import asyncio
import datetime
import io

import ipywidgets
import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from mdn import widgets
from mdn.inference import Denoiser
from mdn.network import DenoisingNetwork, NetworkConfig
from mdn.training import TrainingConfig

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def denoiser():
    return Denoiser(DenoisingNetwork(NetworkConfig(width=4, blocks=2), rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def denoising(denoiser):
    return widgets.explore_denoising(denoiser)


def changed(demo, name, value) -> list[bool]:
    """Which pictures changed when the control did."""
    before = [bytes(picture.value) for picture in demo.pictures]
    demo.controls[name].value = value
    return [picture.value != old for picture, old in zip(demo.pictures, before, strict=True)]


def upload(demo, name: str, content: bytes):
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content)}
    file["last_modified"] = datetime.datetime.now(datetime.UTC)
    demo.controls["upload"].value = (file,)


def whole(demo) -> bool:
    """Whether every picture is one, and a viewer without widgets gets the first."""
    data = demo._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data and data["image/png"] == bytes(demo.pictures[0].value)
    return isinstance(demo, ipywidgets.Box) and all(bytes(picture.value).startswith(PNG) for picture in demo.pictures)


def test_phase_field():
    demo = widgets.explore_phase_field()
    assert whole(demo)
    assert changed(demo, "time", 100.0) == [True, True]
    assert changed(demo, "n_grains", 20) == [True, True]


def test_blend():
    demo = widgets.explore_blend(np.linspace(0, 1, 100 * 80, dtype=np.float32).reshape(100, 80))
    assert whole(demo) and demo.controls["micrograph"].value == "given"
    assert changed(demo, "magnitude", 0.3) == [True]
    assert changed(demo, "deep_scratch", 1.0) == [True]
    assert changed(demo, "micrograph", "stand-in, twinned") == [True]


def test_denoising(denoising):
    demo = denoising
    assert whole(demo)
    assert changed(demo, "position", 0.2) == [True, False]  # the removed part does not follow the swipe
    assert changed(demo, "match", False) == [True, True]
    assert changed(demo, "micrograph", "stand-in, textured") == [True, True]


def test_attention(denoiser):
    demo = widgets.explore_attention(denoiser)
    assert whole(demo)
    assert demo.controls["block"].max == 2
    assert changed(demo, "block", 2) == [True]


def test_sliders_wait_for_the_release(denoising):
    for control in denoising.controls.values():
        assert not getattr(control, "continuous_update", False)


def test_upload(denoising):
    demo = denoising
    first = bytes(demo.pictures[0].value)
    upload(demo, "notes.txt", b"no <i>image</i> at all")
    assert "notes.txt: " in demo.message.value and "accepted: TIFF" in demo.message.value
    assert "/tmp" not in demo.message.value and demo.pictures[0].value == first

    buffer = io.BytesIO()
    Image.fromarray((255 * np.random.default_rng(0).random((40, 60, 3))).astype(np.uint8)).save(buffer, "PNG")
    upload(demo, "mine.png", buffer.getvalue())
    assert demo.controls["micrograph"].value == "mine.png" and demo.message.value == ""
    assert demo.pictures[0].value != first

    again = bytes(demo.pictures[0].value)
    buffer = io.BytesIO()
    Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))).save(buffer, "PNG")
    upload(demo, "mine.png", buffer.getvalue())  # another file of the same name
    assert demo.pictures[0].value != again


def test_a_training_is_watched_and_stopped(monkeypatch):
    """The button, pressed by another thread after the second evaluation, ends a training that would go on."""
    watch, seen = widgets.TrainingWatch(), []
    rng = np.random.default_rng(0)
    pairs = rng.random((4, 24, 24), np.float32), rng.random((4, 24, 24), np.float32)
    report = watch.report

    def press(history):
        report(history)
        seen.append(bytes(watch.picture.value))
        if len(seen) == 2:
            watch.button.click()

    monkeypatch.setattr(watch, "report", press)
    model = DenoisingNetwork(NetworkConfig(width=4, blocks=1), rngs=nnx.Rngs(0))
    config = TrainingConfig(steps=60, batch=2, crop=16, evaluate_every=2)
    options = {"config": config, "key": jax.random.key(0), "progress": False}
    history = asyncio.run(watch.fit(model, pairs, pairs, **options))
    assert 4 <= history.step[-1] <= 5 and watch.stopped and watch.button.disabled
    assert all(picture.startswith(PNG) for picture in seen) and seen[0] != seen[1]
    assert f"best on validation {max(history.validation_psnr):.2f} dB" in watch.message.value


def test_a_training_that_fails_is_stopped_and_told():
    watch = widgets.TrainingWatch()
    model = DenoisingNetwork(NetworkConfig(width=4, blocks=1), rngs=nnx.Rngs(0))
    none = np.zeros((0, 24, 24), np.float32)
    with pytest.raises(ValueError, match="train must be"):
        asyncio.run(watch.fit(model, (none, none), (none, none), key=jax.random.key(0), progress=False))
    assert watch.stopped
