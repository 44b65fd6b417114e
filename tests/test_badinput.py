"""Bad files and full disks: one clear error that names file and cause, or a right result; SECURITY.md's statements."""

import ast
import dataclasses
import errno
import gc
import hashlib
import io
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
import requests
import tifffile
import zarr
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from mdn import dataset, micrographs, training
from mdn.dataset import FACTS, FIELDS, load_pairs
from mdn.files import sweep
from mdn.inference import Denoiser, load_denoiser
from mdn.micrographs import from_float, grey_range, read_micrograph, to_float, write_micrograph
from mdn.network import DenoisingNetwork, NetworkConfig, load_weights, read_metadata, save_weights
from mdn.report import write_report, write_table
from mdn.training import TrainingConfig, fit

ROOT = Path(__file__).parent.parent
KEY = jax.random.key(1)
TINY = NetworkConfig(width=4, blocks=1, reduction=2)
CONFIG = TrainingConfig(steps=6, batch=2, crop=8, learning_rate=1e-3, evaluate_every=2)
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def network(seed=0):
    return DenoisingNetwork(TINY, rngs=nnx.Rngs(seed))


def weights_of(model):
    return jax.tree.leaves(nnx.state(model, (nnx.Param, nnx.BatchStat)))


# Files


def fuzz(kind, n, seed=0):
    """In a process of its own: a crash, 5 s of processor time on one file or 2 GB of memory fail the test."""
    run = subprocess.run(
        [sys.executable, ROOT / "tests" / "fuzz.py", kind, str(n), str(seed)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    outcome = json.loads(run.stdout)
    print(outcome)
    assert outcome["files"] == n == outcome["refused"] + outcome["read, same"] + outcome["read, altered"]
    assert outcome["refused"] > n / 4 and outcome["peak_bytes"] < 2e9
    return outcome


@pytest.mark.parametrize(("kind", "n"), [("tiff", 80), ("png", 50), ("jpeg", 40), ("safetensors", 30)])
def test_a_damaged_file_is_a_value_error_or_read_rightly(kind, n):
    fuzz(kind, n)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "n"), [("tiff", 1500), ("png", 900), ("jpeg", 600), ("safetensors", 300)])
def test_thousands_of_damaged_files(kind, n):
    fuzz(kind, n, seed=1)


images = hnp.arrays(
    st.sampled_from(["u1", "<u2", ">u2", "<f2", "<f4", ">f4", "<f8", "?", "i4", "c8"]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
    | st.tuples(st.integers(1, 40), st.integers(1, 40))
    | st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)),
)


def taken(image):
    layout = image.ndim == 2 or (image.ndim == 3 and image.shape[-1] == 3)
    return layout and image.size > 0 and image.dtype.kind in "buf" and bool(np.isfinite(image).all())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(image=images)
def test_any_array_is_denoised_or_refused_by_name(image):
    same = Denoiser(network())
    same.restore = lambda grey: grey  # the network is not what is looked at
    if not taken(image):
        with pytest.raises(ValueError, match="image: .*accepted"):
            same(image)
        return
    clean = same(image)
    assert clean.shape == image.shape and clean.dtype == image.dtype.newbyteorder("=")
    assert np.isfinite(clean).all()
    if image.dtype != bool:
        wide = image.astype(np.longdouble)
        step = max(np.ptp(wide) * 1e-3, np.abs(wide).max() * (1e-3 if image.dtype.itemsize == 2 else 1e-6), 1)
        assert (wide.min() - step <= clean).all() and (clean <= wide.max() + step).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(image=images, suffix=st.sampled_from([".tif", ".png"]))
def test_what_can_be_written_is_read_again(tmp_path_factory, image, suffix):
    path = tmp_path_factory.getbasetemp() / f"again{suffix}"
    try:
        write_micrograph(path, image)
    except ValueError as error:
        assert not taken(image) or suffix == ".png", error
        return
    again = read_micrograph(path).pixels
    np.testing.assert_array_equal(again, image.astype(np.uint8) * 255 if image.dtype == bool else image)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(image=hnp.arrays("f8", (3, 3), elements=st.floats(allow_nan=False, allow_infinity=False)))
def test_floats_of_any_size_go_to_the_unit_range_and_back(image):
    unit = to_float(image)
    assert 0 <= unit.min() <= unit.max() <= 1
    again, largest = from_float(unit, image.dtype, grey_range(image)), np.abs(image).max()
    assert np.isfinite(again).all() and np.abs(again / 4 - image / 4).max() <= 1e-6 * max(largest, 1)


def test_sizes_values_and_layouts_as_the_docstring_says(tmp_path):
    ramp = np.linspace(0, 4095, 63 * 65).reshape(63, 65).astype(np.uint16)
    float_ramp = np.linspace(-3, 7, 63 * 65, dtype=np.float32).reshape(63, 65)
    denoiser = load_denoiser()
    kept = {"one": ramp[-1:, -1:], "row": ramp[:1], "column": ramp[:, :1], "constant": np.full((9, 9), 77, np.uint8)}
    kept |= {"twelve": ramp, "negative": float_ramp, "flat": np.full((9, 9), -2.5, np.float32)}
    for name, pixels in kept.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, byteorder=">", photometric="minisblack")
        read = read_micrograph(tmp_path / f"{name}.tif").pixels
        np.testing.assert_array_equal(read, pixels, err_msg=name)
        assert read.dtype == pixels.dtype and read.dtype.isnative and not isinstance(read, np.memmap)
        for given_pixels in (read, pixels.astype(pixels.dtype.newbyteorder(">"))):
            clean = denoiser(given_pixels)
            assert clean.shape == pixels.shape and clean.dtype == pixels.dtype and np.isfinite(clean).all()
            assert clean.min() >= pixels.min() - 1e-4 and clean.max() <= pixels.max() + 1e-4, name
    for name in ("one", "constant", "flat"):
        np.testing.assert_array_equal(denoiser(kept[name]), kept[name])
    for value in (np.nan, np.inf, -np.inf):
        bad = np.where(np.eye(63, 65) > 0, value, float_ramp).astype(np.float32)
        tifffile.imwrite(tmp_path / "bad.tif", bad)
        with pytest.raises(ValueError, match=r"bad\.tif.*NaN or infinity"):
            read_micrograph(tmp_path / "bad.tif")
        with pytest.raises(ValueError, match="NaN or infinity"):
            denoiser(bad)
    mapped = np.memmap(tmp_path / "map", np.uint16, "w+", shape=ramp.shape)
    mapped[:] = ramp
    mapped.flush()
    read_only = np.memmap(tmp_path / "map", np.uint16, "r", shape=ramp.shape)
    np.testing.assert_array_equal(denoiser(read_only), denoiser(ramp))
    assert (tmp_path / "map").read_bytes() == ramp.tobytes()


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_alpha_is_dropped_palette_and_cmyk_become_rgb(tmp_path, suffix):
    path, colour = tmp_path / f"a.{suffix}", np.zeros((16, 16, 3), np.uint8)
    colour[:8], colour[8:] = (255, 0, 0), (0, 0, 255)
    rgb = Image.fromarray(colour)
    clear = rgb.copy()
    clear.putalpha(0)
    palette = rgb.convert("P")
    palette.info["transparency"] = bytes(range(256))
    for image in {"png": (clear, palette), "tif": (clear, palette, rgb.convert("CMYK"))}.get(
        suffix, [rgb.convert("CMYK")]
    ):
        image.save(path)
        found = subprocess_free_read(path)
        assert found.shape == colour.shape and np.abs(found.astype(int) - colour).max() < (30 if suffix == "jpg" else 1)


def subprocess_free_read(path):
    """As under `python -W error`: a decoder's warning must not become an error."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_micrograph(path).pixels


def test_the_first_of_many_pages(tmp_path):
    pages = np.arange(3 * 8 * 9, dtype=np.uint16).reshape(3, 8, 9)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack", metadata=None)
    image = read_micrograph(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.pixels, pages[0])
    assert image.metadata["n_pages"] == 3


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_a_bomb_is_refused_and_the_limit_can_be_raised(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    write_micrograph(path, np.zeros((40, 50), np.uint8))
    with pytest.raises(ValueError, match=rf"a\.{suffix}.*2,000 bytes.*max_bytes=1,999.*max_bytes=2000\) reads it"):
        read_micrograph(path, max_bytes=1999)
    assert read_micrograph(path, max_bytes=2000).pixels.shape == (40, 50)


def test_a_header_that_asks_for_gigabytes_is_refused_at_once(tmp_path):
    path, ihdr = tmp_path / "a.png", b"IHDR" + b"\0\x01\0\0" * 2 + b"\x08\0\0\0\0"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\r" + ihdr + zlib.crc32(ihdr).to_bytes(4, "big") + bytes(3_000_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"a\.png"):
        read_micrograph(path)
    tifffile.imwrite(tmp_path / "b.tif", shape=(1 << 16, 1 << 16), dtype=np.uint8, photometric="minisblack")
    with pytest.raises(ValueError, match=r"b\.tif.*4,294,967,296 bytes.*max_bytes"):  # a file with a hole in it
        read_micrograph(tmp_path / "b.tif")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500e3


def test_a_strip_that_unpacks_to_gigabytes_is_refused(tmp_path):
    pack = zlib.compressobj(9)
    bomb = b"".join(pack.compress(bytes(1 << 24)) for _ in range(30)) + pack.flush()
    tifffile.imwrite(tmp_path / "a.tif", iter([bomb]), shape=(16, 16), dtype=np.uint8, compression="zlib")
    assert (tmp_path / "a.tif").stat().st_size < 600e3
    with pytest.raises(ValueError, match=r"a\.tif.*unpacks to more"):
        read_micrograph(tmp_path / "a.tif")


def test_many_tiles_of_the_same_bomb_are_refused(tmp_path):
    """Each unpacks to a hundred times its size, from a few kB that all of them point to."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((160, 160), np.uint8), tile=(16, 16), compression="zlib")
    bomb, data = zlib.compress(bytes(25_600), 9), bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tags, order = file.pages[0].tags, file.byteorder
        tables = [(tags[n].valueoffset, tags[n].dtype, tags[n].count) for n in ("TileOffsets", "TileByteCounts")]
    for (offset, kind, count), value in zip(tables, (len(data), len(bomb)), strict=True):
        one = struct.pack(order + {3: "H", 4: "I"}[int(kind)], value)
        data[offset : offset + len(one) * count] = one * count
    path.write_bytes(bytes(data) + bomb)
    with pytest.raises(ValueError, match=r"a\.tif.*unpacks to more"):
        read_micrograph(path)


def test_more_tiles_than_can_be_read_in_time_are_refused(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint8), tile=(16, 16))
    assert read_micrograph(tmp_path / "a.tif").pixels.shape == (64, 64)
    monkeypatch.setattr(micrographs, "MOST_SEGMENTS", 15)
    with pytest.raises(ValueError, match=r"a\.tif.*16 strips or tiles; accepted: 15 at most"):
        read_micrograph(tmp_path / "a.tif")


def test_a_jpeg_of_hundreds_of_scans_is_refused(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(RNG.integers(0, 255, (64, 64), dtype=np.uint8)).save(path, progressive=True)
    assert read_micrograph(path).pixels.shape == (64, 64)
    data = path.read_bytes()
    last = data.rindex(b"\xff\xda")
    path.write_bytes(data[:-2] + data[last:-2] * 300 + data[-2:])
    with pytest.raises(ValueError, match=r"a\.jpg.*JPEG of \d+ scans; accepted: 32"):
        read_micrograph(path)


def test_a_strip_that_is_not_there_is_not_filled_in_with_black(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.full((16, 16), 9, np.uint8), rowsperstrip=4, compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages[0].tags["StripByteCounts"]
        tag.overwrite([*tag.value[:3], 0])
    with pytest.raises(ValueError, match=r"a\.tif.*strips are missing"):
        read_micrograph(path)


def test_xml_that_grows_without_end_is_refused(tmp_path):
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    xml = f'<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY e0 "mdn">{entities}]><OME>&e11;</OME>'
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((4, 4), np.uint8), description=xml, metadata=None)
    try:
        assert read_micrograph(tmp_path / "a.ome.tif").um_per_px is None
    except ValueError as error:
        assert "a.ome.tif" in str(error)


def test_a_pipe_is_no_file_to_wait_for(tmp_path):
    for name in ("a.tif", "w.safetensors"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=r"a\.tif.*no regular file"):
        read_micrograph(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"w\.safetensors.*no regular file"):
        load_denoiser(tmp_path / "w.safetensors")


# Weights


def test_a_flipped_bit_anywhere_in_the_weights_is_told_by_name(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, network(), metadata={"training_statistics": json.dumps([1.25])})
    whole, refused = path.read_bytes(), 0
    for place in np.random.default_rng(0).integers(len(whole), size=40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"w\.safetensors") as error:
            load_denoiser(path)
        refused += "damaged: its sha256" in str(error.value)
    assert refused > 10
    path.write_bytes(whole.replace(b"1.25", b"1.35"))  # what is told of the training, too
    with pytest.raises(ValueError, match=r"w\.safetensors.*damaged: its sha256"):
        load_denoiser(path)


def test_weights_without_a_checksum_load_as_before(tmp_path):
    from safetensors.numpy import load, save

    path = tmp_path / "w.safetensors"
    save_weights(path, network(3), metadata={"note": "", "odd": "[not JSON"})
    header = {name: text for name, text in read_metadata(path).items() if name != "sha256"}
    path.write_bytes(save(load(path.read_bytes()), header))
    denoiser = load_denoiser(path)
    assert (denoiser.metadata["note"], denoiser.metadata["odd"]) == ("", "[not JSON")
    for a, b in zip(weights_of(network(3)), weights_of(denoiser.network), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("asked", [{"blocks": 10**9}, {"width": 10**8, "reduction": 1}, {"scale": 10**6}])
def test_a_header_that_asks_for_a_giant_network_is_refused(tmp_path, asked):
    from safetensors.numpy import load, save

    path = tmp_path / "w.safetensors"
    save_weights(path, network())
    config = json.dumps({**json.loads(read_metadata(path)["config"]), **asked})
    path.write_bytes(save(load(path.read_bytes()), {"config": config}))
    with pytest.raises(ValueError, match=r"w\.safetensors.*another architecture"):
        load_weights(path)


def test_weights_are_read_only_where_their_shapes_are_right(tmp_path):
    """A file of holes, 4 GB on no disk: refused by its header."""
    path, config = tmp_path / "w.safetensors", json.dumps(dataclasses.asdict(network().config))
    header = {
        "a": {"dtype": "F32", "shape": [1 << 30], "data_offsets": [0, 1 << 32]},
        "__metadata__": {"config": config},
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + (1 << 32))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"w\.safetensors.*another architecture"):
        load_weights(path, max_bytes=1 << 40)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_a_giant_weights_file_is_refused_by_its_size(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, network())
    size = path.stat().st_size
    with pytest.raises(ValueError, match=rf"w\.safetensors.*max_bytes={size - 1:,};.*max_bytes={size}\) reads it"):
        load_denoiser(path, max_bytes=size - 1)
    assert load_denoiser(path, max_bytes=size).network.config == TINY


def test_many_empty_tensors_do_not_build_as_many_blocks(tmp_path):
    from safetensors.numpy import save

    path = tmp_path / "w.safetensors"
    config = json.dumps({**dataclasses.asdict(network().config), "blocks": 2000})
    path.write_bytes(save({f"t{n}": np.zeros(0, np.float32) for n in range(2000)}, {"config": config}))
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"w\.safetensors.*another architecture"):
        load_weights(path)
    assert time.monotonic() - start < 5


def test_a_palette_counts_as_the_colours_it_becomes(tmp_path):
    Image.new("P", (1000, 1000)).save(tmp_path / "a.png")
    assert read_micrograph(tmp_path / "a.png", max_bytes=3_000_000).pixels.shape == (1000, 1000, 3)
    with pytest.raises(ValueError, match=r"a\.png.*max_bytes"):
        read_micrograph(tmp_path / "a.png", max_bytes=2_999_999)


@pytest.mark.parametrize("tags", [{"DateTime": "2024-01-01 10:00"}, {"Software": "Schärfe 2"}, {"DateTime": 7}])
def test_tags_that_cannot_be_written_are_left_out(tmp_path, tags):
    pixels = np.zeros((8, 8), np.uint8)
    write_micrograph(tmp_path / "a.tif", pixels, like=micrographs.Micrograph(pixels=pixels, metadata=tags))
    found = read_micrograph(tmp_path / "a.tif").metadata
    assert "DateTime" not in found and found["Software"] == "tifffile.py"


@pytest.mark.parametrize("odd", [{282: (0, 0)}, {283: (5, 0)}, {296: 0}, {296: 99}])
def test_a_resolution_that_is_none_does_not_keep_an_image_from_being_written(tmp_path, odd):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, resolution=(2e4, 2e4), resolutionunit="CENTIMETER", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tif:
        for code, value in odd.items():
            tif.pages[0].tags[code].overwrite(value)
    image = read_micrograph(tmp_path / "a.tif")
    write_micrograph(tmp_path / "b.tif", pixels, like=image)
    again = read_micrograph(tmp_path / "b.tif")
    assert (again.pixels == pixels).all() and again.um_per_px == image.um_per_px is None


def test_tags_of_any_size_or_kind_are_read_and_only_some_carried(tmp_path):
    pixels, large = np.zeros((8, 8), np.uint8), bytes(micrographs.MOST_TAG_BYTES // 2 + 1)
    broken = [(50838, 4, 3, (12, 7, 1 << 31), True), (50839, 1, None, b"IJIJinfo" + b"x" * 99, True)]
    tags = [*((40100 + i, 7, None, large, True) for i in range(3)), *broken, (34118, 2, None, b"\xff = no text", True)]
    tags += [(51001 + i, 2, None, b"a", True) for i in range(9)] + [(53000 + i, 3, 1, i, True) for i in range(20)]
    tifffile.imwrite(tmp_path / "a.tif", pixels, extratags=tags, metadata=None)
    image = read_micrograph(tmp_path / "a.tif")
    carried, left = image.metadata["tiff_tags"], image.metadata["tiff_tags_left"]
    assert sum(len(value) for _, value in carried.values()) <= micrographs.MOST_TAG_BYTES
    assert {40100, 34118, *range(51001, 51010)} == set(carried) and len(left) == 2 + 1 + 20
    with pytest.warns(UserWarning, match="40101, 40102, IJMetadata, 53000, .* and 15 more$"):
        write_micrograph(tmp_path / "b.tif", image.pixels, like=image)
    assert read_micrograph(tmp_path / "b.tif").metadata["tiff_tags"] == carried


# Checkpoints


@pytest.mark.parametrize("text", [b"", b"[]", b'{"training": ', b"\xff\xfe"])
def test_a_damaged_note_of_what_is_trained_is_told_by_name(tmp_path, text):
    train(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"config\.json is damaged|another configuration"):
        train(tmp_path / "run")


def pairs(n=4, seed=0):
    rng = np.random.default_rng(seed)
    clean = rng.uniform(0, 1, (n, 12, 12)).astype(np.float32)
    return np.clip(clean + rng.normal(0, 0.1, clean.shape), 0, 1).astype(np.float32), clean


def train(directory, model=None, steps=6, report=None):
    model = model or network()
    options = {"config": CONFIG, "directory": directory, "key": KEY, "progress": False, "report": report}
    return model, fit(model, pairs(), pairs(2, seed=9), **options)


class Interrupted(Exception):
    pass


def stop_at(step):
    def stop(history):
        if history.step[-1] == step:
            raise Interrupted

    return stop


def chunk_of(step: Path) -> Path:
    """The largest file of a checkpoint that holds arrays (the folder d of TensorStore's OCDBT)."""
    return max((path for path in step.rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size)


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
    elif how == "cut short":
        del data[len(data) // 2 :]
    path.write_bytes(data) if how != "gone" else path.unlink()


@pytest.mark.parametrize("how", ["flipped", "cut short", "gone"])
def test_a_damaged_checkpoint_is_told_and_the_last_good_one_used(tmp_path, how):
    whole, expected = train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "run", report=stop_at(4))
    assert sorted(p.name for p in (tmp_path / "run" / "last").iterdir()) == ["2", "4"]
    odd = chunk_of(tmp_path / "run" / "last" / "4")
    damage(odd, how)
    with pytest.warns(UserWarning, match=rf"last/4.*{odd.name}.*from step 2"):
        model, history = train(tmp_path / "run")
    assert history.train_loss == expected.train_loss and history.validation_psnr == expected.validation_psnr
    for a, b in zip(weights_of(whole), weights_of(model), strict=True):
        np.testing.assert_array_equal(a, b)
    assert sorted(p.name for p in (tmp_path / "run").glob("*.sha256")) == ["last.4.sha256", "last.6.sha256"]
    for step in ("4", "6"):
        damage(chunk_of(tmp_path / "run" / "last" / step), "flipped")
    with pytest.raises(ValueError, match=r"last/6.*no checkpoint is whole: remove .*run"):
        train(tmp_path / "run")


def test_a_checkpoint_of_before_checksums_is_gone_on_with(tmp_path):
    _, expected = train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "run", report=stop_at(4))
    for sums in (tmp_path / "run").glob("*.sha256"):
        sums.unlink()
    assert train(tmp_path / "run")[1].train_loss == expected.train_loss


def test_a_stop_between_a_checkpoint_and_what_stands_beside_it(tmp_path, monkeypatch):
    """Its checksums and history.json are written when the run is taken up again, were it only to find it done."""
    write = training.write_whole

    def stopped(path, data):
        if path.name == "last.6.sha256":
            raise Interrupted
        write(path, data)

    monkeypatch.setattr(training, "write_whole", stopped)
    with pytest.raises(Interrupted):
        train(tmp_path / "run")
    monkeypatch.undo()
    assert json.loads((tmp_path / "run" / "history.json").read_text())["step"] == [2, 4]
    train(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "history.json").read_text())["step"] == [2, 4, 6]
    assert sorted(p.name for p in (tmp_path / "run").glob("*.sha256")) == ["last.4.sha256", "last.6.sha256"]


def test_a_checkpoint_that_a_kill_left_over_is_removed(tmp_path):
    """Orbax takes the oldest away after the newest is whole; a run that then has nothing more to do did not."""
    run, aside = tmp_path / "run", tmp_path / "aside"
    with pytest.raises(Interrupted):
        train(run, report=stop_at(4))
    shutil.copytree(run / "last" / "2", aside)
    _, expected = train(run)
    shutil.copytree(aside, run / "last" / "2")
    assert train(run)[1] == expected
    assert sorted(p.name for p in (run / "last").iterdir()) == ["4", "6"]
    assert sorted(p.name for p in run.glob("*.sha256")) == ["last.4.sha256", "last.6.sha256"]


def test_only_what_nobody_writes_any_more_is_swept_away(tmp_path):
    for name in ("old.part", "new.part", "whole"):
        (tmp_path / name).write_text("")
    os.utime(tmp_path / "old.part", (0, 0))
    for folder, age in (("old.folder.part", 0), ("new.folder.part", time.time())):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "scratch").write_text("")
        os.utime(tmp_path / folder / "scratch", (age, age))  # a folder's own time does not tell of writing in it
        os.utime(tmp_path / folder, (0, 0))
    sweep(tmp_path.glob("*.part"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.folder.part", "new.part", "whole"]


def test_bytes_are_on_the_disk_before_a_file_is_in_its_place(tmp_path, monkeypatch):
    """Or a power cut could leave an empty file under the right name."""
    path, told = tmp_path / "w.safetensors", []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: told.append((path.exists(), os.fstat(file).st_size)) or sync(file))
    save_weights(path, network())
    assert told == [(False, path.stat().st_size)]


# Pairs


@pytest.fixture
def store(tmp_path):
    """A dataset of three pairs of noise in each split, written as `make_dataset` does."""
    root = zarr.open_group(str(tmp_path / "pairs.zarr"), mode="a", zarr_format=3)
    rng = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        dataset._create(root, split, 3, (16, 16), ("iron",))
        for i in range(3):
            fields = {name: rng.integers(1, 9, (16, 16)).astype(dtype) for name, dtype in FIELDS.items()}
            facts = {name: rng.integers(1, 9, shape).astype(dtype) for name, (dtype, shape) in FACTS.items()}
            dataset._write(root[split], i, fields | facts)
    return tmp_path / "pairs.zarr"


@pytest.mark.parametrize("how", ["flipped", "cut short"])
@pytest.mark.parametrize("name", ["noisy", "labels", "box", "done"])
def test_a_damaged_chunk_is_told_by_name(store, name, how):
    assert len(load_pairs(store, "train")) == 3
    odd = next(path for path in sorted((store / "train" / name / "c" / "1").rglob("*"), reverse=True)
               if path.is_file()) if name != "done" else store / "train" / "done" / "c" / "1"  # fmt: skip
    damage(odd, how)
    with pytest.raises(ValueError, match=rf"train/{name}/c/1.*damaged"):
        load_pairs(store, "train")
    assert len(load_pairs(store, "test")) == 3


@pytest.mark.parametrize("name", ["noisy", "box", "varied"])
def test_a_missing_chunk_is_told_by_name(store, name):
    """Zarr would read zeros; one of nothing but zeros is written all the same."""
    root = zarr.open_group(str(store), mode="a", zarr_format=3)
    fields = {field: np.zeros((16, 16), dtype) for field, dtype in FIELDS.items()}
    dataset._write(root["train"], 1, fields | {fact: np.zeros(shape, dtype) for fact, (dtype, shape) in FACTS.items()})
    assert not load_pairs(store, "train").defects[1].any()
    chunk = store.joinpath("train", name, "c", "1", *"00"[: root["train"][name].ndim - 1])
    chunk.unlink()
    with pytest.raises(ValueError, match=rf"{chunk} is missing"):
        load_pairs(store, "train")


def test_a_store_that_leaves_zeros_out_loads(store):
    """As all of version 0.1.0 did: none of its arrays says that every chunk is written."""
    for path in store.glob("train/*/zarr.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"attributes": {}}))
    (store / "train" / "varied" / "c" / "1").unlink()
    assert not load_pairs(store, "train").varied[1]


def test_damaged_metadata_of_a_dataset_is_told_by_name(store):
    (store / "train" / "noisy" / "zarr.json").write_text('{"zarr_form')
    with pytest.raises(ValueError, match=r"pairs\.zarr"):
        load_pairs(store, "train")


def test_a_store_without_checksums_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "COMPRESSORS", "auto")
    root = zarr.open_group(str(tmp_path / "p.zarr"), mode="a", zarr_format=3)
    dataset._create(root, "train", 1, (4, 4), ("iron",))
    one = {name: np.ones((4, 4), dtype) for name, dtype in FIELDS.items()}
    dataset._write(root["train"], 0, one | {name: np.ones(shape, dtype) for name, (dtype, shape) in FACTS.items()})
    assert "crc32c" not in (tmp_path / "p.zarr" / "train" / "noisy" / "zarr.json").read_text()
    assert (load_pairs(tmp_path / "p.zarr", "train").noisy == 1).all()


# Disks


def small(path):
    """Each thing that is written, small."""
    return {
        "tif": lambda: write_micrograph(path / "a.tif", np.zeros((300, 300), np.uint8)),
        "png": lambda: write_micrograph(path / "a.png", RNG.integers(0, 255, (300, 300), dtype=np.uint8)),
        "weights": lambda: save_weights(path / "w.safetensors", network()),
        "report": lambda: write_report([], path / "r.html", notes="all " * 999),
        "table": lambda: write_table([LEFT_OUT] * 99, path / "t.csv"),
        "checkpoint": lambda: train(path / "run"),
    }


RNG = np.random.default_rng(0)
LEFT_OUT = {"file": "a.tif", "status": "left out", "reason": "no micrograph to be read " * 9, "warnings": {}}
KINDS = ["tif", "png", "weights", "report", "table", "checkpoint"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_told_by_name_and_leaves_nothing_half_written(tmp_path, kind):
    """A limit on the size of files stands for the disk: what the system answers comes from the system."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    train(tmp_path / "warm")  # compiled, and its cache written, before the limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"{tmp_path}/(a|w|r|t|run)"):
            small(tmp_path)[kind]()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = [p for p in tmp_path.rglob("*") if p.is_file() and "warm" not in p.parts]
    assert [p.name for p in left] == (["config.json"] if kind == "checkpoint" else [])
    small(tmp_path)[kind]()  # with room again it goes on


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_takes_no_files_is_told_by_name(tmp_path, kind):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=rf"{tmp_path}/file"):
        small(tmp_path / "file")[kind]()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@contextmanager
def read_only():
    """A folder that may be looked into and not written to, and a user for whom that holds: root is let everywhere."""
    with tempfile.TemporaryDirectory() as folder:  # whose parents any user may pass through
        Path(folder).chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_only_folder_is_told_by_name(kind, tmp_path):
    small(tmp_path)[kind]()  # what is imported and compiled for it is root's
    with read_only() as folder:
        with pytest.raises(OSError, match=rf"{folder}/(a|w|r|t|run)|{folder}'?$"):
            small(folder)[kind]()
        assert not list(folder.iterdir())


def test_a_checkpoint_on_a_disk_that_fills_up_leaves_the_one_before(tmp_path, monkeypatch):
    _, expected = train(tmp_path / "whole")
    save = training.ocp.CheckpointManager.save

    def full(self, step, **options):
        if step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, step, **options)

    monkeypatch.setattr(training.ocp.CheckpointManager, "save", full)
    with pytest.raises(OSError, match=r"last/4.*No space left"):
        train(tmp_path / "run")
    monkeypatch.setattr(training.ocp.CheckpointManager, "save", save)
    assert [p.name for p in (tmp_path / "run" / "last").iterdir()] == ["2"]
    assert train(tmp_path / "run")[1].train_loss == expected.train_loss


def test_pairs_on_a_full_disk_are_told_by_name(store, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    group = zarr.open_group(str(store), mode="a")["train"]
    monkeypatch.setattr(zarr.Array, "__setitem__", full)
    with pytest.raises(OSError, match=r"pair 1 of .*pairs\.zarr/train.*No space left"):
        dataset._write(group, 1, {"run": 3})


@pytest.mark.parametrize("limit", [0, 100, 700, 1100])
def test_a_dataset_that_a_full_disk_cuts_short_is_told_by_name(tmp_path, limit):
    """As above, whatever the first file is that does not fit: of its groups, its arrays, its pairs."""
    config = dataset.DatasetConfig(n_pairs=5, n_test=0, n_runs=5, shape=(32, 32), diameter=(16.0, 18.0), real=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(OSError, match=r"p\.zarr"):
            dataset.make_dataset(tmp_path / "p.zarr", config, workers=1, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_pairs_in_a_folder_that_takes_no_files(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises((OSError, ValueError), match=r"file/pairs\.zarr"):
        dataset._open(tmp_path / "file" / "pairs.zarr", "a")


# SECURITY.md


def code():
    """Every module, script and notebook of the repository as a syntax tree."""
    gc.collect()  # CPython 3.11 raises a SystemError where finalizers of earlier tests run while a tree is built
    for folder in ("mdn", "notebooks", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            lines = [line for line in cell["source"] if not line.lstrip().startswith(("%", "!"))]
            if cell["cell_type"] == "code":
                yield path, ast.parse("".join(lines))


UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch"}


def unsafe(tree):
    """What could load a pickle or run code from a file: imports and calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from {name.split(".")[0] for name in names} & UNSAFE_MODULES
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "runpy.run_path"):
                yield called
            if called in ("np.load", "numpy.load") and options.get("allow_pickle") != "False":
                yield called
            if called in ("zarr.open", "zarr.open_group") and options.get("zarr_format") != "3":
                yield called


def test_security_nothing_loads_a_pickle_or_runs_code_from_a_file():
    assert "nothing here reads or writes a pickle" in SECURITY and "No code is run from a data file" in SECURITY
    looked_at = 0
    for path, tree in code():
        found = list(unsafe(tree))
        if path.parts[-2] == "benchmarks":
            found = [name for name in found if name != "torch"]  # the rival to measure against
        assert not found, f"{path}: {found}"
        looked_at += 1
    assert looked_at > 50
    for text in ("import pickle", "np.load('a')", "eval('1')", "yaml.load(f)", "zarr.open_group('p')"):
        assert list(unsafe(ast.parse(text))), text


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_security_a_pickle_is_refused_wherever_a_file_is_read(tmp_path, monkeypatch):
    import pickle

    sprung, config = tmp_path / "sprung", dataset.DatasetConfig()
    payload = pickle.dumps(Trap(sprung))
    for name, read in (("a.tif", read_micrograph), ("a.png", read_micrograph), ("w.safetensors", load_denoiser)):
        (tmp_path / name).write_bytes(payload)
        with pytest.raises(ValueError, match=name):
            read(tmp_path / name)
    grains = dataset.Grains(np.zeros((4, 4), np.int32), np.zeros((4, 4), np.float32), 1.0, 1.0)
    monkeypatch.setattr(dataset, "grow_run", lambda *_: grains)
    dataset._grown(config, 0, tmp_path / "grown")
    (kept,) = (tmp_path / "grown").iterdir()
    trap = np.array([Trap(sprung)], object)
    with kept.open("wb") as file:
        np.savez(file, labels=trap, order=trap, scalars=trap)
    with pytest.warns(UserWarning, match=f"{kept.name} is damaged"):
        dataset._grown(config, 0, tmp_path / "grown")
    (tmp_path / "old.zarr" / "train").mkdir(parents=True)  # version 2 of Zarr knows a codec that unpickles
    (tmp_path / "old.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    with pytest.raises(ValueError, match=r"old\.zarr"):
        load_pairs(tmp_path / "old.zarr", "train")
    assert not sprung.exists()


def test_security_presets_are_read_by_the_safe_loader():
    import yaml

    with pytest.raises(yaml.YAMLError):
        yaml.safe_load("a: !!python/object/apply:os.system ['true']")
    calls = [ast.unparse(n.func) for _, tree in code() for n in ast.walk(tree) if isinstance(n, ast.Call)]
    assert {name for name in calls if name.startswith("yaml.") and "load" in name} == {"yaml.safe_load"}


def source(url):
    return micrographs.Source(name="a", file="a.tif", sha256="0" * 64, url=url, licence="MIT", use="reference")


def test_security_downloads_are_registered_over_https_and_checked(tmp_path, monkeypatch):
    assert re.search(r"only from the addresses in `mdn/sources.toml`, over https, and a file whose sha256", SECURITY)
    for registered in micrographs.sources().values():
        assert registered.url.startswith("https://") and re.fullmatch("[0-9a-f]{64}", registered.sha256)
    nets = ("requests.get", "requests.head", "pooch.retrieve", "urllib.request.urlopen")
    nodes = [(path, node) for path, tree in code() for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    callers = {path.name for path, node in nodes if ast.unparse(node) in nets}
    assert callers == {"micrographs.py"}
    asked = []
    monkeypatch.setattr(micrographs.requests, "head", lambda url, **_: None)
    monkeypatch.setattr(micrographs.requests, "get", lambda url, **_: asked.append(url))
    assert micrographs._fetch(source("http://example.org/a.tif"))[1].endswith("no https address") and not asked
    with pytest.raises(ValueError, match="no registered micrograph 'https://"):
        micrographs.load_source("https://example.org/a.tif")


@pytest.mark.parametrize("onwards", ["http://example.org/a", "https://b.org/a", "/a"])
def test_security_a_redirect_away_from_https_is_not_followed(onwards):
    response = requests.Response()
    response.url, response.headers["location"] = "https://example.org/b", onwards
    if onwards.startswith("http:"):
        with pytest.raises(OSError, match="no https address"):
            micrographs._https_alone(response, timeout=1)
    else:
        micrographs._https_alone(response)


def test_security_a_download_stops_at_a_redirect_away_from_https(tmp_path, monkeypatch):
    """Through all of requests and pooch, but for what would go over the wire."""
    asked = []

    def send(self, request, **_):
        asked.append(request.url)
        response = requests.Response()
        response.status_code, response.url, response.request = 302, request.url, request
        response.headers["location"], response.raw = "http://example.org/a.tif", io.BytesIO()
        return response

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    monkeypatch.setattr(micrographs, "_answers", lambda host: True)
    monkeypatch.setattr(micrographs.pooch, "os_cache", lambda _: tmp_path)
    path, reason = micrographs._fetch(source("https://example.org/redirected.tif"))
    assert path is None and "no https address" in reason
    assert asked == ["https://example.org/redirected.tif"] and not list(tmp_path.iterdir())


NETS = {"requests", "urllib", "urllib3", "http", "httpx", "aiohttp", "ftplib", "socket", "pooch", "websockets"}


def test_security_one_module_alone_can_reach_the_network():
    """By what is imported; taking an address apart, as urllib.parse does, reaches nothing."""
    found = set()
    for path, tree in code():
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names = [name for name in names if name != "urllib.parse"]
            found |= {path.name for name in names if name.split(".")[0] in NETS}
    assert found - {"distributed.py"} == {"micrographs.py"}  # the former looks for a free port, on this machine


def test_security_other_bytes_than_registered_are_refused(tmp_path, monkeypatch):
    (tmp_path / "a.tif").write_bytes(b"other bytes")
    monkeypatch.setenv("MDN_MICROGRAPHS", str(tmp_path))
    table = {"a": source("https://example.org/a.tif")}
    monkeypatch.setattr(micrographs, "sources", lambda: table)
    assert hashlib.sha256(b"other bytes").hexdigest() != table["a"].sha256
    with pytest.raises(ValueError, match=r"a\.tif: its sha256"):
        micrographs.load_source("a")


# Import


def test_import_mdn_costs_next_to_nothing_beyond_jax():
    """At most 0.3 s; by what it brings in, and by processor time, which a busy machine does not change much."""
    script = (
        "import sys, time, jax\nbefore, start = set(sys.modules), time.process_time()\nimport mdn\n"
        "print(time.process_time() - start, *(set(sys.modules) - before))"
    )
    runs = [subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
            for _ in range(3)]  # fmt: skip
    answers = [run.stdout.split() for run in runs]
    assert set(answers[0][1:]) <= {"mdn", "importlib", "importlib.util", "importlib.abc"}, answers[0]
    assert min(float(answer[0]) for answer in answers) < 0.3
