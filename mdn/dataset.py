"""Pairs on disk (Section III): N of them in Zarr, split 80:20 before any cropping.

No phase-field run and no region of a micrograph stands on two sides of a split. Every run and pair has a key of
its own, so that an interrupted generation goes on and ends with the same bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np
import zarr
from jaxtyping import Array, Bool, Float, Int, UInt16
from tqdm.auto import tqdm

from mdn import micrographs
from mdn.micrographs import load_reference, region
from mdn.phase_field import AllenCahn, Grains, grow
from mdn.synthesis import STAND_INS, PairConfig, make_pair, stand_in

SPLITS = tuple(micrographs.SPLITS)
REFERENCES = ("iron_nital", "brass_c2600_200x")
STAND_IN_SHAPE = (512, 512)
FIELDS = {"noisy": "float16", "clean": "float16", "labels": "int32", "twins": "bool", "defects": "uint16"}
FACTS = {"run": ("int32", ()), "source": ("int32", ()), "box": ("int32", (4,)), "varied": ("bool", ())}


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """What a dataset holds; the defaults are the paper's 3,000 images.

    Args:
        n_pairs: training and validation pairs together, split 80:20.
        n_test: further pairs, from regions and runs of their own.
        shape: pixels (H, W) of a pair.
        n_runs: phase-field runs over all splits; a run used again is shifted and turned. Default: one a pair.
        n_grains, time: ranges that each run draws its number of grains and its time of growth from.
        varied: share of the pairs that draw their own `PairConfig`; the others follow the paper's recipe.
        real: whether references are the real micrographs or the stand-ins.
        seed: of every draw.

    Raises:
        ValueError: naming the field, what was given and what is accepted.
    """

    n_pairs: int = 3000
    n_test: int = 100
    shape: tuple[int, int] = (256, 256)
    n_runs: int | None = None
    n_grains: tuple[int, int] = (20, 220)
    time: tuple[float, float] = (15.0, 60.0)
    varied: float = 0.0
    real: bool = True
    seed: int = 0

    def __post_init__(self):
        if self.n_pairs < 5 or self.n_test < 0:
            raise ValueError(f"n_pairs must be at least 5 and n_test at least 0, got {self.n_pairs}, {self.n_test}")
        if self.n_runs is not None and not 5 <= self.n_runs <= self.n_pairs + self.n_test:
            raise ValueError(f"n_runs must lie between 5 and the number of pairs, got {self.n_runs}")
        for name in ("n_grains", "time"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be an increasing range above 0, got {getattr(self, name)!r}")
        if not 0 <= self.varied <= 1:
            raise ValueError(f"varied must be a share in [0, 1], got {self.varied!r}")
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

    def scored(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The first `count` pairs as `baselines.score_methods` takes them: noisy, clean, regions."""
        return self.noisy[:count], self.clean[:count], self.regions[:count]


@dataclass(frozen=True)
class References:
    """Reference micrographs of one split.

    Attributes:
        names: of the files, or of the kinds of stand-in.
        images: luminance [h, w] of each one's region.
        corners: (left, upper) of each region within its file.
        real: whether these are real micrographs.
    """

    names: tuple[str, ...]
    images: tuple[Float[np.ndarray, "_h _w"], ...]
    corners: tuple[tuple[int, int], ...]
    real: bool

    def crop(
        self, shape: tuple[int, int], *, key: Array
    ) -> tuple[Float[np.ndarray, "h w"], int, tuple[int, int, int, int]]:
        """A random crop: the image, which reference it is from, and its box within that file.

        Raises:
            ValueError: if a region is smaller than the crop.
        """
        smallest = tuple(np.min([image.shape for image in self.images], axis=0).tolist())
        if any(n > m for n, m in zip(shape, smallest, strict=True)):
            raise ValueError(f"shape must fit the smallest region, {smallest} px, got {shape}")
        which, row, column = (float(u) for u in jax.random.uniform(key, (3,)))
        index = min(int(which * len(self.images)), len(self.images) - 1)
        image, (left, upper) = self.images[index], self.corners[index]
        top = int(row * (image.shape[0] - shape[0] + 1))
        side = int(column * (image.shape[1] - shape[1] + 1))
        box = (left + side, upper + top, left + side + shape[1], upper + top + shape[0])
        return image[top : top + shape[0], side : side + shape[1]], index, box


def load_references(split: str, *, real: bool = True, seed: int = 0) -> References:
    """Reference micrographs of a split: real ones where they can be had, else procedural stand-ins.

    Args:
        split: "train", "validation" or "test".
        real: False asks for the stand-ins.
        seed: of the stand-ins; each split draws its own.

    Raises:
        ValueError: for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
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


def grow_run(config: DatasetConfig, run: int) -> Grains:
    """The phase-field run of that number: its own number of grains, time, interface width and key."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 0), run)
    draw, grow_key = jax.random.split(key)
    u = np.asarray(jax.random.uniform(draw, (3,)), float)
    params = AllenCahn(shape=config.shape, kappa=(1.0, 2.0)[int(u[2] < 0.6)])
    low, high = (n * np.prod(config.shape) / 256**2 for n in config.n_grains)
    n_grains = max(2, round(low * (high / low) ** u[0]))
    return grow(params, n_grains=n_grains, time=config.time[0] + u[1] * (config.time[1] - config.time[0]), key=grow_key)


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


def make_dataset(path: str | Path, config: DatasetConfig, *, progress: bool = True) -> str:
    """Make the pairs, or go on making them: pairs that are there already are kept.

    Args:
        path: Zarr group to write, one sub-group a split.
        config: what to make.
        progress: whether to show a bar.

    Returns:
        "real" or "stand-ins": what the references were.

    Raises:
        ValueError: if the path holds a dataset of another configuration.

    Source: Section III.
    """
    references = {split: load_references(split, real=config.real, seed=config.seed) for split in SPLITS}
    provenance = "real" if references["train"].real else "stand-ins"
    wanted = json.loads(json.dumps({**asdict(config), "micrographs": provenance}))
    root = zarr.open_group(str(path), mode="a")
    if "config" in root.attrs and root.attrs["config"] != wanted:
        raise ValueError(f"{path} holds a dataset of another configuration: {root.attrs['config']}, not {wanted}")
    root.attrs["config"] = wanted
    counts, runs = config.counts(), config.runs()
    bar = tqdm(total=sum(counts.values()), desc="pairs", disable=not progress, mininterval=1)
    for split in SPLITS:
        group = _create(root, split, counts[split], config.shape, references[split].names)
        for offset, run in enumerate(runs[split]):
            todo = [i for i in range(offset, counts[split], len(runs[split])) if not group["done"][i]]
            bar.update(len(range(offset, counts[split], len(runs[split]))) - len(todo))
            if not todo:
                continue
            grains = grow_run(config, run)
            for i in todo:
                key = jax.random.fold_in(jax.random.key(config.seed), 1 + SPLITS.index(split) + 3 * i)
                _write(group, i, {"run": run, **_make(config, grains, references[split], key=key)})
                bar.update()
    bar.close()
    return provenance


def _make(config: DatasetConfig, grains: Grains, references: References, *, key: Array) -> dict:
    turn_key, crop_key, config_key, pair_key = jax.random.split(key, 4)
    reference, source, box = references.crop(config.shape, key=crop_key)
    draw_key, config_key = jax.random.split(config_key)
    varied = float(jax.random.uniform(draw_key)) < config.varied
    pair_config = PairConfig.draw(config_key) if varied else PairConfig()
    pair = make_pair(_turned(grains, key=turn_key), reference, config=pair_config, key=pair_key)
    return {name: getattr(pair, name) for name in FIELDS} | {"source": source, "box": box, "varied": varied}


def _create(root: zarr.Group, split: str, n: int, shape: tuple[int, int], sources: tuple[str, ...]) -> zarr.Group:
    group = root.require_group(split)
    group.attrs["sources"] = list(sources)
    arrays = {name: (dtype, shape) for name, dtype in FIELDS.items()} | FACTS | {"done": ("bool", ())}
    for name, (dtype, one) in arrays.items():
        group.require_array(name, shape=(n, *one), chunks=(1, *one), dtype=dtype)
    return group


def _write(group: zarr.Group, i: int, pair: dict) -> None:
    for name, value in pair.items():
        group[name][i] = value
    group["done"][i] = True  # last: a pair cut short is made again


def load_pairs(path: str | Path, split: str) -> Pairs:
    """Read one split of a dataset into memory.

    Raises:
        ValueError: for an unknown split, or a dataset that is not there or not finished.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if not (Path(path) / split).is_dir():
        raise ValueError(f"{path} holds no dataset with a split {split!r}; make it with mdn.make_dataset")
    group = zarr.open_group(str(path), mode="r")[split]
    if not group["done"][:].all():
        raise ValueError(f"{path} is not finished: {int((~group['done'][:]).sum())} pairs of {split!r} are missing")
    arrays = {name: group[name][:] for name in (*FIELDS, *FACTS)}
    arrays |= {name: arrays[name].astype(np.float32) for name in ("noisy", "clean")}
    return Pairs(**arrays, sources=tuple(group.attrs["sources"]))
