"""Run the notebooks on a preset and gather what they make under runs/.

    python notebooks/reproduce.py quick
    python notebooks/reproduce.py quick --only 01 04 -p n_pairs 12
    python notebooks/reproduce.py quick --stand-ins --figures figures

A preset is notebooks/presets/PRESET.yaml: a mapping from notebook name to its parameters; those under
`common` go to every notebook that has them. papermill executes each notebook in notebooks/, as JupyterLab
would, into runs/PRESET/; the notebook finds that folder in its parameter `output_dir` and writes there
figures/*.png and

    NN_name.json:  {"headline": {name: number}, "micrographs": "real" or "stand-ins",
                    "table": {"columns": [...], "rows": [[...]]},   where there is one
                    "captions": {"figure.png": "..."}}              likewise

Pairs and checkpoints go to work/NN_name/, which outlives a killed run but not a change of what made it.
A run that dies leaves what it had finished, and the next one goes on from there: a notebook is run again only
if its source, its parameters, mdn or a notebook before it has changed.
"""

import argparse
import ast
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

import nbformat
import papermill
import psutil
import yaml
from index_page import render
from jupyter_client.kernelspec import KernelSpecManager
from nbconvert import HTMLExporter
from safetensors import safe_open

HERE = Path(__file__).resolve().parent


def main(argv: list[str] | None = None, here: Path = HERE) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", help="a file of notebooks/presets/, without .yaml")
    parser.add_argument("--only", nargs="+", metavar="NN", help="these notebooks alone, e.g. 01 04")
    parser.add_argument(
        "-p",
        dest="overrides",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a parameter in every notebook that has it",
    )
    parser.add_argument("--stand-ins", action="store_true", help="use procedural micrographs in any case")
    parser.add_argument("--fresh", action="store_true", help="run again what is already done")
    parser.add_argument("--runs", type=Path, default=here.parent / "runs", help="the folder of all runs (runs/)")
    parser.add_argument("--figures", type=Path, help="run in runs/figures/, then copy fig*.png to this folder")
    args = parser.parse_args(argv)

    name = "figures" if args.figures else args.preset + ("-stand-ins" if args.stand_ins else "")
    out = (args.runs / name).resolve()
    overrides = {key: yaml_value(text) for key, text in args.overrides}
    if args.stand_ins:
        overrides["use_real_micrographs"] = False
    try:
        notebooks = sorted(here.glob("[0-9][0-9]_*.ipynb"))
        parameters = resolve_parameters(notebooks, read_preset(here, args.preset), overrides, out)
        chosen = choose(notebooks, args.only)
    except ValueError as error:
        print(f"reproduce.py: {error}", file=sys.stderr)
        return 2

    (out / "figures").mkdir(parents=True, exist_ok=True)
    set_environment(args.runs)
    keys = fingerprints(notebooks, parameters, here.parent / "mdn", here.parent / "benchmarks" / "results")
    run = Run(out, notebooks, keys, {"preset": args.preset, **describe_machine(here)})
    for notebook in chosen:
        if run.is_done(notebook) and not args.fresh:
            print(f"{notebook.stem:32} done before")
            continue
        run.prepare_work(notebook, fresh=args.fresh)
        print(f"{notebook.stem:32} ", end="", flush=True)
        if error := run.execute(notebook, parameters[notebook.stem]):
            print(f"\n{notebook.name} failed:\n\n{error}\n")
            print(f"Its cells  {out / notebook.name}\nReport     {out / 'index.html'}")
            print("The same command goes on from this notebook.")
            return 1
    run.write_index()
    if args.figures:
        copy_figures(run, args.figures)
        update_readme(run, here.parent)
    print(f"Figures  {args.figures or out / 'figures'}\nReport   {out / 'index.html'}")
    return 0


# ---- parameters ----


def read_preset(here: Path, preset: str) -> dict[str, dict]:
    path = here / "presets" / f"{preset}.yaml"
    if not path.is_file():
        raise ValueError(f"no preset {preset!r}; there are {sorted(p.stem for p in path.parent.glob('*.yaml'))}")
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(content, dict) or not all(isinstance(v, dict) for v in content.values()):
        raise ValueError(f"{path}: a preset maps notebook names (or common) to parameters, got {content!r}")
    return content


def resolve_parameters(notebooks: list[Path], preset: dict, overrides: dict, out: Path) -> dict[str, dict]:
    """The parameters of each notebook, every name checked against the notebook's tagged cell.

    papermill itself only warns at a name that the notebook does not have.
    """
    accepted = {nb.stem: papermill.inspect_notebook(nb) for nb in notebooks}
    if unknown := sorted(set(preset) - set(accepted) - {"common"}):
        raise ValueError(f"the preset has parameters for {unknown[0]!r}; the notebooks are {sorted(accepted)}")
    shared = preset.get("common", {}) | overrides
    for name in shared:
        if not any(name in names for names in accepted.values()):
            raise ValueError(
                f"no notebook has a parameter {name!r}; they have {sorted(set().union(*accepted.values()))}"
            )

    resolved = {}
    for stem, known in accepted.items():
        given = preset.get("common", {}) | preset.get(stem, {}) | overrides
        given = {k: v for k, v in given.items() if k in known or k not in shared} | {"output_dir": str(out)}
        for name, value in given.items():
            if name not in known:
                raise ValueError(f"{stem}.ipynb has no parameter {name!r}; it has {sorted(known)}")
            check_kind(stem, name, value, known[name]["default"])
        resolved[stem] = given
    return resolved


def check_kind(stem: str, name: str, value, default: str) -> None:
    """YAML reads 1e-4 as text: a value has to be of its default's kind (None fits any)."""
    try:
        expected = kind(ast.literal_eval(default))
    except (ValueError, SyntaxError):  # a literal over several lines: papermill reports its first alone
        return
    if "nothing" not in (expected, kind(value)) and kind(value) != expected:
        hint = "; in YAML write 1.0e-4 for 1e-4" if expected == "a number" else ""
        raise ValueError(f"{stem}.ipynb: {name} is {expected} by default, got {value!r}{hint}")


def kind(value) -> str:
    kinds = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "nothing",
        tuple: "a list",
    }
    return kinds.get(type(value), f"a {type(value).__name__}")


def yaml_value(text: str):
    value = yaml.safe_load(text)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):  # 1e-4, which YAML takes for text
            return float(value)
    return value


def choose(notebooks: list[Path], only: list[str] | None) -> list[Path]:
    for wanted in only or []:
        if not any(nb.stem == wanted or nb.stem.startswith(f"{wanted}_") for nb in notebooks):
            raise ValueError(f"--only {wanted}: no such notebook; there are {[nb.stem for nb in notebooks]}")
    if not notebooks:
        raise ValueError("there are no notebooks NN_name.ipynb here")
    return [nb for nb in notebooks if only is None or any(nb.stem == w or nb.stem.startswith(f"{w}_") for w in only)]


# ---- one run ----


class Run:
    """One folder under runs/, and what state.json remembers of it."""

    def __init__(self, out: Path, notebooks: list[Path], keys: dict[str, str], facts: dict):
        self.out, self.notebooks, self.keys, self.facts = out, notebooks, keys, facts
        self.entries = read_json(out / "state.json").get("notebooks", {})

    def is_done(self, notebook: Path) -> bool:
        entry = self.entries.get(notebook.stem, {})
        files = [f"{notebook.stem}.ipynb", f"{notebook.stem}.html"]
        files += [f"figures/{name}" for name in entry.get("figures", [])]
        return (
            entry.get("status") == "done"
            and entry["key"] == self.keys[notebook.stem]
            and all((self.out / name).is_file() for name in files)
        )

    def prepare_work(self, notebook: Path, *, fresh: bool) -> None:
        """work/NN_name/, where a notebook keeps what it can go on from: emptied once that is out of date."""
        work, key = self.out / "work" / notebook.stem, self.keys[notebook.stem]
        made_for = work / ".key"
        if fresh or not made_for.is_file() or made_for.read_text(encoding="utf-8") != key:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            write_atomically(made_for, key)

    def execute(self, notebook: Path, parameters: dict) -> str:
        """Run one notebook; whatever becomes of it, its copy, its HTML, state.json and the index are written.

        Returns what went wrong, empty if nothing did.
        """
        stem, part = notebook.stem, self.out / f".{notebook.stem}.part.ipynb"
        self.entries.pop(stem, None)  # killed from here on, it counts as not run
        self.write_state()
        (self.out / f"{stem}.json").unlink(missing_ok=True)
        before, start, error = figure_stamps(self.out), time.perf_counter(), ""
        with PeakMemory() as memory:
            try:
                papermill.execute_notebook(
                    str(notebook),
                    str(part),
                    parameters,
                    kernel_name=kernel_name(),
                    cwd=str(notebook.parent),
                    extra_arguments=["--IPKernelApp.log_level=ERROR"],
                    progress_bar=sys.stderr.isatty(),
                )
            except (Exception, KeyboardInterrupt) as raised:
                error = last_lines(raised)
        entry = {
            "key": self.keys[stem],
            "status": "failed" if error else "done",
            "minutes": (time.perf_counter() - start) / 60,
            "peak_gib": memory.peak / 2**30,
            "figures": sorted(f for f, stamp in figure_stamps(self.out).items() if before.get(f) != stamp),
            "error": error,
        }
        if part.is_file():
            os.replace(part, self.out / notebook.name)
            write_atomically(self.out / f"{stem}.html", to_html(self.out / notebook.name))
        self.entries[stem] = entry
        self.write_state()
        self.write_index()
        if not error:
            print(f"{entry['minutes']:5.1f} min  {entry['peak_gib']:4.1f} GiB")
        return error

    def write_state(self) -> None:
        write_atomically(self.out / "state.json", json.dumps({"notebooks": self.entries}, indent=1))

    def write_index(self) -> None:
        pages = []
        for nb in self.notebooks:
            entry = self.entries.get(nb.stem, {"status": "not run"})
            if entry["status"] == "done" and not self.is_done(nb):
                entry = entry | {"status": "out of date"}
            result = read_json(self.out / f"{nb.stem}.json")
            pages.append({**entry, "name": nb.stem, "title": title(nb), "result": result})
        write_atomically(self.out / "index.html", render(self.facts, pages))


def fingerprints(notebooks: list[Path], parameters: dict, *folders: Path) -> dict[str, str]:
    """A hash a notebook of all that its results depend on: the notebooks before it, module and studies included."""
    digest = hashlib.sha256(os.environ.get("MDN_MICROGRAPHS", "").encode())
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    keys = {}
    for nb in notebooks:
        cells = [(c.cell_type, c.source) for c in nbformat.read(nb, as_version=4).cells]
        digest.update(json.dumps([nb.stem, cells, parameters[nb.stem]], sort_keys=True, default=str).encode())
        keys[nb.stem] = digest.hexdigest()
    return keys


class PeakMemory:
    """Peak resident bytes of this process's children: the kernel and what it starts, sampled."""

    def __enter__(self):
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _sample(self):
        while not self._stop.wait(0.2):
            total = 0
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it may end while we look
                    total += child.memory_info().rss
            self.peak = max(self.peak, total)


def kernel_name() -> str:
    """`mdn` where that kernel is this very environment, else the environment's own `python3`."""
    specs = KernelSpecManager().get_all_specs()
    interpreter = specs.get("mdn", {}).get("spec", {}).get("argv", [""])[0]
    return "mdn" if Path(interpreter).parent == Path(sys.executable).parent else "python3"


def set_environment(runs: Path) -> None:
    os.environ.pop("MPLBACKEND", None)  # the kernel draws inline, so that figures stand in the executed copies
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((runs / ".xla-cache").resolve()))
    if folder := os.environ.get("MDN_MICROGRAPHS"):  # kernels start in notebooks/, not here
        os.environ["MDN_MICROGRAPHS"] = str(Path(folder).resolve())


# ---- files ----


def to_html(notebook: Path) -> str:
    """The executed notebook as a page; of a demo its picture, since a page has no kernel to move it."""
    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("widgets", None)
    return HTMLExporter().from_notebook_node(content, {"metadata": {"name": notebook.stem}})[0]


def title(notebook: Path) -> str:
    source = nbformat.read(notebook, as_version=4).cells[0].source
    return source.splitlines()[0].lstrip("# ").strip() if source.startswith("#") else notebook.stem


def figure_stamps(out: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (out / "figures").glob("*.png")}


def copy_figures(run: Run, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in (f for entry in run.entries.values() for f in entry.get("figures", []) if f.startswith("fig")):
        part = target / f".{name}.part"
        shutil.copyfile(run.out / "figures" / name, part)
        os.replace(part, target / name)
    if all(run.is_done(nb) for nb in run.notebooks):  # then what none of them writes is of another time
        for old in set(target.glob("fig*.png")) - {target / f for e in run.entries.values() for f in e["figures"]}:
            old.unlink()


README_COLUMNS = ("pairs", "method", "raw PSNR", "aligned PSNR", "SSIM")
README_COLUMNS += ("boundary F", "precision", "recall", "twin recall")


def update_readme(run: Run, root: Path) -> None:
    """Put the run's minutes, and the results of the shipped weights, between the README's markers."""
    readme = root / "README.md"
    if not readme.is_file() or not all(run.is_done(nb) for nb in run.notebooks):
        return
    rows = ["| notebook | figures | minutes |", "|---|---|---|"]
    for nb in run.notebooks:
        entry = run.entries.get(nb.stem, {})
        figures = ", ".join(f"[{Path(f).stem}](figures/{f})" for f in entry.get("figures", []) if f.startswith("fig"))
        first = ", to be run after 3" if nb.stem == "04_evaluation" else ""
        rows.append(f"| [{title(nb)}](notebooks/{nb.name}){first} | {figures} | {entry.get('minutes', 0):.1f} |")
    text = between(readme.read_text(encoding="utf-8"), "minutes", rows)
    if results := measured(root):
        text = between(text, "results", results)
    solver = read_json(root / "benchmarks" / "results" / "phase_field.json")
    if "accuracy" in solver:
        text = between(text, "solver", markdown_table(solver["accuracy"]["columns"], solver["accuracy"]["rows"]))
    if speed := side_by_side(root / "benchmarks" / "results"):
        text = between(text, "speed", markdown_table(["what", "mdn (s)", "PyTorch (s)"], speed))
    write_atomically(readme, text)


def once_a_method(rows: list[list]) -> list[list]:
    """Of rows (pairs, method, ...) the first of each filter, whose parameter was tuned for aligned PSNR; no truth."""
    first = {}
    for row in rows:
        first.setdefault((row[0], row[1].split(" (")[0]), row)
    return [row for (_, method), row in first.items() if method != "truth"]


def measured(root: Path) -> list[str]:
    """The table of the shipped weights beside their rivals; that it is of other weights, where it is."""
    table, weights = read_json(root / "benchmarks" / "results" / "rivals.json").get("table"), root / "mdn" / "weights"
    if not table:
        return []
    kept = [i for i, c in enumerate(table["columns"]) if c in README_COLUMNS]
    rows = [[v[0] if isinstance(v, list) else v for v in (row[i] for i in kept)] for row in table["rows"]]
    lines = markdown_table([table["columns"][i] for i in kept], once_a_method(rows))
    with safe_open(weights / "denoiser.safetensors", "np") as file:
        same = file.metadata().get("sha256") == table.get("sha256")
    return lines if same else [*lines, "", "These were measured on the weights before those in the box."]


def side_by_side(results: Path) -> list[list]:
    """Seconds of ours and of PyTorch's, as far as they were measured: an image denoised, a step of training."""
    inference, training = (read_json(results / f"{name}.json") for name in ("inference", "training"))
    seconds: dict[str, dict[str, float]] = {}
    for size, method, _, later, _ in inference.get("speed", {}).get("rows", []):
        seconds.setdefault(f"denoise {size} x {size} px", {})[method] = later
    for case, method, median, *_ in training.get("step", {}).get("rows", []):
        name = {"mdn": "network", "PyTorch": "network, PyTorch"}[method]
        seconds.setdefault(f"a step of training, {case}", {})[name] = median
    return [[what, s["network"], s.get("network, PyTorch")] for what, s in seconds.items() if "network" in s]


def markdown_table(columns: list[str], rows: list[list]) -> list[str]:
    """Lines of a table: two decimals, or three digits where these would say nothing; a gap where there is no number."""

    def cell(value):
        if isinstance(value, float):
            return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"
        return "" if value is None else str(value)

    lines = [columns, ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def between(text: str, name: str, lines: list[str]) -> str:
    """The text with what stands between `<!-- name: ... -->` and `<!-- /name -->` replaced."""
    body = "\n".join(lines)
    return re.sub(rf"(<!-- {name}:.*?-->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}{body}\n{m[2]}", text, flags=re.S)


def last_lines(error: BaseException, count: int = 8) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped by the user"
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)) or repr(error)
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])


def read_json(path: Path) -> dict:
    """What a file holds; nothing where there is none or a run that died left it unreadable."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_atomically(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def describe_machine(here: Path) -> dict[str, str]:
    def git(*command):
        done = subprocess.run(["git", "-C", str(here), *command], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file() and (m := re.search(r"model name\s*: (.*)", info.read_text())):
        cpu = m[1]
    memory = psutil.virtual_memory().total / 2**30
    return {
        "run on": time.strftime("%Y-%m-%d %H:%M"),
        "commit": commit + (" with uncommitted changes" if git("status", "--porcelain") else ""),
        "machine": f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}",
        "versions": ", ".join(
            [f"Python {platform.python_version()}"]
            + [f"{p} {version(p)}" for p in ("jax", "flax", "numpy", "scikit-image")]
        ),
    }


if __name__ == "__main__":
    sys.exit(main())
