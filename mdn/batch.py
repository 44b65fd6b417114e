"""A folder of micrographs, denoised one at a time; `report` makes a table and a page of what is recorded here.

    denoised/a.png.tif   the result; the micrograph's whole name stays in it, so that a.png and a.tif do not meet
    records/a.png.json   its numbers, written last: where it is complete and as new as the input, nothing is done again
    records/a.png.jpg    its picture in the report

Everything is written beside its place and renamed. Memory holds one micrograph, whatever the number of files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from mdn.burnt_in import covered, free_field, in_words, scale_bar_mask
from mdn.figures import plot_quality
from mdn.files import sweep, write_whole
from mdn.grains import grain_size, segment_grains
from mdn.inference import Denoiser
from mdn.metrics import label_boundaries
from mdn.micrographs import (
    SUFFIXES,
    check_calibration,
    in_tiff,
    luminance,
    micrographs_in,
    read_micrograph,
    shown_range,
    some,
    write_micrograph,
)
from mdn.network import stretch_limits
from mdn.processes import own, together
from mdn.uncertainty import familiarity, uncertainty_map

FEWEST_GRAINS = 50  # of one field, ASTM E112
LARGEST_ERROR = 10.0  # %, relative accuracy that E112 asks for


# ---- one micrograph ----


def _measure(grey: np.ndarray, um_per_px: float | None) -> tuple[dict, np.ndarray]:
    """Grain size of a luminance [h, w] and its boundaries; in px, and without G, where there is no calibration."""
    labels = segment_grains(grey)
    numbers = {"n_grains": len(np.unique(labels))}
    try:
        size = grain_size(labels, um_per_px=um_per_px or 1.0)
    except ValueError:
        small = min(grey.shape) < 32
        reason = "less than 32 px are there to measure on" if small else "no test line meets a boundary"
        return numbers | {"reason": reason}, label_boundaries(labels)
    low, high = size.interval_95
    numbers |= {"n_grains": size.n_grains, "n_intercepts": size.n_intercepts, "ra_percent": size.relative_accuracy}
    numbers["intercept_um" if um_per_px else "intercept_px"] = size.mean_intercept_um
    if um_per_px:
        numbers |= {"astm_g": size.astm_g, "g_low": low, "g_high": high}
    return numbers, label_boundaries(labels)


def denoise_file(
    denoiser: Denoiser, path: Path, target: Path, *, um_per_px: float | int | None = None, passes: int = 4
) -> tuple[dict, bytes]:
    """Denoise one micrograph into a TIFF; a burnt-in scale bar or strip is left as it is.

    Args:
        denoiser: as of `load_denoiser`.
        path: a TIFF, PNG or JPEG.
        target: the TIFF to write, of the same size, dtype and metadata.
        um_per_px: the calibration where the file carries none, written into the target.
        passes: as of `uncertainty_map`.

    Returns:
        Its record (numbers, warnings in plain words) and its picture for the report, a JPEG.

    Raises:
        ValueError: for a file that is no micrograph, or an um_per_px that is no size.
        OSError: where the target cannot be written.
    """
    check_calibration(um_per_px)
    micrograph = read_micrograph(path)
    pixels, scale = micrograph.pixels, micrograph.um_per_px or um_per_px
    scale = float(scale) if scale else None
    bar = scale_bar_mask(pixels)
    seen = covered(pixels, bar)
    clean = denoiser(seen)
    clean[bar] = pixels[bar]
    like = dataclasses.replace(micrograph, um_per_px=scale, metadata=in_tiff(micrograph.metadata))
    left = like.metadata.pop("tiff_tags_left", [])
    write_micrograph(target, clean, like=like)
    written = read_micrograph(target)

    levels = shown_range(pixels)  # of both
    before, after = (luminance(p, levels) for p in (pixels, clean))
    low, high = stretch_limits(luminance(seen, levels))  # 0 and 1 of the network's output
    spread = (high - low) * uncertainty_map(denoiser, seen, passes=passes)
    spread[bar] = np.nan
    field = free_field(bar)
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
        "kept": written.pixels.shape == pixels.shape and pixels.dtype in (written.pixels.dtype, bool),
        **sizes,
        "removed_percent": float(100 * np.abs(before - after)[~bar].mean()) if not bar.all() else 0.0,
        "uncertainty_percent": float(100 * np.nanmean(spread)) if not bar.all() else 0.0,
    }
    record["warnings"] = _warnings(record, bar, field, denoiser, seen)
    if sides := micrograph.metadata.get("sides_um"):
        record["warnings"].pop("no calibration", None)
        told = "um_per_px is taken instead" if scale else "it is taken as no calibration, no ASTM G"
        told = "Oblong pixels: {:.4g} × {:.4g} µm by this file. Only square ones are measured: {}.".format(*sides, told)
        record["warnings"]["oblong pixels"] = told
    if (n := micrograph.metadata.get("n_pages", 1)) > 1:
        record["warnings"]["stack"] = f"Only the first of {n} pages of this file was denoised."
    if left:
        record["warnings"]["tags"] = f"Tags of this file that are not in the result: {some(left)}."
    figure = plot_quality(
        before, after, spread, edges["before"], edges["after"], sizes, um_per_px=None if bar.any() else scale
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", dpi=140, pil_kwargs={"quality": 85})
    return record, buffer.getvalue()


def _warnings(record: dict, bar: np.ndarray, field: tuple, denoiser: Denoiser, seen: np.ndarray) -> dict[str, str]:
    said, before, after = {}, record.get("before", {}), record.get("after", {})
    if record["calibration"] == "none":
        said["no calibration"] = "No calibration: neither the file nor um_per_px says how large a pixel is; no ASTM G."
    if reason := after.get("reason", before.get("reason")):
        said["no grain size"] = f"No grain size: {reason}."
    n = after.get("n_grains", 0)
    if n < FEWEST_GRAINS:
        said["few grains"] = f"Fewer than {FEWEST_GRAINS} grains ({n}) in this field: measure more or larger fields."
    if after.get("ra_percent", 0) > LARGEST_ERROR:
        said["wide interval"] = f"Relative accuracy {after['ra_percent']:.0f} %: ASTM E112 asks for 10 % or better."
    if "astm_g" in before and "astm_g" in after and not before["g_low"] <= after["astm_g"] <= before["g_high"]:
        moved = f"G {before['astm_g']:.1f} to {after['astm_g']:.1f}"
        said["grain size moved"] = (
            f"Denoising moved the grain size out of its interval ({moved}): see below which boundaries went or came."
        )
    if bar.any():
        said["scale bar"] = in_words(bar, field)
    try:
        if unlike := familiarity(denoiser, seen).warning:
            said["unlike the training data"] = unlike
    except ValueError:
        said["training data unknown"] = "These weights do not say whether this image is like the training data."
    return said


# ---- a folder ----


def find_micrographs(folder: str | os.PathLike) -> list[Path]:
    """The TIFF, PNG and JPEG files of a folder, by name; hidden ones are left out.

    ValueError where it is no folder or holds nothing; of what else it may hold `other_files` tells.
    """
    found, folder = micrographs_in(folder), Path(folder)
    if not found and not (folder.is_dir() and other_files(folder)):
        raise ValueError(f"input_dir: {folder.resolve()}; accepted: a folder with {', '.join(SUFFIXES)} files")
    return found


def other_files(folder: str | os.PathLike, *, besides: Sequence[Path] = ()) -> list[dict]:
    """Records, as of `denoise_folder`, of what else a folder holds: files of other names, and folders.

    Hidden ones are left out, and those of `besides`, as folders of results.
    """
    folder, apart, records = Path(folder), {path.resolve() for path in besides}, []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() in SUFFIXES or path.resolve() in apart:
            continue
        reason = f"not read: its name does not end in {', '.join(SUFFIXES)}"
        if path.is_dir():
            reason = "not looked into: a folder in the folder; give it as input_dir, too"
        name = os.fsencode(path.name).decode("utf-8", "replace")
        records.append({"file": name, "status": "left out", "reason": reason, "warnings": {}})
    return records


def denoise_folder(
    denoiser: Denoiser,
    files: Sequence[Path],
    output: str | os.PathLike,
    *,
    um_per_px: float | int | None = None,
    passes: int = 4,
) -> Iterator[dict]:
    """Denoise files one after another into output/denoised, and yield the record of each.

    A file that cannot be read or denoised has status "left out" and a reason; the others go on. One whose result
    and record are complete, for this very file, these weights and these settings, is not done again; its
    record says so ("again": True). Stop whenever you like.

    After `jax.distributed.initialize`, every process goes through this to the end with the same arguments, and
    denoises its share of the files into an output that all of them see; the records of the others' come last.

    Args:
        denoiser, um_per_px, passes: as of `denoise_file`.
        files: as of `find_micrographs`.
        output: the folder to write to.

    Raises:
        ValueError: for an um_per_px that is no size, or files that lie where results go.
        OSError: where nothing can be written.
    """
    output = Path(output)
    check_calibration(um_per_px)
    if any(path.parent.resolve() == (output / "denoised").resolve() for path in files):
        raise ValueError(f"input_dir: {files[0].parent}; accepted: another folder than that of the results")
    for name in ("denoised", "records"):
        (output / name).mkdir(parents=True, exist_ok=True)
    sweep([*(output / "denoised").glob(".*.part.tif"), *output.glob(".*.part")])
    settings = {"um_per_px": um_per_px, "passes": passes, "weights": _fingerprint(denoiser)}
    failure, share = None, own(list(files))
    try:
        yield from _denoise_share(denoiser, share, output, settings)
    except Exception as error:
        failure = error

    def told():
        if failure is not None:
            raise failure

    together(told)
    for path in sorted(set(files) - set(share)):
        _, place, picture = _places(output, path)
        yield _read_record(place) | {"picture": str(picture)}


def _places(output: Path, path: Path) -> tuple[Path, Path, Path]:
    """Where the result, the record and the picture of a file go."""
    name = _short(path.name)
    place = output / "records" / f"{name}.json"
    return output / "denoised" / f"{name}.tif", place, place.with_suffix(".jpg")


def _denoise_share(denoiser: Denoiser, files: Sequence[Path], output: Path, settings: dict) -> Iterator[dict]:
    """The records of files that this process denoises."""
    um_per_px, passes = settings["um_per_px"], settings["passes"]
    for path in files:
        target, place, picture = _places(output, path)
        try:
            stat, reason = path.stat(), ""
        except OSError as error:
            stat, reason = None, _reason(error, path)
            reason = "a link to a file that is not there" if path.is_symlink() else reason
        made_from = settings | {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns} if stat else {}
        known = _read_record(place)
        if known.get("made_from") == made_from and known["status"] == "done" and target.is_file() and picture.is_file():
            yield known | {"picture": str(picture), "again": True}
            continue
        place.unlink(missing_ok=True)  # from here on it is not done
        record = {"file": os.fsencode(path.name).decode("utf-8", "replace"), "made_from": made_from}
        record |= {"status": "left out", "reason": reason, "warnings": {}}
        try:
            numbers, drawn = denoise_file(denoiser, path, target, um_per_px=um_per_px, passes=passes)
        except OSError:
            if stat:
                raise  # the disk is full or the folder read-only: not this file's fault
        except Exception as error:  # whatever is wrong with one file, the others go on
            record["reason"] = _reason(error, path)
        else:
            write_whole(picture, drawn)
            record |= {"status": "done", "result": target.name, **numbers}
        if record["status"] == "left out":
            target.unlink(missing_ok=True)
        write_whole(place, json.dumps(record, indent=1).encode())
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
    text = (str(error).splitlines() or [""])[0].split("; accepted:")[0] or type(error).__name__
    return text.removeprefix(f"{path}: ").replace(str(path), path.name).encode("utf-8", "replace").decode()


def _read_record(path: Path) -> dict:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and "status" in record else {}
