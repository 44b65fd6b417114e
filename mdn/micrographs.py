"""Real micrographs (App. B, Fig. 1f): image files with their calibration, and the registry of references.

Grey is [H, W], colour [H, W, 3], rows first.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import re
import sys
import time
import tomllib
import uuid
import warnings
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from numbers import Real
from pathlib import Path
from urllib.parse import urljoin

import numpy as np
import pooch
import requests
import tifffile
from jaxtyping import Bool, Float
from PIL import Image, ImageOps, PngImagePlugin

from mdn.files import beside

ACCEPTED = (
    "TIFF (8 or 16 bit unsigned, or float), PNG (8 bit, or 16 bit grey) or JPEG, "
    "grey [H, W] or colour [H, W, 3], not empty, finite"
)
SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
UNIT_UM = {
    "nm": 1e-3,
    "um": 1.0,
    "µm": 1.0,
    "μm": 1.0,
    "\\u00b5m": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "mm": 1e3,
    "cm": 1e4,
}
UM_PER_PX = (1e-5, 1e6)  # sizes of a pixel that can be meant: a tenth of an atom, a metre
COARSEST_UM = 10.0  # a resolution coarser than this is a screen's or a printer's, no microscope's
SPLITS = {"train": (0.0, 0.5), "validation": (0.5, 0.75), "test": (0.75, 1.0)}
MOST_SEGMENTS = 1 << 17  # strips or tiles: each takes its own time, however small
SLACK = 1024  # bytes that a strip or tile may unpack to beyond its own
MOST_SCANS = 32  # of a JPEG: each goes over the whole image; progressive ones have some ten
MAX_BYTES = 400_000_000  # decoded; reading takes some five times that at its worst (Pillow, in colour)
KEPT_TAGS = ("Software", "DateTime", "XResolution", "YResolution", "ResolutionUnit")
CARRIED_TAGS = (269, 271, 272, 315, 316, 700)  # document, maker, model, artist, computer, XMP; and the private ones
EXIF_TAGS = (269, 271, 272, 315, 316, 33432)  # document, maker, model, artist, computer, copyright, of a JPEG or PNG
LAYOUT_TAGS = (*range(254, 267), *range(273, 285), 296, *range(529, 533))  # how pixels lie: each file's own matter
STORAGE_TAGS = (32995, 32996, 32997, 32998, 50838)  # private ones that say how another one or the pixels lie
MOST_TAG_BYTES = 1 << 20  # of all that are carried
REC_601 = np.array([0.299, 0.587, 0.114], np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Micrograph:
    """Pixels [H, W] or [H, W, 3], um per pixel (None where unknown), and what else the file says.

    Of a TIFF, metadata["tiff_tags"] holds what is written again as it is, {code: (type, bytes)}, and
    metadata["tiff_tags_left"] the names of tags that are not. Where the two sides of a pixel differ, which is no
    calibration, metadata["sides_um"] holds both.
    """

    pixels: np.ndarray
    um_per_px: float | int | None = None
    metadata: dict = dataclasses.field(default_factory=dict)


def check_calibration(um_per_px) -> None:
    """Refuse a size of a pixel that is none; None, no calibration, is accepted.

    Raises:
        ValueError: telling what was given and what is accepted.
    """
    low, high = UM_PER_PX
    if um_per_px is not None and not (isinstance(um_per_px, Real) and low <= um_per_px <= high):
        raise ValueError(f"um_per_px: {um_per_px!r}; accepted: um per pixel from {low:g} to {high:g}, or None")


def check_image(image, name: str = "image", color: bool = True) -> np.ndarray:
    """Return `image` as an array if it is one that mdn takes, else raise a ValueError that says why not.

    Taken: [H, W], or [H, W, 3] where `color`; bool, uint8, uint16 or float of 16 to 64 bits; not empty; finite.
    """
    taken = "[H, W] or [H, W, 3]" if color else "[H, W]"
    taken = f"accepted: {taken}, not empty, finite, of dtype bool, uint8, uint16 or float of 16 to 64 bits"
    try:
        image = np.asarray(image)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {type(image).__name__} is no array ({error}); {taken}") from None
    image = image.astype(image.dtype.newbyteorder("="), copy=False)
    given = f"{name}: shape {image.shape}, dtype {image.dtype}"
    if image.dtype not in (np.bool_, np.uint8, np.uint16, np.float16, np.float32, np.float64):
        raise ValueError(f"{given}; {taken}")
    if not (image.ndim == 2 or (color and image.ndim == 3 and image.shape[-1] == 3)) or image.size == 0:
        raise ValueError(f"{given}; {taken}")
    if not np.isfinite(image).all():
        raise ValueError(f"{given}, holds NaN or infinity; {taken}")
    return image


def grey_range(pixels: np.ndarray) -> tuple[float, float]:
    """Black and white: 0 and an integer's largest; 0 and 1 for floats in between, else their own range."""
    if np.issubdtype(pixels.dtype, np.unsignedinteger):
        return 0.0, float(np.iinfo(pixels.dtype).max)
    low, high = float(pixels.min()), float(pixels.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def shown_range(pixels: np.ndarray) -> tuple[float, float]:
    """Black and white of a picture of them: as in `grey_range`, but for 12 bits in 16, say, the largest of 12 bits."""
    if (pixels.dtype.kind, pixels.dtype.itemsize) != ("u", 2):
        return grey_range(pixels)
    return 0.0, 2.0 ** max(int(pixels.max()).bit_length(), 1) - 1


def to_float(pixels: np.ndarray, levels: tuple[float, float] | None = None) -> np.ndarray:
    """float32 in [0, 1]: (p - black) / (white - black), clipped; both by default as in `grey_range`."""
    pixels = check_image(pixels, "pixels")
    black, white = levels or grey_range(pixels)
    unit = 0.25 if white / 4 - black / 4 > 1e307 else 1.0  # white - black would be infinite
    scaled = (pixels.astype(np.float64) * unit - black * unit) / ((white * unit - black * unit) or 1.0)
    return np.clip(scaled, 0, 1).astype(np.float32)


def from_float(image: np.ndarray, dtype, grey_range: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """[0, 1] back to `dtype`: clipped, integers rounded, floats stretched to the `grey_range` they had."""
    dtype = np.dtype(dtype)
    if dtype == np.bool_:
        return np.asarray(image) >= 0.5
    if np.issubdtype(dtype, np.unsignedinteger):
        return np.rint(np.clip(image, 0, 1).astype(np.float64) * np.iinfo(dtype).max).astype(dtype)
    (black, white), image = grey_range, np.clip(image, 0, 1).astype(np.float64)
    return (black * (1 - image) + white * image).astype(dtype)  # white - black may be infinite


def luminance(pixels: np.ndarray, levels: tuple[float, float] | None = None) -> np.ndarray:
    """Luminance float32 [H, W] in [0, 1]: Y = 0.299 R + 0.587 G + 0.114 B (Rec. 601); grey as it is.

    levels: as of `to_float`.
    """
    image = to_float(pixels, levels)
    return image if image.ndim == 2 else image @ REC_601


def with_luminance(rgb: Float[np.ndarray, "h w 3"], new: Float[np.ndarray, "h w"]) -> np.ndarray:
    """`rgb` of another luminance: Y' - Y on each channel keeps Cb ~ B - Y and Cr ~ R - Y; clipped."""
    return np.clip(rgb + (new - rgb @ REC_601)[..., None], 0, 1).astype(np.float32)


def read_micrograph(path: str | os.PathLike, *, max_bytes: int = MAX_BYTES) -> Micrograph:
    """Read a TIFF, PNG or JPEG with its calibration.

    um per pixel: from an ImageJ or OME unit of length, else from a resolution per inch, cm or metre of at
    most 10 um per pixel (72, 96 or 300 dpi say nothing of a microscope); None if the two sides differ.

    Any size from 1 x 1 up. Turned upright where the file says how it lies. Of many pages the first; palette, YCbCr
    and CMYK become RGB; alpha is dropped, not blended. 12 bits in 16 stay the numbers they are; either byte order is
    read, the machine's is returned.
    Floats are kept, negative and constant ones too; a file that holds NaN or infinity is refused.
    The pixels are a copy in memory, never a map of the file.

    Args:
        path: a regular file.
        max_bytes: an image that says it is larger than this when decoded is refused before it is decoded.

    Raises:
        ValueError: for a file that is no such image, is damaged or too large, naming file and cause.
        FileNotFoundError: where there is none.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        if not path.is_file():
            raise ValueError("no regular file")
        with path.open("rb") as file:
            head = file.read(26)
        is_tiff = head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
        with _strict_limits():
            image = _read_tiff(path, max_bytes) if is_tiff else _read_pillow(path, head, max_bytes)
        return dataclasses.replace(image, pixels=check_image(image.pixels, "pixels"))
    except Exception as error:  # decoders raise a dozen kinds; the reader needs one
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: no micrograph to be read ({reason}); accepted: {ACCEPTED}") from error


@contextmanager
def _strict_limits():
    """Warnings stay warnings whatever the filters; `max_bytes` alone limits the size, not Pillow's own number."""
    pixels, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = pixels


def _check_size(n_bytes: int, max_bytes: int) -> None:
    if n_bytes > max_bytes:
        raise ValueError(
            f"{n_bytes:,} bytes when decoded, above the limit of max_bytes={max_bytes:,}; "
            f"if the file is to be trusted, read_micrograph(path, max_bytes={n_bytes}) reads it"
        )


def _read_tiff(path: Path, max_bytes: int) -> Micrograph:
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        check_tiff(tif, page, max_bytes)
        metadata = {"format": "TIFF"} | tiff_metadata(tif, page)
        calibration = tiff_calibration(tif, page)
        turned = int(page.tags["Orientation"].value) if "Orientation" in page.tags else 1
        plain = page.photometric.name in ("MINISBLACK", "MINISWHITE", "RGB")
        packed = page.compression.name in ("NONE", "ADOBE_DEFLATE", "DEFLATE")
        if plain and packed:
            pixels = page.asarray()
            if page.axes.startswith("S"):  # planes one after another
                pixels = np.moveaxis(pixels, 0, -1)
            if pixels.ndim == 3 and page.photometric.name == "RGB":
                pixels = pixels[..., :3]
            elif pixels.ndim == 3 and pixels.shape[-1] == 2:  # grey, alpha
                pixels = pixels[..., 0]
            if page.photometric.name == "MINISWHITE" and pixels.dtype.kind in "bu":
                pixels = ~pixels
            pixels = _turned(pixels, turned)
        elif page.bitspersample <= 8 or page.samplesperpixel == 1:
            if "JPEG" in page.compression.name:
                _check_scans(path, more=len(page.dataoffsets))
            with Image.open(path, formats=("TIFF",)) as image:  # palette, CMYK, LZW, JPEG in TIFF
                if image.size != (page.imagewidth, page.imagelength)[:: -1 if turned > 4 else 1]:
                    raise ValueError("its size is ambiguous")
                pixels = _pillow_pixels(image)  # which turns it
                if page.photometric.name == "MINISWHITE" and pixels.dtype.kind == "u" and page.bitspersample > 8:
                    pixels = ~pixels  # fewer bits Pillow inverts itself
        else:
            raise ValueError(f"{page.compression.name} compression of {page.bitspersample}-bit colour")
    metadata |= {"shape": pixels.shape} | calibration
    return Micrograph(pixels=np.ascontiguousarray(pixels), um_per_px=calibration["um_per_px"], metadata=metadata)


def tiff_metadata(tif: tifffile.TiffFile, page: tifffile.TiffPage) -> dict:
    """What a TIFF's page says beside its pixels: see `Micrograph`.

    Makers' private tags are carried where they are text or bytes: numbers may be addresses in the file.
    """
    known = {"description": page.description, "n_pages": len(tif.pages)}
    known |= {tag: page.tags[tag].value for tag in KEPT_TAGS if tag in page.tags}
    carried, left, room = {}, [], MOST_TAG_BYTES
    plain = page.photometric.name in ("MINISBLACK", "RGB")
    for tag in page.tags:
        if (tag.code < 1 << 15 and tag.code not in CARRIED_TAGS) or tag.code in STORAGE_TAGS:
            continue
        size, found = tag.valuebytecount, {}
        other = size > room or (tag.code == 34675 and not plain)  # a profile of colours that become others
        if tag.code == 50839 and len(tif.pages) == 1 and not other:
            found = _imagej_tags(tag.value)
        elif tag.code != 50839 and tag.dtype in (1, 2, 7) and not other:
            tif.filehandle.seek(tag.valueoffset)
            value = tif.filehandle.read(size)
            found = {tag.code: (int(tag.dtype), value)} if len(value) == size else {}
        room -= sum(len(value) for _, value in found.values())
        carried |= found
        left += [] if found else [str(tag.name)]
    return known | {"tiff_tags": carried, "tiff_tags_left": left}


def _imagej_tags(said) -> dict[int, tuple[int, bytes]]:
    """ImageJ's Info, overlays and so on in the byte order that tifffile writes; nothing where they are damaged."""
    try:
        tags = tifffile.imagej_metadata_tag(said, "<" if sys.byteorder == "little" else ">")
    except Exception:  # said is whatever the file holds
        return {}
    return {code: (dtype, value) for code, dtype, _, value, _ in tags}


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Upright, of an image stored in one of TIFF's and EXIF's eight orientations; others are taken as upright."""
    pixels = pixels.swapaxes(0, 1) if 5 <= orientation <= 8 else pixels
    pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def _check_scans(path: Path, more: int = 0) -> None:
    """Refuse a JPEG of more scans than any camera makes; their mark stands nowhere else in one."""
    scans = path.read_bytes().count(b"\xff\xda")
    if scans > MOST_SCANS + more:
        raise ValueError(f"a JPEG of {scans} scans; accepted: {MOST_SCANS + more} at most")


def check_tiff(tif: tifffile.TiffFile, page: tifffile.TiffPage, max_bytes: int | None) -> None:
    """Refuse what would take too much memory, and strips or tiles that are not there: tifffile would fill in 0.

    `max_bytes` None: the image may be of any size, a strip or tile not unpack to more than its own.
    """
    if math.prod(page.chunked) > MOST_SEGMENTS:
        raise ValueError(f"{math.prod(page.chunked):,} strips or tiles; accepted: {MOST_SEGMENTS:,} at most")
    one = -(-max(page.bitspersample, 1) // 8)
    rows, *others = page.chunks
    segment = one * math.prod((rows if page.is_tiled else min(rows, page.imagelength), *others))
    shown = 3 * page.imagewidth * page.imagelength if page.photometric.name == "PALETTE" else 0
    if max_bytes is not None:
        _check_size(max(one * page.size, segment, shown), max_bytes)
    ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    whole = 0 < len(ends) == math.prod(page.chunked) and min(page.databytecounts) > 0 and min(page.dataoffsets) > 0
    if not whole or max(ends) > tif.filehandle.size:
        raise ValueError(f"{'tiles' if page.is_tiled else 'strips'} are missing or cut short")
    if page.compression.name not in ("ADOBE_DEFLATE", "DEFLATE"):
        return
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if 1032 * count <= segment + SLACK:  # deflate packs no closer than that
            continue
        tif.filehandle.seek(offset)
        packed, unpacked, inflate = tif.filehandle.read(count), 0, zlib.decompressobj()
        with suppress(zlib.error):  # of damage the reading tells, and where
            while not inflate.eof and packed and unpacked <= segment + SLACK:
                unpacked += len(inflate.decompress(packed, min(segment + SLACK, 1 << 24)))
                packed = inflate.unconsumed_tail
        if unpacked > segment + SLACK:
            raise ValueError("a strip or tile that unpacks to more than its size")


def tiff_calibration(tif: tifffile.TiffFile, page: tifffile.TiffPage) -> dict:
    """What metadata says of the calibration, as `read_micrograph` takes it from a TIFF's tags."""
    x, y = ((page.tags[tag].value if tag in page.tags else (0, 1)) for tag in ("XResolution", "YResolution"))
    x, y = (a / b if b else 0.0 for a, b in (x, y))  # pixels a unit
    if tif.is_ome and "PhysicalSize" in tif.ome_metadata:
        pixels = ElementTree.fromstring(tif.ome_metadata).find(".//{*}Pixels")
        known = {} if pixels is None else pixels
        sizes = [(known.get(f"PhysicalSize{a}", 0), known.get(f"PhysicalSize{a}Unit", "µm")) for a in "XY"]
        return _calibration(*(float(size) * UNIT_UM.get(unit, 0.0) for size, unit in sizes))
    unit = (tif.imagej_metadata or {}).get("unit") if tif.is_imagej else None
    if unit is not None:
        scale = UNIT_UM.get(str(unit).strip().lower(), 0.0)
        return _calibration(scale / x if x else 0.0, scale / y if y else 0.0)
    scale = {2: 25400.0, 3: 10000.0}.get(int(page.resolutionunit), 0.0)
    return _calibration(scale / x if x else 0.0, scale / y if y else 0.0, coarsest=COARSEST_UM)


def _calibration(x: float, y: float, coarsest: float = np.inf) -> dict:
    """um_per_px of square pixels, else None, and the sides_um, (across, down), where these are known and differ."""
    known = all(0 < side <= coarsest and np.isfinite(side) for side in (x, y))
    if known and abs(x - y) > 0.01 * x:
        return {"um_per_px": None, "sides_um": (x, y)}
    return {"um_per_px": float(f"{x:.7g}") if known else None}  # the tags hold no more digits


def _read_pillow(path: Path, head: bytes, max_bytes: int) -> Micrograph:
    if head.startswith(b"\x89PNG") and head[24:25] == b"\x10" and head[25:26] != b"\0":
        raise ValueError("a 16-bit PNG that is not plain grey; save it as TIFF")  # Pillow would drop the low byte
    if head.startswith(b"\x89PNG"):
        with Image.open(path, formats=("PNG",)) as image:
            image.verify()  # the checksum of every chunk, which Pillow does not look at as it decodes
    if head.startswith(b"\xff\xd8"):
        _check_scans(path)
    with Image.open(path, formats=("PNG", "JPEG")) as image:
        depth = 2 if image.mode.startswith("I") else 1
        bands = 3 if image.mode.startswith("P") else len(image.getbands())  # of a palette three colours are made
        _check_size(depth * bands * image.width * image.height, max_bytes)
        metadata = {"format": image.format, "mode": image.mode}
        image.load()
        dpi = image.info.get("dpi", (0, 0))
        ImageOps.exif_transpose(image, in_place=True)
        metadata |= {k: v for k, v in image.info.items() if isinstance(v, (str, bytes))}
        pixels = _pillow_pixels(image)
    calibration = _calibration(*(25400.0 / float(d) if d else 0.0 for d in dpi), coarsest=COARSEST_UM)
    return Micrograph(pixels=pixels, um_per_px=calibration["um_per_px"], metadata=metadata | calibration)


def _pillow_pixels(image: Image.Image) -> np.ndarray:
    if image.mode not in ("L", "RGB", "F") and not image.mode.startswith("I"):
        image = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
    return np.array(image)


def micrographs_in(folder: str | os.PathLike) -> list[Path]:
    """The TIFF, PNG and JPEG files of a folder, by name; hidden ones are left out. Empty where there is no folder."""
    found = [p for p in Path(folder).glob("*") if p.suffix.lower() in SUFFIXES]
    return sorted(p for p in found if not p.name.startswith("."))


def write_micrograph(path: str | os.PathLike, pixels: np.ndarray, like: Micrograph | None = None) -> None:
    """Write pixels in the format that the suffix names, with the calibration and the description of `like`.

    Written beside its place and renamed, so that no half-written file stands there or is left beside it. TIFF
    keeps calibration, description, software, date and what else `like` carries of another TIFF, or of a JPEG's or PNG's
    maker, model, artist, copyright and texts, and warns of what it does not; PNG keeps calibration and texts; JPEG
    (quality 95) no calibration. bool becomes 0 and 255. ValueError for another suffix, a dtype that the format has no
    place for, or a calibration that is none; OSError naming the file where the disk is full or takes no files.
    """
    path, pixels = Path(path), check_image(pixels, "pixels")
    pixels = from_float(pixels, np.uint8) if pixels.dtype == np.bool_ else pixels
    suffix, depth = path.suffix.lower(), pixels.dtype
    if suffix not in SUFFIXES:
        raise ValueError(f"path: {path} ends in {suffix!r}; accepted: {', '.join(SUFFIXES)}")
    if (
        suffix not in (".tif", ".tiff")
        and depth != np.uint8
        and not (suffix == ".png" and depth == np.uint16 and pixels.ndim == 2)
    ):
        raise ValueError(
            f"pixels: {depth} of shape {pixels.shape} has no place in a {suffix} file; "
            "accepted: uint8 in all, uint16 grey in .png, uint16 and floats in .tif"
        )
    check_calibration(like and like.um_per_px)
    like, write = like or Micrograph(pixels=pixels), _write_tiff if suffix.startswith(".t") else _write_pillow
    with beside(path, path.with_name(f".{path.stem}.{uuid.uuid4().hex}.part{suffix}")) as part:
        write(part, pixels, like)


def _write_tiff(path: Path, pixels: np.ndarray, like: Micrograph) -> None:
    like = dataclasses.replace(like, metadata=in_tiff(like.metadata))
    tifffile.imwrite(path, pixels, **tiff_tags(pixels.shape, like))


def in_tiff(metadata: dict) -> dict:
    """What a JPEG or PNG says of itself in the words that a TIFF has for it, as of `Micrograph`; a TIFF's as it is."""
    if metadata.get("format", "TIFF") == "TIFF":
        return dict(metadata)
    exif = Image.Exif()
    with suppress(Exception):  # a camera's broken tags are no reason to leave its picture out
        exif.load(metadata.get("exif", b""))
    texts = {k: v for k, v in metadata.items() if isinstance(v, str) and v and k not in ("format", "mode")}
    notes = [str(exif[270])] if exif.get(270) else []
    known = {"format": "TIFF", "description": "\n".join(notes + [f"{k}: {v}" for k, v in texts.items()])}
    known |= {name: str(exif[tag]) for name, tag in (("Software", 305), ("DateTime", 306)) if exif.get(tag)}
    carried = {tag: (2, f"{exif[tag]}\0".encode()) for tag in EXIF_TAGS if exif.get(tag)}
    others = [tag for tag in sorted(exif) if tag not in (270, 305, 306, *EXIF_TAGS, *LAYOUT_TAGS)]
    left = [tifffile.TIFF.TAGS.get(tag, str(tag)) for tag in others]
    left += [k for k, v in metadata.items() if isinstance(v, bytes) and k != "exif"]
    return known | {"tiff_tags": carried, "tiff_tags_left": left}


def tiff_tags(shape: tuple[int, ...], like: Micrograph) -> dict:
    """What tifffile is to write beside pixels of this shape: the calibration and description of `like`."""
    known, um_per_px = like.metadata, like.um_per_px
    same = (known.get("n_pages"), known.get("shape"), known.get("um_per_px")) == (1, shape, um_per_px)
    text = str(known.get("description", ""))
    tags = {"metadata": None, "photometric": "rgb" if len(shape) == 3 else "minisblack"}
    ome, imagej = text.rstrip().endswith("OME>"), text.lstrip().startswith("ImageJ=")
    others = (known.get("n_pages"), known.get("shape")) != (1, shape)
    scaled = (ome and "PhysicalSize" in text) or (imagej and "unit=" in text)
    if (scaled and not same) or (others and (ome or imagej or text.startswith('{"shape"'))):
        text = ""  # it would go on speaking of the other pages or of the other scale
    resolution, unit = (known.get("XResolution"), known.get("YResolution")), known.get("ResolutionUnit", 1)
    if same and all(isinstance(r, tuple) and len(r) == 2 and r[1] > 0 for r in resolution) and unit in (1, 2, 3):
        tags |= {"resolution": resolution, "resolutionunit": int(unit)}
    elif um_per_px:
        tags |= {"resolution": (1e4 / um_per_px,) * 2, "resolutionunit": "CENTIMETER"}
    software, when = (str(known.get(tag, "")) for tag in ("Software", "DateTime"))
    if software.isascii() and software:  # a file may hold what tifffile does not write
        tags["software"] = software
    if re.fullmatch(r"\d{4}:\d\d:\d\d \d\d:\d\d:\d\d", when, re.ASCII):
        tags["datetime"] = when
    if left := known.get("tiff_tags_left"):
        warnings.warn(f"tags that are not carried over: {some(left)}", stacklevel=2)
    carried = known.get("tiff_tags", {})
    if known.get("shape") != shape:  # ImageJ's overlays lie on the whole image
        carried = {code: value for code, value in carried.items() if code not in (50838, 50839)}
    extra = [(code, dtype, None, value, True) for code, (dtype, value) in carried.items()]
    return tags | {"description": text.encode() or None, "extratags": extra}


def some(names: Sequence[str], most: int = 8) -> str:
    """The first of them in words, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _write_pillow(path: Path, pixels: np.ndarray, like: Micrograph) -> None:
    known, options = like.metadata, {}
    options |= {name: known[name] for name in ("exif", "icc_profile") if isinstance(known.get(name), bytes)}
    if path.suffix.lower() == ".png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for name, text in known.items():
            if isinstance(text, str) and name not in ("format", "mode") and text:
                options["pnginfo"].add_itxt(name[:79], text)
        options |= {"dpi": (25400.0 / like.um_per_px,) * 2} if like.um_per_px else {}
    else:
        options |= {"quality": 95, "subsampling": 0}
    Image.fromarray(pixels).save(path, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A table of sources.toml; box is (left, upper, right, lower) in px, traced the file of boundaries."""

    name: str
    file: str
    sha256: str
    url: str
    licence: str
    use: str
    material: str = ""
    um_per_px: float | int | None = None
    box: tuple[int, int, int, int] | None = None
    traced: str | None = None


def sources() -> dict[str, Source]:
    """The registered micrographs by name."""
    tables = tomllib.loads(Path(__file__).with_name("sources.toml").read_text(encoding="utf-8"))
    return {
        name: Source(name=name, **table | {"box": tuple(table["box"]) if "box" in table else None})
        for name, table in tables.items()
    }


def _source(name: str) -> Source:
    if name not in sources():
        raise ValueError(f"name: no registered micrograph {name!r}; accepted: {', '.join(sources())}")
    return sources()[name]


def load_source(name: str) -> Micrograph:
    """The whole of a registered micrograph, with the registry's calibration.

    Its file is looked for in the folder that MDN_MICROGRAPHS names, in the cache, then at its address (30 s
    at most; a host that did not answer is not asked again by this process). Raises FileNotFoundError where it
    cannot be had, ValueError for an unknown name or a file in the folder with another sha256.
    """
    source = _source(name)
    folder = os.environ.get("MDN_MICROGRAPHS")
    path = Path(folder).expanduser() / source.file if folder else None
    if path and path.is_file():
        if hashlib.sha256(path.read_bytes()).hexdigest() != source.sha256:
            raise ValueError(f"{path}: its sha256 is not {source.sha256}, that of {name} in sources.toml")
    else:
        path, reason = _fetch(source)
        if path is None:
            raise FileNotFoundError(f"{source.file}: not in MDN_MICROGRAPHS ({folder or 'unset'}); {reason}")
    image = read_micrograph(path)
    return dataclasses.replace(image, um_per_px=source.um_per_px or image.um_per_px)


def at_hand(file: str) -> bool:
    """Whether a registered file needs no download: it lies in the folder of MDN_MICROGRAPHS, or in the cache."""
    folders = filter(None, (os.environ.get("MDN_MICROGRAPHS"), pooch.os_cache("mdn")))
    return any((Path(folder).expanduser() / file).is_file() for folder in folders)


@functools.cache
def _answers(host: str) -> bool:
    try:
        requests.head(f"https://{host}/", timeout=5)
    except requests.RequestException:
        return False
    return True


def _https_alone(response: requests.Response, **_) -> None:
    """Called with every answer, before a redirect is followed."""
    onwards = urljoin(response.url, response.headers.get("location", ""))
    if not onwards.startswith("https://"):
        raise OSError(f"{response.url} leads to {onwards}, which is no https address")


@functools.cache
def _fetch(source: Source) -> tuple[Path | None, str]:
    """The cached file, downloaded if need be, or None and why; either answer holds for the whole process."""
    if not source.url.startswith("https://"):
        return None, f"{source.url} is no https address"
    host, end = source.url.split("/")[2], time.monotonic() + 30
    https = {"response": _https_alone}

    def download(url, output_file, pooch):
        if not _answers(host):
            raise OSError(f"{host} does not answer")
        with requests.get(url, timeout=10, stream=True, hooks=https) as response, open(output_file, "wb") as file:
            response.raise_for_status()
            for chunk in response.iter_content(1 << 16):
                file.write(chunk)
                if time.monotonic() > end:
                    raise OSError(f"{host} took longer than 30 s")

    pooch.get_logger().setLevel("ERROR")
    try:
        return Path(
            pooch.retrieve(
                source.url,
                "sha256:" + source.sha256,
                fname=source.file,
                path=pooch.os_cache("mdn"),
                downloader=download,
            )
        ), ""
    except (OSError, ValueError) as error:  # no net, no room, or other bytes than the registry's
        return None, str(error)


def region(name: str, split: str) -> tuple[int, int, int, int]:
    """(left, upper, right, lower) of one of three disjoint parts of a reference's box, in px.

    train, validation and test take 50, 25 and 25 % of the longer side. ValueError for other names and splits.
    """
    source = _source(name)
    if source.use != "reference" or split not in SPLITS:
        names = [s.name for s in sources().values() if s.use == "reference"]
        raise ValueError(f"region: {name!r}, {split!r}; accepted: name in {names}, split in {list(SPLITS)}")
    left, upper, right, lower = source.box
    start, stop = SPLITS[split]
    if right - left >= lower - upper:
        return left + int(start * (right - left)), upper, left + int(stop * (right - left)), lower
    return left, upper + int(start * (lower - upper)), right, upper + int(stop * (lower - upper))


def load_reference(name: str, split: str) -> Float[np.ndarray, "h w"]:
    """Luminance, float32 in [0, 1], of a reference's part in `split`; raises as `region`, `load_source`."""
    left, upper, right, lower = region(name, split)
    return luminance(load_source(name).pixels[upper:lower, left:right])


def traced_boundaries(name: str = "steel_nist") -> Bool[np.ndarray, "h w"]:
    """Where boundaries were traced by hand on an annotated micrograph; raises ValueError where none were."""
    traced = [s.name for s in sources().values() if s.file == _source(name).traced]
    if not traced:
        accepted = [s.name for s in sources().values() if s.traced]
        raise ValueError(f"name: {name!r} has no traced boundaries; accepted: {accepted}")
    return load_source(traced[0]).pixels == 0
