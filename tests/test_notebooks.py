"""The six notebooks: how they are written, and one run of all of them on the smoke preset."""

import ast
import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
import reproduce
from test_reproduce import Links

ROOT = Path(__file__).parent.parent
NAMES = [
    "01_phase_field",
    "02_fft_blend",
    "03_training",
    "04_evaluation",
    "05_attention_maps",
    "06_denoise_your_micrographs",
]
COMMON = {"seed": 0, "output_dir": "../runs/interactive", "use_real_micrographs": True}


def test_there_are_six_ordered_notebooks():
    assert sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb")) == NAMES


# ---- how they are written ----


@pytest.fixture(params=NAMES)
def notebook(request):
    return nbformat.read(ROOT / "notebooks" / f"{request.param}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_opens_with_its_title_and_finds_its_kernel(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert notebook.metadata.kernelspec.name == "mdn"


def test_holds_no_outputs(notebook):
    assert all(not cell.outputs and cell.execution_count is None for cell in code(notebook))


def test_parameters_are_plain_literals_in_one_tagged_cell(notebook):
    (tagged,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    found = {}
    for statement in ast.parse(tagged.source).body:
        assert isinstance(statement, ast.Assign) and len(statement.targets) == 1, ast.unparse(statement)
        found[statement.targets[0].id] = ast.literal_eval(statement.value)
    assert found | COMMON == found


def test_cells_are_short_and_define_nothing(notebook):
    for cell in code(notebook):
        assert len(cell.source.splitlines()) <= 25, cell.source
        assert not re.search(r"pip install|conda install|sys\.path|os\.chdir|^\s*[%!]", cell.source, re.M), cell.source
        defined = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        assert not defined, cell.source


# ---- one at a time ----


def test_evaluation_says_which_notebook_makes_its_pairs(tmp_path):
    paths = ROOT / "notebooks" / "04_evaluation.ipynb", tmp_path / "out.ipynb"
    options = {"kernel_name": reproduce.kernel_name(), "cwd": ROOT / "notebooks", "progress_bar": False}
    with pytest.raises(papermill.PapermillExecutionError, match="run notebook 03_training first") as raised:
        papermill.execute_notebook(*paths, {"output_dir": str(tmp_path)}, **options)
    assert str(tmp_path / "work" / "03_training" / "pairs.zarr") in str(raised.value)


def test_a_folder_of_which_nothing_can_be_read_is_listed_all_the_same(tmp_path):
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    (folder / "notes.txt").write_text("no micrograph")
    paths = ROOT / "notebooks" / "06_denoise_your_micrographs.ipynb", tmp_path / "out.ipynb"
    parameters = {"input_dir": str(folder), "output_dir": str(tmp_path / "out"), "interactive": False}
    options = {"kernel_name": reproduce.kernel_name(), "cwd": ROOT / "notebooks", "progress_bar": False}
    with pytest.raises(papermill.PapermillExecutionError, match="no file of .* could be read; .*denoised.csv"):
        papermill.execute_notebook(*paths, parameters, **options)
    with (tmp_path / "out" / "denoised.csv").open(encoding="utf-8-sig", newline="") as file:
        told = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert set(told) == {"more", "notes.txt"} and all(told.values())
    cells = {cell.id: cell for cell in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells}
    shown = "".join(output.data.get("text/html", "") for output in cells["denoise"].outputs if "data" in output)
    assert all(name in shown and reason in shown for name, reason in told.items())


# ---- one run of all of them ----


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """The folder that `reproduce.py smoke` writes."""
    runs = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "notebooks/reproduce.py", "smoke", "--runs", str(runs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs / "smoke"


def test_index_shows_every_notebook_and_asks_nothing_of_the_network(smoke):
    page = (smoke / "index.html").read_text()
    links = Links(page)
    assert "6 of 6 notebooks done" in page and "The denoisers side by side" in page
    assert "://" not in page and "script" not in links.tags
    assert all((smoke / address).is_file() for address in links.addresses)
    assert {f"{name}.html" for name in NAMES} <= set(links.addresses)
    figures = {f"figures/{path.name}" for path in (smoke / "figures").glob("*.png")}
    assert figures and figures <= set(links.addresses)


@pytest.mark.parametrize("name", NAMES)
def test_run_leaves_a_page_a_figure_and_finite_numbers(smoke, name):
    assert (smoke / f"{name}.ipynb").is_file() and (smoke / f"{name}.html").stat().st_size > 10_000
    assert json.loads((smoke / "state.json").read_text())["notebooks"][name]["figures"]
    result = json.loads((smoke / f"{name}.json").read_text())
    assert result["micrographs"] in ("real", "stand-ins")
    assert result["headline"]
    for key, value in result["headline"].items():
        assert isinstance(value, int | float) and math.isfinite(value), (key, value)
    written = json.loads((smoke / "state.json").read_text())["notebooks"][name]["figures"]
    assert set(result["captions"]) == set(written)
    for figure, caption in result["captions"].items():
        assert figure == "fig3_architecture.png" or re.search("real|stand-in|simulated", caption), caption


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("03")])
def test_a_demo_leaves_its_pictures_where_there_is_no_front_end(smoke, name):
    cells = [c for c in code(nbformat.read(smoke / f"{name}.ipynb", as_version=4)) if "mdn.widgets.explore" in c.source]
    widget, pictures = [output["data"] for cell in cells for output in cell.outputs]
    assert "application/vnd.jupyter.widget-view+json" in widget
    page = (smoke / f"{name}.html").read_text()
    assert pictures["image/png"].strip()[:200].replace("\n", "") in page.replace("\n", "")
    assert "html-manager" not in page and "Demo(children" not in page


def test_the_curves_of_a_watched_training_are_left_once(smoke):
    cells = {cell.id: cell for cell in nbformat.read(smoke / "03_training.ipynb", as_version=4).cells}
    kinds = [set(output.data) for output in cells["fit"].outputs if "data" in output]
    assert "application/vnd.jupyter.widget-view+json" in kinds[0] and "image/png" in kinds[1]
    assert sum("image/png" in kind for kind in kinds) == 1 and not cells["curves"].outputs


def test_evaluation_tells_the_network_beside_the_filters(smoke):
    headline = json.loads((smoke / "04_evaluation.json").read_text())["headline"]
    told = {"network, aligned PSNR", "gain over best filter, aligned PSNR", "gain over noisy, raw PSNR"}
    assert told <= set(headline)


def test_the_batch_counts_its_files_in_text_that_papermill_passes_on(smoke):
    cells = code(nbformat.read(smoke / "06_denoise_your_micrographs.ipynb", as_version=4))
    told = [output.text for cell in cells for output in cell.outputs if output.output_type == "stream"]
    assert any("denoising: 100%" in text for text in told), told
