"""Micrographs larger than memory, from disk to disk: TIFF or Zarr, a band of rows at a time.

What the whole image decides is decided for all of it: one stretch, one set of channel weights, one histogram.
"""

from __future__ import annotations

import dataclasses
import glob
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
import zarr
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from mdn.files import beside, sweep
from mdn.inference import Denoiser, finished, load_denoiser
from mdn.micrographs import (
    Micrograph,
    check_calibration,
    check_image,
    check_tiff,
    from_float,
    luminance,
    tiff_calibration,
    tiff_metadata,
    tiff_tags,
)

BAND = 512  # rows at a time, fewer of wide images; also the side of the tiles that are written
PIXELS = 1 << 22  # of a band at a time: eight bytes and more each on the way
LEVELS = 1 << 20  # greys that the histograms tell apart
LARGEST_STRIP = 1 << 28  # bytes of a compressed strip or tile, which is unpacked whole
TAKEN = "accepted: a TIFF, uncompressed or deflate, or a Zarr array (version 3); grey [H, W] or colour [H, W, 3]"


def denoise_large(
    source: str | os.PathLike,
    target: str | os.PathLike,
    denoiser: Denoiser | None = None,
    *,
    um_per_px: float | int | None = None,
    match_histogram: bool = True,
    exact: bool = False,
    progress: bool = True,
) -> None:
    """Denoise a micrograph that need not fit in memory.

    An uncompressed TIFF is read as it lies on disk; of others, and of Zarr arrays, a strip, tile or chunk is unpacked
    whole, which must not be larger than `LARGEST_STRIP`. The result is written in tiles.

    Where `exact`, it is that of `Denoiser.__call__` to 1e-4 of the grey range; the matching tells a million greys
    apart, and where they are rare a pixel may differ by more. Beside the target it takes eight bytes a pixel of
    scratch; memory holds a band and the tiles at hand, some two gigabytes whatever the image's size. A chunk that a
    Zarr array does not hold is its fill value, as Zarr has it; only chunks with a checksum codec show a flipped byte.

    Args:
        source: a TIFF of one page, or a folder that holds a Zarr array, of the dtypes that `read_micrograph` takes.
        target: what to write, of the same shape and dtype, calibration and description kept, from TIFF to TIFF as
            `write_micrograph` does: a tiled TIFF (.tif, .tiff) or a Zarr array (.zarr). Written beside its place and
            renamed.
        denoiser: the shipped one by default.
        um_per_px: the calibration, where the source has none.
        match_histogram: as of `Denoiser.__call__`.
        exact: as of `Denoiser.restore`.
        progress: whether to show a bar.

    Raises:
        ValueError: for a source that is no such image or holds NaN or infinity, naming it; for another target; for an
            um_per_px that is no size.
        FileNotFoundError: where there is no source.
        OSError: where there is no room for scratch and target.
    """
    source, target = Path(source), Path(target)
    suffix = target.suffix.lower()
    if suffix not in (".tif", ".tiff", ".zarr") or (suffix == ".zarr" and target.exists()):
        raise ValueError(f"target: {target}; accepted: a .tif, a .tiff, or a .zarr that is not there yet")
    check_calibration(um_per_px)
    denoiser = denoiser or load_denoiser()
    sweep(target.resolve().parent.glob(f".{glob.escape(target.name)}.*"))
    with (
        _opened(source) as (image, like),
        tempfile.TemporaryDirectory(dir=target.resolve().parent, prefix=f".{target.name}.") as folder,
        tqdm(total=100, desc=source.name, unit="%", disable=not progress, bar_format="{l_bar}{bar}| {elapsed}") as bar,
    ):
        like = dataclasses.replace(like, um_per_px=like.um_per_px or um_per_px)
        image = _Source(image, source)
        scale = _Scale(image, source)
        grey, clean = (_scratch(Path(folder) / name, image.shape[:2]) for name in ("grey", "clean"))
        for rows in _bands(image.shape):
            grey[rows] = luminance(scale(image[rows]))
        levels = _levels(grey, (0.0, 1.0))
        denoiser.restore(
            grey,
            report=lambda share: bar.update(100 * share - bar.n),
            exact=exact,
            limits=_percentiles(levels, (0.01, 0.99)),
            out=clean,
        )
        if match_histogram:
            ends = float(clean.min()), float(clean.max())
            curve = _matching(_levels(clean, ends), levels)
            for rows in _bands(clean.shape):
                clean[rows] = curve[_level(clean[rows], ends)]
        result = (
            finished(scale(image[rows]), clean[rows], image.dtype, (scale.black, scale.white))
            for rows in _bands(image.shape)
        )
        part, write = Path(folder) / f"result{suffix}", _write_zarr if suffix == ".zarr" else _write_tiles
        with beside(target, part):
            write(part, _tile_rows(result, image.shape[0]), image.shape, image.dtype, like)


def _bands(shape: tuple[int, ...]) -> Iterator[slice]:
    rows = max(1, min(BAND, PIXELS // shape[1]))
    return (slice(a, min(a + rows, shape[0])) for a in range(0, shape[0], rows))


def _tile_rows(bands: Iterable[np.ndarray], height: int) -> Iterator[np.ndarray]:
    """The same rows, `BAND` of them at a time."""
    held, count = [], 0
    for band in bands:
        while len(band):
            held.append(band[: BAND - count])
            band, count = band[BAND - count :], count + len(held[-1])
            height -= len(held[-1])
            if count == BAND or not height:
                yield np.concatenate(held)
                held, count = [], 0


def _chunked(store, **options) -> zarr.Array:
    """An array to slice whose chunks (a TIFF's strips or tiles) are unpacked whole when a band touches them."""
    image = zarr.open_array(store, mode="r", **options)
    size = math.prod(image.chunks) * image.dtype.itemsize
    if size > LARGEST_STRIP:
        raise ValueError(f"strips, tiles or chunks of {size:,} bytes; accepted: {LARGEST_STRIP:,} at most")
    return image


@contextmanager
def _opened(path: Path):
    """An array to slice, and what else the file says."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    tif = None
    try:
        if path.is_dir():
            image = _chunked(str(path), zarr_format=3)
            check_calibration(image.attrs.get("um_per_px"))
            metadata = {name: value for name, value in image.attrs.items() if not name.startswith("tiff_tags")}
            like = Micrograph(pixels=np.empty(0), um_per_px=metadata.get("um_per_px"), metadata=metadata)
        else:
            tif = tifffile.TiffFile(path)
            page = tif.pages[0]
            check_tiff(tif, page, max_bytes=None)
            if page.photometric.name not in ("MINISBLACK", "RGB") or len(tif.pages) > 1 or page.axes.startswith("S"):
                raise ValueError(f"{page.photometric.name}, {len(tif.pages)} pages, axes {page.axes}")
            turned = page.tags["Orientation"].value if "Orientation" in page.tags else 1
            if page.compression.name not in ("NONE", "ADOBE_DEFLATE", "DEFLATE") or turned != 1:
                raise ValueError(f"{page.compression.name} compression, orientation {turned}")
            image = tifffile.memmap(path, page=0, mode="r") if page.is_memmappable else _chunked(page.aszarr())
            metadata = tiff_metadata(tif, page) | {"shape": image.shape} | tiff_calibration(tif, page)
            like = Micrograph(pixels=np.empty(0), um_per_px=metadata["um_per_px"], metadata=metadata)
        check_image(np.zeros((1, *image.shape[1:]), image.dtype) if image.shape[0] else np.empty(0))
    except Exception as error:  # decoders raise a dozen kinds; the reader needs one
        if tif:
            tif.close()
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: no image to be read in bands ({reason}); {TAKEN}") from error
    try:
        yield image, like
    finally:
        if tif:
            tif.close()


class _Source:
    """An array of a file, read band by band; what cannot be read is told by name. Booleans are read as 0 and 255."""

    def __init__(self, image, path: Path):
        self.image, self.path, self.shape = image, path, image.shape
        self.dtype = np.dtype(np.uint8) if image.dtype == np.bool_ else image.dtype.newbyteorder("=")

    def __getitem__(self, rows: slice) -> np.ndarray:
        try:
            band = np.asarray(self.image[rows]).astype(self.image.dtype.newbyteorder("="), copy=False)
        except Exception as error:  # decoders raise a dozen kinds
            raise ValueError(f"{self.path}: rows {rows.start} to {rows.stop - 1} are damaged ({error})") from error
        return from_float(band, np.uint8) if band.dtype == np.bool_ else band


class _Scale:
    """A band of rows as `to_float` of the whole image would have it: black and white are the whole image's."""

    def __init__(self, image, path: Path):
        self.black, self.white = 0.0, 1.0
        if np.issubdtype(image.dtype, np.floating):
            ends = []
            for rows in _bands(image.shape):
                band = image[rows]
                ends += [float(band.min()), float(band.max())]
                if not np.isfinite(ends[-2:]).all():
                    raise ValueError(f"{path}: rows {rows.start} to {rows.stop - 1} hold NaN or infinity; {TAKEN}")
            if min(ends) < 0 or max(ends) > 1:
                self.black, self.white = min(ends), max(ends)

    def __call__(self, band: np.ndarray) -> np.ndarray:
        if (self.black, self.white) == (0.0, 1.0):
            return band
        return ((band.astype(np.float64) - self.black) / ((self.white - self.black) or 1.0)).astype(np.float32)


def _scratch(path: Path, shape: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """A memory map of zeros; its room is taken at once, since a disk that fills up later ends the process."""
    with path.open("wb") as file:
        size = 4 * math.prod(shape)
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise OSError(error.errno, f"{path.parent}: no {size:,} bytes of scratch ({error.strerror})") from error
        file.truncate(size)
    return np.memmap(path, np.float32, "r+", shape=shape)


def _level(image: Float[np.ndarray, "h w"], ends: tuple[float, float]) -> Int[np.ndarray, "h w"]:
    """Which of the `LEVELS` between two greys."""
    share = (image - ends[0]) / np.float32((ends[1] - ends[0]) or 1.0)
    return np.rint(share * np.float32(LEVELS - 1)).astype(np.int32)


def _levels(image: Float[np.ndarray, "h w"], ends: tuple[float, float]) -> Int[np.ndarray, " n"]:
    """Pixels of each level."""
    return sum(np.bincount(_level(image[rows], ends).ravel(), minlength=LEVELS) for rows in _bands(image.shape))


def _percentiles(levels: Int[np.ndarray, " n"], shares: tuple[float, ...]) -> tuple[float, ...]:
    """As of `np.percentile`, to a millionth of the grey range, from counts: no copy of the image is sorted."""
    up_to = np.cumsum(levels)
    places = np.array(shares) * (up_to[-1] - 1)
    low, high = (np.searchsorted(up_to, rank, side="right") for rank in (np.floor(places), np.ceil(places)))
    return tuple(((low + places % 1 * (high - low)) / (LEVELS - 1)).tolist())


def _matching(clean: Int[np.ndarray, " n"], grey: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The grey of each level of `clean` under which both have the same distribution; as `match_histograms` does it."""
    found = np.flatnonzero(grey)
    of_clean, of_grey = (np.cumsum(counts) / counts.sum() for counts in (clean, grey))
    return np.interp(of_clean, of_grey[found], found / (LEVELS - 1)).astype(np.float32)


def _write_tiles(path: Path, bands: Iterable[np.ndarray], shape: tuple, dtype, like: Micrograph) -> None:
    def tiles():
        for band in bands:
            wide = -(-shape[1] // BAND) * BAND
            rest = [(0, BAND - len(band)), (0, wide - shape[1]), (0, 0)][: band.ndim]
            yield from np.split(np.pad(band, rest), wide // BAND, axis=1)

    large = math.prod(shape) * np.dtype(dtype).itemsize > 0xF000_0000  # a plain TIFF counts its bytes in 32 bits
    with tifffile.TiffWriter(path, bigtiff=large) as tif:
        tif.write(tiles(), shape=shape, dtype=dtype, tile=(BAND, BAND), **tiff_tags(shape, like))


def _write_zarr(path: Path, bands: Iterable[np.ndarray], shape: tuple, dtype, like: Micrograph) -> None:
    known = {name: value for name, value in like.metadata.items() if isinstance(value, str | int | float)}
    attributes = known | {"um_per_px": like.um_per_px}
    chunks = tuple(min(BAND, n) for n in shape)
    array = zarr.create_array(str(path), shape=shape, chunks=chunks, dtype=dtype, attributes=attributes)
    for start, band in zip(range(0, shape[0], BAND), bands, strict=True):
        array[start : start + len(band)] = band
