"""The contenders of the benchmarks do the same work; benchmarks/rivals.py tells the better one."""

import importlib.util
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy import ndimage

from benchmarks import ablation, dncnn, inference, rivals, shipped_weights, training
from benchmarks import phase_field as benchmark
from benchmarks.parts import save, show
from mdn import baselines
from mdn.dataset import Pairs
from mdn.metrics import label_boundaries
from mdn.phase_field import AllenCahn

RIVALS = {benchmark.ROLL: "jax", benchmark.NUMBA: "numba", benchmark.PLAIN: "numba", benchmark.TORCH: "torch"}
# no two coefficients alike, and a domain that is no square
PARAMS = AllenCahn(shape=(24, 40), alpha=1.1, beta=1.3, gamma=0.9, kappa=1.7, mobility=0.8, dx=1.2)


@pytest.mark.parametrize("rival", RIVALS)
def test_contenders_agree(rival):
    pytest.importorskip(RIVALS[rival], reason=f"{RIVALS[rival]} is not installed: pip install numba torch==2.13.0")
    eta = 0.3 * np.random.default_rng(0).random((5, 24, 40), np.float32)
    contenders = benchmark.contenders(PARAMS, eta)
    own, other = (np.array(contenders[name](24)) for name in (benchmark.MDN, rival))
    assert np.abs(own - eta).max() > 0.1
    np.testing.assert_allclose(other, own, atol=2e-6)


def test_rates_are_told_and_kept_part_by_part(tmp_path, capsys):
    table = benchmark.rates(sides=(32,), steps=12, rounds=2, grown=6.0)
    assert 0 < table["targets"]["largest difference at most 1e-4"] < 1e-5
    show("rates", table)
    printed = capsys.readouterr().out
    assert all(row[2] in printed for row in table["rows"])
    path = tmp_path / "results" / "phase_field.json"
    save(path, "floor", {"columns": [], "rows": []})
    save(path, "rates", table)
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert set(kept) == {"floor", "rates"} and kept["rates"]["rows"] == table["rows"]
    assert {"command", "commit", "machine"} <= set(kept["rates"])
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_inference_is_timed_on_the_same_result():
    table = inference.speed(sizes=(64,), repeats=1)
    assert {row[1] for row in table["rows"]} > {"network", "median"}
    assert table["targets"]["64 px: first call of a process (s), below 8"] > 0
    if importlib.util.find_spec("torch"):
        assert table["targets"]["64 px: largest difference to PyTorch's output"] < 1e-5
    compiled = inference.sizes(count=3, side=(70, 120))
    assert compiled["targets"]["of 3 sizes, compiled"] <= 1  # all on the same grid


def test_training_is_timed_on_the_same_loss():
    table = training.step(repeats=1, cases={"tiny": training.TINY})
    losses = [row[-1] for row in table["rows"] if "no dropout" in row[0]]
    assert losses and all(loss == pytest.approx(losses[0], rel=1e-4) for loss in losses)
    pipeline = training.pipeline(repeats=2, network=training.TINY[0])
    assert pipeline["targets"]["share of a step"] < 0.5  # the step does not wait for its batch


def simulated(n: int, seed: int) -> Pairs:
    """Squares of 32 px with grooves and a twin each, noisy and with a scratch."""
    rng = np.random.default_rng(seed)
    y, x = (np.indices((96, 96)) + 16) % 96  # no boundary on the border
    labels = np.stack([(y // 32 * 3 + x // 32).astype(np.int32)] * n)
    twins = np.stack([(y % 32 > 15) & (x // 32 == 1)] * n)
    regions = 2 * labels + twins
    edges = np.stack([label_boundaries(each, periodic=True) for each in regions])
    grooves = np.stack([ndimage.gaussian_filter(each.astype(float), 1) for each in edges])
    clean = np.stack([rng.uniform(0.6, 0.8, 64)[each] for each in regions]) * (1 - 0.8 * grooves)
    scratch = np.abs(x - y // 3 - 36) < 2
    noisy = np.where(scratch, 0.1, clean) + rng.normal(0, 0.05, clean.shape)
    grains = np.stack([label_boundaries(each, periodic=True) for each in labels])
    defects = np.broadcast_to(np.where(scratch, rivals.bits(("deep_scratch",)), 0), clean.shape).astype(np.uint16)
    images = (np.clip(each, 0, 1).astype(np.float32) for each in (noisy, clean))
    facts = np.arange(n, dtype=np.int32), np.zeros(n, np.int32), np.zeros((n, 4), np.int32)
    names = "noisy", "clean", "labels", "twins", "twin_boundaries", "defects", "run", "source", "box", "varied"
    values = *images, labels, twins, edges & ~grains, defects, *facts, np.arange(n) % 2 == 1
    return Pairs(**dict(zip(names, values, strict=True)), sources=("none",))


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A network that is nearly perfect on the pairs it knows, and blurs others."""
    splits = {"validation": simulated(4, 0), "test": simulated(6, 1)}
    truths = {x.tobytes(): y for pairs in splits.values() for x, y in zip(pairs.noisy, pairs.clean, strict=True)}

    def restore(image):
        known = truths.get(np.float32(image).tobytes())
        return np.float32(0.98 * ndimage.gaussian_filter(image, 0.3) if known is None else 0.98 * known + 0.005)

    denoiser = type("Perfect", (), {"restore": staticmethod(restore), "__call__": lambda self, image: restore(image)})()
    few = {name: baselines.BASELINES[name] for name in ("gaussian", "median", "closing")}
    monkeypatch.setattr(baselines, "BASELINES", few)
    monkeypatch.setattr(rivals.mdn, "load_denoiser", lambda path: denoiser)
    monkeypatch.setattr(rivals.mdn, "load_pairs", lambda path, split: splits[split])
    monkeypatch.setattr(rivals.mdn.dataset, "made_with", lambda path: rivals.mdn.DatasetConfig())
    return rivals.prepare(tmp_path, rivals.Sizes(tuned=2, truths=2, draws=1), {})


def test_the_better_method_stands_out_in_the_table(bench, capsys):
    table = rivals.table(bench)
    rivals.show("table", table)
    assert "scratches restored" in capsys.readouterr().out
    column = {name: place for place, name in enumerate(table["columns"])}
    rows = {(row[0], row[2]): row for row in table["rows"]}
    assert rows["paper", "chance"][column["boundary F"]][0] < 0.6 and np.isnan(
        rows["paper", "chance"][column["SSIM"]][0]
    )
    assert 0 < rows["paper", "chance"][column["twin recall"]][0] < rows["paper", "truth"][column["twin recall"]][0]
    assert {row[0] for row in table["rows"]} == {"paper", "varied"} and all(row[1] == 3 for row in table["rows"])
    for recipe in ("paper", "varied"):
        noisy, network, truth = (rows[recipe, name] for name in ("noisy", "network", "truth"))
        for name, place in list(column.items())[3:]:
            mean, low, high = network[place]
            assert np.isnan(mean) or low <= mean <= high, name
        for name in ("raw PSNR", "aligned PSNR", "SSIM", "PSNR inside defects", "boundary F", "precision"):
            assert network[column[name]][0] > noisy[column[name]][0], name
        assert network[column["scratches restored"]][0] == 1 > noisy[column["scratches restored"]][0]
        assert truth[column["twin recall"]][0] > 0.9
        assert truth[column["G error to clean"]][0] == 0 and truth[column["G within 0.25 of clean"]][0] == 1
        assert noisy[column["grain grey p95"]][0] == 0
        assert truth[column["G error, twins left out"]][0] < 0.5  # squares along the test lines
    tried = {name: {f"{name} ({v:g})" for v in one.grid} for name, one in baselines.BASELINES.items()}
    for recipe, ends in table["at an end of the grid"].items():
        for name, one in baselines.BASELINES.items():
            outer = {f"{name} ({one.grid[place]:g})" for place in (0, -1)}
            assert set(ends) & tried[name] == outer & set(bench.recipes[recipe].filters)
    gain = next(row for row in table["differences"] if row[2] == "network - best filter")
    best = table["best filter"]["paper"]["raw PSNR"]
    place = column["raw PSNR"]
    assert gain[place][0] == pytest.approx(rows["paper", "network"][place][0] - rows["paper", best][place][0])


def test_twins_left_out_join_their_grain_and_nothing_else_does():
    y, x = np.indices((96, 96))
    lines, twins = np.abs(x - 48) < 1, (np.abs(x - 24) < 1) | (np.abs(x - 30) < 1)
    found = np.select([x < 24, x < 30, x < 49], [1, 2, 3], 4) + 10 * ((x > 49) & (y > 40))  # 14 is invented
    joined = rivals.without_twins(found, lines, twins)
    assert (label_boundaries(joined) == label_boundaries((x > 48) + 2 * (found > 10))).all()
    assert len(np.unique(joined)) == 3
    assert len(np.unique(rivals.without_twins(found, lines, np.zeros_like(twins)))) == 5
    assert np.ptp(rivals.without_twins(np.ones_like(x), lines, twins)) == 0


def test_other_parts_tell_what_was_done(bench, monkeypatch):
    found = rivals.removal(bench)
    kinds = {row[0] for row in found["rows"]}
    assert kinds == set(rivals.KINDS) and {row[2] for row in found["rows"]} >= {"noisy", "network"}
    values = {row[0]: row[2] for row in rivals.controls(bench)["rows"] if row[1] == "network"}
    assert values["clean in (paper), raw PSNR"].mean > 30
    assert values["boundary on a blank field alone, no defect"].mean == 0
    assert values["input x 0.5 + 0.25, largest deviation"][0] > 0.001  # 0.005 is added whatever the range
    edge = "at a specimen's edge (paper), aligned PSNR of the specimen"
    apart = {row[1]: row[2].mean for row in rivals.controls(bench)["rows"] if row[0] == edge}
    assert apart["network, no mount"] > apart["network"] > 10 and apart["noisy"] > 10
    grouped = rivals.magnification(bench)["rows"]
    assert {(row[0], row[1]) for row in grouped} == {(25, 50)} and grouped[0][2] == 3
    assert len(grouped[0]) == 4 + len(bench.general.scores("noisy")) and grouped[-1][3] == "chance"
    drawn = {row[0]: row[1] for row in rivals.looks(bench)["rows"] if row[2] == "network"}
    for kind in ("boundaries", "contrast"):  # each of the three pairs in one group
        assert sum(n for name, n in drawn.items() if kind in name) == 3
    assert values["round pore at 1, 2 to 4 px off, restored"].mean > 0.9
    with monkeypatch.context() as other:
        other.setattr(bench.general, "compared", lambda: {"plain": lambda x: x, "halo": halo})
        rims = {method: np.mean(shares) for (kind, method), shares in rivals.rims(bench).items() if kind == "pore"}
    assert rims["halo"] < 0.6 < rims["plain"]
    pair = rivals.hard_pair(bench)
    of = {name: place for place, name in enumerate(pair["columns"])}
    hard = {row[2]: {name: row[place][0] for name, place in of.items() if place > 2} for row in pair["rows"]}
    assert 0 < hard["grain boundaries alone"]["twins found"] < hard["truth"]["twins found"]
    (labels,), off = bench.general.test.labels[:1], 3  # a grain boundary found as far off as it may be is no twin apart
    lines = label_boundaries(labels, periodic=True)
    moved = np.roll(lines, (off, off), (0, 1)) | np.roll(lines, (-off, -off), (0, 1))
    masks = rivals.twin_pixels(bench.general.test, 0, lines)
    alone = rivals.twins_found(moved, masks)
    assert alone["apart"] == 0 < alone["twins found"]
    assert hard["truth"]["apart"] > 0.95 and np.isnan(hard["truth"]["apart, 0 to 6 px wide"])
    assert hard["truth"]["apart, from 12 px wide"] == hard["truth"]["apart"]  # half a square of 32 px each
    assert hard["network"]["on scratches"] == 1 > hard["noisy"]["off scratches"] > hard["noisy"]["on scratches"]
    assert abs(hard["truth"]["G too high"]) > 0.1  # a user's segmentation tells no twin from a grain
    timed = rivals.seconds(bench)["rows"]
    assert [row[0] for row in timed] == list(bench.general.methods) and all(row[1] > 0 for row in timed)
    patched = [value for name, value in values.items() if name.startswith("a black patch")]
    assert len(patched) == 3 and all(value.mean > 0.01 for value in patched)  # it knows them whole alone
    removed = {tuple(row[:3]): row[5].mean for row in found["rows"]}
    assert removed["deep_scratch", 1.0, "noisy"] == 0 < removed["noise", 1.0, "network"] < 1

    clean, edges = bench.truths.clean[0], bench.truths.boundaries[0]
    monkeypatch.setattr(rivals, "load_source", lambda name: SimpleNamespace(pixels=clean))
    monkeypatch.setattr(rivals, "traced_boundaries", lambda name: edges)
    found = rivals.steel(bench)
    of, rows = {name: place for place, name in enumerate(found["columns"])}, found["rows"]
    compared = list(bench.general.compared())
    assert compared[0] == "noisy" and compared[-2].startswith("closing") and compared[-1] == "network"
    assert len(rows) == 3 * (4 * len(compared) + 1) and all(len(row) == len(of) for row in rows)
    by_chance = [row[of["boundary F"]].mean for row in rows if row[2] == "chance"]
    assert len(by_chance) == 3 and by_chance[0] < by_chance[2] < 1  # the denser the lines, the less they say
    rows = [row for row in rows if row[2] != "chance"]
    for row in rows:
        assert row[-1] is None or row[2] != "noisy" or row[-1] == 0
        assert row[of["grain grey p95"]].mean == 0 or row[2] != "noisy"
        for column in ("raw PSNR to untouched", "PSNR outside", "PSNR inside defects", "scratches restored"):
            assert np.isnan(row[of[column]].mean) == (row[1] == 0)
    clean, dirty = rows[0], rows[3 * len(compared)]
    assert clean[of["boundary F"]].mean > 0.7 and clean[of["G error"]].mean < 0.5
    assert dirty[of["VoI split"]].mean + dirty[of["VoI merge"]].mean > clean[of["VoI split"]].mean
    assert dirty[of["raw PSNR to untouched"]].mean < 25 and dirty[of["scratches restored"]].mean < 0.9

    def missing(name):
        raise FileNotFoundError("none")

    monkeypatch.setattr(rivals, "load_source", missing)
    assert rivals.steel(bench)["rows"] == []


def test_targets_are_met_or_missed():
    columns = ["pairs", "n", "method", "raw PSNR", "aligned PSNR", "boundary F", "precision", "recall"]
    columns += [
        "G within 0.25",
        "G within 0.25, twins left out",
        "G within 0.25 of clean",
        "scratches restored, raw",
        "scratches restored",
        "twin recall",
    ]
    good, bad = [[8.0, 7.0, 9.0]] * 5 + [[0.95, 0.9, 1]] * 6, [[1.0, -1.0, 3.0]] * 5 + [[0.5, 0.4, 0.6]] * 6
    for values, verdict in ((good, True), (bad, False)):
        gains = [["paper", 9, f"network - {name}", *values] for name in ("noisy", "best filter")]
        gains += [["paper", 9, "network, short - DnCNN, short", *values]]
        rows = [["paper", 9, name, *values] for name in ("network", "truth")]
        rows = [[*row[:5], [0.95 if verdict else 0.5] * 3, *row[6:]] for row in rows]
        found = rivals.targets({"table": {"columns": columns, "rows": rows, "differences": gains}})
        met = {row[0]: row[3] for row in found["rows"]}
        assert len(met) == 16
        assert {name for name, value in met.items() if value != verdict} <= {"paper: recall over noisy"}
        told = {row[0]: row[2] for row in found["rows"]}
        assert told["paper: raw PSNR over noisy (dB)"] == values[0]  # its interval too
        gains += [["paper", 9, "network, from nothing - DnCNN, as long", *values]]
        both = rivals.targets({"table": {"columns": columns, "rows": rows, "differences": gains}})["rows"]
        over = {row[0]: row[3:] for row in both if "over DnCNN" in row[0]}
        assert len(over) == 6 and all((own == "set") == ("equal time" in name) for name, (_, own) in over.items())
        assert all(met == verdict for name, (met, _) in over.items())
    columns = ["pairs", "n", "method", "apart", "off scratches, raw", "G within 0.25 of E112's"]
    rows = [["paper", 9, name, *([each] * 3 for each in (share, 0.7, 0.9))]
            for name, share in (("network", 0.6), ("truth", 0.7))]  # fmt: skip
    rows = rivals.targets({"hard_pair": {"columns": columns, "rows": rows, "apart": 6}})["rows"]
    assert [row[3:] for row in rows] == [[met, "beside"] for met in (False, True, False, True, True)]
    assert rows[1][2] == pytest.approx(6 / 7)
    steel = [[1, 0.0, "noisy", 1, [0.9, None, None], None], [1, 0.0, "network", 1, [0.8, None, None], None]]
    steel += [[1, 0.6, "noisy", 3, [0.7, 0.6, 0.8], 0.0], [1, 0.6, "network", 3, [0.8, 0.7, 0.9], 0.5]]
    columns = ["smaller by", "strength", "method", "draws", "boundary F", "lost F regained"]
    controls = [["clean in (paper), raw PSNR", "network", [31.9, 31, 33]]]
    controls += [["boundary on a blank field beside grains, all kinds", "network", [0.0, 0, 0]]]
    found = rivals.targets({"steel": {"columns": columns, "rows": steel}, "controls": {"rows": controls}})
    assert [row[3] for row in found["rows"]] == [False, True, False, True]
    assert rivals.targets({})["rows"] == []


def halo(image):
    """The image, its greys turned round near what is dark."""
    return np.where(ndimage.binary_dilation(image < 0.3, iterations=6), 1 - image, image).astype(np.float32)


def test_rivals_are_kept_part_by_part_and_without_nan(tmp_path):
    path = tmp_path / "results" / "rivals.json"
    rivals.save(path, "steel", {"columns": ["a"], "rows": []}, "python benchmarks/rivals.py steel")
    rivals.save(path, "table", {"columns": ["a"], "rows": [[(1.0, float("nan"), np.inf)]]}, "python")
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert set(kept) == {"steel", "table"} and kept["table"]["rows"] == [[[1.0, None, None]]]
    assert kept["steel"]["command"] == "python benchmarks/rivals.py steel"
    assert {"commit", "machine"} <= set(kept["table"]) and [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_file_says_which_network_it_holds(tmp_path):
    from flax import nnx

    path = tmp_path / "dncnn.safetensors"
    baselines.save_dncnn(path, baselines.DnCNN(width=4, depth=3, rngs=nnx.Rngs(0)))
    image = np.asarray(jax.random.uniform(jax.random.key(0), (32, 32)), np.float32)
    assert rivals.model(path)(image).shape == image.shape
    assert rivals.model(rivals.mdn.inference.SHIPPED)(image).shape == image.shape


# ---- the model card


def measured() -> dict[str, dict]:
    """Parts of rivals.json and uncertainty.json with one failure of each kind, and something that works beside it."""
    values = [[20.0, 19.0, 21.0]] * 4 + [[0.031, 0.03, 0.032]]
    columns = ["pairs", "n", "method", "raw PSNR", "PSNR on the band", "VoI merge", "twin recall", "grain grey median"]
    names = ("noisy", "closing (512)", "network", "DnCNN, short", "truth")
    full, less, none = [0.9, 0.8, 1.0], [0.5, 0.4, 0.6], [None, None, None]
    nothing, more = [0.0, 0.0, 0.0], [-0.2, -0.3, -0.1]
    twins = dict.fromkeys(names, less) | {"noisy": full}
    removal = [["speckle", 0.25, "noisy", full, full, nothing], ["speckle", 0.25, "network", less, less, full]]
    removal += [["pore", 0.5, "noisy", less, full, nothing], ["pore", 0.5, "network", full, less, full]]
    removal += [["dust", 0.5, "noisy", less, full, nothing], ["dust", 0.5, "network", full, less, more]]
    removal += [["deep_scratch", 0.0, "noisy", none, full, none], ["deep_scratch", 0.0, "network", none, less, none]]
    found = [[0.91, None, None], [0.95, None, None], [0.72, 0.7, 0.74], [0.41, 0.4, 0.42]]
    steel = [[1, 0.0, "noisy", 1, found[0], none, None], [1, 0.0, "network", 1, found[1], none, None]]
    steel += [[4, 1.0, "noisy", 3, found[2], less, 0.0], [4, 1.0, "network", 3, found[3], full, -1.5]]
    edge = "at a specimen's edge (paper), aligned PSNR of the specimen"
    blank = "boundary on a blank field"
    controls = [[f"{blank} alone, no defect", "noisy", [0.0, 0.0, 0.0]]]
    controls += [[f"{blank} alone, no defect", "network", [0.0123, 0.01, 0.0146]]]
    controls += [[edge, name, [17.25, 17.0, 17.5]] for name in ("noisy", "network")]
    controls += [
        ["round pore at 1, 2 to 4 px off, restored", n, [v, v, v]] for n, v in (("noisy", 1), ("network", 0.8))
    ]
    controls += [[f"{blank} beside grains, all kinds", name, [0.0, 0.0, 0.0]] for name in ("noisy", "network")]
    grains = [[50, None, 26, "network", full, less, none]]
    parts = {
        "table": {
            "columns": columns,
            "rows": [["paper", 9, name, *values[:3], twins[name], values[4]] for name in names],
        },
        "hard_pair": {
            "columns": ["pairs", "n", "method", "apart"],
            "rows": [["paper", 9, "noisy", full], ["paper", 9, "network", less]],
            "apart": 6,
            "enough": 50,
        },
        "removal": {"rows": removal, "n": 3},
        "controls": {"rows": controls},
        "steel": {
            "columns": ["smaller by", "strength", "method", "draws", "boundary F", "VoI split", "lost F regained"],
            "rows": steel,
        },
        "magnification": {
            "columns": ["from (px)", "below (px)", "n", "method", "aligned PSNR", "boundary F", "G error"],
            "rows": grains,
        },
        "looks": {
            "columns": ["recipes with", "n", "method", "aligned PSNR", "boundary F", "G error"],
            "rows": [["boundaries: step", 7, "network", full, less, none]],
        },
        "targets": {
            "rows": [["steel: F", "at least 0", 0.1, True, "set"], ["paper: F", "at least 0.9", None, False, "beside"]]
        },
        "seconds": {"columns": ["method", "seconds a megapixel"], "rows": [["closing (512)", 0.935]]},
    }
    ranking = [["paper", 30, "all", "map", [0.87, 0.85, 0.89], [0.1, 0.08, 0.12], 0.975, 0.92]]
    known = [["pairs, paper", "no", "seen", 32, 0.0, 0.5], ["grass", "yes", "seen", 8, 0.0, 0.6]]
    facts = {"mean share flagged, should be": 0.798}
    unsure = {"ranking": {"rows": ranking}, "familiarity": {"rows": known, "facts": facts}}
    return {"rivals": parts, "uncertainty": unsure}


@pytest.fixture(scope="module")
def denoiser():
    return rivals.mdn.load_denoiser()


@pytest.fixture
def written(monkeypatch, denoiser):
    """The card from parts of the studies; the training ended on its best step."""
    monkeypatch.setattr(shipped_weights, "hard_kinds", lambda: {"twins": 50.0})
    monkeypatch.setattr(shipped_weights.mdn, "load_denoiser", lambda: denoiser)
    history = {"step": [200, 400], "seconds": [60.0, 120.0], "validation_psnr": [19.1, 19.4]}
    training = {"history": history, "machine": "one", "commit": "abc", "pairs": {"train": [24, 14]}}

    def write(rivals, uncertainty=None, borrowed=None, ablation=None):
        return shipped_weights.card(training, rivals, uncertainty, borrowed, ablation)

    return write


def test_card_tells_what_was_found_and_where_it_fails(written):
    found = measured()
    text = written(found["rivals"], found["uncertainty"], {"varied": (20, 79)})
    failures = text.partition("## Known failures")[2].partition("\n## ")[0]
    assert "| speckle | 0.25 | 0.90 ± 0.10 | 0.50 ± 0.10 | 0.90 ± 0.10 |" in failures and "| pore" not in failures
    assert "| dust | 0.5 | 0.50 ± 0.10 | 0.90 ± 0.10 | -0.20 ± 0.10 |" in failures
    assert "2 of 3 kinds and strengths" in failures and "3 truths" in failures
    assert "0.50 (0.40 to 0.60) of their boundary" in failures and "nothing to remove.\n" in failures
    assert "| 4 | 1 | 0.72 ± 0.02 | 0.41 ± 0.01 |" in failures and "1 of 2 magnifications" in failures
    assert "| alone, no defect | 0.00 ± 0.00 | 12.30 ± 2.30 |" in failures and "beside grains" not in failures
    assert "(paper), aligned PSNR of the specimen | 17.25 ± 0.25 | 17.25 ± 0.25 |" in text
    for line in (
        "| 4 | 1 | 0.72 ± 0.02 | 0.41 ± 0.01 | -1.5 |",
        "| 4, 1 | network | 0.90 ± 0.10 |",
        "| 50 | - | 26 | network | 0.90 ± 0.10 | 0.50 ± 0.10 |",
        "| grain grey median | 0.031 ± 0.001 | 0.031 ± 0.001 |",
        "| PSNR on the band | 20.00 ± 1.00 | 20.00 ± 1.00 |",
        "| closing (512) | 0.935 |",
        "| boundaries: step | 7 | network | 0.90 ± 0.10 | 0.50 ± 0.10 | - |",
        "| round pore at 1, 2 to 4 px off, restored | 1.00 ± 0.00 | 0.80 ± 0.00 |",
        "Of twins more than 6 px from grain boundaries are found, by length, 50 % on paper pairs (90 % untouched).",
        "| paper | 30 | map | 0.87 ± 0.02 | 0.10 ± 0.02 | 0.975 |",
        "| paper: F | at least 0.9 | - | **missed** | beside |",
    ):
        assert line in text, line
    assert "only weakly" in text and "80 % (should be)" in text and "be: grass." in text
    assert "20 of the 79 varied" in text and "results/ablation.json" in text and "trained briefly" in text


@pytest.mark.parametrize("part", [*measured()["rivals"], "ranking", "familiarity"])
def test_card_does_without_a_part(written, part):
    found = measured()
    for parts in found.values():
        parts.pop(part, None)
    text, whole = written(found["rivals"], found["uncertainty"]), written(**measured())
    headings = [[line for line in each.splitlines() if line.startswith("#")] for each in (text, whole)]
    assert headings[0] == headings[1]
    assert len(text) < len(whole) and (part in ("ranking", "familiarity") or f"rivals.py {part}`" in text)


def test_card_does_without_any_study(written):
    text = written({})
    assert "python benchmarks/uncertainty.py`" in text and "DatasetConfig.stand_ins" in text
    assert all(f"rivals.py {part}`" in text for part in measured()["rivals"])


def test_card_tells_a_sitting_that_gained_nothing():
    scores = {
        "last": {"PSNR (dB)": 20.317, "boundary F": 0.8613, "clean in (dB)": 29.0, "at a specimen's edge (dB)": 18.0},
        "before": {"PSNR (dB)": 20.275, "boundary F": 0.8673, "clean in (dB)": 28.0, "at a specimen's edge (dB)": 18.0},
    }
    one = {"command": "c", "commit": "d", "steps": 700, "hours": 0.21, "validation": scores}
    told = " ".join(shipped_weights.tried([one]))
    assert (
        "700 steps, 0.21 h: last 20.32 dB, F 0.861, clean in 29.0 dB, edge 18.0 dB; in the box 20.27 dB, F 0.867"
        in told
    )
    assert shipped_weights.settle(scores) == "before" and shipped_weights.tried([]) == []


def test_card_tells_the_recipe_that_the_weights_file_names(written, monkeypatch, denoiser):
    told = {**denoiser.metadata, "recipe": {**denoiser.metadata["recipe"], "learning_rate": 0.123, "seed": 77}}
    other = SimpleNamespace(network=denoiser.network, metadata=told)
    monkeypatch.setattr(shipped_weights.mdn, "load_denoiser", lambda: other)
    text = written({})
    assert "learning_rate=0.123" in text and "seed 77" in text
    assert "of them again" not in text and shipped_weights.beside_pairs({}) == ""
    told = shipped_weights.beside_pairs({"at edges": 7, "without grains": 3})
    assert "7 of them again" in told and " and 3 fields without grains" in told


def test_card_tells_causes_of_what_is_missed_alone():
    columns = ["pairs", "n", "method", "raw PSNR", "aligned PSNR", "precision", "grain recall", "twin recall"]
    columns += ["G within 0.25", "G within 0.25, twins left out"]
    rows = [["paper", 9, name, *[[0.5, 0.4, 0.6]] * 7] for name in ("network", "truth")]
    hard = [
        "pairs",
        "n",
        "method",
        "twins found",
        "apart",
        "apart, 0 to 6 px wide",
        "on scratches, raw",
        "on scratches",
    ]
    hard += ["off scratches, raw", "off scratches", shipped_weights.FROM_E112, "fewer than 50 grains"]
    kinds = ("noisy", "network", "truth", "DnCNN, as long", "network, from nothing")
    pair = [["paper", 9, name, *[[0.3, 0.2, 0.4]] * 9] for name in kinds]
    steel = ["smaller by", "strength", "method", "draws", "precision", "recall"]
    dirty = [[1, 0.6, name, 6, [p, p, p], [r, r, r]] for name, p, r in (("noisy", 0.7, 0.9), ("network", 0.9, 0.8))]
    parts = {
        "table": {"columns": columns, "rows": rows},
        "hard_pair": {"columns": hard, "rows": pair, "apart": 6, "enough": 50},
        "steel": {"columns": steel, "rows": dirty},
    }

    def told(missed):
        return "\n".join(shipped_weights.causes(parts | {"targets": {"rows": missed}}))

    missed = [["paper: scratch pixels restored, raw", "", 0.1, False, "set"], ["steel: F", "", 0.1, True, "set"]]
    text = told(missed)
    assert "- Scratches: of their pixels 0.30 (paper)" in text and text.count("\n- ") == 1
    missed[1][3] = False
    missed += [["clean in (paper), raw PSNR (dB)", "", 27.0, False, "set"]]
    text = told(missed)
    assert "at 0.6, precision from 0.70 to 0.90 and recall from 0.90 to 0.80" in text
    assert "Full resolution" not in told([["paper: boundary F", "", 0.1, False, "set"]])
    assert "- Clean in" in text and text.count("\n- ") == 3
    text = told([["paper: boundary F", "", 0.1, False, "set"]])
    assert "0 to 6 px wide 0.30 (paper) of 0.30 (paper)" in text and "DnCNN finds 0.30 (paper) of those apart" in text
    parts["hard_pair"]["rows"] = pair[:3]
    assert "DnCNN finds" not in told([["paper: boundary F", "", 0.1, False, "set"]])
    parts["hard_pair"] = {"columns": [], "rows": []}
    assert "not measured here" in told(missed)
    columns, gap = ["variant", "seeds", "paper, twin gap", "varied, twin gap"], [-0.1, -0.2, 0.0]
    ablation = {"columns": columns, "rows": [[shipped_weights.FULL, 1, gap, gap]]}
    assert "found by -0.10 (-0.20 to +0.00, paper)" in shipped_weights.halved(ablation)
    ablation["rows"][0][2] = [None] * 3
    assert shipped_weights.halved(ablation) == shipped_weights.halved({}) == ""


def test_card_tells_what_little_is_removed_and_in_what_it_is_worse_than_before():
    for gone, expected in (([0.9, 0.8, 1.0], False), ([0.9, -0.1, 1.9], True), ([0.4, 0.3, 0.5], True)):
        assert shipped_weights.little({"network": gone}) == expected
    assert not shipped_weights.little({"network": [None] * 3})
    scores = {"before": {"PSNR (dB)": 20.0, "boundary F": 0.8}, "last": {"PSNR (dB)": 19.0, "boundary F": 0.9}}
    told = shipped_weights.below_before({"validation": scores, "settled": "last"})
    assert "above those before in boundary F, below them in PSNR (dB)." in told
    assert shipped_weights.below_before({"settled": "last"}) == ""
    columns = ["pairs", "n", "method", "aligned PSNR", "boundary F", "twin recall"]
    rows = [["paper", 9, "network, short - no attention, short", *[[0.5, 0.4, 0.6]] * 3]]
    told = shipped_weights.attention_pays({"columns": columns, "differences": rows})
    assert "paper pairs: aligned PSNR +0.50 (+0.40 to +0.60)" in told[0]


def test_card_tells_which_rivals_were_trained_as_long():
    long = {
        "rows": [["network", 6000, 1.45, 20.0], ["DnCNN", 9000, 1.44, 18.0]],
        "size": [64, 17],
        "recipe": {"learning_rate": 2e-3},
        "tried": [[w, 17, rate, 1.0, 75, w - abs(rate - 2e-3)] for w in (32, 64) for rate in (1e-3, 2e-3, 4e-3)],
        "pilot": 75,
    }
    told = shipped_weights.trained_beside({"noisy", "DnCNN, as long"}, {"long": long})
    assert "1.44 h, 64 wide and 17 deep (of 6 sizes" in told[0] and "75 s each" in told[1] and "1.45 h" in told[1]
    assert "an end of those tried" not in told[2]
    long["recipe"]["learning_rate"] = 4e-3
    assert "0.004, is at an end of those tried (0.001 to 0.004)" in shipped_weights.at_rates_end(long)
    assert "Tried since, 64 wide, 17 deep at 0.002 is the best" in shipped_weights.at_rates_end(long)
    assert "No DnCNN" in shipped_weights.trained_beside({"noisy", "DnCNN, short"}, {"long": long})[1]
    assert shipped_weights.trained_beside(set(), {}) == []
    assert "(0.5) (paper)" in shipped_weights.at_ends({"at an end of the grid": {"paper": ["gaussian (0.5)"]}})[0]
    assert "no filter" in shipped_weights.at_ends({"at an end of the grid": {"paper": []}})[0]
    assert shipped_weights.at_ends({}) == []


def test_dncnn_takes_the_size_that_validation_prefers_and_the_time_it_is_given(monkeypatch):
    def fit(model, data, validation, *, config, **_):
        better = model.width == 6 and config.learning_rate == 1e-3
        step = 0.1 * model.width
        return SimpleNamespace(seconds=[step * n for n in (10, 20, 30)], validation_psnr=[19.0 if better else 18.0])

    monkeypatch.setattr(dncnn.mdn, "fit", fit)
    monkeypatch.setattr(dncnn, "SIZES", ((4, 3), (6, 4)))
    data = (np.zeros((2, 8, 8), np.float32),) * 2
    chosen = dncnn.plan(data, data, seconds=600.0, pilot=6.0)
    assert chosen["size"] == (6, 4) and chosen["recipe"]["learning_rate"] == 1e-3
    assert chosen["recipe"]["steps"] == 1000 and chosen["recipe"]["dropout_until"] == 1
    count = len(dncnn.RATES)
    assert [row[4] for row in chosen["tried"]] == [15] * count + [10] * count
    less = [row for row in chosen["tried"] if row[2] != dncnn.RATES[-1]]
    monkeypatch.setattr(dncnn, "seconds_a_step", None)  # known of an earlier plan
    again = dncnn.plan(data, data, seconds=600.0, pilot=6.0, tried=less)
    assert sorted(again["tried"]) == sorted(chosen["tried"]) and again["recipe"] == chosen["recipe"]
    shipped = shipped_weights.RECIPE
    assert chosen["recipe"]["crop"] == shipped.crop and chosen["recipe"]["batch"] == shipped.batch


def test_card_tells_what_is_of_other_weights(monkeypatch):
    monkeypatch.setattr(shipped_weights.mdn, "load_denoiser", lambda: SimpleNamespace(metadata={"sha256": "ab"}))
    part = {"rows": [1], "command": "c", "commit": "d"}
    assert shipped_weights.told({"steel": {**part, "sha256": "ab"}}, "steel", ["x"])[2] == "(`c`, commit d)"
    seconds = {
        "table": {"rows": [["paper", 9, "noisy"], ["paper", 9, "truth"]]},
        "seconds": {**part, "rows": [["noisy", 1]]},
    }
    assert "without" not in shipped_weights.told(seconds, "seconds", ["x"])[2]
    seconds["table"]["rows"].append(["paper", 9, "median (3)"])
    assert "**without median (3)**" in shipped_weights.told(seconds, "seconds", ["x"])[2]
    for study in (part, {**part, "sha256": "cd"}):
        assert "other weights" in shipped_weights.told({"steel": study}, "steel", ["x"])[2]


def test_references_that_are_stand_ins_are_counted():
    pairs = simulated(6, 0)
    mixed = replace(pairs, sources=("iron_nital", "etched"), source=np.array([0, 0, 0, 1, 1, 1], np.int32))
    assert shipped_weights.borrowed_references(mixed) == {"paper's": (1, 3), "varied": (2, 3)}


def test_card_tells_what_each_step_is_worth_and_whether_it_is_taken(written):
    def run(better: float) -> dict:
        columns = [f"{kind}, {name}" for kind in ("paper", "varied") for name in ablation.COLUMNS]
        columns += ablation.STEEL
        return {"steps": 5, "processor minutes": 2.0, "scores": {c: [20.0 + better, 21.0 + better] for c in columns}}

    gains = {"best": (0.0, 0.0, 0.0), "no symmetries": (-0.2, -0.4, -0.3, 9.0)}
    gains |= dict.fromkeys(("no clean crops", "averaged weights", "twice as wide"), (0.6, 0.6, 0.6))
    runs = {name: {str(seed): run(gain) for seed, gain in enumerate(each)} for name, each in gains.items()}
    table = ablation.table(runs, ablation.VARIANTS)
    table["setting"] = {"network": asdict(ablation.NARROW), "recipe": asdict(shipped_weights.RECIPE)}
    table["variants"] = {name: asdict(ablation.VARIANTS[name]) for name in runs}
    row = next(row for row in table["rows"] if row[0] == "no symmetries")
    row = dict(zip(table["columns"], row, strict=True))
    mean, low, high = row["paper, aligned gap (dB)"]
    assert mean == pytest.approx(-0.3) and row["seeds"] == 4  # of seeds that both have
    assert 0.4 < high - low < 0.6  # seeds differ, if images do not
    assert row["varied, aligned gap (dB), by seed"] == "-0.200, -0.400, -0.300"
    text = written(measured()["rivals"], ablation=table)
    taken = shipped_weights.RECIPE.symmetries
    assert (
        f"| `symmetries` | `{taken}` | `False` | `{taken}` | no symmetries |{' -0.300 ± 0.248 |' * 9} 4 | 2 |" in text
    )
    two = {shipped_weights.WIDE: {"0": run(0.5)}, shipped_weights.FULL_WORK: {"0": run(0.2), "1": run(9.0)}}
    told = shipped_weights.at_equal_work({"runs": two})[0]
    assert "paper, twin recall +0.30 (+0.30 to +0.30)" in told and "(1 seed)" in told
    assert shipped_weights.at_equal_work({}) == []
    unshown = text.partition("shows no gain anywhere: ")[2].partition("\n")[0]
    assert "(no clean crops)" in unshown and "symmetries" not in unshown and "twice as wide" not in unshown
    same, other = (text.partition(f"{whether}, ")[2].partition("\n")[0] for whether in ("is as the row", "It is not"))
    assert "which gains: twice as wide (paper, aligned" in same
    assert "row gains: no clean crops (paper, aligned" in other and "averaged weights (paper" in other
    assert "python -m benchmarks.ablation`" in written({})


def test_greys_then_boundaries_then_clean_images_and_edges_settle_what_is_shipped(monkeypatch):
    def told(*means):
        return dict(zip((*shipped_weights.WITHIN, shipped_weights.EDGE), means, strict=True))

    assert shipped_weights.settle({"best": told(19.5, 0.84, 30, 22), "last": told(19.45, 0.85, 28, 20)}) == "last"
    assert shipped_weights.settle({"best": told(19.5, 0.84, 28, 20), "last": told(19.3, 0.85, 30, 22)}) == "best"
    assert shipped_weights.settle({"before": told(19.5, 0.86, 28, 20), "last": told(19.45, 0.856, 30, 20)}) == "last"
    assert shipped_weights.settle({"before": told(19.5, 0.86, 30, 20), "last": told(19.55, 0.863, 28, 22)}) == "before"
    assert shipped_weights.settle({"before": told(19.5, 0.86, 30, 17), "last": told(19.5, 0.86, 29.6, 20)}) == "last"

    pairs = simulated(20, 0)
    truths = {x.tobytes(): y for x, y in zip(pairs.noisy, pairs.clean, strict=True)}
    good = SimpleNamespace(restore=lambda image: truths.get(image.tobytes(), image) + np.float32(0.01))
    blind = SimpleNamespace(restore=lambda image: np.full_like(image, 0.5))
    monkeypatch.setattr(shipped_weights.mdn, "Denoiser", lambda network: network)
    scores = {name: shipped_weights.on_validation(each, pairs) for name, each in (("good", good), ("blind", blind))}
    assert scores["good"]["PSNR (dB)"] == pytest.approx(40, abs=0.1) and scores["good"]["boundary F"] > 0.9
    assert scores["blind"]["boundary F"] == 0 and shipped_weights.settle(scores) == "good"
    assert scores["good"]["clean in (dB)"] > 35 > scores["blind"]["clean in (dB)"]
    assert scores["blind"]["at a specimen's edge (dB)"] < scores["good"]["at a specimen's edge (dB)"]


def test_half_way_is_the_mean_of_weights_and_statistics():
    from flax import nnx

    config = shipped_weights.mdn.NetworkConfig(width=8, blocks=1)
    ends = [shipped_weights.mdn.DenoisingNetwork(config, rngs=nnx.Rngs(seed)) for seed in (0, 1)]
    ends[1](jax.random.uniform(jax.random.key(0), (2, 16, 16, 1)))  # moves the running statistics
    mean = shipped_weights.half_way(*ends)
    one, other, middle = (jax.tree.leaves(nnx.state(net, (nnx.Param, nnx.BatchStat))) for net in (*ends, mean))
    assert any((a != b).any() for a, b in zip(one, other, strict=True))
    for a, b, c in zip(one, other, middle, strict=True):
        np.testing.assert_allclose(c, (a + b) / 2, atol=1e-7)
    assert "0.5 of the way from" in shipped_weights.passed({"settled": shipped_weights.HALF})
    assert shipped_weights.passed({"settled": "last"}) == shipped_weights.passed({}) == ""


def test_further_training_sees_edges_and_fields_without_grains(monkeypatch):
    monkeypatch.setattr(shipped_weights, "BLANK", 5 / 3)
    monkeypatch.setattr(shipped_weights, "MOUNTED", 2 / 3)
    pairs = simulated(3, 0)
    noisy, clean = shipped_weights.with_edges_and_blanks(pairs)
    assert noisy.shape == clean.shape == (10, 96, 96) and noisy.dtype == clean.dtype == np.float32
    assert (noisy[:3] == pairs.noisy).all() and (clean[:3] == pairs.clean).all()
    for place, own in ((3, 0), (4, 2)):
        assert 0.4 < (clean[place] == pairs.clean[own]).mean() < 0.95
    assert (np.ptp(clean[5:], axis=(1, 2)) == 0).all() and np.ptp(noisy[5:], axis=(1, 2)).max() == 1
