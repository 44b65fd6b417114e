"""Every notebook in JupyterLab: it opens, all its cells run without an error, and its demo answers a person.

Screenshots, and the seconds from a control's release to the new picture, are left in tests/browser/output.
"""

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdn.defects import KINDS

from .conftest import OUTPUT, TOKEN

pytestmark = pytest.mark.browser
NAMES = sorted(p.stem for p in (Path(__file__).parent.parent.parent / "notebooks").glob("*.ipynb"))
CELLS = """() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells
    .filter(cell => cell.cell_type === 'code' && cell.source.length)
    .map(cell => ({count: cell.execution_count,
                   errors: cell.outputs.filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue)}))"""
LONGEST = 240  # seconds of one notebook
WHOLE = """pictures => pictures.length > 0 && pictures.every(
    picture => picture.complete && picture.naturalWidth > 100 && picture.offsetWidth > 0)"""
SIDEWAYS = """demo => [demo, ...demo.querySelectorAll('*')].concat(demo.closest('.jp-OutputArea'))
    .filter(part => part.scrollWidth > part.clientWidth + 2 && part.clientWidth > 0 &&
                    ['auto', 'scroll'].includes(getComputedStyle(part).overflowX))
    .map(part => part.className)"""
SCREENS = {"laptop": (1366, 768, False), "projector": (1920, 1080, True)}


def open_notebook(page, lab, name: str) -> None:
    page.goto(f"{lab.address}/lab/tree/notebooks/{name}.ipynb?token={TOKEN}&reset")
    page.locator(".jp-Notebook").first.wait_for()
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel != null")


def run_all(page) -> None:
    """Run > Run All Cells."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def wait_for_all(page) -> None:
    """Wait for the last of the cells."""
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        cells = page.evaluate(CELLS)
        errors = [error for cell in cells for error in cell["errors"]]
        assert not errors, errors
        if cells and all(cell["count"] for cell in cells):
            return
        page.wait_for_timeout(250)
    raise AssertionError(f"not done after {LONGEST} s: {cells}")


class Seen:
    """A demo as a person sees it."""

    def __init__(self, page, name: str):
        self.page, self.name = page, name
        self.demo = page.locator(".mdn-demo").first
        self.demo.wait_for()
        self.demo.scroll_into_view_if_needed()
        self.rest()

    def rest(self) -> None:
        """Wait until every picture is drawn and nothing is under way."""
        self.demo.locator(".mdn-progress").wait_for(state="hidden", timeout=1000 * LONGEST)
        self.page.wait_for_timeout(100)
        assert self.demo.locator("img").evaluate_all(WHOLE), f"{self.name}: pictures are missing"

    def picture(self, number: int):
        return self.demo.locator(f"img.mdn-picture-{number}")

    def pixels(self, number: int = 0) -> np.ndarray:
        """The picture as the browser has decoded it."""
        picture = self.picture(number)
        picture.scroll_into_view_if_needed()
        return np.asarray(Image.open(io.BytesIO(picture.screenshot())).convert("L"), float)

    def control(self, name: str):
        return self.demo.locator(f".mdn-{name}").first

    def drag(self, name: str, share: float) -> None:
        """Drag the handle of a slider to a share of its length, and let go."""
        handle, rail = self.control(name).locator(".noUi-handle"), self.control(name).locator(".noUi-base")
        handle.scroll_into_view_if_needed()
        start, line = handle.bounding_box(), rail.bounding_box()
        y = start["y"] + start["height"] / 2
        self.page.mouse.move(start["x"] + start["width"] / 2, y)
        self.page.mouse.down()
        self.page.mouse.move(line["x"] + share * line["width"], y, steps=5)
        self.page.mouse.up()

    def upload(self, path: Path) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.control("upload").click()
        chooser.value.set_files(path)

    def follows(self, action, number: int = 0, longest: float = 60) -> float:
        """Do it and wait until the picture's pixels are others; the seconds that took."""
        source = "(img) => img.complete ? img.src : ''"
        picture, before = self.picture(number), self.pixels(number)
        old = picture.evaluate(source)
        action()
        start = time.monotonic()
        while (new := picture.evaluate(source)) in ("", old):
            assert time.monotonic() - start < longest, f"{self.name}: the picture stayed as it was"
            self.page.wait_for_timeout(10)
        seconds, after = time.monotonic() - start, self.pixels(number)
        assert new and (before.shape != after.shape or np.abs(before - after).max() > 8)
        return seconds

    def width(self) -> float:
        return self.picture(0).bounding_box()["width"]

    def stop(self, action) -> None:
        """Do it, and stop what it began: it is told, and the picture stays."""
        picture = self.picture(0)
        before = picture.get_attribute("src")
        action()
        self.control("progress").locator(".mdn-stop").click()
        self.says("Stopped")
        self.demo.locator(".mdn-progress").wait_for(state="hidden")
        assert picture.get_attribute("src") == before
        self.keep("stopped")

    def on_screens(self) -> None:
        """What it looks like on a laptop, and at a projector with its checkbox: larger, nothing cut off."""
        size, usual = self.page.viewport_size, None
        for screen, (width, height, large) in SCREENS.items():
            self.page.set_viewport_size({"width": width, "height": height})
            usual = usual or self.width()
            letters = self.control("projector").evaluate("box => parseFloat(getComputedStyle(box).fontSize)")
            if large:
                self.follows(lambda: self.control("projector").locator("input").click())
                self.rest()
                assert self.width() > 1.2 * usual
                now = self.control("projector").evaluate("box => parseFloat(getComputedStyle(box).fontSize)")
                assert now > 1.3 * letters
            assert not self.demo.evaluate(SIDEWAYS), screen
            self.demo.evaluate("demo => demo.scrollIntoView()")
            self.page.wait_for_timeout(500)
            self.page.screenshot(path=OUTPUT / f"{self.name}-{screen}.png")
            self.keep(f"{screen}, whole")
        self.control("projector").locator("input").click()
        self.page.set_viewport_size(size)
        self.rest()

    def keep(self, name: str) -> None:
        """A screenshot of the whole demo."""
        size = self.page.viewport_size
        self.page.set_viewport_size({"width": size["width"], "height": 2200})
        self.demo.scroll_into_view_if_needed()
        self.page.wait_for_timeout(500)
        self.demo.screenshot(path=OUTPUT / f"{self.name}-{name}.png")
        self.page.set_viewport_size(size)

    def says(self, *words: str, where: str = "message") -> None:
        """Wait until it does."""
        for word in words:
            self.demo.locator(f".mdn-{where}").first.filter(has_text=word).wait_for()


@pytest.fixture(scope="module")
def timed():
    """Seconds from a control's release to the new picture, kept beside the screenshots."""
    seconds = {}
    yield seconds
    OUTPUT.mkdir(exist_ok=True)
    (OUTPUT / "seconds.json").write_text(json.dumps(seconds, indent=1))


@pytest.fixture(scope="module", params=NAMES)
def notebook(request, page, lab):
    """A notebook whose cells have all run."""
    open_notebook(page, lab, request.param)
    run_all(page)
    wait_for_all(page)
    return request.param


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """A micrograph, five of an alloy of one's own, and a text that calls itself a micrograph."""
    import jax

    from mdn.synthesis import stand_in

    folder = tmp_path_factory.mktemp("uploads")
    for number, name in enumerate(("mine.png", *(f"own/{i}.png" for i in range(5)))):
        image = (255 * stand_in("etched", (200, 240), key=jax.random.key(number))).astype(np.uint8)
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / name)
    (folder / "notes.txt").write_text("this is no image")
    return folder


def test_runs_and_its_demo_answers(notebook, page, uploads, timed):
    page.screenshot(path=OUTPUT / f"{notebook}-page.png")
    if notebook[:2] in DEMOS:
        start = time.monotonic()
        seen = Seen(page, notebook)
        timed[f"{notebook}: first pictures, after the last cell"] = time.monotonic() - start
        seen.on_screens()
        DEMOS[notebook[:2]](seen, uploads, timed)
        assert not [error for cell in page.evaluate(CELLS) for error in cell["errors"]]


def test_training_on_your_own_alloy_is_watched_and_stopped(page, lab, uploads):
    lab.small("03_training", "own_alloy", output_dir="../runs/own", own_micrographs=str(uploads / "own"), steps=400)
    open_notebook(page, lab, "own_alloy")
    run_all(page)
    watch = page.locator(".mdn-demo").first
    page.wait_for_function(
        "() => document.querySelector('.mdn-demo img.mdn-picture-0')?.naturalWidth > 100", timeout=1000 * LONGEST
    )
    watch.scroll_into_view_if_needed()
    watch.screenshot(path=OUTPUT / "own_alloy-watch.png")
    watch.locator(".mdn-stop").click()
    wait_for_all(page)
    kept = lab.folder.joinpath("runs", "own", "work", "own_alloy", "trained.safetensors")
    report = json.loads((lab.folder / "runs/own/03_training.json").read_text())
    assert kept.stat().st_size > 1_000_000 and 0 < report["headline"]["steps"] < 400
    page.screenshot(path=OUTPUT / "own_alloy-page.png")


def phase_field(seen, uploads, timed):
    timed["phase field: time"] = seen.follows(lambda: seen.drag("time", 0.9))
    seen.keep("late")
    seen.follows(lambda: seen.drag("time", 0.1), number=1)  # the curves, drawn after the structure
    seen.keep("early")
    seen.follows(lambda: seen.control("play").locator("button").first.click())
    seen.control("play").locator("button").nth(1).click()
    seen.rest()
    seen.stop(lambda: seen.drag("n_grains", 0.0))
    seen.follows(lambda: seen.drag("time", 0.5), longest=LONGEST)  # what was stopped is drawn now
    seen.rest()


def blend(seen, uploads, timed):
    timed["blend: magnitude"] = seen.follows(lambda: seen.drag("magnitude", 0.1))
    seen.keep("little magnitude")
    for kind in KINDS:
        timed[f"blend: {kind.replace('_', ' ')}"] = seen.follows(lambda kind=kind: seen.drag(kind, 0.9))
    seen.keep("all defects")
    timed["blend: upload"] = seen.follows(lambda: seen.upload(uploads / "mine.png"))
    seen.keep("uploaded")
    seen.upload(uploads / "notes.txt")
    seen.says("notes.txt", "accepted")


def denoising(seen, uploads, timed):
    timed["denoising: swipe"] = seen.follows(lambda: seen.drag("position", 0.9))
    seen.keep("swiped")
    seen.says("ASTM G", where="report")
    timed["denoising: upload"] = seen.follows(lambda: seen.upload(uploads / "mine.png"))
    seen.follows(lambda: seen.control("match").locator("input").click())
    seen.says("no calibration", where="report")
    seen.control("um_per_px").locator("input").fill("0.25")
    seen.control("um_per_px").locator("input").press("Enter")
    seen.says("ASTM G", where="report")
    seen.keep("uploaded")
    seen.control("save").click()
    seen.says("Saved", "mine_denoised")
    seen.upload(uploads / "notes.txt")
    seen.says("notes.txt", "accepted")
    seen.keep("refused")


def attention(seen, uploads, timed):
    timed["attention: block"] = seen.follows(lambda: seen.drag("block", 0.9))
    seen.keep("last block")
    seen.follows(lambda: seen.upload(uploads / "mine.png"))


DEMOS = {"01": phase_field, "02": blend, "04": denoising, "05": attention, "06": denoising}
