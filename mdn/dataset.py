"""Pairs on disk (Section III): N of them in Zarr, split 80:20 before any cropping.

No phase-field run and no region of a micrograph stands on two sides of a split. Every run and pair has a key of
its own, so that an interrupted generation goes on and ends with the same bytes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import multiprocessing
import os
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import zarr
import zarr.codecs
from jaxtyping import Array, Bool, Float, Int, UInt16
from skimage.transform import resize
from tqdm.auto import tqdm

from mdn import micrographs
from mdn.burnt_in import free_field, scale_bar_mask
from mdn.defects import KINDS, DefectStrengths
from mdn.files import beside, sweep
from mdn.micrographs import load_reference, luminance, region
from mdn.phase_field import AllenCahn, Grains, grow
from mdn.processes import in_turn, own, together
from mdn.synthesis import STAND_INS, PairConfig, make_pair, stand_in

SPLITS = tuple(micrographs.SPLITS)
REFERENCES = ("iron_nital", "brass_c2600_200x")
OWN_SPLITS = ("train", "train", "validation", "train", "test")  # of a folder's micrographs, in turn
TOLD = "Left out of"  # how a warning of files that cannot be read begins
STAND_IN_SHAPE = (512, 512)
RESOLVED = 25.0  # cells across a grain: an interface is about five wide
COMPRESSORS = (zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec())  # a chunk that was altered is not read
WHOLE = {"every chunk is written": True}  # of an array; before, a chunk of zeros was left out
ZOOM = (0.6, 2.0)  # of the varied pairs' references
PARTS = {  # of a recipe: what is changed to leave it out
    "blend": lambda recipe: {"magnitude": 0.0},
    "partial swaps": lambda recipe: {"magnitude": math.ceil(recipe.magnitude)},
    "space alone": lambda recipe: {"magnitude": recipe.magnitude or 1.0, "match": recipe.match or not recipe.magnitude},
    "matching": lambda recipe: {"match": False},
    "defects": lambda recipe: {"defects": DefectStrengths(**dict.fromkeys(KINDS, 0.0))},
    "twins": lambda recipe: {"twin_fraction": 0.0},
    "looks": lambda recipe: {"look": "groove", "missing": 0.0, "sharpness": 1.0, "blur": 0.0, "gamma": 1.0},
}
COARSENING = 0.75  # growth of the mean grain area in a time of 1/(L alpha), over kappa; as measured
FIELDS = {
    "noisy": "float16", "clean": "float16", "labels": "int32", "twins": "bool", "twin_boundaries": "bool",
    "defects": "uint16",
}  # fmt: skip
FACTS = {"run": ("int32", ()), "source": ("int32", ()), "box": ("int32", (4,)), "varied": ("bool", ())}


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """What a dataset holds; the defaults are the paper's 3,000 images.

    Args:
        n_pairs: training and validation pairs together, split 80:20.
        n_test: further pairs, from regions and runs of their own.
        shape: pixels (H, W) of a pair.
        n_runs: phase-field runs over all splits; a run used again is shifted and turned. Default: one a pair.
        diameter: range in px of the grains' mean diameter; small ones are grown larger and made smaller, so that
            an interface is never wider than they are.
        time: range in 1/(L alpha) of the time of growth.
        varied: share of the pairs that draw their own `PairConfig`, on top of all those of grains below `RESOLVED`;
            the others follow the paper's recipe.
        stand_ins: share of the varied pairs whose reference is a stand-in even where real micrographs are had, so
            that magnitudes do not all come from a few specimens.
        without: what is left out of every recipe, of `PARTS`, for an ablation.
        real: whether references are the real micrographs or the stand-ins.
        seed: of every draw.

    Raises:
        ValueError: naming the field, what was given and what is accepted.
    """

    n_pairs: int = 3000
    n_test: int = 100
    shape: tuple[int, int] = (256, 256)
    n_runs: int | None = None
    diameter: tuple[float, float] = (8.0, 120.0)
    time: tuple[float, float] = (10.0, 40.0)
    varied: float | int = 0.0
    stand_ins: float | int = 0.3
    without: tuple[str, ...] = ()
    real: bool = True
    seed: int = 0

    def __post_init__(self):
        if self.n_pairs < 5 or self.n_test < 0:
            raise ValueError(f"n_pairs must be at least 5 and n_test at least 0, got {self.n_pairs}, {self.n_test}")
        if self.n_runs is not None and not 5 <= self.n_runs <= self.n_pairs + self.n_test:
            raise ValueError(f"n_runs must lie between 5 and the number of pairs, got {self.n_runs}")
        for name, least in (("diameter", 4), ("time", 0)):
            low, high = getattr(self, name)
            if not least < low <= high:
                raise ValueError(f"{name} must be an increasing range above {least}, got {getattr(self, name)!r}")
        for name in ("varied", "stand_ins"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a share in [0, 1], got {getattr(self, name)!r}")
        if not set(self.without) <= set(PARTS):
            raise ValueError(f"without must hold names of {tuple(PARTS)}, got {self.without!r}")
        if len(self.shape) != 2 or min(self.shape) < 32 or max(self.shape) > 512:
            raise ValueError(f"shape must be two sizes of 32 to 512 px, got {self.shape!r}")

    def counts(self) -> dict[str, int]:
        """Pairs in each split: 80:20, then test."""
        validation = max(1, round(0.2 * self.n_pairs))
        return {"train": self.n_pairs - validation, "validation": validation, "test": self.n_test}

    def runs(self) -> dict[str, range]:
        """Phase-field runs of each split, disjoint."""
        counts, total = self.counts(), self.n_pairs + self.n_test
        share = 1.0 if self.n_runs is None else self.n_runs / total
        sizes = [min(n, max(1, round(n * share))) if n else 0 for n in counts.values()]
        ends = np.cumsum([0, *sizes]).tolist()
        return {split: range(a, b) for split, a, b in zip(SPLITS, ends, ends[1:], strict=False)}


@dataclass(frozen=True)
class Pairs:
    """One split of a dataset in memory. Images are float32 [N, H, W] in [0, 1].

    Attributes:
        noisy, clean: input and truth.
        labels: int32, the grain of each pixel.
        twins: bool, pixels in a twin.
        twin_boundaries: bool, where a grain changes between itself and a twin, or between twins.
        defects: uint16 bit mask, one bit a kind of `defects.KINDS`.
        run: int32 [N], the phase-field run.
        source: int32 [N], index of the reference among `sources`.
        box: int32 [N, 4], (left, upper, right, lower) of the reference crop within its file.
        varied: bool [N], whether the pair drew its own `PairConfig` or follows the paper's recipe.
        sources: names of the references.
    """

    noisy: Float[np.ndarray, "n h w"]
    clean: Float[np.ndarray, "n h w"]
    labels: Int[np.ndarray, "n h w"]
    twins: Bool[np.ndarray, "n h w"]
    twin_boundaries: Bool[np.ndarray, "n h w"]
    defects: UInt16[np.ndarray, "n h w"]
    run: Int[np.ndarray, " n"]
    source: Int[np.ndarray, " n"]
    box: Int[np.ndarray, "n 4"]
    varied: Bool[np.ndarray, " n"]
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.noisy)

    @property
    def regions(self) -> Int[np.ndarray, "n h w"]:
        """Labels that change at grain boundaries and at twin boundaries alike."""
        return 2 * self.labels + self.twins

    @property
    def boundaries(self) -> Bool[np.ndarray, "n h w"]:
        """Grain boundaries, across the border too, and twin boundaries."""
        grain = np.zeros(self.labels.shape, bool)
        for axis in (1, 2):
            grain |= self.labels != np.roll(self.labels, 1, axis)
        return grain | self.twin_boundaries

    def scored(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The first `count` pairs as `baselines.score_methods` takes them: noisy, clean, boundaries."""
        return self.noisy[:count], self.clean[:count], self.boundaries[:count]


@dataclass(frozen=True)
class References:
    """Reference micrographs of one split.

    Attributes:
        names: of the files, or of the kinds of stand-in.
        images: luminance [h, w] of each one's region; of your own what lies beside a burnt-in bar or strip.
        corners: (left, upper) of each region within its file.
        real: whether these are real micrographs.
    """

    names: tuple[str, ...]
    images: tuple[Float[np.ndarray, "_h _w"], ...]
    corners: tuple[tuple[int, int], ...]
    real: bool

    def check(self, shape: tuple[int, int]) -> None:
        """Raise a ValueError that names a reference with no room for a crop of that shape, if there is one."""
        for name, image in zip(self.names, self.images, strict=True):
            if image.shape[0] < shape[0] or image.shape[1] < shape[1]:
                raise ValueError(
                    f"{name}: {image.shape[1]} x {image.shape[0]} px beside what is burnt in, too small for pairs of "
                    f"{shape[1]} x {shape[0]}: leave that file out, or make smaller pairs (shape; size in notebook 03)"
                )

    def crop(
        self, shape: tuple[int, int], *, zoom: tuple[float, float] = (1.0, 1.0), key: Array
    ) -> tuple[Float[np.ndarray, "h w"], int, tuple[int, int, int, int]]:
        """A random crop: the image, which reference it is from, and its box (left, upper, right, lower) in that file.

        Args:
            shape: (H, W) of the image.
            zoom: range of the box's side over the image's, as far as the region has room: above 1 the image shows
                more of the micrograph, as under a weaker objective.
            key: a `jax.random.key`.

        Raises:
            ValueError: if a region is smaller than the crop.
        """
        self.check(shape)
        which, row, column, far = (float(u) for u in jax.random.uniform(key, (4,)))
        index = min(int(which * len(self.images)), len(self.images) - 1)
        image, (left, upper) = self.images[index], self.corners[index]
        room = min(m / n for n, m in zip(shape, image.shape, strict=True))
        factor = min(zoom[0] * (zoom[1] / zoom[0]) ** far, room)
        height, width = (round(n * factor) for n in shape)
        top = int(row * (image.shape[0] - height + 1))
        side = int(column * (image.shape[1] - width + 1))
        part = image[top : top + height, side : side + width]
        if part.shape != tuple(shape):
            part = np.clip(resize(part, shape, anti_aliasing=factor > 1), 0, 1).astype(np.float32)
        return part, index, (left + side, upper + top, left + side + width, upper + top + height)


def load_references(split: str, *, real: bool = True, folder: str | Path | None = None, seed: int = 0) -> References:
    """Reference micrographs of a split: your own, or real ones where they can be had, else procedural stand-ins.

    Args:
        split: "train", "validation" or "test".
        real: False asks for the stand-ins.
        folder: of TIFF, PNG and JPEG micrographs of your own, five or more. A file belongs to one split alone: of
            every five, in the order of their names, three to train, one to validate and one to test. One that cannot
            be read is left out, which a warning tells.
        seed: of the stand-ins; each split draws its own.

    Raises:
        ValueError: for an unknown split or fewer than five micrographs in the folder that can be read.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if folder is not None:
        return _own_references(folder)[split]
    if real:
        try:
            images = tuple(load_reference(name, split) for name in REFERENCES)
            return References(REFERENCES, images, tuple(region(name, split)[:2] for name in REFERENCES), True)
        except FileNotFoundError:
            pass
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), SPLITS.index(split)), len(STAND_INS))
    images = tuple(stand_in(kind, STAND_IN_SHAPE, key=key) for kind, key in zip(STAND_INS, keys, strict=True))
    corner = (SPLITS.index(split) * STAND_IN_SHAPE[1], 0)  # as if the splits lay side by side in one file
    return References(STAND_INS, images, (corner,) * len(STAND_INS), False)


def _own_references(folder: str | Path) -> dict[str, References]:
    """Those of every split from a folder; what cannot be read is left out and told."""
    found, left_out = [], []
    for path in micrographs.micrographs_in(folder):
        try:
            pixels = micrographs.read_micrograph(path).pixels
        except (ValueError, OSError) as error:
            reason = str(error).replace(str(path), path.name).split("; accepted:")[0]
            left_out.append(reason.encode("utf-8", "replace").decode())
            continue
        rows, columns = free_field(scale_bar_mask(pixels))
        found.append((path.name, luminance(pixels)[rows, columns], (columns.start, rows.start)))
    told = "".join(f"\n  {text}" for text in left_out)
    if len(found) < len(OWN_SPLITS):
        raise ValueError(
            f"folder: {len(found)} micrographs in {folder}; accepted: at least {len(OWN_SPLITS)} "
            f"{', '.join(micrographs.SUFFIXES)} files that can be read" + (f". Left out:{told}" if told else "")
        )
    if told:
        warnings.warn(f"{TOLD} {folder}, {len(found)} micrographs are left:{told}", stacklevel=2)
    splits = {split: [i for i in range(len(found)) if OWN_SPLITS[i % len(OWN_SPLITS)] == split] for split in SPLITS}
    return {split: References(*zip(*(found[i] for i in chosen), strict=True), True) for split, chosen in splits.items()}


def grow_run(config: DatasetConfig, run: int) -> Grains:
    """The phase-field run of that number: its own size of grains, time, interface width and key.

    Grains below `RESOLVED` px are grown on a grid that is two or more times finer than the pair's pixels.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 0), run)
    draw, grow_key = jax.random.split(key)
    u = np.asarray(jax.random.uniform(draw, (3,)), float)
    low, high = config.diameter
    diameter = low * (high / low) ** (u[0] ** 0.8)  # somewhat more of the large ones
    finer = math.ceil(RESOLVED / diameter)
    params = AllenCahn(shape=tuple(finer * n for n in config.shape), kappa=(1.0, 2.0)[int(u[2] < 0.6)])
    area, time = math.pi / 4 * (finer * diameter) ** 2, config.time[0] + u[1] * (config.time[1] - config.time[0])
    start = area - min(COARSENING * params.kappa * time, area / 2)  # cells a grain then
    return grow(params, n_grains=max(2, round(math.prod(params.shape) / start)), time=time, key=grow_key)


def _turned(grains: Grains, *, key: Array) -> Grains:
    """The same run shifted along the torus and, if it is square, turned or mirrored."""
    row, column, turn = (float(u) for u in jax.random.uniform(key, (3,)))
    height, width = grains.labels.shape
    shift, square = (int(row * height), int(column * width)), height == width

    def move(field):
        field = np.roll(field, shift, (0, 1))
        if square:
            field = np.rot90(field, int(turn * 4))
            field = field.T if int(turn * 8) % 2 else field
        return np.ascontiguousarray(field)

    return Grains(move(grains.labels), move(grains.order), grains.time, grains.energy)


def make_dataset(
    path: str | Path,
    config: DatasetConfig,
    *,
    grown: str | Path | None = None,
    folder: str | Path | None = None,
    workers: int = 1,
    progress: bool = True,
) -> str:
    """Make the pairs, or go on making them: pairs that are there already are kept.

    After `jax.distributed.initialize`, every process calls this with the same arguments and makes its share of the
    runs, into a path that all of them see; none returns before all are done.

    The same configuration gives the same bytes on the same machine from processes of as many cores, however often it
    was killed and gone on with; another number of cores moves a pixel here and there by a step of float16.

    Args:
        path: Zarr group to write, one sub-group a split.
        config: what to make.
        grown: folder where grown structures are kept, for other datasets of the same seed, shape, diameters and
            times; without one they are grown anew.
        folder: of micrographs of your own to take as references, as in `load_references`.
        workers: processes that this one starts, each on one core of its own; 1 works here, on all of its cores.
        progress: whether to show a bar.

    Returns:
        "real", "stand-ins" or "your own": what the references were.

    Raises:
        ValueError: if the path holds a dataset of another configuration or of other micrographs, or as in
            `load_references`.

    Source: Section III.
    """
    references, provenance, tasks = in_turn(_prepare, path, config, grown, folder)
    held, tasks = sum(config.counts().values()) - sum(len(todo) for _, _, todo in tasks), own(tasks)
    total, shown = held + sum(len(todo) for _, _, todo in tasks), progress and jax.process_index() == 0
    bar = tqdm(total=total, initial=held, desc="pairs", disable=not shown, mininterval=1)
    make = partial(_make_run, str(path), config, grown, folder)
    together(_make_runs, make, tasks, references, workers, bar)
    bar.close()
    return provenance


def _prepare(
    path: str | Path, config: DatasetConfig, grown: str | Path | None, folder: str | Path | None
) -> tuple[dict, str, list]:
    """Claim the path and make its arrays; the references, what they are, and what is still to be made.

    Processes after the first find all made, and only look.
    """
    first = jax.process_index() == 0
    references = _all_references.__wrapped__(config, folder)  # a folder may hold other files than last time
    provenance = "real" if references["train"][0].real else "stand-ins"
    wanted = json.loads(json.dumps({**asdict(config), "micrographs": provenance}))
    if folder is not None:
        provenance = "your own"
        pixels = b"".join(image.tobytes() for split in SPLITS for image in references[split][0].images)
        wanted["micrographs"] = hashlib.sha256(pixels).hexdigest()
    for split, count in config.counts().items():
        if count:
            references[split][0].check(config.shape)
    root = _open(path, "a" if first else "r+")
    if "config" in root.attrs and root.attrs["config"] != wanted:
        held = dict(root.attrs["config"])
        odd = [
            f"{n} ({held.get(n)!r}, not {wanted.get(n)!r})" for n in {**wanted, **held} if held.get(n) != wanted.get(n)
        ]
        raise ValueError(
            f"{path} holds a dataset of another configuration: {'; '.join(odd)}; remove it or name another path"
        )
    counts, tasks = config.counts(), []
    if first:
        try:
            root.attrs["config"] = wanted
            for split in SPLITS:
                _create(root, split, counts[split], config.shape, _names(references[split]))
        except OSError as error:  # a full disk does not say which file it was
            raise OSError(error.errno, f"{path} is not written: {error.strerror or error}") from error
    for split, runs in config.runs().items():
        done = _read(path, split, "done")
        for offset, run in enumerate(runs):
            todo = [i for i in range(offset, counts[split], len(runs)) if not done[i]]
            tasks += [(split, run, todo)] * bool(todo)
    if first:
        sweep([*Path(path).rglob("*.partial"), *(Path(grown).glob("*.npz.*.part") if grown is not None else ())])
    return references, provenance, tasks


def _make_runs(make, tasks: list, references: dict, workers: int, bar: tqdm) -> None:
    """`make` each of the tasks, here or by workers."""
    if workers == 1 or len(tasks) < 2:
        for task in tasks:
            bar.update(make(task, references))
    else:
        cores = multiprocessing.get_context("spawn").SimpleQueue()
        for core in range(workers):
            cores.put(core)
        spawn = {"mp_context": multiprocessing.get_context("spawn"), "initializer": _settle, "initargs": (cores,)}
        with ProcessPoolExecutor(workers, **spawn) as pool:
            for finished in as_completed([pool.submit(make, task) for task in tasks]):
                bar.update(finished.result())


def _settle(cores) -> None:
    """Keep a worker on one core, where the system knows of such a thing: XLA would take all of them, or the GPU."""
    jax.config.update("jax_platforms", "cpu")
    warnings.filterwarnings("ignore", TOLD)  # the parent has told it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[cores.get() % len(allowed)]})


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work, and hold its memory, for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


@functools.cache
def _all_references(config: DatasetConfig, folder: str | Path | None) -> dict[str, tuple[References, References]]:
    """Of each split, the references and the stand-ins."""
    if folder is None:
        found = {split: load_references(split, real=config.real, seed=config.seed) for split in SPLITS}
    else:
        found = _own_references(folder)
    return {
        split: (first, load_references(split, real=False, seed=config.seed) if first.real else first)
        for split, first in found.items()
    }


def _names(references: tuple[References, References]) -> tuple[str, ...]:
    first, stand_ins = references
    return first.names + stand_ins.names if first.real else first.names


def _make_run(
    path: str, config: DatasetConfig, grown: str | Path | None, folder: str | Path | None, task: tuple, references=None
) -> int:
    """All pairs of one run that are still to be made; how many they were."""
    split, run, todo = task
    references = references or _all_references(config, folder)
    group, grains = _open(path, "a")[split], _grown(config, run, grown)
    for i in todo:
        pair = _make(config, grains, references[split], key=_pair_key(config, split, i))
        _write(group, i, {"run": run, **pair})
    return len(todo)


def _grown(config: DatasetConfig, run: int, folder: str | Path | None) -> Grains:
    """A run, from the folder or into it."""
    what = json.dumps([config.seed, config.shape, config.diameter, config.time])
    name = f"{hashlib.sha256(what.encode()).hexdigest()[:8]}-{run:05d}.npz"
    if folder is not None and (Path(folder) / name).exists():
        try:
            with np.load(Path(folder) / name, allow_pickle=False) as kept:
                return Grains(kept["labels"], kept["order"].astype(np.float32), *kept["scalars"].tolist())
        except Exception as error:  # a zip of arrays has its own checksums; what fails them is grown again
            warnings.warn(f"{Path(folder) / name} is damaged ({error}); grown anew", stacklevel=2)
    grains = grow_run(config, run)
    order = grains.order.astype(np.float16)  # within 5e-4, whether kept or not
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        part = Path(folder) / f"{name}.{os.getpid()}.part"
        with beside(Path(folder) / name, part), part.open("wb") as file:
            np.savez_compressed(file, labels=grains.labels, order=order, scalars=[grains.time, grains.energy])
    return Grains(grains.labels, order.astype(np.float32), grains.time, grains.energy)


def _pair_key(config: DatasetConfig, split: str, number: int) -> Array:
    return jax.random.fold_in(jax.random.key(config.seed), 1 + SPLITS.index(split) + 3 * number)


def _drawn(config: DatasetConfig, key: Array) -> PairConfig:
    return _less(config, PairConfig.draw(jax.random.split(key)[1]))


def _less(config: DatasetConfig, recipe: PairConfig) -> PairConfig:
    for part in config.without:
        recipe = replace(recipe, **PARTS[part](recipe))
    return recipe


def drawn_recipe(config: DatasetConfig, split: str, number: int) -> PairConfig:
    """The recipe of a varied pair, drawn again; of no meaning for a pair that follows the paper's.

    Args:
        config: of the dataset, as of `made_with`.
        split: "train", "validation" or "test".
        number: of the pair within its split.
    """
    return _drawn(config, jax.random.split(_pair_key(config, split, number), 4)[2])


def made_with(path: str | Path) -> DatasetConfig:
    """The configuration that a dataset was made with.

    Args:
        path: of the dataset, as of `make_dataset`.

    Raises:
        ValueError: for a path that holds no dataset.
    """
    told = _open(path, "r").attrs.get("config")
    if told is None:
        raise ValueError(f"{path} holds no dataset; make it with mdn.make_dataset")
    return as_config(DatasetConfig, told)


def as_config(kind: type, told: dict):
    """A configuration of that kind from the JSON that it was kept as; what it has no field for is left out."""
    names = {field.name for field in fields(kind)}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in told.items() if k in names})


def _make(config: DatasetConfig, grains: Grains, references: tuple[References, References], *, key: Array) -> dict:
    turn_key, crop_key, config_key, pair_key = jax.random.split(key, 4)
    draw_key, _ = jax.random.split(config_key)
    own, other = (float(u) for u in jax.random.uniform(draw_key, (2,)))
    first, stand_ins = references
    varied = own < config.varied or grains.labels.shape != config.shape  # small grains are not the paper's
    borrowed = varied and first.real and other < config.stand_ins
    chosen = stand_ins if borrowed else first
    reference, source, box = chosen.crop(config.shape, zoom=ZOOM if varied else (1.0, 1.0), key=crop_key)
    pair_config = _drawn(config, config_key) if varied else _less(config, PairConfig())
    pair = make_pair(_turned(grains, key=turn_key), reference, config=pair_config, key=pair_key)
    source += len(first.names) if borrowed else 0
    return {name: getattr(pair, name) for name in FIELDS} | {"source": source, "box": box, "varied": varied}


def _create(root: zarr.Group, split: str, n: int, shape: tuple[int, int], sources: tuple[str, ...]) -> None:
    group = root.require_group(split)
    group.attrs["sources"] = list(sources)
    arrays = {name: (dtype, shape) for name, dtype in FIELDS.items()} | FACTS | {"done": ("bool", ())}
    options = {"compressors": COMPRESSORS, "attributes": WHOLE}
    for name, (dtype, one) in arrays.items():
        group.require_array(name, shape=(n, *one), chunks=(1, *one), dtype=dtype, **options)


def _write(group: zarr.Group, i: int, pair: dict) -> None:
    try:
        with zarr.config.set({"array.write_empty_chunks": True}):
            for name, value in pair.items():
                group[name][i] = value
            group["done"][i] = True  # last: a pair cut short is made again
    except OSError as error:  # a full disk does not say which file it was
        raise OSError(
            error.errno, f"pair {i} of {group.store_path} is not written: {error.strerror or error}"
        ) from error


def _open(path: str | Path, mode: str) -> zarr.Group:
    """Version 3 alone: a store of version 2 may ask for the codec that unpickles."""
    try:
        return zarr.open_group(str(path), mode=mode, zarr_format=3)
    except OSError as error:
        raise type(error)(error.errno, f"{path} is not opened: {error.strerror or error}") from error
    except Exception as error:
        raise ValueError(f"{path} is no dataset that can be read ({error}); make it with mdn.make_dataset") from error


def _read(path: str | Path, split: str, name: str) -> np.ndarray:
    """The whole of an array; where that fails or a chunk is missing, a ValueError that names the chunk."""
    try:
        array = _open(path, "r")[split][name]
    except Exception as error:
        raise ValueError(f"{Path(path) / split / name} is no array that can be read ({error}); make it anew") from error
    chunks = [Path(path, split, name, "c", str(i), *("0" for _ in array.shape[1:])) for i in range(array.shape[0])]
    whole = name != "done" and WHOLE.items() <= dict(array.attrs).items()
    if missing := next((chunk for chunk in chunks if whole and not chunk.exists()), None):  # Zarr would read zeros
        raise ValueError(f"{missing} is missing; remove {path} and make it anew")
    try:
        return array[:]
    except Exception as error:  # each codec raises its own kind
        for i, chunk in enumerate(chunks):
            try:
                array[i]
            except Exception as error:
                raise ValueError(f"{chunk} is damaged ({error}); remove {path} and make it anew") from error
        raise ValueError(f"{Path(path) / split / name} cannot be read ({error})") from error


def load_pairs(path: str | Path, split: str) -> Pairs:
    """Read one split of a dataset into memory.

    Raises:
        ValueError: for an unknown split, a dataset that is not there or not finished, or a chunk that is damaged or
            missing, by name.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if not (Path(path) / split).is_dir():
        raise ValueError(f"{path} holds no dataset with a split {split!r}; make it with mdn.make_dataset")
    done = _read(path, split, "done")
    if not done.all():
        raise ValueError(f"{path} is not finished: {int((~done).sum())} pairs of {split!r} are missing")
    arrays = {name: _read(path, split, name) for name in (*FIELDS, *FACTS)}
    arrays |= {name: arrays[name].astype(np.float32) for name in ("noisy", "clean")}
    return Pairs(**arrays, sources=tuple(_open(path, "r")[split].attrs["sources"]))
