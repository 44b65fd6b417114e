"""From disk to disk, as the whole image in memory would have been denoised."""

import dataclasses
import errno
import os
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

import mdn
from mdn import inference, large
from mdn.large import denoise_large


@pytest.fixture(autouse=True)
def small_bands(monkeypatch):
    """Many bands and tiles of a small image."""
    monkeypatch.setattr(large, "BAND", 48)


def picture(shape, dtype):
    rng = np.random.default_rng(0)
    grains = np.kron(
        rng.uniform(0.2, 0.8, [-(-n // 20) for n in shape[:2]] + list(shape[2:])), np.ones((20, 20, 1)[: len(shape)])
    )
    image = grains[: shape[0], : shape[1]] + rng.normal(0, 0.05, shape)
    if np.issubdtype(dtype, np.integer):
        return (np.clip(image, 0, 1) * np.iinfo(dtype).max).astype(dtype)
    return (5 * image - 2).astype(dtype)  # negative values too


def write(path, image):
    if path.suffix == ".zarr":
        zarr.create_array(str(path), shape=image.shape, chunks=image.shape, dtype=image.dtype)[:] = image
    else:
        mdn.write_micrograph(
            path, image, like=mdn.Micrograph(pixels=image, um_per_px=0.25, metadata={"description": "steel"})
        )


@pytest.mark.parametrize("suffixes", [(".tif", ".tif"), (".zarr", ".zarr"), (".tif", ".zarr")])
@pytest.mark.parametrize("shape", [(130, 101), (100, 131, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_disk_to_disk_equals_memory(denoiser, tmp_path, dtype, shape, suffixes):
    image = picture(shape, dtype)
    source, target = (tmp_path / f"{name}{suffix}" for name, suffix in zip("ab", suffixes, strict=True))
    write(source, image)
    denoise_large(source, target, denoiser, exact=True, progress=False)
    clean = zarr.open_array(str(target))[:] if target.suffix == ".zarr" else tifffile.imread(target)
    assert clean.shape == shape and clean.dtype == dtype
    black, white = mdn.micrographs.grey_range(image)
    difference = np.abs(clean.astype(float) - denoiser(image).astype(float)) / (white - black)
    digit = 1.01 / white if white > 100 else 0  # of integers the last one, by rounding
    assert np.quantile(difference, 0.998) <= 1e-4 + digit  # a small image's rarest greys lie far apart
    assert difference.max() <= 2e-3 + digit
    assert sorted(p.name for p in tmp_path.iterdir()) == [source.name, target.name]  # no scratch is left


def test_calibration_and_description_are_kept(denoiser, tmp_path):
    write(tmp_path / "a.tif", picture((60, 60), np.uint8))
    denoise_large(tmp_path / "a.tif", tmp_path / "b.tif", denoiser, progress=False)
    kept = mdn.read_micrograph(tmp_path / "b.tif")
    assert kept.um_per_px == 0.25 and kept.metadata["description"] == "steel"
    maker = {271: (2, b"Zeiss\0")}
    like = dataclasses.replace(kept, metadata=kept.metadata | {"tiff_tags": maker})
    mdn.write_micrograph(tmp_path / "made.tif", kept.pixels, like=like)
    denoise_large(tmp_path / "made.tif", tmp_path / "made_b.tif", denoiser, progress=False)
    assert mdn.read_micrograph(tmp_path / "made_b.tif").metadata["tiff_tags"] == maker
    write(tmp_path / "a.zarr", picture((60, 60), np.uint8))
    zarr.open_array(str(tmp_path / "a.zarr")).attrs["tiff_tags"] = {"271": "no tag"}
    denoise_large(
        tmp_path / "a.zarr", tmp_path / "c.tif", denoiser, um_per_px=0.5, match_histogram=False, progress=False
    )
    assert mdn.read_micrograph(tmp_path / "c.tif").um_per_px == 0.5
    for wrong in (-1, 0.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="um_per_px"):
            denoise_large(tmp_path / "a.zarr", tmp_path / "d.tif", denoiser, um_per_px=wrong)


def test_greys_of_the_whole_not_of_a_band(denoiser, tmp_path):
    """A dark half and a bright half: a band's own stretch or histogram would level them."""
    image = np.clip(picture((192, 64), np.uint8) // 4 + np.repeat([20, 180], 96).astype(np.uint8)[:, None], 0, 255)
    write(tmp_path / "a.tif", image)
    denoise_large(tmp_path / "a.tif", tmp_path / "b.tif", denoiser, progress=False)
    np.testing.assert_allclose(np.sort(tifffile.imread(tmp_path / "b.tif").ravel()), np.sort(image.ravel()), atol=3)


def test_what_is_refused(denoiser, tmp_path):
    for name, image, said in [
        ("nan.tif", np.full((99, 20), np.nan, np.float32), "rows 0 to 47 hold NaN"),
        ("int.tif", np.zeros((9, 9), np.int32), "accepted"),
        ("pages.tif", np.zeros((5, 9, 9), np.uint8), "pages"),
    ]:
        tifffile.imwrite(tmp_path / name, image, photometric="minisblack")
        with pytest.raises(ValueError, match=f"{name}.*{said}"):
            denoise_large(tmp_path / name, tmp_path / "out.tif", denoiser, progress=False)
    (tmp_path / "text.tif").write_text("no image")
    (tmp_path / "empty.zarr").mkdir()
    for name in ("text.tif", "empty.zarr"):
        with pytest.raises(ValueError, match=f"{name}.*accepted: a TIFF"):
            denoise_large(tmp_path / name, tmp_path / "out.tif", denoiser, progress=False)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        denoise_large(tmp_path / "nowhere.tif", tmp_path / "out.tif", denoiser)
    with pytest.raises(ValueError, match="out.png"):
        denoise_large(tmp_path / "text.tif", tmp_path / "out.png", denoiser)
    assert not (tmp_path / "out.tif").exists()


def test_damage_is_told_by_name(denoiser, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", picture((96, 96), np.uint8), tile=(48, 48), compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        start = tif.pages[0].dataoffsets[2]
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[start : start + 20] = bytes(20)
    (tmp_path / "a.tif").write_bytes(data)
    write(tmp_path / "a.zarr", picture((96, 96), np.uint8))
    chunk = next(path for path in (tmp_path / "a.zarr" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:9])
    for name in ("a.tif", "a.zarr"):
        with pytest.raises(ValueError, match=rf"{name}: rows \d+ to \d+ are damaged"):
            denoise_large(tmp_path / name, tmp_path / "out.tif", denoiser, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "a.zarr"]


def test_a_tile_that_unpacks_to_more_than_its_size_is_refused(denoiser, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((16, 16), np.uint8), tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        page = tif.pages[0]
        places = {name: page.tags[code].valueoffset for name, code in (("offset", 324), ("count", 325))}
        order = tif.byteorder
    bomb = zlib.compress(bytes(300_000_000))
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[places["offset"] : places["offset"] + 4] = struct.pack(order + "I", len(data))
    data[places["count"] : places["count"] + 4] = struct.pack(order + "I", len(bomb))
    (tmp_path / "a.tif").write_bytes(data + bomb)
    with pytest.raises(ValueError, match=r"a\.tif.*unpacks to more than its size"):
        denoise_large(tmp_path / "a.tif", tmp_path / "out.tif", denoiser, progress=False)


def test_booleans_are_taken_as_black_and_white(denoiser, tmp_path):
    image = picture((60, 60), np.uint8) > 128
    for name, pixels in (("a.zarr", image), ("b.zarr", image.astype(np.uint8) * 255)):
        write(tmp_path / name, pixels)
        denoise_large(tmp_path / name, tmp_path / f"of_{name.upper()}", denoiser, progress=False)
    found, expected = (zarr.open_array(str(tmp_path / f"of_{name}.ZARR"), mode="r")[:] for name in "AB")
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8


class Same(inference.Denoiser):
    """Gives an image back: the memory that is taken is then the reading's and writing's own."""

    def __init__(self):
        pass

    def restore(self, grey, *, out, **_):
        out[:] = grey


@pytest.mark.parametrize("kind", ["plain", "big-endian", "strips", "tiles", "zarr"])
def test_memory_holds_bands_not_the_image(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(large, "LEVELS", 1 << 12)
    image = np.tile(picture((64, 2000), np.uint16), (40, 1))
    source = tmp_path / ("a.zarr" if kind == "zarr" else "a.tif")
    if kind == "zarr":
        zarr.create_array(str(source), shape=image.shape, chunks=(64, 500), dtype=image.dtype)[:] = image
    else:
        options = {
            "plain": {}, "big-endian": {"byteorder": ">"}, "strips": {"compression": "zlib", "rowsperstrip": 32},
            "tiles": {"compression": "zlib", "tile": (64, 64)},
        }[kind]  # fmt: skip
        tifffile.imwrite(source, image, photometric="minisblack", **options)
    denoise_large(source, tmp_path / "warm.tif", Same(), progress=False)
    tracemalloc.start()
    denoise_large(source, tmp_path / "b.tif", Same(), progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < image.nbytes / 2, f"{peak:,} of {image.nbytes:,}"
    np.testing.assert_allclose(tifffile.imread(tmp_path / "b.tif"), image, atol=100)  # 4,096 greys


def test_memory_of_a_wide_strip_is_bounded_too(tmp_path, monkeypatch):
    for name, value in (("LEVELS", 1 << 12), ("BAND", 512), ("PIXELS", 1 << 15)):
        monkeypatch.setattr(large, name, value)
    image = np.tile(picture((60, 500, 3), np.uint8), (10, 10, 1))[:513]
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb")
    for target in ("warm.tif", "b.tif", "b.zarr"):
        tracemalloc.start()
        denoise_large(tmp_path / "a.tif", tmp_path / target, Same(), progress=False)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 * image.nbytes, f"{peak:,} of {image.nbytes:,}"  # the float64 of it alone is eight times as large
    for written in (tifffile.imread(tmp_path / "b.tif"), zarr.open_array(str(tmp_path / "b.zarr"), mode="r")[:]):
        np.testing.assert_allclose(written, image, atol=2)


@pytest.mark.parametrize("options", [{"compression": "lzw"}, {"extratags": [(274, "H", 1, 6, True)]}])
def test_what_cannot_be_read_as_it_lies_is_refused(denoiser, tmp_path, options):
    if "compression" in options:
        Image.fromarray(picture((40, 40), np.uint8)).save(tmp_path / "a.tif", compression="tiff_lzw")
    else:
        tifffile.imwrite(tmp_path / "a.tif", picture((40, 40), np.uint8), **options)
    with pytest.raises(ValueError, match=r"a\.tif: no image to be read in bands \((LZW|NONE) compression, orientation"):
        denoise_large(tmp_path / "a.tif", tmp_path / "b.tif", denoiser, progress=False)


@pytest.mark.parametrize("name", ["a.tif", "a.zarr"])
def test_a_chunk_that_would_be_unpacked_whole_is_refused(denoiser, tmp_path, monkeypatch, name):
    image = picture((100, 100), np.uint8)
    if name == "a.tif":
        tifffile.imwrite(tmp_path / name, image, compression="zlib", rowsperstrip=100)
    else:
        write(tmp_path / name, image)
    monkeypatch.setattr(large, "LARGEST_STRIP", 9_999)
    with pytest.raises(ValueError, match=rf"{name}.*10,000 bytes; accepted: 9,999 at most"):
        denoise_large(tmp_path / name, tmp_path / "b.tif", denoiser, progress=False)
    monkeypatch.setattr(large, "LARGEST_STRIP", 10_000)
    denoise_large(tmp_path / name, tmp_path / "b.tif", denoiser, progress=False)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_percentiles_are_those_of_the_sorted_image(dtype):
    grey = mdn.micrographs.to_float(picture((300, 200), dtype))
    found = large._percentiles(large._levels(grey, (0.0, 1.0)), (0.01, 0.99))
    np.testing.assert_allclose(found, np.percentile(grey, (1, 99)), atol=1e-6)


def test_a_zarr_of_version_2_is_not_opened(denoiser, tmp_path):
    """It knows a codec that unpickles."""
    image = zarr.create_array(str(tmp_path / "a.zarr"), shape=(40, 40), dtype="u1", zarr_format=2)
    image[:] = picture((40, 40), np.uint8)
    with pytest.raises(ValueError, match=r"a\.zarr.*version 3"):
        denoise_large(tmp_path / "a.zarr", tmp_path / "b.tif", denoiser, progress=False)


def test_a_full_disk_is_told_before_the_work(denoiser, tmp_path, monkeypatch):
    write(tmp_path / "a.tif", picture((60, 60), np.uint8))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(inference.Denoiser, "restore", None)
    with pytest.raises(OSError, match="14,400 bytes of scratch"):
        denoise_large(tmp_path / "a.tif", tmp_path / "b.tif", denoiser, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]
