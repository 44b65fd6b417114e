"""What somebody burnt into a micrograph that is no metal: a scale bar with its label, or an info strip."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool
from numpy.typing import ArrayLike
from scipy import ndimage

from mdn.micrographs import check_image, to_float

# A scale bar or a strip: black or white, which no noise reaches for long
EXTREME = 0.97  # of the way from the middle to black or white: pure, but for what JPEG does to it
LEVELS = (0.97, 0.9, 0.75)
STEADY = 0.012  # standard deviation along a bar
CONTRAST = 0.12  # to what lies around it
THINNEST = 2  # px: single rows as even as a bar are frequent in micrographs that clip
GAP = 3  # px within which its edges are done
THICKEST_STRIP = 0.25  # of the image's height


def scale_bar_mask(image: ArrayLike) -> Bool[np.ndarray, "h w"]:
    """Where a scale bar with its label, or an info strip along the upper or lower edge, is burnt in.

    A bar is black or white (in any channel: it may be yellow), steady along its length, a rectangle from 4 to
    60 % of the width, at least 2 px thick and five times as long, and ends within 3 px on all sides. A strip
    is black or white over half of each of its rows and ends within 3 rows. Less than that is taken for metal.

    image: [H, W] or [H, W, 3] as of `read_micrograph`. Returns bool [H, W]. ValueError for no image.
    """
    image = to_float(check_image(image))
    planes = [image] if image.ndim == 2 else list(np.moveaxis(image, -1, 0))
    if len(planes) == 3 and np.ptp(image, axis=-1).max() < 0.02:
        planes = planes[:1]
    mask = np.zeros(image.shape[:2], bool)
    for plane in planes:
        for extreme in (plane, 1 - plane):
            strips = _strips(extreme)
            mask |= strips
            for box in (box for level in LEVELS for box in _bars(np.where(strips, 0, extreme), level)):
                mask[box] = True
    return mask


def _strips(extreme: np.ndarray) -> Bool[np.ndarray, "h w"]:
    mask = np.zeros(extreme.shape, bool)
    height = len(extreme)
    for upwards in (False, True):
        share = (extreme >= EXTREME).mean(1)[:: -1 if upwards else 1]
        n = int(np.argmin(share >= 0.5))
        if max(8, 0.02 * height) <= n <= THICKEST_STRIP * height and share[n + GAP : n + 3 * GAP].max() <= 0.25:
            mask[:: -1 if upwards else 1][: n + 1] = True
    return mask


def _bars(extreme: np.ndarray, level: float) -> Iterator[tuple[slice, slice]]:
    """Boxes around the bars of a plane, their labels in them."""
    height, width = extreme.shape
    bright = extreme >= level
    shortest = max(15, round(0.02 * width)) * 2 + 1
    runs = ndimage.minimum_filter1d(bright, shortest, axis=1, mode="constant", cval=0)
    runs, _ = ndimage.label(ndimage.maximum_filter1d(runs, shortest, axis=1, mode="constant", cval=0))
    for number, (rows, columns) in enumerate(ndimage.find_objects(runs), start=1):
        h, w = rows.stop - rows.start, columns.stop - columns.start
        inside = rows.start - 1 >= GAP and rows.stop + GAP < height
        inside &= columns.start - 1 >= GAP and columns.stop + GAP < width
        if not inside or h < THINNEST or h > 0.05 * height or w < 5 * h or w > 0.6 * width:
            continue
        core = extreme[rows, columns.start + GAP : columns.stop - GAP]
        grey, filled = np.median(core), (runs[rows, columns] == number).mean()
        beyond = (
            extreme[rows.start - 1 - GAP, columns],
            extreme[rows.stop + GAP, columns],
            extreme[rows, columns.start - 1 - GAP],
            extreme[rows, columns.stop + GAP],
        )
        ends = all((line <= grey - CONTRAST).mean() >= 0.95 for line in beyond)
        if filled >= 0.9 and np.median(core.std(1)) <= STEADY and ends:
            yield _with_label(extreme, (rows, columns), float(grey))


def _with_label(extreme: np.ndarray, bar: tuple[slice, slice], grey: float) -> tuple[slice, slice]:
    """The box of a bar and of what belongs to it: ticks, the letters beside it, the panel that it stands on."""
    w, shape = bar[1].stop - bar[1].start, extreme.shape
    top, left = max(0, bar[0].start - int(0.35 * w)), max(0, bar[1].start - w // 8)
    window = extreme[top : bar[0].stop + int(0.35 * w), left : bar[1].stop + w // 8]
    boxes = [(bar[0].start - top, bar[0].stop - top, bar[1].start - left, bar[1].stop - left)]
    panel = window <= 1 - EXTREME
    beside = panel[min(boxes[0][1] + GAP, len(panel) - 1), boxes[0][2] : boxes[0][3]]
    looks = (window >= grey - 0.15, window >= min(EXTREME, grey - 0.03))  # JPEG greys thin letters
    few = [letters for letters in looks if letters.mean() <= 0.2]  # or the metal is as bright: no telling it apart
    for kind in (*few[:1], *([panel] if beside.mean() > 0.9 else [])):
        parts, _ = ndimage.label(kind, np.ones((3, 3)))
        for rows, columns in ndimage.find_objects(parts):
            whole = rows.start > 0 and columns.start > 0
            whole &= rows.stop < window.shape[0] and columns.stop < window.shape[1]
            if whole and (rows.stop - rows.start) * (columns.stop - columns.start) >= 4:
                boxes.append((rows.start, rows.stop, columns.start, columns.stop))
    first, last = np.min(boxes, 0), np.max(boxes, 0)
    rows = slice(max(0, top + int(first[0]) - GAP), min(shape[0], top + int(last[1]) + GAP))
    return rows, slice(max(0, left + int(first[2]) - GAP), min(shape[1], left + int(last[3]) + GAP))


def free_field(mask: Bool[np.ndarray, "h w"]) -> tuple[slice, slice]:
    """The rows, or the columns, beside the mask: whichever holds more; grains are counted there."""
    runs = []
    for axis in (0, 1):
        free = np.concatenate([[False], ~mask.any(1 - axis), [False]])
        starts, stops = np.flatnonzero(free[1:] > free[:-1]), np.flatnonzero(free[1:] < free[:-1])
        best = int(np.argmax(stops - starts)) if len(starts) else None
        run = slice(0, 0) if best is None else slice(int(starts[best]), int(stops[best]))
        runs.append(((run.stop - run.start) * mask.shape[1 - axis], run))
    (rows, by_rows), (columns, by_columns) = runs
    return (by_rows, slice(0, mask.shape[1])) if rows >= columns else (slice(0, mask.shape[0]), by_columns)


def covered(image: np.ndarray, mask: Bool[np.ndarray, "h w"]) -> np.ndarray:
    """The image with the metal nearest to it in place of what is burnt in, which would mislead a network."""
    if not mask.any() or mask.all():
        return image
    return image[tuple(ndimage.distance_transform_edt(mask, return_distances=False, return_indices=True))]


def in_words(mask: Bool[np.ndarray, "h w"], field: tuple[slice, slice]) -> str:
    """Where it is, and what that means for grains that are measured on `field`."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    where = f"rows {rows[0]} to {rows[-1]}, columns {columns[0]} to {columns[-1]}"
    rest = f"rows {field[0].start} to {field[0].stop - 1}, columns {field[1].start} to {field[1].stop - 1}"
    return f"Burnt-in scale bar or info strip found and left untouched ({where}); grains are measured on {rest}."
