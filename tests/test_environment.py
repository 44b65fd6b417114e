"""pyproject.toml, requirements.lock, environment.yml and what is installed name the same environment."""

import importlib
import platform
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
CONDA = (ROOT / "environment.yml").read_text()


def by_name(requirements) -> dict[str, Requirement]:
    return {canonicalize_name(r.name): r for r in map(Requirement, requirements)}


WANTED = by_name(PYPROJECT["dependencies"] + PYPROJECT["optional-dependencies"]["test"])


def pins(lock: str) -> dict[str, str]:
    lines = [line for line in lock.splitlines() if line.strip() and not line.startswith("#")]
    found = {}
    for name, requirement in by_name(lines).items():
        assert requirement.url is None and len(requirement.specifier) == 1, requirement
        (pin,) = requirement.specifier
        assert pin.operator == "==" and "*" not in pin.version and "+" not in pin.version, requirement
        found[name] = pin.version
    assert len(found) == len(lines), "a package is pinned twice"
    return found


def check_lock(lock: str) -> None:
    pinned = pins(lock)
    for name, requirement in WANTED.items():
        assert name in pinned, f"{name} is not pinned"
        assert requirement.specifier.contains(pinned[name]), f"{requirement}, but {pinned[name]} is pinned"


def check_conda(text: str) -> None:
    environment = yaml.safe_load(text)
    assert environment["name"] == "mdn" and environment["channels"] == ["conda-forge"]
    *conda, from_pip = environment["dependencies"]
    assert "-e ." in from_pip["pip"]
    listed = by_name([d for d in conda if not d.startswith("python=") and d != "pip"])
    listed |= by_name([d for d in from_pip["pip"] if d != "-e ."])
    (python,) = [d for d in conda if d.startswith("python=")]
    assert PYPROJECT["requires-python"].removeprefix(">=") == python.removeprefix("python=")
    assert {n: r.specifier for n, r in listed.items()} == {n: r.specifier for n, r in WANTED.items()}


def test_lock_pins_what_pyproject_asks_for():
    check_lock(LOCK)


def test_environment_yml_names_the_same_packages_and_bounds():
    check_conda(CONDA)


@pytest.mark.parametrize(
    "tampered",
    [
        LOCK.replace("\njax==", "\njay=="),
        LOCK.replace("\nnumpy==2.", "\nnumpy==1."),
        LOCK.replace("\nscipy==", "\nscipy>="),
        LOCK + "torch==2.13.0+cpu\n",
        LOCK + "six==1.0\n",
        LOCK + "--extra-index" + "-url https://example.org\n",
        LOCK + "mdn @ file:///tmp/mdn\n",
        LOCK + "./wheels/a.whl\n",
    ],
    ids=["missing", "too old", "not exact", "local", "twice", "index", "url", "path"],
)
def test_tampered_lock_is_noticed(tampered):
    assert tampered != LOCK
    with pytest.raises((AssertionError, InvalidRequirement)):
        check_lock(tampered)


@pytest.mark.parametrize(
    "old, new",
    [
        ("flax>=0.12.6", "flax>=0.10"),
        ("  - zarr>=3.0\n", ""),
        ("  - pip\n", "  - pip\n  - dask>=1.0\n"),
        ("=3.11", "=3.10"),
    ],
)
def test_tampered_environment_yml_is_noticed(old, new):
    assert old in CONDA
    with pytest.raises(AssertionError):
        check_conda(CONDA.replace(old, new))


def test_installed_packages_satisfy_pyproject():
    for name, requirement in WANTED.items():
        assert requirement.specifier.contains(metadata.version(name)), requirement


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or platform.system() != "Linux",
    reason="other platforms need other packages",
)
def test_lock_is_complete_and_holds_nothing_else():
    needed, queue = set(), [(r, "") for r in WANTED.values()]
    visited = set()
    while queue:
        requirement, extra = queue.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        needed.add(name)
        for wanted_extra in {"", *requirement.extras}:
            if (name, wanted_extra) not in visited:
                visited.add((name, wanted_extra))
                queue += [(Requirement(r), wanted_extra) for r in metadata.requires(name) or []]
    # pip freeze leaves out what every virtual environment has
    assert needed - {"pip", "setuptools", "wheel"} == set(pins(LOCK))


def test_shapes_are_checked_in_every_module_under_test():
    assert type(importlib.import_module("mdn.network").__spec__.loader).__module__.startswith("jaxtyping")
