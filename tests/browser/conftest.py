"""A real JupyterLab server and a real browser, for the tests that use the notebooks as a person does.

The browser is the one that MDN_BROWSER names, else a Chromium or Chrome on the path, else the one that Playwright
downloaded. Without one these tests are left out, and the end of the run says so; MDN_BROWSER_TESTS=required, as in
continuous integration, makes that a failure.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import papermill
import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
OUTPUT = Path(__file__).parent / "output"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge", "msedge")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
TOKEN = "browser-tests"
ADVICE = (
    "BROWSER TESTS WERE LEFT OUT: no browser was found. Install one (Debian: apt install chromium; anywhere: "
    "python -m playwright install chromium), or name one: MDN_BROWSER=/path/to/chrome make test"
)
left_out = []


def find_browser(playwright) -> str | None:
    """Path of a browser that Playwright can drive."""
    named = os.environ.get("MDN_BROWSER")
    found = [named] if named else [shutil.which(name) for name in BROWSERS] + [playwright.chromium.executable_path]
    return next((path for path in found if path and Path(path).exists()), None)


@pytest.fixture(scope="package")
def browser():
    """Chromium, headless."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = find_browser(playwright)
        if path is None:
            left_out.append(ADVICE)
            (pytest.fail if os.environ.get("MDN_BROWSER_TESTS") == "required" else pytest.skip)(ADVICE)
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter):
    for text in dict.fromkeys(left_out):
        terminalreporter.write_sep("=", text, yellow=True, bold=True)


def own_settings(folder: Path) -> dict[str, str]:
    """The environment of a JupyterLab whose settings lie in a folder: no news, and every cell in the page."""
    for name, value in (
        ("notebook-extension/tracker", {"windowingMode": "none"}),
        ("apputils-extension/notification", {"fetchNews": "false", "checkForUpdates": False}),
    ):
        settings = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(value))
    environment = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
    }
    environment.pop("MPLBACKEND", None)
    return environment


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_until_it_answers(server: subprocess.Popen, address: str) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=2)
            return
        except OSError:
            assert server.poll() is None, "the server ended; its log says why"
            time.sleep(0.2)


@pytest.fixture(scope="package")
def lab(tmp_path_factory):
    """A JupyterLab server in a folder of its own: copies of the notebooks, in small, their demos shown.

    `address` and `folder`, and `small(name, target, **parameters)`, which writes one more copy of a notebook.
    """
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "benchmarks" / "results", folder / "benchmarks" / "results")
    (folder / "notebooks").mkdir()
    smoke = yaml.safe_load((ROOT / "notebooks" / "presets" / "smoke.yaml").read_text())

    def small(name: str, target: str, **parameters):
        parameters = smoke["common"] | (smoke.get(name) or {}) | {"interactive": True} | parameters
        paths = (str(ROOT / "notebooks" / f"{name}.ipynb"), str(folder / "notebooks" / f"{target}.ipynb"))
        papermill.execute_notebook(*paths, parameters, prepare_only=True, progress_bar=False)

    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        small(notebook.stem, notebook.stem)
    environment, port = own_settings(folder), free_port()
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={TOKEN}"]
    command += shlex.split(re.search("^UPLOADS *= (.*)$", (ROOT / "Makefile").read_text(), re.M)[1])  # as `make lab`
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None", "--ServerApp.port_retries=0"]
    OUTPUT.mkdir(exist_ok=True)
    with (OUTPUT / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        address = f"http://127.0.0.1:{port}"
        try:
            wait_until_it_answers(server, address)
            yield SimpleNamespace(address=address, folder=folder, small=small)
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="module")
def page(browser):
    """A tab at the size of a laptop's screen."""
    context = browser.new_context(viewport={"width": 1366, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    yield page
    context.close()
