"""What the benchmarks made of parts share: run those asked for, print their tables, keep them in results/<name>.json.

A part is a function that returns a table: columns, rows, targets (what was to be reached, and what was) and, where it
has them, further facts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import jax

from mdn.files import write_whole

Table = dict[str, list | dict]
RESULTS = Path(__file__).parent / "results"
RIVALS = {"numba": "numba", "torch": "torch==2.13.0"}  # no dependencies of the project: by name, what pip is asked for


def cell(value) -> str:
    """A number in four digits, a gap where nothing was measured."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def show(name: str, table: Table, about: str = "") -> None:
    """Aligned columns, then what the part was to reach."""
    cells = [table["columns"], *(list(map(cell, row)) for row in table["rows"])]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{name}: {about}")
    for row in cells:
        print("  " + " | ".join(f"{text:>{width}}" for text, width in zip(row, widths, strict=True)))
    for text, value in (table["targets"] | table.get("facts", {})).items():
        print(f"  {text}: {cell(value)}", flush=True)


def save(path: Path, name: str, table: Table) -> None:
    """Put a part into the file, whole or not at all, and leave the others as they are."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    versions = ", ".join(f"{n} {version(n)}" for n in ("jax", *RIVALS) if find_spec(n))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "command": f"python -m benchmarks.{path.stem} {name}",
        "commit": commit,
        "machine": f"{platform.machine()}, {cores} cores, {versions} on {jax.default_backend()}",
    }
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(held | {name: facts | table}, indent=1).encode())


def run_parts(
    benchmark: str, about: str, parts: dict[str, Callable[..., Table]], quick: dict[str, dict], rivals: tuple[str, ...]
) -> None:
    """The command line of a benchmark: the parts asked for, one after another; all by default.

    Args:
        benchmark: its name, that of its file of results.
        about: its docstring.
        parts: by name; what a part is about is the first line of its docstring.
        quick: arguments for a tiny size, by part; `--quick` runs the parts that have them and writes nothing.
        rivals: of `RIVALS`, those whose rows are left out, and said to be, where they are not installed.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"some of {', '.join(parts)}; all by default")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; nothing is written")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    for name in args.parts or (quick if args.quick else parts):
        table = parts[name](**quick.get(name, {}) if args.quick else {})
        show(name, table, parts[name].__doc__.splitlines()[0])
        if not args.quick:
            save(RESULTS / f"{benchmark}.json", name, table)
    if missing := [name for name in rivals if not find_spec(name)]:
        wanted = " ".join(RIVALS[name] for name in missing)
        print(
            f"\n*** LEFT OUT, NOT INSTALLED: {' and '.join(missing)}. To have them: pip install {wanted} ***",
            file=sys.stderr,
        )
