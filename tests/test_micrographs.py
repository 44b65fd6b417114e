"""Image files in and out, grey levels, and the registry of real micrographs."""

import dataclasses
import hashlib
import os

import numpy as np
import pytest
import requests
import tifffile
from PIL import Image

from mdn import micrographs
from mdn.micrographs import Micrograph, read_micrograph, write_micrograph

RNG = np.random.default_rng(0)
REAL = os.environ.get("MDN_MICROGRAPHS")


def noise(shape, dtype):
    if np.issubdtype(dtype, np.floating):
        return RNG.random(shape).astype(dtype)
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize(
    ("suffix", "dtype", "shape"),
    [(".tif", dtype, shape) for dtype in (np.uint8, np.uint16, np.float32) for shape in ((31, 17), (31, 17, 3))]
    + [(".png", np.uint8, (31, 17)), (".png", np.uint8, (31, 17, 3)), (".png", np.uint16, (31, 17))],
)
def test_what_is_written_is_read_again_with_its_calibration(tmp_path, suffix, dtype, shape):
    pixels = noise(shape, dtype)
    like = Micrograph(pixels=pixels, um_per_px=0.52)
    write_micrograph(tmp_path / f"a{suffix}", pixels, like=like)
    again = read_micrograph(tmp_path / f"a{suffix}")
    assert again.pixels.dtype == dtype
    assert np.array_equal(again.pixels, pixels)
    assert again.um_per_px == pytest.approx(0.52, rel=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("shape", [(64, 48), (64, 48, 3)])
def test_jpeg_keeps_shape_and_nearly_the_greys(tmp_path, shape):
    pixels = (np.indices(shape).sum(0) * 2).astype(np.uint8)
    write_micrograph(tmp_path / "a.jpg", pixels)
    again = read_micrograph(tmp_path / "a.jpg").pixels
    assert again.shape == shape
    assert again.dtype == np.uint8
    assert np.abs(again.astype(int) - pixels).mean() < 2


@pytest.mark.parametrize(("unit", "scale"), [("micron", 1), ("um", 1), ("nm", 1e-3), ("mm", 1e3)])
def test_imagej_calibration_is_read_and_written_back(tmp_path, unit, scale):
    path = tmp_path / "a.tif"
    pixels = noise((20, 30), np.uint16)
    tifffile.imwrite(path, pixels, imagej=True, resolution=(4.0, 4.0), metadata={"unit": unit})
    image = read_micrograph(path)
    assert image.um_per_px == pytest.approx(0.25 * scale)
    write_micrograph(tmp_path / "b.tif", image.pixels[::-1], like=image)
    again = read_micrograph(tmp_path / "b.tif")
    assert again.um_per_px == pytest.approx(0.25 * scale)
    assert again.metadata["description"] == image.metadata["description"]
    corrected = dataclasses.replace(image, um_per_px=0.1)  # the old description would contradict this
    write_micrograph(tmp_path / "c.tif", image.pixels, like=corrected)
    assert read_micrograph(tmp_path / "c.tif").um_per_px == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("description", "kept"),
    [
        ('{"steel": "304L", "etchant": "oxalic acid"}', True),
        ("<b>as polished</b>", True),
        ("ImageJ=1.54f\nmin=0.0\nmax=255.0\n", True),
        ("ImageJ=1.54f\nunit=pixel\n", False),  # it would hide the calibration that was given
        ('<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"></OME>', True),
        ('<OME><Image><Pixels PhysicalSizeX="1" PhysicalSizeXUnit="pixel"/></Image></OME>', False),
        ("<OME><Note>PhysicalSize unknown</Note></OME>", False),
    ],
)
def test_a_description_stays_where_a_calibration_is_added(tmp_path, description, kept):
    tifffile.imwrite(tmp_path / "a.tif", noise((20, 30), np.uint8), description=description, metadata=None)
    image = read_micrograph(tmp_path / "a.tif")
    assert image.um_per_px is None
    write_micrograph(tmp_path / "b.tif", image.pixels, like=dataclasses.replace(image, um_per_px=0.4))
    again = read_micrograph(tmp_path / "b.tif")
    assert again.um_per_px == pytest.approx(0.4)
    assert again.metadata["description"] == (image.metadata["description"] if kept else "")


MAKERS = {  # by code: the type and the bytes as they lie in the file
    269: (2, b"mount 7, field 3\0"),
    271: (2, b"Zeiss\0"),
    272: (2, b"Axio Imager\0"),
    315: (2, b"A. Metallographer\0"),
    316: (2, b"lab-pc\0"),
    700: (1, b"<x:xmpmeta/>"),
    33432: (2, "© the lab\0".encode()),
    34118: (2, b"\r\nAP_WD\r\nWD = 8.5 mm\r\n\0"),
    34682: (2, b"[User]\r\nUser=supervisor\r\n\0"),
    51000: (7, bytes(range(256))),
}


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_what_a_camera_says_in_a_jpeg_goes_into_a_tiff(tmp_path, suffix):
    said = {270: "annealed 1 h", 271: "Zeiss", 315: "A. Metallographer", 33432: "the lab", 305: "taker"}
    exif = Image.Exif()
    for code, text in (said | {306: "2026:11:25 10:00:00", 274: 1, 282: 72.0, 52000: "a number"}).items():
        exif[code] = text
    exif.get_ifd(34665)[33434] = 0.01  # the exposure
    Image.fromarray(noise((20, 30), np.uint8)).save(tmp_path / f"a{suffix}", exif=exif, icc_profile=b"profile")
    image = read_micrograph(tmp_path / f"a{suffix}")
    with pytest.warns(UserWarning, match="tags that are not carried over: ExifTag, 52000, icc_profile$"):
        write_micrograph(tmp_path / "b.tif", image.pixels, like=image)
    again = raw_tags(tmp_path / "b.tif")
    assert {code: again[code][1].rstrip(b"\0").decode() for code in said} == said
    assert read_micrograph(tmp_path / "b.tif").metadata["DateTime"] == "2026:11:25 10:00:00"


def raw_tags(path) -> dict[int, tuple[int, bytes]]:
    with tifffile.TiffFile(path) as tif:
        found = {}
        for tag in tif.pages[0].tags:
            tif.filehandle.seek(tag.valueoffset)
            found[tag.code] = (int(tag.dtype), tif.filehandle.read(tag.valuebytecount))
        return found


@pytest.mark.parametrize("n_pages", [1, 2])
def test_what_makers_and_people_say_in_a_tiff_is_carried_over(tmp_path, n_pages):
    tags = [(code, dtype, None, value, True) for code, (dtype, value) in MAKERS.items()]
    pages = noise((n_pages, 20, 30), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pages, extratags=[*tags, (52000, 4, 1, 8, True)], metadata=None)
    image = read_micrograph(tmp_path / "a.tif")
    with pytest.warns(UserWarning, match="tags that are not carried over: 52000$"):
        write_micrograph(tmp_path / "b.tif", image.pixels[::-1], like=dataclasses.replace(image, um_per_px=0.4))
    again = raw_tags(tmp_path / "b.tif")
    assert MAKERS.items() <= again.items() and 52000 not in again
    assert read_micrograph(tmp_path / "b.tif").um_per_px == pytest.approx(0.4)
    write_micrograph(tmp_path / "b.png", image.pixels, like=image)  # which has no place for them


@pytest.mark.parametrize("byteorder", "<>")
def test_imagej_s_own_tags_are_carried_over(tmp_path, byteorder):
    said = {"Info": "etched 10 s in nital\nα-Fe\n", "Properties": {"lens": "50x"}, "Overlays": [b"one", b"other"]}
    pixels = noise((20, 30), np.uint16)
    told = {"imagej": True, "resolution": (4.0, 4.0), "metadata": said | {"unit": "um"}, "byteorder": byteorder}
    tifffile.imwrite(tmp_path / "a.tif", pixels, **told)
    image = read_micrograph(tmp_path / "a.tif")
    write_micrograph(tmp_path / "b.tif", image.pixels[::-1], like=image)
    with tifffile.TiffFile(tmp_path / "b.tif") as tif:
        assert {name: tif.imagej_metadata[name] for name in said} == said
    write_micrograph(tmp_path / "c.tif", image.pixels[:10], like=image)  # overlays would lie elsewhere
    assert 50839 not in raw_tags(tmp_path / "c.tif")


def test_ome_calibration_is_read_and_written_back(tmp_path):
    sizes = {
        "PhysicalSizeX": 520.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 520.0,
        "PhysicalSizeYUnit": "nm",
    }
    tifffile.imwrite(tmp_path / "a.ome.tif", noise((20, 30), np.uint8), ome=True, metadata={"axes": "YX", **sizes})
    image = read_micrograph(tmp_path / "a.ome.tif")
    assert image.um_per_px == pytest.approx(0.52)
    write_micrograph(tmp_path / "b.ome.tif", image.pixels, like=image)
    assert read_micrograph(tmp_path / "b.ome.tif").um_per_px == pytest.approx(0.52)


@pytest.mark.parametrize("dpi", [72, 96, 150, 300, 1200])
@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg"])
def test_a_printers_resolution_is_no_calibration(tmp_path, suffix, dpi):
    Image.fromarray(noise((8, 8), np.uint8)).save(tmp_path / f"a{suffix}", dpi=(dpi, dpi))
    assert read_micrograph(tmp_path / f"a{suffix}").um_per_px is None


def test_unequal_sides_are_no_calibration(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise((8, 8), np.uint8), resolution=(2e4, 1e4), resolutionunit="CENTIMETER")
    assert read_micrograph(tmp_path / "a.tif").um_per_px is None


def test_palette_cmyk_alpha_pages_and_white_as_zero(tmp_path):
    colour = np.zeros((16, 16, 3), np.uint8)
    colour[:8], colour[8:] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(colour).convert("P").save(tmp_path / "p.png")
    assert np.array_equal(read_micrograph(tmp_path / "p.png").pixels, colour)
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "c.tif")
    assert np.array_equal(read_micrograph(tmp_path / "c.tif").pixels, colour)
    Image.fromarray(colour).convert("RGBA").save(tmp_path / "a.png")
    assert np.array_equal(read_micrograph(tmp_path / "a.png").pixels, colour)
    Image.fromarray(colour).save(tmp_path / "l.tif", compression="tiff_lzw")
    assert np.array_equal(read_micrograph(tmp_path / "l.tif").pixels, colour)
    pages = noise((3, 9, 9), np.uint16)
    tifffile.imwrite(tmp_path / "m.tif", pages, photometric="minisblack", metadata=None)
    assert np.array_equal(read_micrograph(tmp_path / "m.tif").pixels, pages[0])
    tifffile.imwrite(tmp_path / "w.tif", pages[0], photometric="miniswhite")
    assert np.array_equal(read_micrograph(tmp_path / "w.tif").pixels, 65535 - pages[0])


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_upright_however_it_is_packed(tmp_path, orientation, compression):
    pixels = noise((8, 12), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression=compression, tiffinfo={274: orientation})
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    found, expected = (read_micrograph(tmp_path / f"a.{suffix}").pixels for suffix in ("tif", "png"))
    np.testing.assert_array_equal(found, expected)
    assert found.shape == ((12, 8) if orientation > 4 else (8, 12))
    assert (orientation == 1) == np.array_equal(found, pixels)


@pytest.mark.parametrize("compression", [None, "zlib", "packbits", "lzw"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_as_zero_is_inverted_however_it_is_packed(tmp_path, dtype, compression):
    pixels = noise((9, 7), dtype)
    if compression in (None, "zlib"):
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite", compression=compression)
    else:  # what tifffile does not pack by itself
        packed = {"packbits": "packbits", "lzw": "tiff_lzw"}[compression]
        Image.fromarray(pixels).save(tmp_path / "a.tif", compression=packed)
        with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
            file.pages[0].tags["PhotometricInterpretation"].overwrite(0)
    found = read_micrograph(tmp_path / "a.tif").pixels
    np.testing.assert_array_equal(found, np.iinfo(dtype).max - pixels)


def bad_files():
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x04\0\0\0\x04"
    return {
        "empty.tif": b"",
        "text.png": b"not an image",
        "cut.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF",
        "cut.tif": b"II*\0\x08\0\0\0",
        "cut.png": png + b"\x08\0\0\0\0",
        "deep.png": png + b"\x10\x02\0\0\0",
    }


@pytest.mark.parametrize("name", bad_files())
def test_what_is_no_image_gives_one_error_that_names_it(tmp_path, name):
    (tmp_path / name).write_bytes(bad_files()[name])
    with pytest.raises(ValueError, match=rf"{name}.*accepted: TIFF") as error:
        read_micrograph(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["half.tif", "half.png", "half.jpg"])
def test_half_a_file_is_no_image(tmp_path, name):
    write_micrograph(tmp_path / name, noise((64, 64), np.uint8))
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=name):
        read_micrograph(tmp_path / name)


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((4, 4), np.nan, np.float32),
        np.zeros((4, 4), np.int32),
        np.zeros((2, 4, 4, 3), np.float32)[..., :2],
    ],
)
def test_a_tiff_of_what_is_no_micrograph(tmp_path, pixels):
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels if pixels.ndim == 2 else pixels[0],
        photometric="minisblack",
        planarconfig=None if pixels.ndim == 2 else "contig",
    )
    if pixels.ndim == 2:
        with pytest.raises(ValueError, match=r"a\.tif"):
            read_micrograph(tmp_path / "a.tif")
    else:
        assert read_micrograph(tmp_path / "a.tif").pixels.shape == (4, 4)  # grey and alpha


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_micrograph(tmp_path / "none.tif")
    with pytest.raises(ValueError, match=tmp_path.name):
        read_micrograph(tmp_path)


@pytest.mark.parametrize(
    ("name", "pixels", "match"),
    [
        ("a.bmp", np.zeros((4, 4), np.uint8), "bmp"),
        ("a", np.zeros((4, 4), np.uint8), "accepted"),
        ("a.png", np.zeros((4, 4), np.float32), "float32"),
        ("a.jpg", np.zeros((4, 4), np.uint16), "uint16"),
        ("a.png", np.zeros((4, 4, 3), np.uint16), "uint16"),
        ("a.tif", np.zeros((0, 4)), "pixels"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, name, pixels, match):
    with pytest.raises(ValueError, match=match):
        write_micrograph(tmp_path / name, pixels)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    write_micrograph(path, noise((4, 4), np.uint8))
    before = path.read_bytes()

    def dies(path, *_, **__):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(micrographs.tifffile, "imwrite", dies)
    with pytest.raises(OSError, match="disk full"):
        write_micrograph(path, noise((4, 4), np.uint8))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 5)),
        np.zeros(5),
        np.zeros((2, 5, 4)),
        np.full((5, 5), np.nan),
        np.full((5, 5), np.inf),
        [[None, 1]],
        np.zeros((5, 5), complex),
        np.zeros((5, 5), np.int64),
        [[1, 2], [3]],
        "steel",
        None,
    ],
)
def test_check_image_names_the_argument_and_what_it_takes(image):
    with pytest.raises(ValueError, match=r"micrograph: .*accepted: "):
        micrographs.check_image(image, "micrograph")


def test_check_image_refuses_colour_where_grey_is_asked():
    rgb = np.zeros((4, 4, 3), np.uint8)
    assert micrographs.check_image(rgb) is rgb
    with pytest.raises(ValueError, match=r"\[H, W\]"):
        micrographs.check_image(rgb, color=False)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.bool_])
def test_to_float_and_back(dtype):
    pixels = noise((9, 9), np.uint8) > 99 if dtype == np.bool_ else noise((9, 9), dtype)
    image = micrographs.to_float(pixels)
    assert image.dtype == np.float32
    assert 0 <= image.min() <= image.max() <= 1
    again = micrographs.from_float(image, dtype)
    assert again.dtype == dtype
    assert np.allclose(again, pixels, atol=1e-6)


def test_floats_beyond_one_come_back_on_their_own_range():
    pixels = np.linspace(-3, 500, 64).reshape(8, 8)
    image = micrographs.to_float(pixels)
    assert (image.min(), image.max()) == (0, 1)
    again = micrographs.from_float(image, pixels.dtype, micrographs.grey_range(pixels))
    assert np.allclose(again, pixels, atol=1e-3)
    assert np.array_equal(micrographs.to_float(np.full((4, 4), 7.0)), np.zeros((4, 4)))


@pytest.mark.parametrize(
    ("pixels", "white"),
    [(np.uint16([[3000, 7]]), 4095), (np.uint16([[4096]]), 8191), (np.uint16([[0]]), 1), (np.uint16([[65535]]), 65535),
     (np.array([[3000]], ">u2"), 4095), (np.uint8([[9]]), 255), (np.float32([[0.5]]), 1), (np.array([[True]]), 1)],
)  # fmt: skip
def test_a_picture_is_as_bright_as_the_bits_in_use(pixels, white):
    assert micrographs.shown_range(pixels) == (0, white)
    assert micrographs.to_float(pixels, (0.0, float(white))).max() == np.float32(pixels.max() / white)
    assert micrographs.luminance(pixels, (0.0, white / 1e3)).max() <= 1  # and no brighter than white


def test_luminance_moves_and_chroma_stays():
    rgb = 0.3 + 0.4 * RNG.random((6, 6, 3)).astype(np.float32)
    y = micrographs.luminance(rgb)
    assert np.allclose(y, 0.299 * rgb[..., 0] + 0.587 * rgb[..., 1] + 0.114 * rgb[..., 2], atol=1e-6)
    new = y + np.float32(0.1)
    moved = micrographs.with_luminance(rgb, new)
    assert np.allclose(micrographs.luminance(moved), new, atol=1e-5)
    for channel in (0, 2):  # Cr, Cb
        assert np.allclose(moved[..., channel] - new, rgb[..., channel] - y, atol=1e-5)


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Three synthetic micrographs of 1200 x 600 px in a folder that MDN_MICROGRAPHS names."""
    monkeypatch.setenv("MDN_MICROGRAPHS", str(tmp_path))
    monkeypatch.setattr(micrographs.pooch, "os_cache", lambda _: tmp_path / "cache")
    micrographs._fetch.cache_clear(), micrographs._answers.cache_clear()
    table = {}
    for name, use, traced in (
        ("iron", "reference", None),
        ("steel", "annotated", "lines.tif"),
        ("lines", "annotation", None),
    ):
        write_micrograph(tmp_path / f"{name}.tif", noise((600, 1200), np.uint8))
        sha256 = hashlib.sha256((tmp_path / f"{name}.tif").read_bytes()).hexdigest()
        table[name] = micrographs.Source(
            name=name,
            file=f"{name}.tif",
            sha256=sha256,
            url=f"https://nowhere.invalid/{name}.tif",
            licence="MIT",
            use=use,
            um_per_px=0.5,
            box=(10, 20, 1190, 580),
            traced=traced,
        )
    monkeypatch.setattr(micrographs, "sources", lambda: table)
    yield tmp_path
    micrographs._fetch.cache_clear(), micrographs._answers.cache_clear()


def test_a_source_is_found_checked_and_calibrated(registry):
    assert micrographs.load_source("iron").um_per_px == 0.5
    pixels = read_micrograph(registry / "lines.tif").pixels
    assert np.array_equal(micrographs.traced_boundaries("steel"), pixels == 0)
    with pytest.raises(ValueError, match=r"iron.*no traced"):
        micrographs.traced_boundaries("iron")
    with pytest.raises(ValueError, match=r"gold.*accepted: iron"):
        micrographs.load_source("gold")


def test_another_sha256_in_the_folder_is_refused(registry):
    write_micrograph(registry / "iron.tif", noise((600, 1200), np.uint8))
    with pytest.raises(ValueError, match=r"iron\.tif.*sha256"):
        micrographs.load_source("iron")


def test_splits_are_disjoint_and_a_reference_is_its_luminance(registry):
    pixels = micrographs.load_source("iron").pixels
    times_used = np.zeros(pixels.shape, int)
    for split in ("train", "validation", "test"):
        left, upper, right, lower = micrographs.region("iron", split)
        times_used[upper:lower, left:right] += 1
        reference = micrographs.load_reference("iron", split)
        assert np.allclose(reference, pixels[upper:lower, left:right] / 255, atol=1e-6)
    assert times_used.max() == 1
    assert times_used[20:580, 10:1190].all()
    for name, split in (("steel", "train"), ("iron", "dev")):
        with pytest.raises(ValueError, match="accepted"):
            micrographs.region(name, split)


def test_without_a_net_it_says_so_and_asks_once(registry, monkeypatch):
    asked = []

    def no_net(url, **_):
        asked.append(url)
        raise requests.ConnectionError("no net")

    monkeypatch.setattr(micrographs.requests, "head", no_net)
    for name in ("iron", "steel", "iron"):
        (registry / f"{name}.tif").unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError, match=rf"{name}\.tif.*nowhere\.invalid does not answer"):
            micrographs.load_source(name)
    assert asked == ["https://nowhere.invalid/"]


@pytest.mark.parametrize("right_bytes", [True, False])
def test_a_download_is_kept_if_its_bytes_are_right(registry, monkeypatch, right_bytes, caplog):
    monkeypatch.setattr(micrographs.pooch.get_logger(), "handlers", [caplog.handler])
    whole = (registry / "iron.tif").read_bytes()
    (registry / "iron.tif").unlink()

    class Response:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def raise_for_status(self):
            pass

        def iter_content(self, _):
            yield whole if right_bytes else b"<html>log in first</html>"

    monkeypatch.setattr(micrographs.requests, "head", lambda url, **_: None)
    monkeypatch.setattr(micrographs.requests, "get", lambda url, **_: Response())
    if right_bytes:
        assert micrographs.load_source("iron").pixels.shape == (600, 1200)
        assert (registry / "cache" / "iron.tif").read_bytes() == whole
    else:
        with pytest.raises(FileNotFoundError, match=r"iron\.tif"):
            micrographs.load_source("iron")
        assert not list((registry / "cache").glob("iron*"))
    assert not caplog.records


def test_the_registry_as_shipped():
    for name, source in micrographs.sources().items():
        assert len(source.sha256) == 64
        assert source.url.startswith("https://")
        if source.use == "reference":
            for split in ("train", "validation", "test"):
                left, upper, right, lower = micrographs.region(name, split)
                assert min(right - left, lower - upper) >= 256
        if REAL:
            pixels = micrographs.load_source(name).pixels
            left, upper, right, lower = source.box or (0, 0, 1, 1)
            assert 0 <= left < right <= pixels.shape[1]
            assert 0 <= upper < lower <= pixels.shape[0]
