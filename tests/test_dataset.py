"""Pairs on disk: no leakage across the split, the same bytes after an interruption."""

from itertools import combinations

import jax
import numpy as np
import pytest

from mdn import dataset, micrographs
from mdn.dataset import SPLITS, DatasetConfig, grow_run, load_pairs, load_references, made_with, make_dataset
from mdn.defects import KINDS
from mdn.micrographs import luminance, region, write_micrograph

SMALL = DatasetConfig(n_pairs=15, n_test=3, n_runs=6, shape=(64, 64), time=(2.0, 5.0), varied=0.5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.zarr"
    return path, make_dataset(path, SMALL, progress=False)


def test_default_is_the_papers_2400_to_600():
    assert DatasetConfig().counts() == {"train": 2400, "validation": 600, "test": 100}
    assert [len(r) for r in DatasetConfig().runs().values()] == [2400, 600, 100]


def overlap(a, b):
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def leaks(splits):
    """Runs or pixels of a reference that stand in more than one of the splits."""
    found = []
    for i, a in enumerate(splits):
        for b in splits[i + 1 :]:
            found += sorted(set(a.run.tolist()) & set(b.run.tolist()))
            found += [
                (x.tolist(), y.tolist())
                for x, s in zip(a.box, a.source, strict=True)
                for y, t in zip(b.box, b.source, strict=True)
                if s == t and overlap(x, y)
            ]
    return found


def test_nothing_stands_on_two_sides_of_a_split(made):
    splits = [load_pairs(made[0], split) for split in SPLITS]
    assert [len(s) for s in splits] == [12, 3, 3]
    assert leaks(splits) == []
    assert leaks([splits[0], splits[0]]) != []  # the check sees a leak where there is one


def test_real_regions_are_disjoint_and_large_enough():
    for name in dataset.REFERENCES:
        boxes = [region(name, split) for split in SPLITS]
        assert not any(overlap(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
        assert all(b[2] - b[0] >= 256 and b[3] - b[1] >= 256 for b in boxes)


def test_pairs_are_images_with_their_truth(made):
    pairs = load_pairs(made[0], "train")
    assert pairs.noisy.shape == pairs.clean.shape == (12, 64, 64) and pairs.noisy.dtype == np.float32
    assert pairs.noisy.min() >= 0 and pairs.noisy.max() <= 1
    correlation = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(pairs.noisy, pairs.clean, strict=True)]
    assert np.median(correlation) > 0.3
    shuffled = [np.corrcoef(pairs.noisy[i].ravel(), pairs.clean[i - 1].ravel())[0, 1] for i in range(12)]
    assert np.median(correlation) > 0.2 + np.median(shuffled)


def test_interrupted_generation_ends_with_the_same_bytes(made, tmp_path, monkeypatch):
    write, count = dataset._write, 0

    def failing(*args):
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        write(*args)

    monkeypatch.setattr(dataset, "_write", failing)
    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path / "p.zarr", SMALL, progress=False)
    with pytest.raises(ValueError, match="not finished|no dataset"):
        load_pairs(tmp_path / "p.zarr", "train")
    monkeypatch.setattr(dataset, "_write", write)
    make_dataset(tmp_path / "p.zarr", SMALL, progress=False)
    for split in SPLITS:
        a, b = load_pairs(made[0], split), load_pairs(tmp_path / "p.zarr", split)
        for name in ("noisy", "clean", "labels", "twins", "defects", "run", "source", "box", "varied"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_workers_and_kept_structures_give_the_same_bytes(made, tmp_path, monkeypatch):
    make_dataset(tmp_path / "p.zarr", SMALL, grown=tmp_path / "grown", workers=2, progress=False)
    assert len(list((tmp_path / "grown").glob("*.npz"))) == 6 and not list((tmp_path / "grown").glob("*.part"))
    monkeypatch.setattr(dataset, "grow_run", lambda *_: pytest.fail("grew a run that was kept"))
    make_dataset(tmp_path / "q.zarr", SMALL, grown=tmp_path / "grown", progress=False)
    for split in SPLITS:
        for path in (tmp_path / "p.zarr", tmp_path / "q.zarr"):
            a, b = load_pairs(made[0], split), load_pairs(path, split)
            np.testing.assert_array_equal(a.noisy, b.noisy)
            np.testing.assert_array_equal(a.twin_boundaries, b.twin_boundaries)


def test_grains_of_every_size_asked_for():
    config = DatasetConfig(diameter=(8.0, 60.0), time=(2.0, 5.0), shape=(64, 64))
    runs = [grow_run(config, run) for run in range(12)]
    finer = np.array([grains.labels.shape[0] // 64 for grains in runs])
    count = np.array([len(np.unique(grains.labels)) for grains in runs])
    diameter = np.sqrt(4 * 64**2 / (np.pi * count))
    assert set(finer) >= {1, 2} and diameter.min() < 16 and diameter.max() > 25
    assert (finer * diameter > 0.7 * dataset.RESOLVED).all()  # no interface as wide as its grain


def test_small_grains_and_their_own_recipes_are_varied(made):
    config, seen = made_with(made[0]), 0
    assert config == SMALL
    for split in SPLITS:
        pairs = load_pairs(made[0], split)
        finer = np.array([grow_run(config, int(run)).labels.shape[0] > config.shape[0] for run in pairs.run])
        assert pairs.varied[finer].all()
        for i in np.flatnonzero(pairs.varied):
            recipe, seen = dataset.drawn_recipe(config, split, int(i)), seen + 1
            absent = sum(1 << n for n, kind in enumerate(KINDS) if getattr(recipe.defects, kind) == 0)
            assert not (pairs.defects[i] & absent).any()
            assert recipe.twin_fraction > 0 or not pairs.twins[i].any()
    assert seen > 5
    with pytest.raises(ValueError, match="no dataset"):
        made_with(made[0] / "test")


def test_a_finished_dataset_is_left_alone(made, monkeypatch):
    monkeypatch.setattr(dataset, "grow_run", lambda *_: pytest.fail("grew a run that was there"))
    assert make_dataset(made[0], SMALL, progress=False) == made[1]


def test_stand_ins_differ_between_splits():
    images = [load_references(split, real=False).images for split in SPLITS]
    for kinds in zip(*images, strict=True):
        assert all((a != b).mean() > 0.5 for a, b in combinations(kinds, 2))


def test_what_is_only_tested_on_is_no_reference():
    assert not {"steel_nist", "brass_c2600_annealed_200x"} & {*dataset.REFERENCES}
    assert {"steel_nist", "brass_c2600_annealed_200x"} <= {*micrographs.sources()}


def test_references_fall_back_to_stand_ins(monkeypatch):
    def missing(name, split):
        raise FileNotFoundError(name)

    monkeypatch.setattr(dataset, "load_reference", missing)
    assert load_references("train").names == dataset.STAND_INS and not load_references("train").real


def own(folder, n=5, size=96):
    rng = np.random.default_rng(3)
    folder.mkdir(exist_ok=True)
    for i in range(n):
        write_micrograph(folder / f"{i}.png", rng.integers(0, 255, (size, size), np.uint8))
    (folder / "notes.txt").write_text("no micrograph")
    (folder / "._0.png").write_text("a Mac's")
    return folder


def test_a_folder_of_your_own_gives_each_file_to_one_split(tmp_path):
    folder = own(tmp_path / "own", 6)
    names = {split: load_references(split, folder=folder).names for split in SPLITS}
    assert names == {"train": ("0.png", "1.png", "3.png", "5.png"), "validation": ("2.png",), "test": ("4.png",)}
    config = DatasetConfig(n_pairs=5, n_test=1, n_runs=5, shape=(64, 64), time=(2.0, 3.0), diameter=(25.0, 30.0))
    assert make_dataset(tmp_path / "p.zarr", config, folder=folder, progress=False) == "your own"
    splits = [load_pairs(tmp_path / "p.zarr", split) for split in SPLITS]
    assert {pairs.sources[i] for pairs in splits for i in pairs.source} <= {f"{i}.png" for i in range(6)}
    (folder / "3.png").unlink()
    with pytest.raises(ValueError, match="another configuration"):
        make_dataset(tmp_path / "p.zarr", config, folder=folder, progress=False)
    with pytest.raises(ValueError, match="folder: 2 micrographs .* at least 5"):
        load_references("train", folder=own(tmp_path / "few", 2))


def test_a_file_of_your_own_that_cannot_be_read_is_told_and_left_out(tmp_path):
    folder = own(tmp_path / "own", 6)
    (folder / "0.png").write_text("no image")
    (folder / "folder.tif").mkdir()
    left_out = r"5 micrographs are left:\n  0\.png: .*\n  folder\.tif: .*no regular file"
    with pytest.warns(UserWarning, match=left_out) as told:
        names = {split: load_references(split, folder=folder).names for split in SPLITS}
    assert names == {"train": ("1.png", "2.png", "4.png"), "validation": ("3.png",), "test": ("5.png",)}
    assert str(folder / "0.png") not in str(told[0].message)
    (folder / "1.png").write_text("no image")
    with pytest.raises(ValueError, match=r"(?s)folder: 4 micrographs .*at least 5.*0\.png: .*1\.png: "):
        load_references("train", folder=folder)


def test_a_file_of_your_own_that_is_too_small_is_told_before_anything_is_made(tmp_path):
    folder = own(tmp_path / "own")
    write_micrograph(folder / "3.png", np.random.default_rng(0).integers(0, 255, (80, 40), np.uint8))
    config = DatasetConfig(n_pairs=5, n_test=1, n_runs=5, shape=(64, 64), time=(2.0, 3.0), diameter=(25.0, 30.0))
    with pytest.raises(ValueError, match=r"3\.png: 40 x 80 px .* 64 x 64: leave that file out, or make smaller"):
        make_dataset(tmp_path / "p.zarr", config, folder=folder, progress=False)
    assert not (tmp_path / "p.zarr").exists()
    (folder / "3.png").unlink()
    write_micrograph(folder / "5.png", np.random.default_rng(0).integers(0, 255, (80, 80), np.uint8))
    assert make_dataset(tmp_path / "p.zarr", config, folder=folder, progress=False) == "your own"


def test_no_crop_holds_a_burnt_in_scale_bar(tmp_path):
    folder = own(tmp_path / "own", size=240)
    image = np.random.default_rng(1).integers(60, 160, (240, 240), np.uint8)
    image[215:221, 120:200] = 255
    write_micrograph(folder / "0.png", image)
    reference = load_references("train", folder=folder)
    assert reference.names[0] == "0.png" and 150 < reference.images[0].shape[0] < 215
    assert reference.images[0].max() < 0.9 and reference.images[1].shape == (240, 240)
    assert (reference.images[0] == luminance(image)[: len(reference.images[0])]).all()
    assert reference.corners[0] == (0, 0)


def test_crops_lie_where_their_box_says():
    references = load_references("validation", real=False)
    crop, index, (left, upper, right, lower) = references.crop((64, 80), key=jax.random.key(4))
    x, y = references.corners[index]
    np.testing.assert_array_equal(crop, references.images[index][upper - y : lower - y, left - x : right - x])
    crop, index, (left, upper, right, lower) = references.crop((64, 80), zoom=(2.0, 2.0), key=jax.random.key(4))
    box = references.images[index][upper - y : lower - y, left - x : right - x]
    assert crop.shape == (64, 80) and box.shape == (128, 160)
    assert np.corrcoef(box.reshape(64, 2, 80, 2).mean((1, 3)).ravel(), crop.ravel())[0, 1] > 0.9


def test_bad_input_is_named(made, tmp_path):
    with pytest.raises(ValueError, match="another configuration"):
        make_dataset(made[0], DatasetConfig(n_pairs=20, n_test=3, n_runs=6, shape=(64, 64)), progress=False)
    with pytest.raises(ValueError, match="split"):
        load_pairs(made[0], "holdout")
    with pytest.raises(ValueError, match="no dataset"):
        load_pairs(tmp_path / "nothing.zarr", "train")
    wrong = {"n_pairs": 2, "n_runs": 1, "shape": (8, 8), "varied": 1.5, "stand_ins": -1, "diameter": (2.0, 9.0)}
    for bad in ({name: value} for name, value in wrong.items()):
        with pytest.raises(ValueError, match=next(iter(bad))):
            DatasetConfig(**bad)


def test_a_part_left_out_takes_nothing_else_along():
    space, blended = (dataset.PairConfig(magnitude=m, match=m > 0) for m in (0.0, 0.5))
    assert dataset.PARTS["blend"](blended) == {"magnitude": 0.0}
    assert dataset.PARTS["matching"](blended) == {"match": False}
    assert dataset.PARTS["space alone"](space) == {"magnitude": 1.0, "match": True}  # as the full swaps mostly are
    assert dataset.PARTS["space alone"](blended) == {"magnitude": 0.5, "match": True}
    assert [dataset.PARTS["partial swaps"](one)["magnitude"] for one in (space, blended)] == [0, 1]
