"""A newcomer's path by the clock: clone, `make reproduce`, `make lab`, the first denoised picture of one's own.

    python -m tests.browser.newcomer

from the root of the repository prints the seconds of each part; what is committed is cloned, packages are downloaded.
"""

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from mdn.synthesis import stand_in

from .conftest import FLAGS, ROOT, TOKEN, find_browser, free_port, own_settings, wait_until_it_answers
from .test_notebooks_in_lab import Seen, open_notebook, run_all


def main() -> None:
    """Walk it, and print a line a part."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        folder, last = Path(folder), time.monotonic()
        clone, port, environment = folder / "mdn", free_port(), own_settings(folder)
        for name in ("PYTHONPATH", "MDN_MICROGRAPHS"):
            environment.pop(name, None)
        image = stand_in("etched", (400, 500), key=jax.random.key(0))
        Image.fromarray((255 * image).astype(np.uint8)).save(folder / "mine.png")

        def told(part: str) -> None:
            nonlocal last
            print(f"{time.monotonic() - last:6.1f} s  {part}", flush=True)
            last = time.monotonic()

        told("preparing this script, which a newcomer does not")
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        told("clone")
        subprocess.run(["make", "-s", "reproduce"], cwd=clone, env=environment, check=True)
        told("make reproduce, which makes the environment")
        options = f"--no-browser --allow-root --ServerApp.ip=127.0.0.1 --ServerApp.port={port}"
        options += f" --ServerApp.port_retries=0 --IdentityProvider.token={TOKEN} --LabApp.expose_app_in_browser=True"
        command = ["make", "-s", "lab", f"ARGS={options}"]
        with (folder / "log").open("w") as log:
            look = {"cwd": clone, "env": environment, "stdout": log, "stderr": log, "start_new_session": True}
            server = subprocess.Popen(command, **look)
        browser = playwright.chromium.launch(executable_path=find_browser(playwright), args=FLAGS)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_it_answers(server, address)
            told("make lab")
            page = browser.new_page(viewport={"width": 1366, "height": 900})
            page.set_default_timeout(300_000)
            open_notebook(page, SimpleNamespace(address=address), "06_denoise_your_micrographs")
            told("notebook 06 in the browser")
            run_all(page)
            seen = Seen(page, "newcomer")
            told("its cells run, the demo is drawn")
            seen.follows(lambda: seen.upload(folder / "mine.png"))
            seen.rest()
            told("uploaded, denoised, drawn")
        finally:
            browser.close()
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)


if __name__ == "__main__":
    main()
