"""Demos: a control moves, its picture changes; long work can be stopped; a bad upload is told in the demo."""

import asyncio
import datetime
import gc
import io
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import ipywidgets
import jax
import numpy as np
import pooch
import pytest
from flax import nnx
from PIL import Image

from mdn import figures, widgets
from mdn.burnt_in import free_field, scale_bar_mask
from mdn.defects import KINDS
from mdn.inference import Denoiser
from mdn.micrographs import Micrograph, read_micrograph, sources, write_micrograph
from mdn.network import DenoisingNetwork, NetworkConfig
from mdn.training import History, TrainingConfig

PNG = b"\x89PNG"
RGB = (60 + 120 * np.random.default_rng(0).random((40, 60, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def denoiser():
    return Denoiser(DenoisingNetwork(NetworkConfig(width=4, blocks=2), rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def growing():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(widgets, "CELLS", 112)
        yield widgets.explore_phase_field()


@pytest.fixture
def denoising(denoiser, tmp_path, monkeypatch):
    monkeypatch.delenv("MDN_MICROGRAPHS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    image = Micrograph(pixels=np.random.default_rng(1).random((48, 64), np.float32), um_per_px=0.5)
    return widgets.explore_denoising(denoiser, image, save_to=tmp_path)


def awaited(coroutine):
    """Its result, from a loop in a thread of its own: a browser's may be running in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def changed(demo, name, value) -> list[bool]:
    """Which pictures changed when the control did."""
    before = [bytes(picture.value) for picture in demo.pictures]
    demo.controls[name].value = value
    return [picture.value != old for picture, old in zip(demo.pictures, before, strict=True)]


def finished(demo) -> None:
    """Wait for its thread."""
    end = time.monotonic() + 60
    while demo._busy and time.monotonic() < end:
        time.sleep(0.01)


def upload(demo, name: str, content: bytes):
    file = {"name": name, "type": "", "size": len(content), "content": memoryview(content)}
    file["last_modified"] = datetime.datetime.now(datetime.UTC)
    demo.controls["upload"].value = (file,)


def png(pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def displayed(demo) -> tuple[dict, mock.Mock]:
    """The data of the widget's output, and the output for viewers without widgets."""
    with mock.patch.object(widgets, "display") as display:
        demo._ipython_display_()
    return display.call_args_list[0].args[0], display.return_value


def left(output) -> Image.Image:
    """The picture that was put there, once."""
    ((picture,), _) = output.update.call_args
    assert output.update.call_count == 1 and picture._repr_mimebundle_()[0]["image/png"]
    return Image.open(io.BytesIO(picture.data))


def whole(demo) -> bool:
    """Whether every picture is one, a viewer without widgets gets them all, and all can be found by class."""
    data, output = displayed(demo)
    assert "application/vnd.jupyter.widget-view+json" in data
    sheet, sizes = left(output), [Image.open(io.BytesIO(bytes(picture.value))).size for picture in demo.pictures]
    columns = demo._columns
    assert sheet.width == max(sum(w for w, _ in sizes[i : i + columns]) for i in range(0, len(sizes), columns))
    assert sheet.height == sum(max(h for _, h in sizes[i : i + columns]) for i in range(0, len(sizes), columns))
    for number, picture in enumerate(demo.pictures):
        assert bytes(picture.value).startswith(PNG) and f"mdn-picture-{number}" in picture._dom_classes
    for name, control in demo.controls.items():
        assert f"mdn-{name}" in control._dom_classes
        assert control.description or control.value
        assert not getattr(control, "continuous_update", False)  # sliders wait for the release
    return isinstance(demo, ipywidgets.VBox) and "mdn-demo" in demo._dom_classes


def test_phase_field(growing):
    demo = growing
    assert whole(demo)
    assert changed(demo, "time", 100.0) == [True, True]
    assert changed(demo, "n_grains", 50) == [True, True]
    assert changed(demo, "kappa", 3.0) == [True, True]
    demo.controls["play"].value = 3  # a tick of the play button
    assert demo.controls["time"].value == demo.controls["time"].options[3]
    before = bytes(demo.pictures[0].value)
    demo.controls["n_grains"].value = 100  # too many for interfaces this wide
    assert "n_grains must be" in demo.message.value and demo.pictures[0].value == before
    demo.controls["n_grains"].value = 50
    assert demo.message.value == ""


def test_the_parabolic_law_is_that_of_the_grains(growing, monkeypatch):
    drawn = {}
    plot = figures.plot_coarsening
    monkeypatch.setattr(
        figures, "plot_coarsening", lambda run, **look: drawn.update(look, run=run) or plot(run, **look)
    )
    growing.controls["time"].value = 150.0
    start, rate, since, until = drawn["law"]
    assert drawn["run"][drawn["now"]].time == 150 and (since, until) == (100, 200)
    area = [start + rate * grains.time - grains.labels.size / grains.n_grains for grains in drawn["run"][10:]]
    assert rate > 0 and abs(np.mean(area)) < 1e-6 * start


def test_long_work_shows_how_far_it_is_and_stops(growing):
    demo, seen = growing, []
    before, shown = bytes(demo.pictures[0].value), demo.progress.layout.visibility

    def press(change):
        seen.append((change["new"], demo.progress.text.value))
        if len(seen) == 2:
            demo.progress.stop.click()
            assert "stopping" in demo.progress.text.value

    demo.progress.bar.observe(press, "value")
    try:
        demo.controls["n_grains"].value = 40
    finally:
        demo.progress.bar.unobserve(press, "value")
    assert len(seen) == 2 and 0 < seen[-1][0] < 0.2
    assert "Stopped" in demo.message.value and demo.pictures[0].value == before
    assert shown == demo.progress.layout.visibility == "hidden"
    assert changed(demo, "time", 190.0) == [True, True]  # and goes on from there
    assert demo.message.value == ""


def test_in_a_notebook_the_work_is_done_in_a_thread_with_the_last_values(denoising):
    demo = denoising
    demo.threaded = True
    before = bytes(demo.pictures[0].value)
    for position in (0.1, 0.2, 0.9):
        demo.controls["position"].value = position
    finished(demo)
    threaded = bytes(demo.pictures[0].value)
    demo.threaded = False
    demo.controls["position"].value = 0.5
    assert demo.pictures[0].value == before
    demo.controls["position"].value = 0.9
    assert demo.pictures[0].value == threaded != before


def test_no_picture_waits_until_all_that_is_loaded_is_gone_over_for_garbage(denoising):
    gc.unfreeze()
    widgets._settle.cache_clear()
    denoising.threaded, loaded = True, len(gc.get_objects())
    try:
        for position in (0.1, 0.2):
            denoising.controls["position"].value = position
            end = time.monotonic() + 60
            while not gc.get_freeze_count() and time.monotonic() < end:
                time.sleep(0.01)
            assert gc.get_freeze_count() > 0.9 * loaded and widgets._settle.cache_info().misses == 1
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("allowed", [True, False])
def test_a_person_is_told_from_papermill_by_whether_a_cell_may_ask(monkeypatch, allowed):
    assert not widgets._watched()  # a script
    kernel = SimpleNamespace(get_parent=lambda channel: {"content": {"allow_stdin": allowed}})
    monkeypatch.setattr(widgets, "get_ipython", lambda: SimpleNamespace(kernel=kernel))
    assert widgets._watched() is allowed


def test_the_first_pictures_come_after_the_call_and_can_be_stopped(denoiser, monkeypatch):
    monkeypatch.setattr(widgets, "_watched", lambda: True)
    started, go, restore = threading.Event(), threading.Event(), Denoiser.restore

    def slow(*arguments, **options):
        started.set()
        go.wait(30)
        return restore(*arguments, **options)

    monkeypatch.setattr(Denoiser, "restore", slow)
    demo = widgets.explore_denoising(denoiser, RGB)
    assert started.wait(30) and demo.progress.layout.visibility == "visible" and "mdn-busy" in demo._dom_classes
    _, output = displayed(demo)
    assert not any(picture.value for picture in demo.pictures) and not output.update.called
    demo.controls["position"].value = 0.1  # which waits, too
    demo.progress.stop.click()
    go.set()
    finished(demo)
    assert "Stopped" in demo.message.value and not any(picture.value for picture in demo.pictures)
    assert demo.progress.layout.visibility == "hidden"
    demo.controls["position"].value = 0.9  # which draws what was left undone, too
    finished(demo)
    assert whole(demo) and demo.reports[0].value and demo.message.value == ""
    assert left(output).width > Image.open(io.BytesIO(bytes(demo.pictures[0].value))).width
    assert "mdn-busy" not in demo._dom_classes
    assert {picture.layout.display for picture in demo.pictures} == {None}


def test_the_blend_has_no_second_scale_bar(monkeypatch):
    given, plot = [], figures.plot_pair
    monkeypatch.setattr(figures, "plot_pair", lambda *a, **k: given.append(k["um_per_px"]) or plot(*a, **k))
    image = 60 + RGB[..., 0].repeat(3, 0).repeat(4, 1) // 2
    for _ in range(2):
        widgets.explore_blend(Micrograph(pixels=image.copy(), um_per_px=0.5))
        image[90:95, 40:140] = 255
    assert given == [0.5, None]


def test_blend(monkeypatch):
    monkeypatch.delenv("MDN_MICROGRAPHS", raising=False)
    demo = widgets.explore_blend(np.linspace(0, 1, 100 * 80, dtype=np.float32).reshape(100, 80))
    assert whole(demo) and demo.controls["micrograph"].value == "given" and set(KINDS) < set(demo.controls)
    assert changed(demo, "magnitude", 0.3) == [True]
    assert changed(demo, "micrograph", "stand-in, twinned") == [True]
    for kind in KINDS:
        assert changed(demo, kind, 0.9) == [True], kind


def test_denoising(denoising):
    demo = denoising
    assert whole(demo)
    assert changed(demo, "position", 0.2) == [True, False, False, False]  # only the swipe
    assert changed(demo, "match", False)[:2] == [True, True]
    assert changed(demo, "micrograph", "stand-in, textured") == [True] * 4


def test_the_scale_bars_are_those_of_the_size_typed_in(denoising):
    assert changed(denoising, "um_per_px", 2.0) == [True] * 4
    assert changed(denoising, "um_per_px", 0.0) == [True] * 4


def test_a_burnt_in_scale_bar_is_left_and_grains_are_measured_beside_it(denoiser, tmp_path, monkeypatch):
    image, drawn, overlaid, seen = 60 + RGB[..., 0].repeat(3, 0).repeat(4, 1) // 2, [], [], []
    image[90:95, 40:140] = 255
    mask = scale_bar_mask(image)
    assert mask[90:95, 40:140].all() and mask.mean() < 0.3
    restore, swipe, segment = Denoiser.restore, figures.plot_swipe, widgets.segment_grains
    overlay = figures.plot_boundaries
    monkeypatch.setattr(figures, "plot_boundaries", lambda *a, **k: overlaid.append(k) or overlay(*a, **k))
    monkeypatch.setattr(Denoiser, "restore", lambda self, grey, **o: seen.append(grey) or restore(self, grey, **o))
    monkeypatch.setattr(figures, "plot_swipe", lambda *a, **k: drawn.append((a, k)) or swipe(*a, **k))
    monkeypatch.setattr(widgets, "segment_grains", lambda grey: seen.append(grey) or segment(grey))
    demo = widgets.explore_denoising(denoiser, Micrograph(pixels=image, um_per_px=0.5), save_to=tmp_path)
    (before, after, _), look = drawn[0]
    assert (before[mask] == after[mask]).all() and (before[~mask] != after[~mask]).any()
    assert look["um_per_px"] is None and {over["um_per_px"] for over in overlaid} == {None}  # no second bar
    assert seen[0].max() < 0.8  # the network sees no white box
    assert {grey.shape for grey in seen[1:]} == {image[free_field(mask)].shape} != {image.shape}
    assert "left untouched" in demo.reports[0].value
    demo.controls["save"].click()
    saved = read_micrograph(tmp_path / "given_denoised.tif").pixels
    assert (saved[mask] == image[mask]).all()


def test_the_swipe_and_the_histogram_need_no_pass_through_the_network(denoising, monkeypatch):
    monkeypatch.setattr(Denoiser, "restore", None)
    assert changed(denoising, "position", 0.9)[0] and changed(denoising, "match", False)[0]
    assert denoising.message.value == ""


def test_projector_size(denoising):
    def width():
        return Image.open(io.BytesIO(denoising.pictures[0].value)).width

    usual = width()
    assert changed(denoising, "projector", True) == [True] * 4
    assert width() == pytest.approx(1.5 * usual, abs=2) and "mdn-large" in denoising._dom_classes
    denoising.controls["projector"].value = False
    assert width() == usual and "mdn-large" not in denoising._dom_classes


def test_boundaries_are_held_against_the_truth_where_it_is_known(denoising, monkeypatch):
    drawn = []
    plot = figures.plot_boundaries
    monkeypatch.setattr(figures, "plot_boundaries", lambda *a, **k: drawn.append((a, k)) or plot(*a, **k))
    denoising.controls["micrograph"].value = "simulated, truth known"
    ((_, before, truth), look), ((_, after, same), _) = drawn
    assert truth.any() and (truth == same).all() and (before != after).any() and "F = " in look["title"]
    denoising.controls["micrograph"].value = "stand-in, etched"
    assert len(drawn[-1][0]) == 2 and drawn[-1][1]["title"] == "boundaries found, after"


def test_grain_size_needs_a_calibration(denoising):
    demo = denoising
    demo.controls["micrograph"].value = "stand-in, etched"
    assert "0.5 µm per px is assumed" in demo.reports[0].value and "ASTM" in demo.reports[0].value
    demo.controls["um_per_px"].value = 0
    assert "no calibration" in demo.reports[0].value and "ASTM" not in demo.reports[0].value
    demo.controls["um_per_px"].value = 0.5
    text = demo.reports[0].value
    assert text.count("ASTM G") == 2 and text.count("95 %: ") >= 2 and "before" in text and "after" in text
    assert "Caution: " in text
    demo.controls["um_per_px"].value = 1.0  # twice as large: two numbers lower
    g, lower = (float(t.split("ASTM G ")[1].split()[0]) for t in (text, demo.reports[0].value))
    assert g - lower == pytest.approx(2, abs=0.11)
    demo.controls["micrograph"].value = "given"
    assert demo.controls["um_per_px"].value == 0.5  # its own


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_saving_keeps_dtype_colour_and_calibration(denoising, tmp_path, denoiser, dtype):
    demo, pixels = denoising, RGB.astype(dtype) * (257 if dtype == np.uint16 else 1)
    pixels = pixels / np.float32(255) if dtype == np.float32 else pixels
    write_micrograph(tmp_path / "mine.tif", pixels, like=Micrograph(pixels=pixels, um_per_px=0.25))
    upload(demo, "mine.tif", (tmp_path / "mine.tif").read_bytes())
    assert demo.controls["um_per_px"].value == 0.25
    demo.controls["save"].click()
    saved = read_micrograph(tmp_path / "mine_denoised.tif")
    assert f"{tmp_path / 'mine_denoised.tif'}" in demo.message.value
    assert saved.pixels.dtype == dtype and saved.pixels.shape == RGB.shape and saved.um_per_px == 0.25
    np.testing.assert_allclose(saved.pixels, denoiser(pixels), atol=1 if dtype != np.float32 else 1e-5)

    demo.controls["match"].value, demo.controls["um_per_px"].value = False, 2.0
    demo.controls["save"].click()  # never over another file
    again = read_micrograph(tmp_path / "mine_denoised_2.tif")
    assert again.um_per_px == 2.0 and (again.pixels != saved.pixels).any()
    assert (read_micrograph(tmp_path / "mine_denoised.tif").pixels == saved.pixels).all()


def test_oblong_pixels_are_told_with_both_sides(denoising, tmp_path):
    Image.fromarray(RGB).save(tmp_path / "mine.png", dpi=(50800, 25400))
    upload(denoising, "mine.png", (tmp_path / "mine.png").read_bytes())
    assert "a pixel is 0.5 × 1 µm" in denoising.reports[0].value and denoising.controls["um_per_px"].value == 0


def test_saving_says_what_of_a_jpeg_is_not_in_the_result(denoising, tmp_path):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[315], exif[52000] = "A. Metallographer", "a number"
    Image.fromarray(RGB).save(buffer, "JPEG", exif=exif)
    upload(denoising, "mine.jpg", buffer.getvalue())
    denoising.controls["save"].click()
    assert "Tags that are not in it: 52000<" in denoising.message.value
    assert read_micrograph(tmp_path / "mine_denoised.tif").metadata["tiff_tags"][315] == (2, b"A. Metallographer\0")


def drawings(monkeypatch, *names):
    """What the figure functions of these names are given from now on, by name, the last first."""
    given = {name: [] for name in names}
    for name in names:
        plot = getattr(figures, name)
        remembered = lambda *a, plot=plot, name=name, **k: given[name].insert(0, a) or plot(*a, **k)  # noqa: E731
        monkeypatch.setattr(figures, name, remembered)
    return given


@pytest.mark.parametrize("match", [True, False])
@pytest.mark.parametrize("scale", ["12 bits in 16", "0 to 1000", "-1 to 1"])
def test_the_pictures_of_an_upload_go_from_its_black_to_its_white(denoising, tmp_path, monkeypatch, scale, match):
    grey = np.random.default_rng(0).normal(0.5, 0.12, (48, 64)).clip(0.05, 0.95)
    pixels = {"12 bits in 16": np.rint(4095 * grey).astype(np.uint16), "0 to 1000": (1000 * grey).astype(np.float32)}
    pixels = pixels.get(scale, (2 * grey - 1).astype(np.float32))
    write_micrograph(tmp_path / "mine.tif", pixels)
    denoising.controls["match"].value = match
    given = drawings(monkeypatch, "plot_swipe", "plot_removed", "plot_boundaries")
    upload(denoising, "mine.tif", (tmp_path / "mine.tif").read_bytes())
    (after, *_), (before, *_) = given["plot_boundaries"][:2]
    for image in (*given["plot_swipe"][0][:2], *given["plot_removed"][0], before, after):
        assert 0.2 < image.mean() < 0.8 and ((image > 0) & (image < 1)).mean() > 0.9
    assert np.ptp(given["plot_swipe"][0][0]) > 0.7  # of the swipe on the screen, too:
    shown = np.asarray(Image.open(io.BytesIO(bytes(denoising.pictures[0].value))).convert("L"), float)
    assert shown[100:-100, 100:-100].std() > 10


def test_a_reference_of_12_bits_in_16_is_no_black_one(monkeypatch):
    given = drawings(monkeypatch, "plot_pair")
    widgets.explore_blend(np.random.default_rng(0).integers(1000, 3000, (64, 64), np.uint16))
    assert 0.4 < given["plot_pair"][0][0].reference.mean() < 0.6


def test_all_of_a_large_micrograph_is_saved(denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr(widgets, "LARGEST", 32)
    demo = widgets.explore_denoising(denoiser, RGB[..., 0], save_to=tmp_path / "new")
    assert "middle 32 px of 60 × 40" in demo.reports[0].value
    demo.controls["save"].click()
    assert read_micrograph(tmp_path / "new" / "given_denoised.tif").pixels.shape == (40, 60)
    assert "without a calibration" in demo.message.value


def test_a_save_that_is_stopped_writes_nothing_and_says_so(denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr(widgets, "LARGEST", 32)
    demo = widgets.explore_denoising(denoiser, RGB[..., 0], save_to=tmp_path)
    before = [bytes(picture.value) for picture in demo.pictures]
    restore = Denoiser.restore

    def pressed(self, grey, *, report):
        demo.progress.stop.click()
        return restore(self, grey, report=report)

    monkeypatch.setattr(Denoiser, "restore", pressed)
    demo.controls["save"].click()
    assert "Stopped. Nothing was written." in demo.message.value and "drawn" not in demo.message.value
    assert not list(tmp_path.glob("*.tif")) and [bytes(picture.value) for picture in demo.pictures] == before
    demo.controls["micrograph"].value = "stand-in, etched"
    assert "What was not drawn yet" in demo.message.value and "written" not in demo.message.value
    monkeypatch.setattr(Denoiser, "restore", restore)
    demo.controls["save"].click()
    assert "Saved" in demo.message.value and list(tmp_path.glob("*.tif"))


def test_attention(denoiser):
    demo = widgets.explore_attention(denoiser)
    assert whole(demo)
    assert demo.controls["block"].max == 2 and demo.controls["channel"].max == 4
    assert changed(demo, "block", 2) == [True, False]
    assert changed(demo, "channel", 3) == [True, False]
    assert changed(demo, "micrograph", "stand-in, textured") == [True, True]


def test_attention_of_a_micrograph_that_is_given(denoiser):
    given, other = widgets.explore_attention(denoiser, RGB), widgets.explore_attention(denoiser)
    assert given.controls["micrograph"].value == "given" and given.pictures[0].value != other.pictures[0].value
    scaled = widgets.explore_attention(denoiser, Micrograph(pixels=RGB, um_per_px=0.5))
    assert all(a.value != b.value for a, b in zip(given.pictures, scaled.pictures, strict=True))  # by its scale bar
    burnt_in = 60 + RGB[..., 0].repeat(3, 0).repeat(4, 1) // 2
    burnt_in[90:95, 40:140] = 255
    given, scaled = (widgets.explore_attention(denoiser, Micrograph(pixels=burnt_in, um_per_px=s)) for s in (None, 0.5))
    assert all(a.value == b.value for a, b in zip(given.pictures, scaled.pictures, strict=True))  # it has one


def test_real_micrographs_are_offered_where_the_cache_has_them(denoiser, tmp_path, monkeypatch):
    monkeypatch.delenv("MDN_MICROGRAPHS", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    monkeypatch.setattr("mdn.micrographs._answers", lambda host: False)  # no download
    (tmp_path / "mdn").mkdir()
    steel = tmp_path / "mdn" / "steel_nist.tif"
    steel.write_bytes(b"bytes")
    assert {"steel_nist"} == {*widgets._Choice((64, 64)).pick.options} & {*sources()}
    grey = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    Image.fromarray(grey).save(steel)
    monkeypatch.setattr(widgets, "load_source", lambda name: read_micrograph(steel))
    sample = widgets._Choice((64, 64))["steel_nist"]
    assert sample.truth is None and (sample.micrograph.pixels == grey).all()  # its traced boundaries are not at hand


def test_real_micrographs_are_offered_where_the_folder_has_them(denoising, denoiser, tmp_path, monkeypatch):
    assert "iron_nital" not in denoising.controls["micrograph"].options
    monkeypatch.setenv("MDN_MICROGRAPHS", str(tmp_path))
    (tmp_path / "iron_nital.jpg").write_bytes(b"other bytes")
    demo = widgets.explore_denoising(denoiser, RGB)
    offered = demo.controls["micrograph"].options
    assert "iron_nital" in offered and "steel_nist" not in offered
    before = bytes(demo.pictures[0].value)
    demo.controls["micrograph"].value = "iron_nital"
    assert "sha256" in demo.message.value and demo.pictures[0].value == before


def huge() -> bytes:
    """A PNG of a few bytes that claims 10^10 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("notes.txt", b"no <i>image</i> at all", "accepted: TIFF"),
        ("broken.png", png(RGB)[:300], "accepted: TIFF"),
        ("empty.tif", b"", "accepted: TIFF"),
        ("huge.png", huge(), "above the limit"),
        ("large.png", png(np.zeros((60, 60), np.uint8)), "60 × 60 px; accepted"),
    ],
)
def test_an_upload_that_is_no_image_says_so(denoising, monkeypatch, name, content, reason):
    monkeypatch.setattr(widgets, "MOST", 3000)
    first = bytes(denoising.pictures[0].value)
    upload(denoising, name, content)
    assert f"{name}: " in denoising.message.value and reason in denoising.message.value
    assert "/tmp" not in denoising.message.value and denoising.pictures[0].value == first
    upload(denoising, "mine.png", png(RGB))
    assert denoising.controls["micrograph"].value == "mine.png" and denoising.message.value == ""
    assert denoising.pictures[0].value != first


def test_the_limits_of_an_upload_are_in_sight_and_those_of_make_lab(denoising):
    text = denoising.controls["limits"].value
    assert "25 megapixels" in text and f"{widgets.MOST_MB} MB" in text and "<code>micrograph=</code>" in text
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    assert f'{{"websocket_max_message_size": {widgets.MOST_MB}000000}}' in makefile


def test_two_uploads_of_one_name(denoising):
    upload(denoising, "mine.png", png(RGB))
    first = bytes(denoising.pictures[0].value)
    upload(denoising, "mine.png", png(255 - RGB))
    assert denoising.pictures[0].value != first
    assert {"mine.png", "mine.png again"} < set(denoising.controls["micrograph"].options)


def test_the_same_file_again_is_taken_again(denoising):
    for name, content in (("notes.txt", b"no image"), ("mine.png", png(RGB))):
        upload(denoising, name, content)
        assert denoising.controls["upload"].value == ()  # so that the next one is a change
        told = denoising.message.value
        denoising.say("")
        upload(denoising, name, content)
        assert denoising.message.value == told
    assert {"mine.png", "mine.png again"} < set(denoising.controls["micrograph"].options)


def test_a_training_is_watched_and_stopped(monkeypatch):
    """The button, pressed by another thread after the second evaluation, ends a training that would go on."""
    watch, seen = widgets.TrainingWatch(), []
    rng = np.random.default_rng(0)
    pairs = rng.random((4, 24, 24), np.float32), rng.random((4, 24, 24), np.float32)
    report = watch.report

    _, output = displayed(watch)

    def press(history):
        report(history)
        assert not output.update.called
        seen.append(bytes(watch.picture.value))
        if len(seen) == 2:
            watch.button.click()

    monkeypatch.setattr(watch, "report", press)
    model = DenoisingNetwork(NetworkConfig(width=4, blocks=1), rngs=nnx.Rngs(0))
    config = TrainingConfig(steps=60, batch=2, crop=16, evaluate_every=2)
    options = {"config": config, "key": jax.random.key(0), "progress": False}
    history = awaited(watch.fit(model, pairs, pairs, **options))
    assert 4 <= history.step[-1] <= 5 and watch.stopped and watch.button.disabled
    assert watch.button.description == "Stopped"
    for static in (output, displayed(watch)[1]):  # displayed before and after
        assert left(static).size == Image.open(io.BytesIO(watch.picture.value)).size
    assert all(picture.startswith(PNG) for picture in seen) and seen[0] != seen[1]
    assert f"best on validation {max(history.validation_psnr):.2f} dB" in watch.message.value


def test_a_training_that_makes_nothing_better_says_what_is_kept():
    watch = widgets.TrainingWatch()
    watch.report(History([0, 5], [0.1, 1.0], [0.1, 0.1], [0.01, 0.02], [20.0, 17.0]))
    assert watch.message.value == "Step 5; best on validation 20.00 dB, of the weights that it started from."


def test_a_training_that_ends_by_itself_was_not_stopped():
    watch, rng = widgets.TrainingWatch(), np.random.default_rng(0)
    pairs = rng.random((2, 24, 24), np.float32), rng.random((2, 24, 24), np.float32)
    model = DenoisingNetwork(NetworkConfig(width=4, blocks=1), rngs=nnx.Rngs(0))
    config = TrainingConfig(steps=2, batch=2, crop=16, evaluate_every=2)
    awaited(watch.fit(model, pairs, pairs, config=config, key=jax.random.key(0), progress=False))
    assert not watch.stopped and watch.button.disabled and watch.button.description == "Done"


def test_a_training_that_fails_is_stopped_and_told():
    watch = widgets.TrainingWatch()
    model = DenoisingNetwork(NetworkConfig(width=4, blocks=1), rngs=nnx.Rngs(0))
    none = np.zeros((0, 24, 24), np.float32)
    with pytest.raises(ValueError, match="train must be"):
        awaited(watch.fit(model, (none, none), (none, none), key=jax.random.key(0), progress=False))
    assert watch.stopped and not displayed(watch)[1].update.called
