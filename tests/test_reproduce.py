"""The runner of the notebooks, on toy notebooks: what it makes, what it refuses, how a dead run goes on."""

import json
import os
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pytest
import reproduce
from index_page import render
from safetensors.numpy import save_file

WRITES = """
import json
from pathlib import Path
from matplotlib.figure import Figure
out = Path(output_dir)
Figure(figsize=(1, 1)).savefig(out / "figures" / f"fig{number}_toy.png")
with (out / "order.txt").open("a") as f:
    f.write(f"{number} ")
used = "real" if use_real_micrographs else "stand-ins"
result = {"headline": {"PSNR_dB": 20.0 + seed, "<b>bold</b>": 1}, "micrographs": used}
if number == 4:
    rows = [["<script>alert(1)</script>", 31.23456], ["none", float("nan")]]
    result["table"] = {"columns": ["method", "PSNR"], "rows": rows}
(out / f"0{number}_{name}.json").write_text(json.dumps(result))
"""


def write_notebook(folder: Path, number: int, name: str, source: str = WRITES, parameters: str = "") -> None:
    tagged = nbformat.v4.new_code_cell(
        f'seed = 0\noutput_dir = "../runs/interactive"\nuse_real_micrographs = True\n{parameters}',
        metadata={"tags": ["parameters"]},
    )
    cells = [
        nbformat.v4.new_markdown_cell(f"# Toy {number} <i>& more</i>"),
        tagged,
        nbformat.v4.new_code_cell(f"number, name = {number}, {name!r}"),
        nbformat.v4.new_code_cell(source),
    ]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, folder / f"0{number}_{name}.ipynb")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A folder of two toy notebooks with a preset, and the environment left as it was."""
    for name in ("MPLBACKEND", "JAX_COMPILATION_CACHE_DIR", "MDN_MICROGRAPHS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    here = tmp_path / "notebooks"
    (here / "presets").mkdir(parents=True)
    (tmp_path / "mdn").mkdir()
    (tmp_path / "mdn" / "module.py").write_text("a = 1\n")
    (here / "presets" / "quick.yaml").write_text("common: {seed: 2}\n04_evaluation: {rate: 1.0e-4}\n")
    write_notebook(here, 1, "phase_field")
    write_notebook(here, 4, "evaluation", parameters="rate = 0.1")
    return here


def order(here: Path) -> str:
    return (here.parent / "runs" / "quick" / "order.txt").read_text()


class Links(HTMLParser):
    """Every address that a page names, and every tag."""

    def __init__(self, page: str):
        super().__init__()
        self.addresses, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href")]


def test_good_run_writes_copies_pages_index_and_goes_on(toy, capsys):
    assert reproduce.main(["quick"], here=toy) == 0
    out = toy.parent / "runs" / "quick"
    assert str(out / "index.html") in capsys.readouterr().out
    for name in ("01_phase_field.ipynb", "04_evaluation.html", "figures/fig1_toy.png", "state.json"):
        assert (out / name).is_file(), name
    assert json.loads((out / "04_evaluation.json").read_text())["headline"]["PSNR_dB"] == 22.0

    page = (out / "index.html").read_text()
    links = Links(page)
    assert all((out / address).is_file() for address in links.addresses)
    assert {"figures/fig1_toy.png", "figures/fig4_toy.png", "01_phase_field.html"} <= set(links.addresses)
    assert "://" not in page and "script" not in links.tags and "b" not in links.tags and "i" not in links.tags
    assert "&lt;script&gt;" in page and "31.23" in page and "nan" not in page.lower()
    assert "2 of 2 notebooks done" in page and "real optical micrographs" in page
    assert not list(out.glob(".*part*"))

    # nothing is run twice, and what changes runs again with all that follows it
    assert reproduce.main(["quick"], here=toy) == 0
    assert order(toy) == "1 4 "
    assert reproduce.main(["quick", "-p", "rate", "0.5"], here=toy) == 0
    assert order(toy) == "1 4 4 "
    (toy.parent / "mdn" / "module.py").write_text("a = 2\n")
    assert reproduce.main(["quick", "-p", "rate", "0.5", "--only", "01"], here=toy) == 0
    assert order(toy) == "1 4 4 1 "
    assert "out of date" in (out / "index.html").read_text()
    assert reproduce.main(["quick", "-p", "rate", "0.5"], here=toy) == 0
    assert order(toy) == "1 4 4 1 4 "


def test_run_that_dies_goes_on_from_the_notebook_that_failed(toy, capsys):
    write_notebook(toy, 4, "evaluation", 'raise RuntimeError("<em>no grains</em>")', parameters="rate = 0.1")
    assert reproduce.main(["quick"], here=toy) == 1
    said = capsys.readouterr().out
    assert "04_evaluation.ipynb failed" in said and "RuntimeError: <em>no grains</em>" in said
    out = toy.parent / "runs" / "quick"
    page = (out / "index.html").read_text()
    assert "1 of 2 notebooks done" in page and "&lt;em&gt;no grains" in page and "em" not in Links(page).tags
    assert (out / "04_evaluation.html").is_file()  # to see where it failed

    write_notebook(toy, 4, "evaluation", parameters="rate = 0.1")
    assert reproduce.main(["quick"], here=toy) == 0
    assert order(toy) == "1 4 "
    assert "2 of 2 notebooks done" in (out / "index.html").read_text()


def test_figures_come_from_stand_ins(toy, tmp_path):
    target = tmp_path / "figures"
    assert reproduce.main(["quick", "--stand-ins", "--figures", str(target)], here=toy) == 0
    assert sorted(p.name for p in target.iterdir()) == ["fig1_toy.png", "fig4_toy.png"]
    out = toy.parent / "runs" / "figures"
    assert json.loads((out / "01_phase_field.json").read_text())["micrographs"] == "stand-ins"
    assert "procedural stand-ins, not from real micrographs" in (out / "index.html").read_text()


@pytest.mark.parametrize(
    "preset, named",
    [
        ("01_phase_field: {sed: 1}", ["'sed'", "01_phase_field.ipynb", "use_real_micrographs"]),
        ("common: {sed: 1}", ["'sed'", "rate", "seed"]),
        ("07_more: {seed: 1}", ["'07_more'", "04_evaluation"]),
        ("04_evaluation: {rate: 1e-4}", ["04_evaluation.ipynb", "rate", "1.0e-4"]),
        ("04_evaluation: {seed: true}", ["04_evaluation.ipynb", "seed", "True"]),
        ("- seed", ["a preset maps"]),
    ],
)
def test_unknown_parameter_is_refused_before_anything_runs(toy, capsys, preset, named):
    (toy / "presets" / "quick.yaml").write_text(preset)
    with pytest.raises(ValueError) as raised:
        notebooks = sorted(toy.glob("*.ipynb"))
        reproduce.resolve_parameters(notebooks, reproduce.read_preset(toy, "quick"), {}, toy)
    assert all(word in str(raised.value) for word in named)
    assert reproduce.main(["quick"], here=toy) == 2
    assert named[0] in capsys.readouterr().err
    assert not (toy.parent / "runs").exists()


@pytest.mark.parametrize(
    "argv, named",
    [(["huge"], "quick"), (["quick", "--only", "02"], "04_evaluation"), (["quick", "-p", "x", "1"], "seed")],
)
def test_unknown_preset_notebook_or_option_names_what_there_is(toy, capsys, argv, named):
    assert reproduce.main(argv, here=toy) == 2
    assert named in capsys.readouterr().err


def test_values_of_the_command_line():
    given = ["1e-4", "3", "false", "iron", "[1, 2]", "null"]
    assert [reproduce.yaml_value(v) for v in given] == [1e-4, 3, False, "iron", [1, 2], None]


def test_index_escapes_whatever_it_is_given():
    evil = '"><img src=x onerror=alert(1)>'
    result = {
        "micrographs": evil,
        "headline": {evil: evil},
        "captions": {f"{evil}.png": evil},
        "table": {"columns": [evil], "rows": [[evil]]},
    }
    notebook = {
        "name": "04_evaluation",
        "title": evil,
        "status": "failed",
        "error": evil,
        "figures": [f"{evil}.png"],
    }
    page = render({"preset": evil, evil: evil}, [notebook | {"result": result}])
    assert "<img src=x" not in page
    assert Links(page).tags.count("img") == 1


def test_the_readme_shows_each_filter_once_and_no_truth():
    names = ("noisy", "wavelet (0.15)", "wavelet (0.45)", "bilateral (0.4, 2)", "network, short", "network", "truth")
    rows = [[pairs, name, number] for pairs in ("paper", "varied") for number, name in enumerate(names)]
    kept = reproduce.once_a_method(rows)
    assert [row[1:] for row in kept[:5]] == [[names[i], i] for i in (0, 1, 3, 4, 5)]
    assert [row[0] for row in kept] == ["paper"] * 5 + ["varied"] * 5


def test_the_readme_says_when_its_numbers_are_of_other_weights(tmp_path):
    weights, results = tmp_path / "mdn" / "weights", tmp_path / "benchmarks" / "results"
    weights.mkdir(parents=True)
    results.mkdir(parents=True)
    assert reproduce.measured(tmp_path) == []
    save_file({"x": np.zeros(1)}, weights / "denoiser.safetensors", {"sha256": "ab"})
    for own, told in (("ab", 0), ("cd", 1)):
        table = {"columns": ["pairs", "method", "raw PSNR"], "rows": [["paper", "network", [1.0, 0, 2]]], "sha256": own}
        (results / "rivals.json").write_text(json.dumps({"table": table}))
        lines = reproduce.measured(tmp_path)
        assert sum("before those in the box" in line for line in lines) == told and any("network" in x for x in lines)


def test_the_readme_has_the_order_that_its_readers_need():
    text = (Path(reproduce.__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    heads = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert heads == ["Use", "Results", "How it works", "Citing"]
