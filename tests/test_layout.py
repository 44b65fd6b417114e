"""The module as DESIGN'ed: data flows down the files, and imports point only upwards."""

import ast
import inspect
from pathlib import Path

import pytest
from flax import nnx

import mdn

MODULES = sorted(p.stem for p in Path(mdn.__file__).parent.glob("*.py") if p.stem != "__init__")
ALONE = {"figures", "network", "phase_field", "defects", "micrographs", "metrics"}
ORDER = (
    *("files", "processes", "phase_field", "verification", "micrographs", "burnt_in", "defects", "synthesis"),
    *("dataset", "metrics", "network", "training", "inference", "large", "attention", "uncertainty", "grains"),
    *("baselines", "figures", "batch", "report", "widgets"),
)


def siblings(module):
    """Modules of mdn that a module imports."""
    source = (Path(mdn.__file__).parent / f"{module}.py").read_text(encoding="utf-8")
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mdn":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("mdn.")}
    return found & set(MODULES)


def test_every_room_is_known():
    assert sorted(ORDER) == MODULES


def test_contributors_are_told_of_every_room():
    text = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    told = text[text.index("Data flow down") : text.index("- **A defect**")]
    assert [module for module in MODULES if f"`{module}`" not in told] == []


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_upwards(module):
    used = siblings(module)
    assert used <= set(ORDER[: ORDER.index(module)]), used
    if module in ALONE:
        assert used <= {"files"}
    if module == "training":
        assert "dataset" not in used


def test_only_widgets_knows_ipywidgets():
    folder = Path(mdn.__file__).parent
    users = {m for m in MODULES if "ipywidgets" in (folder / f"{m}.py").read_text(encoding="utf-8")}
    assert users == {"widgets"}


def test_every_public_thing_has_a_docstring():
    for module in MODULES:
        tree = ast.parse((Path(mdn.__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
        public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name[0] != "_"]
        assert ast.get_docstring(tree) and all(ast.get_docstring(n) for n in public), module


def test_modules_of_the_network_tell_their_arguments():
    """Shift-Tab shows `(*args, **kwargs)` for them."""
    for module in vars(mdn.network).values():
        if isinstance(module, type) and issubclass(module, nnx.Module) and module.__module__ == "mdn.network":
            told = module.__doc__.partition("Args:")[2]
            names = [*inspect.signature(module.__init__).parameters][1:]
            assert names and [name for name in names if name not in told] == [], module
