"""Demos: a control moves, its picture changes; a bad upload is told in the demo."""

import datetime
import io

import ipywidgets
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from mdn import widgets
from mdn.inference import Denoiser
from mdn.network import DenoisingNetwork, NetworkConfig
from mdn.training import History

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


def test_a_training_is_watched_and_stopped():
    watch = widgets.TrainingWatch()
    history = History(step=[2, 4], seconds=[1.0, 2.0], train_loss=[0.3, 0.2], validation_loss=[0.3, 0.2])
    history.validation_psnr = [12.0, 11.0]
    watch.report(history)
    first = bytes(watch.picture.value)
    assert first.startswith(PNG) and "12.00 dB, at step 2" in watch.message.value
    history.validation_psnr = [12.0, 13.0]
    watch.report(history)
    assert watch.picture.value != first and not watch.stopped()
    watch.button.click()
    assert watch.stopped() and watch.button.disabled
