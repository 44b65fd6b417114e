"""Every notebook in JupyterLab: it opens, all its cells run without an error, and its demo answers a person.

Screenshots, and the seconds from a control's release to the new picture, are left in tests/browser/output.
"""

import base64
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage.feature import match_template

from mdn.defects import KINDS

from .conftest import OUTPUT, TOKEN

pytestmark = pytest.mark.browser
NAMES = sorted(p.stem for p in (Path(__file__).parent.parent.parent / "notebooks").glob("*.ipynb"))
CELLS = """() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells
    .filter(cell => cell.cell_type === 'code' && cell.source.length)
    .map(cell => ({count: cell.execution_count,
                   errors: cell.outputs.filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue)}))"""
LONGEST = 240  # seconds of one notebook
PROMPT = 0.5  # seconds from a slider's release to its picture, as a median
SLOWEST = 3  # times as long as that, of all the sliders
SLACK = 1.6  # times as long, on machines that are slow or busy: continuous integration's are both
AT_REST = """demo => {
    const progress = demo.querySelector('.mdn-progress'), pictures = [...demo.querySelectorAll('img')];
    return progress && getComputedStyle(progress).visibility === 'hidden' && !demo.classList.contains('mdn-busy') &&
        pictures.length > 0 && pictures.every(
            picture => picture.complete && picture.naturalWidth > 100 && picture.offsetWidth > 0);
}"""
FITS = """demo => ![demo, ...demo.querySelectorAll('*')].concat(demo.closest('.jp-OutputArea'))
    .some(part => part.scrollWidth > part.clientWidth + 2 && part.clientWidth > 0 &&
                  ['auto', 'scroll'].includes(getComputedStyle(part).overflowX))"""
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
        """Wait until every picture is drawn, decoded and in the page, and nothing is under way."""
        self.page.wait_for_function(AT_REST, arg=self.demo.element_handle(), timeout=1000 * LONGEST)

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

    def refuses(self, path: Path) -> None:
        """Upload what is no image: it is told by name and reason, and the pictures stay; the same once more."""
        self.rest()
        before = self.picture(0).get_attribute("src")
        self.upload(path)
        self.says(f"{path.name}: ", "accepted: TIFF")
        self.rest()
        assert self.picture(0).get_attribute("src") == before
        self.follows(lambda: self.control("projector").locator("input").click())  # which takes the message away
        self.rest()
        assert self.control("message").text_content().strip() == ""
        self.upload(path)
        self.says(f"{path.name}: ", "accepted: TIFF")
        self.follows(lambda: self.control("projector").locator("input").click())
        self.rest()

    def likeness(self, path: Path, number: int = 0) -> float:
        """Correlation of the middle of a file's image with the picture, at the place where it is largest."""
        shown, image = self.pixels(number), Image.open(path)
        width = round(0.98 * shown.shape[1])  # less the figure's margin
        image = np.asarray(image.resize((width, round(image.height * width / image.width))), float)
        rows, columns = (slice(n // 4, 3 * n // 4) for n in image.shape)
        return float(match_template(shown, image[rows, columns]).max())

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

    def leaves_pictures(self, saved: list[Image.Image]) -> None:
        """Of all its pictures one is saved for viewers without widgets, and not seen beside the widget."""
        (whole,) = saved
        areas = self.demo.locator("img").evaluate_all("all => all.map(one => one.naturalWidth * one.naturalHeight)")
        assert sum(areas) <= whole.width * whole.height <= 1.5 * sum(areas)
        beside = "demo => demo.closest('.jp-OutputArea-child').nextElementSibling.checkVisibility()"
        assert self.demo.evaluate(beside) is False

    def width(self) -> float:
        return self.picture(0).bounding_box()["width"]

    def stop(self, action) -> None:
        """Do it, and stop what it began: it is told, and the picture stays."""
        picture = self.picture(0)
        before = picture.get_attribute("src")
        action()
        self.control("progress").locator(".mdn-stop").click()
        self.says("Stopped")
        self.rest()
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
            self.page.wait_for_function(FITS, arg=self.demo.element_handle())  # nothing has to be scrolled sideways
            self.demo.evaluate("demo => demo.scrollIntoView()")
            self.page.wait_for_timeout(500)
            self.page.screenshot(path=OUTPUT / f"{self.name}-{screen}.png")
            self.keep(f"{screen}, whole")
        self.page.set_viewport_size(size)
        self.follows(lambda: self.control("projector").locator("input").click())
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
    """A micrograph, five of an alloy of one's own, one above what JupyterLab takes by itself, and a text."""
    import jax

    from mdn.synthesis import stand_in

    folder = tmp_path_factory.mktemp("uploads")
    for number, name in enumerate(("mine.png", *(f"own/{i}.png" for i in range(5)))):
        image = (255 * stand_in("etched", (200, 240), key=jax.random.key(number))).astype(np.uint8)
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / name)
    large = np.random.default_rng(0).integers(0, 256, (3400, 3400), np.uint8)
    large[1700:] //= 2
    tifffile.imwrite(folder / "large.tif", large)
    (folder / "notes.txt").write_text("this is no image")
    return folder


def saved_pictures(page, lab, name: str, call: str = ".explore_") -> list[Image.Image]:
    """Those that the notebook's file holds in the cell of a call, its demo's, once it is saved."""
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    cells = json.loads((lab.folder / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    outputs = [output for cell in cells if call in "".join(cell["source"]) for output in cell["outputs"]]
    found = ["".join(output["data"].get("image/png", "")) for output in outputs]
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in found if text]


def test_runs_and_its_demo_answers(notebook, page, lab, uploads, timed):
    page.screenshot(path=OUTPUT / f"{notebook}-page.png")
    if notebook[:2] in DEMOS:
        start = time.monotonic()
        seen = Seen(page, notebook)
        timed[f"{notebook}: first pictures, after the last cell"] = time.monotonic() - start
        seen.leaves_pictures(saved_pictures(page, lab, notebook))
        seen.on_screens()
        DEMOS[notebook[:2]](seen, uploads, timed)
        assert not [error for cell in page.evaluate(CELLS) for error in cell["errors"]]


def reopen_without_a_kernel(page, lab, name: str, call: str) -> None:
    """The saved notebook shows a picture where the call is, and no widget."""
    path = lab.folder / "notebooks" / f"{name}.ipynb"
    notebook = json.loads(path.read_text())
    notebook["metadata"]["kernelspec"] = {"name": "none", "display_name": "none", "language": "python"}
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    path.write_text(json.dumps(notebook))
    page.goto(f"{lab.address}/lab/tree/notebooks/{name}.ipynb?token={TOKEN}&reset")
    page.locator(".jp-Dialog").get_by_role("button", name="No Kernel").click()
    picture = page.locator(f".jp-CodeCell:has-text('{call}') .jp-RenderedImage img")
    picture.scroll_into_view_if_needed()
    assert picture.is_visible() and not page.locator(".mdn-demo").count()
    page.screenshot(path=OUTPUT / f"{name}-without-kernel.png")


def test_training_on_your_own_alloy_is_watched_stopped_and_saved(page, lab, uploads):
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
    psnr = report["history"]["validation_psnr"]
    assert report["history"]["step"][0] == 0  # the weights in the box, which stay where nothing is better
    assert page.locator(".jp-OutputArea").get_by_text("are these, unchanged").count() == (max(psnr) == psnr[0])
    page.screenshot(path=OUTPUT / "own_alloy-page.png")
    (curves,) = saved_pictures(page, lab, "own_alloy", "watch.fit")
    assert curves.width > 2 * curves.height
    beside = "watch => watch.closest('.jp-OutputArea-child').nextElementSibling.checkVisibility()"
    assert watch.evaluate(beside) is False
    reopen_without_a_kernel(page, lab, "own_alloy", "watch.fit")


def test_reopened_without_a_kernel_it_shows_the_pictures_of_its_demo(page, lab):
    lab.small("06_denoise_your_micrographs", "saved", output_dir="../runs/saved")
    open_notebook(page, lab, "saved")
    run_all(page)
    wait_for_all(page)
    Seen(page, "saved")
    assert saved_pictures(page, lab, "saved")
    reopen_without_a_kernel(page, lab, "saved", "explore_denoising")


def phase_field(seen, uploads, timed):
    timed["phase field: time"] = seen.follows(lambda: seen.drag("time", 0.9))
    seen.keep("late")
    seen.follows(lambda: seen.drag("time", 0.1), number=1)  # the curves, drawn after the structure
    seen.keep("early")
    seen.follows(lambda: seen.control("play").locator("button").first.click())
    seen.control("play").locator("button").nth(1).click()
    seen.page.wait_for_timeout(1000)  # a step that it had sent already may still be on its way
    seen.rest()
    seen.stop(lambda: seen.drag("n_grains", 0.0))
    seen.follows(lambda: seen.drag("time", 0.5), longest=LONGEST)  # what was stopped is drawn now
    seen.rest()


def blend(seen, uploads, timed):
    timed["blend: magnitude"] = seen.follows(lambda: seen.drag("magnitude", 0.1))
    seen.keep("little magnitude")
    for kind in KINDS:
        timed[f"blend: {kind.replace('_', ' ')}"] = seen.follows(lambda kind=kind: seen.drag(kind, 0.9))
    seconds = [s for name, s in timed.items() if name.startswith("blend")]
    assert np.median(seconds) < SLACK * PROMPT and max(seconds) < SLOWEST * SLACK * PROMPT, timed
    seen.keep("all defects")
    timed["blend: upload"] = seen.follows(lambda: seen.upload(uploads / "mine.png"))
    seen.keep("uploaded")
    seen.refuses(uploads / "notes.txt")
    seen.upload(uploads / "mine.png")  # once more, under another name
    seen.control("micrograph").locator("option", has_text="mine.png again").wait_for(state="attached")
    seen.rest()


def denoising(seen, uploads, timed):
    timed["denoising: swipe"] = seen.follows(lambda: seen.drag("position", 0.9))
    seen.keep("swiped")
    seen.says("ASTM G", where="report")
    timed["denoising: upload"] = seen.follows(lambda: seen.upload(uploads / "mine.png"))
    seen.rest()
    seen.follows(lambda: seen.drag("position", 1.0))  # all of it as it was
    assert seen.likeness(uploads / "mine.png") > 0.97
    assert seen.likeness(uploads / "own" / "1.png") < 0.5
    seen.follows(lambda: seen.drag("position", 0.0))  # all of it denoised
    assert 0.5 < seen.likeness(uploads / "mine.png") < 0.97
    removed = seen.pixels(1)
    middle = removed[tuple(slice(n // 3, n // 2) for n in removed.shape)]
    assert middle.std() > 3  # something was removed
    seen.follows(lambda: seen.control("match").locator("input").click())
    seen.says("no calibration", where="report")
    seen.control("um_per_px").locator("input").fill("0.25")
    seen.control("um_per_px").locator("input").press("Enter")
    seen.says("ASTM G", where="report")
    seen.keep("uploaded")
    seen.control("save").click()
    seen.says("Saved", "mine_denoised")
    seen.refuses(uploads / "notes.txt")
    seen.keep("refused")
    seen.stop(lambda: seen.upload(uploads / "large.tif"))
    seen.follows(lambda: seen.drag("position", 0.5), longest=LONGEST)  # what was stopped is drawn now
    seen.rest()
    seen.says("middle 1024 px of 3400 × 3400", where="report")
    seen.keep("large")


def attention(seen, uploads, timed):
    timed["attention: block"] = seen.follows(lambda: seen.drag("block", 0.9))
    seen.keep("last block")
    seen.follows(lambda: seen.drag("channel", 0.6))
    seen.keep("another channel")
    seen.follows(lambda: seen.upload(uploads / "mine.png"))
    seen.follows(lambda: seen.drag("block", 0.1))
    seen.keep("uploaded")
    seen.refuses(uploads / "notes.txt")


DEMOS = {"01": phase_field, "02": blend, "04": denoising, "05": attention, "06": denoising}
