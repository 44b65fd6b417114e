"""A folder of micrographs, one at a time: denoised TIFFs, a table, and a quality report that opens anywhere.

    denoised/a.png.tif   the result; the micrograph's whole name stays in it, so that a.png and a.tif do not meet
    records/a.png.json   its numbers, written last: where it is complete and as new as the input, nothing is done again
    records/a.png.webp   its picture in the report

Everything is written beside its place and renamed. Memory holds one micrograph, whatever the number of files.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import html
import io
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from numbers import Real
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool
from numpy.typing import ArrayLike
from PIL import Image
from scipy import ndimage

from mdn.figures import plot_quality
from mdn.grains import grain_size, segment_grains
from mdn.inference import Denoiser
from mdn.metrics import label_boundaries
from mdn.micrographs import Micrograph, check_image, luminance, read_micrograph, to_float, write_micrograph
from mdn.uncertainty import familiarity, uncertainty_map

SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
SHAPES_KEPT = 8  # compiled networks: each shape has its own, and a folder may hold many
FEWEST_GRAINS = 50  # of one field, ASTM E112
LARGEST_ERROR = 10.0  # %, relative accuracy that E112 asks for
# A scale bar or a strip: black or white, which no noise reaches for long
EXTREME = 0.97  # of the way from the middle to black or white: pure, but for what JPEG does to it
LEVELS = (0.97, 0.9, 0.75)
STEADY = 0.012  # standard deviation along a bar
CONTRAST = 0.12  # to what lies around it
THINNEST = 2  # px: single rows as even as a bar are frequent in micrographs that clip
GAP = 3  # px within which its edges are done
THICKEST_STRIP = 0.25  # of the image's height


# ---- a scale bar or an info strip that somebody burnt in ----


def scale_bar_mask(image: ArrayLike) -> Bool[np.ndarray, "h w"]:
    """Where a scale bar with its label, or an info strip along the upper or lower edge, is burnt in.

    A bar is black or white (in any channel: it may be yellow), steady along its length, a rectangle from 4 to
    60 % of the width, at least 2 px thick and five times as long, and ends within 3 px on all sides. A strip is black or
    white over half of each of its rows and ends within 3 rows. What is less than that is taken for metal.

    image: [H, W] or [H, W, 3] as of `read_micrograph`. Returns bool [H, W]. ValueError for no image.
    """
    image = to_float(check_image(image))
    planes = [image] if image.ndim == 2 else list(np.moveaxis(image, -1, 0))
    if len(planes) == 3 and np.ptp(image, axis=-1).max() < 0.02:
        planes = planes[:1]
    mask = np.zeros(image.shape[:2], bool)
    for plane in planes:
        for extreme in (plane, 1 - plane):
            mask |= _strips(extreme)
            for box in (box for level in LEVELS for box in _bars(extreme, level)):
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
        inside = GAP <= rows.start - 1 and rows.stop + GAP < height
        inside &= GAP <= columns.start - 1 and columns.stop + GAP < width
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
            yield _with_label(extreme, (rows, columns), min(EXTREME, float(grey) - 0.03))


def _with_label(extreme: np.ndarray, bar: tuple[slice, slice], level: float) -> tuple[slice, slice]:
    """The box of a bar and of what belongs to it: ticks, the letters beside it, the panel that it stands on."""
    reach, w = (bar[1].stop - bar[1].start) // 2, extreme.shape
    top, left = max(0, bar[0].start - reach), max(0, bar[1].start - reach)
    window = extreme[top : bar[0].stop + reach, left : bar[1].stop + reach]
    boxes = [(bar[0].start - top, bar[0].stop - top, bar[1].start - left, bar[1].stop - left)]
    panel = window <= 1 - EXTREME
    beside = panel[min(boxes[0][1] + GAP, len(panel) - 1), boxes[0][2] : boxes[0][3]]
    for kind in (window >= level, *([panel] if beside.mean() > 0.9 else [])):
        parts, _ = ndimage.label(kind, np.ones((3, 3)))
        for rows, columns in ndimage.find_objects(parts):
            whole = rows.start > 0 and columns.start > 0
            whole &= rows.stop < window.shape[0] and columns.stop < window.shape[1]
            if whole and (rows.stop - rows.start) * (columns.stop - columns.start) >= 4:
                boxes.append((rows.start, rows.stop, columns.start, columns.stop))
    first, last = np.min(boxes, 0), np.max(boxes, 0)
    rows = slice(max(0, top + int(first[0]) - GAP), min(w[0], top + int(last[1]) + GAP))
    return rows, slice(max(0, left + int(first[2]) - GAP), min(w[1], left + int(last[3]) + GAP))


def _field(mask: Bool[np.ndarray, "h w"]) -> tuple[slice, slice]:
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


# ---- one micrograph ----


def _measure(grey: np.ndarray, um_per_px: float | None) -> tuple[dict, np.ndarray]:
    """Grain size of a luminance [h, w] and its boundaries; in px, and without G, where there is no calibration."""
    labels = segment_grains(grey)
    numbers = {"n_grains": len(np.unique(labels))}
    try:
        size = grain_size(labels, um_per_px=um_per_px or 1.0)
    except ValueError as error:  # too small, or a single grain
        return numbers | {"reason": str(error)}, label_boundaries(labels)
    low, high = size.interval_95
    numbers |= {"n_grains": size.n_grains, "n_intercepts": size.n_intercepts, "ra_percent": size.relative_accuracy}
    numbers["intercept_um" if um_per_px else "intercept_px"] = size.mean_intercept_um
    if um_per_px:
        numbers |= {"astm_g": size.astm_g, "g_low": low, "g_high": high}
    return numbers, label_boundaries(labels)


def _metadata(micrograph: Micrograph) -> dict:
    """What the file says of itself, in the words that a TIFF has for it."""
    known = dict(micrograph.metadata)
    if known.get("format") == "TIFF":
        return known
    exif = Image.Exif()
    exif.load(known.get("exif", b""))
    notes = [f"{k}: {v}" for k, v in known.items() if isinstance(v, str) and k not in ("format", "mode") and v]
    notes = [str(exif[tag]) for tag in (270, 271, 272) if exif.get(tag)] + notes  # description, maker, model
    known |= {"description": "\n".join(notes)}
    return known | {name: str(exif[tag]) for name, tag in (("Software", 305), ("DateTime", 306)) if exif.get(tag)}


def denoise_file(
    denoiser: Denoiser, path: Path, target: Path, *, um_per_px: float | int | None = None, key: Array, passes: int = 4
) -> tuple[dict, bytes]:
    """Denoise one micrograph into a TIFF; a burnt-in scale bar or strip is left as it is.

    Args:
        denoiser: as of `load_denoiser`.
        path: a TIFF, PNG or JPEG.
        target: the TIFF to write, of the same size, dtype and metadata.
        um_per_px: the calibration where the file carries none, written into the target.
        key, passes: as of `uncertainty_map`.

    Returns:
        Its record (numbers, warnings in plain words) and its picture for the report, a WebP.

    Raises:
        ValueError: for a file that is no micrograph. OSError: where the target cannot be written.
    """
    micrograph = read_micrograph(path)
    pixels, scale = micrograph.pixels, micrograph.um_per_px or um_per_px
    scale = float(scale) if scale else None
    bar = scale_bar_mask(pixels)
    seen = pixels
    if bar.any() and not bar.all():  # the network sees metal there too, not a black or white box
        seen = pixels[tuple(ndimage.distance_transform_edt(bar, return_distances=False, return_indices=True))]
    clean = denoiser(seen)
    clean[bar] = pixels[bar]
    like = dataclasses.replace(micrograph, um_per_px=scale, metadata=_metadata(micrograph))
    write_micrograph(target, clean, like=like)

    before, after = luminance(pixels), luminance(clean)
    spread = np.where(bar, np.nan, uncertainty_map(denoiser, seen, key=key, passes=passes))
    field = _field(bar)
    sizes, edges = {}, {}
    for state, grey in (("before", before), ("after", after)):
        edges[state] = np.zeros(bar.shape, bool)
        if grey[field].size:
            sizes[state], edges[state][field] = _measure(grey[field], scale)
    record = {
        "width_px": pixels.shape[1],
        "height_px": pixels.shape[0],
        "dtype": f"{pixels.dtype} {'grey' if pixels.ndim == 2 else 'colour'}",
        "um_per_px": scale,
        "calibration": "file" if micrograph.um_per_px else "um_per_px" if scale else "none",
        "description": str(like.metadata.get("description", ""))[:400],
        **sizes,
        "removed_percent": float(100 * np.abs(before - after)[~bar].mean()) if not bar.all() else 0.0,
        "uncertainty_percent": float(100 * np.nanmean(spread)) if not bar.all() else 0.0,
    }
    record["warnings"] = _warnings(record, bar, field, denoiser, seen)
    figure = plot_quality(before, after, spread, edges["before"], edges["after"], sizes, um_per_px=scale)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", dpi=140, pil_kwargs={"quality": 82})
    return record, buffer.getvalue()


def _warnings(record: dict, bar: np.ndarray, field: tuple, denoiser: Denoiser, seen: np.ndarray) -> list[str]:
    said, before, after = [], record.get("before", {}), record.get("after", {})
    if record["calibration"] == "none":
        said.append("No calibration: neither the file nor um_per_px says how large a pixel is, so no grain size in µm.")
    if reason := after.get("reason", before.get("reason")):
        said.append(f"No grain size: {reason}.")
    n = after.get("n_grains", 0)
    if n < FEWEST_GRAINS:
        said.append(f"Fewer than {FEWEST_GRAINS} grains ({n}) in this field: measure more fields, or larger ones.")
    if after.get("ra_percent", 0) > LARGEST_ERROR:
        said.append(f"Relative accuracy {after['ra_percent']:.0f} %: ASTM E112 asks for 10 % or better.")
    if "astm_g" in before and "astm_g" in after:
        g, low, high = after["astm_g"], before["g_low"], before["g_high"]
        if not low <= g <= high:
            said.append(
                f"Denoising moved the grain size out of its interval (G {before['astm_g']:.1f} to {g:.1f}): "
                "see in the overlay which boundaries went or came."
            )
    if bar.any():
        rows, columns = np.flatnonzero(bar.any(1)), np.flatnonzero(bar.any(0))
        where = f"rows {rows[0]} to {rows[-1]}, columns {columns[0]} to {columns[-1]}"
        rest = f"rows {field[0].start} to {field[0].stop - 1}, columns {field[1].start} to {field[1].stop - 1}"
        said.append(
            f"Burnt-in scale bar or info strip found and left untouched ({where}); grains are measured on {rest}."
        )
    try:
        unlike = familiarity(denoiser, seen).warning
    except ValueError:  # weights without training statistics
        unlike = "Whether this image is like the training data is not known: these weights do not say."
    return [*said, unlike] if unlike else said


# ---- a folder ----


def find_micrographs(folder: str | os.PathLike) -> list[Path]:
    """The TIFF, PNG and JPEG files of a folder, by name; hidden ones are left out. ValueError where there are none."""
    folder = Path(folder)
    found = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES] if folder.is_dir() else []
    found = sorted(p for p in found if not p.name.startswith("."))
    if not found:
        raise ValueError(f"input_dir: {folder.resolve()}; accepted: a folder with {', '.join(SUFFIXES)} files")
    return found


def denoise_folder(
    denoiser: Denoiser,
    files: Sequence[Path],
    output: str | os.PathLike,
    *,
    um_per_px: float | int | None = None,
    key: Array,
    passes: int = 4,
) -> Iterator[dict]:
    """Denoise files one after another into output/denoised, and yield the record of each.

    A file that cannot be read or denoised has status "left out" and a reason; the others go on. One whose result
    and record are complete, for this very file, these weights and these settings, is not done again; its
    record says so ("again": True). Stop whenever you like.

    Args:
        denoiser, um_per_px, key, passes: as of `denoise_file`.
        files: as of `find_micrographs`.
        output: the folder to write to.

    Raises:
        ValueError: for an um_per_px that is no size, or files that lie where results go.
        OSError: where nothing can be written.
    """
    output = Path(output)
    if um_per_px is not None and not (isinstance(um_per_px, Real) and np.isfinite(um_per_px) and um_per_px > 0):
        raise ValueError(f"um_per_px: {um_per_px!r}; accepted: um per pixel, finite, above 0, or None")
    if any(path.parent.resolve() == (output / "denoised").resolve() for path in files):
        raise ValueError(f"input_dir: {files[0].parent}; accepted: another folder than that of the results")
    for name in ("denoised", "records"):
        (output / name).mkdir(parents=True, exist_ok=True)
    settings = {"um_per_px": um_per_px, "passes": passes, "seed": jax.random.key_data(key).tolist()}
    settings["weights"] = _fingerprint(denoiser)
    shapes = set()
    for path in files:
        name = _short(path.name)
        target, place = output / "denoised" / f"{name}.tif", output / "records" / f"{name}.json"
        picture = place.with_suffix(".webp")
        try:
            stat, reason = path.stat(), ""
        except OSError as error:
            stat, reason = None, _reason(error, path)
        made_from = settings | {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns} if stat else {}
        known = _read_record(place)
        if known.get("made_from") == made_from and known["status"] == "done" and target.is_file() and picture.is_file():
            yield known | {"picture": str(picture), "again": True}
            continue
        place.unlink(missing_ok=True)  # from here on it is not done
        record = {"file": os.fsencode(path.name).decode("utf-8", "replace"), "made_from": made_from}
        record |= {"status": "left out", "reason": reason, "warnings": []}
        try:
            numbers, drawn = denoise_file(denoiser, path, target, um_per_px=um_per_px, key=key, passes=passes)
        except OSError:
            if stat:
                raise  # the disk is full or the folder read-only: not this file's fault
        except Exception as error:  # whatever is wrong with one file, the others go on
            record["reason"] = _reason(error, path)
        else:
            _write(picture, drawn)
            record |= {"status": "done", "result": target.name, **numbers}
            shapes.add((record["height_px"], record["width_px"]))
        if record["status"] == "left out":
            target.unlink(missing_ok=True)
        _write(place, json.dumps(record, indent=1).encode())
        if len(shapes) > SHAPES_KEPT:
            jax.clear_caches()
            shapes.clear()
        yield record | {"picture": str(picture)}


def _fingerprint(denoiser: Denoiser) -> str:
    """A hash of the weights."""
    leaves = jax.tree.leaves(nnx.state(denoiser.network, nnx.Param, nnx.BatchStat))
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()[:16]


def _short(name: str) -> str:
    """The name where there is room for what is added to it, else its beginning and a hash."""
    raw = os.fsencode(name)
    return name if len(raw) <= 180 else f"{name[:40]}~{hashlib.sha256(raw).hexdigest()[:12]}"


def _reason(error: Exception, path: Path) -> str:
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    return text.removeprefix(f"{path}: ").encode("utf-8", "replace").decode()


def _read_record(path: Path) -> dict:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and "status" in record else {}


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# ---- table and report ----

STATES = ("before", "after")
MEASURED = {  # column and what the report calls it
    "astm_g": "ASTM G",
    "g_low": "95 % low",
    "g_high": "95 % high",
    "ra_percent": "%RA",
    "intercept_um": "mean intercept (µm)",
    "n_grains": "grains",
    "n_intercepts": "intercepts",
}
PLAIN = ("width_px", "height_px", "dtype", "um_per_px", "calibration")


def write_table(records: Sequence[dict], path: str | os.PathLike) -> None:
    """The records of `denoise_folder` as CSV, UTF-8, a line a file; a gap where there is no number.

    ra_percent is E112's relative accuracy of the mean intercept at 95 %, removed_percent the mean of |before - after|
    and uncertainty_percent the mean standard deviation, both in % of black to white.
    """
    columns = ["file", "status", "reason", *PLAIN, *(f"{name}_{state}" for state in STATES for name in MEASURED)]
    rows = [[*columns, "removed_percent", "uncertainty_percent", "warnings"]]
    for record in records:
        row = [record["file"], record["status"], record["reason"], *(record.get(name) for name in PLAIN)]
        row += [record.get(state, {}).get(name) for state in STATES for name in MEASURED]
        row += [record.get("removed_percent"), record.get("uncertainty_percent"), " | ".join(record["warnings"])]
        rows.append([f"{v:.5g}" if isinstance(v, float) else _cell(v) for v in row])
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    _write(Path(path), text.getvalue().encode("utf-8-sig"))  # with its mark, so that spreadsheets read µ


def _cell(value):
    """A file's name may start like a spreadsheet's formula: that is then text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
h2 { margin-top: 2.5em; border-top: 1px solid #ccc; padding-top: 1em; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1em 0; font-size: 14px; }
th, td { border-bottom: 1px solid #ddd; padding: .3em .7em; text-align: right; vertical-align: top; }
th:first-child, td:first-child, .words { text-align: left; overflow-wrap: anywhere; }
.warn { border-left: 4px solid #D55E00; padding: .2em 1em; background: #fdf3ec; }
.warn p { margin: .3em 0; } img { max-width: 100%; } .small { color: #555; font-size: 13px; white-space: pre-wrap; }
"""


def write_report(records: Sequence[dict], path: str | os.PathLike, *, notes: str = "") -> None:
    """The records of `denoise_folder`, with their pictures, as one HTML file that asks for nothing else.

    Whatever comes from a file is escaped. Pictures are read one at a time. notes: a sentence under the title.
    """
    path = Path(path)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(_report(records, notes))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _report(records: Sequence[dict], notes: str) -> Iterator[str]:
    done, failed = ([r for r in records if (r["status"] == "done") is wanted] for wanted in (True, False))
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Denoised micrographs</title><style>{STYLE}</style>'
    yield f"<h1>Denoised micrographs</h1><p>{len(done)} denoised, {len(failed)} left out. {html.escape(notes)}</p>"
    if failed:
        yield '<h2>Left out</h2><table><tr><th>file<th class="words">reason'
        for record in failed:
            yield f'<tr><td>{html.escape(record["file"])}<td class="words">{html.escape(record["reason"])}'
        yield "</table>"
    yield "<h2>All of them</h2><table><tr><th>file<th>G before<th>G after<th>grains after<th>removed<th>warnings"
    for number, record in enumerate(done):
        name, numbers = html.escape(record["file"]), [_g(record.get(state, {})) for state in STATES]
        grains = record.get("after", {}).get("n_grains", "")
        yield f'<tr><td><a href="#m{number}">{name}</a><td>{numbers[0]}<td>{numbers[1]}<td>{grains}'
        yield f"<td>{record['removed_percent']:.1f} %<td>{len(record['warnings']) or ''}"
    yield "</table><p class='small'>G: ASTM grain size number after E112 (Heyn's intercepts) with its 95 % interval. %RA: "
    yield "relative accuracy, the half-width of the 95 % interval of the mean intercept in % of it. Removed and "
    yield "uncertainty: in % of the way from black to white; uncertainty says where the network hesitates, not where "
    yield "it is surely wrong. Grain counts include grains cut by the edge.</p>"
    for number, record in enumerate(done):
        yield from _section(number, record)
    yield "</html>\n"


def _g(size: dict) -> str:
    return f"{size['astm_g']:.2f} ({size['g_low']:.2f} to {size['g_high']:.2f})" if "astm_g" in size else "–"


def _section(number: int, record: dict) -> Iterator[str]:
    yield f'<h2 id="m{number}">{html.escape(record["file"])}</h2>'
    scale = record["um_per_px"]
    origin = {"file": "from the file", "um_per_px": "given as um_per_px"}.get(record["calibration"], "")
    facts = f"{record['width_px']} × {record['height_px']} px, {record['dtype']}, "
    yield f"<p>{html.escape(facts)}{f'{scale:.4g} µm/px, {origin}' if scale else 'no calibration'}; "
    yield f"removed {record['removed_percent']:.1f} %, mean uncertainty {record['uncertainty_percent']:.1f} %</p>"
    if record["warnings"]:
        yield f'<div class="warn">{"".join(f"<p>{html.escape(text)}</p>" for text in record["warnings"])}</div>'
    names = {"intercept_px": "mean intercept (px)"} if not scale else {}
    names = {k: v for k, v in (MEASURED | names).items() if any(k in record.get(state, {}) for state in STATES)}
    yield f"<table><tr><th>{''.join(f'<th>{name}' for name in names.values())}"
    for state in STATES:
        size = record.get(state, {})
        cells = (size.get(name, "–") for name in names)
        yield f"<tr><td>{state}{''.join(f'<td>{v:.3g}' if isinstance(v, float) else f'<td>{v}' for v in cells)}"
    yield "</table>"
    if record["description"]:
        yield f'<p class="small">{html.escape(record["description"])}</p>'
    picture = base64.b64encode(Path(record["picture"]).read_bytes()).decode()
    alt = html.escape(f"{record['file']}: before, after, removed, uncertainty, boundaries, grain size")
    yield f'<img alt="{alt}" src="data:image/webp;base64,{picture}">\n'
