"""Teaching demos: one call a notebook cell, drawn by the figure functions that the notebooks use.

Each returns a `Demo` at once and then draws it; where nobody watches, as under papermill, it returns it drawn.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import html
import io
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ipywidgets as ipw
import jax
import numpy as np
import PIL.Image
from flax import nnx
from IPython import get_ipython
from IPython.display import Image, display

from mdn import figures, training
from mdn.attention import attention_maps
from mdn.burnt_in import covered, free_field, in_words, scale_bar_mask
from mdn.defects import CAMERA, KINDS, SURFACE, DefectStrengths
from mdn.grains import grain_size, segment_grains
from mdn.inference import Denoiser, load_denoiser
from mdn.metrics import boundary_score, detect_boundaries
from mdn.micrographs import (
    Micrograph,
    at_hand,
    grey_range,
    in_tiff,
    load_source,
    luminance,
    read_micrograph,
    shown_range,
    some,
    sources,
    to_float,
    traced_boundaries,
    write_micrograph,
)
from mdn.phase_field import AllenCahn, coarsening, grow
from mdn.synthesis import STAND_INS, PairConfig, make_pair, stand_in

LARGEST = 1024  # px a side of what is shown denoised: the middle of a larger micrograph
CELLS = 160  # a side of the growing grains
ASSUMED = 0.5  # um per pixel of what no microscope has seen
MOST = 25_000_000  # px of an upload
MOST_MB = 200  # of an upload, as `make lab` sets it; by itself JupyterLab drops what is above 10 MB, without a word
DPI = {False: 120, True: 180}  # of pictures, by whether they are for a projector
STYLE = """<style>
.mdn-large { font-size: 21px; --jp-widgets-font-size: 21px; --jp-widgets-inline-height: 40px;
             --jp-widgets-inline-width: 460px; --jp-widgets-inline-label-width: 130px; }
.mdn-pictures { max-width: 1140px; } .mdn-large .mdn-pictures { max-width: 1710px; }
.mdn-limits { --jp-widgets-font-size: 0.85em; opacity: 0.75; max-width: 44em; }
.mdn-limits .widget-html-content { line-height: 1.35; }
.mdn-busy { cursor: progress; }
.jp-OutputArea-child:has(.mdn-pictures) + .jp-OutputArea-child { display: none; }
</style>"""


class Stopped(Exception):
    """The Stop button was pressed."""


def _watched() -> bool:
    """Whether a person sits at this kernel: a front end lets its cells ask for input, papermill does not."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and kernel.get_parent("shell").get("content", {}).get("allow_stdin", False)


@functools.cache
def _settle() -> None:
    """Take what is loaded by now out of garbage collection, once.

    Figures leave cycles behind, and every sixth picture or so waited a third of a second while all was gone over.
    """
    gc.collect()
    gc.freeze()


class Progress(ipw.HBox):
    """A bar, what is being done, and a Stop button; seen while something long is under way."""

    def __init__(self):
        self.bar, self.text = ipw.FloatProgress(min=0, max=1), ipw.Label()
        self.stop = ipw.Button(description="Stop", icon="stop", button_style="warning")
        self.stop.add_class("mdn-stop")
        self._halt = threading.Event()
        self.stop.on_click(self._press)
        super().__init__((self.bar, self.text, self.stop))
        self.add_class("mdn-progress")
        self.end()

    def __call__(self, share: float | int, what: str) -> None:
        """Tell how far the work has come; raises `Stopped` once the button was pressed."""
        if self._halt.is_set():
            raise Stopped
        self.bar.value, self.text.value, self.layout.visibility = share, what, "visible"

    def _press(self, _) -> None:
        self._halt.set()
        self.text.value = "stopping after this step"

    def begin(self) -> None:
        """Forget an earlier press."""
        self._halt.clear()

    def end(self) -> None:
        """Hide it; its place is kept, so that nothing jumps."""
        self.layout.visibility = "hidden"


class _Pictured(ipw.VBox):
    """Displayed as two outputs: the widget, and its pictures in one for viewers that have no widgets.

    STYLE, which has to be a part of it, hides the second where the first is seen.
    """

    def __init__(self, children: Sequence[ipw.Widget], pictures: Sequence[ipw.Image], *, columns: int = 1):
        self.pictures, self._columns, self._static, self._lock = tuple(pictures), columns, None, threading.Lock()
        for number, picture in enumerate(self.pictures):
            picture.add_class(f"mdn-picture-{number}")
        super().__init__((ipw.HTML(STYLE, layout={"display": "none"}), *children))
        self.add_class("mdn-demo")

    def _ipython_display_(self) -> None:
        display(self._repr_mimebundle_() | {"text/plain": ""}, raw=True)
        self._static = display({"text/plain": ""}, raw=True, display_id=True)
        self._leave_pictures()

    def _finished(self) -> bool:
        return all(picture.value for picture in self.pictures)

    def _leave_pictures(self) -> None:
        """Put the pictures into the output for viewers without widgets, once all are as they stay."""
        with self._lock:
            output, self._static = (self._static, None) if self._finished() else (None, self._static)
            pictures = [bytes(picture.value) for picture in self.pictures]
        if output is not None:
            output.update(Image(_side_by_side(pictures, self._columns)))


class Demo(_Pictured):
    """Controls beside or above pictures that follow them; a message tells what is wrong with an input.

    controls: widgets by name; what is shown is drawn from their values.
    drawings: functions to a Figure, each with the names of the controls that it takes and is drawn anew for.
    reports: the same, to HTML text.
    actions: functions without arguments to a message, by the name of the button that calls them.
    progress: what long work in those functions reports to.
    columns: pictures in a row. groups: titles of controls that stand together, the others before them; then all
        controls stand beside the pictures.

    At a front end drawing happens in a thread, from the first picture on, so that buttons answer meanwhile; what is
    changed in that time, or was stopped, is drawn next. Elsewhere, as in a script, it is done once a value is set.
    """

    def __init__(
        self,
        controls: Mapping[str, ipw.Widget],
        drawings: Sequence[tuple[Callable, Sequence[str]]],
        *,
        reports: Sequence[tuple[Callable, Sequence[str]]] = (),
        actions: Mapping[str, Callable[[], str]] | None = None,
        progress: Progress | None = None,
        columns: int = 1,
        groups: Mapping[str, Sequence[str]] | None = None,
    ):
        projector = ipw.Checkbox(False, description="projector size", indent=False, layout={"width": "auto"})
        self.controls, self.message = {**controls, "projector": projector}, ipw.HTML()
        self.progress, self._actions, self.threaded = progress or Progress(), dict(actions or {}), _watched()
        self._changed, self._stale, self._busy = set(), set(), False
        width = "100%" if columns == 1 else f"{98 // columns}%"
        hidden = {"display": "none", "margin": "2px 0"}  # a margin at the sides would make a full width scroll
        pictures = tuple(ipw.Image(layout=hidden | {"max_width": width}) for _ in drawings)
        self.reports = tuple(ipw.HTML() for _ in reports)
        places, drawings = (*pictures, *self.reports), (*drawings, *reports)
        self._drawings = [(place, *drawing) for place, drawing in zip(places, drawings, strict=True)]
        followed = {name for _, names in drawings for name in names} | {"projector"}
        for name, control in self.controls.items():
            control.add_class(f"mdn-{name}")
            if name in self._actions:
                control.on_click(functools.partial(self._follow, name))
            elif name in followed:
                control.observe(functools.partial(self._follow, name), "value")
        for report in self.reports:
            report.add_class("mdn-report")
        self.message.add_class("mdn-message")
        super().__init__([self._laid_out(pictures, groups or {})], pictures, columns=columns)
        if self.threaded:
            self.progress(0, "drawing the first pictures")
            self._follow("projector", None)
        else:
            self._redraw({"projector"})
            self.progress.end()

    def _laid_out(self, pictures: Sequence[ipw.Image], groups: Mapping[str, Sequence[str]]) -> ipw.Box:
        """Controls, progress and words above the pictures; beside them where controls stand in groups."""
        grouped = [name for names in groups.values() for name in names]
        row = {"flex_flow": "row wrap", "align_items": "center"}
        bars = [ipw.Box([c for name, c in self.controls.items() if name not in grouped], layout=row)]
        for title, names in groups.items():
            bars += [ipw.HTML(f"<b>{title}</b>"), ipw.Box([self.controls[name] for name in names], layout=row)]
        panel = ipw.VBox((*bars, self.progress, self.message, *self.reports))
        pictures = ipw.Box(pictures, layout={"flex_flow": "row wrap", "align_items": "flex-start"})
        pictures.add_class("mdn-pictures")
        if not groups:
            return ipw.VBox((panel, pictures))
        panel.layout.flex, pictures.layout.flex, pictures.layout.min_width = "0 0 23em", "1 1 30em", "0"
        return ipw.Box((panel, pictures), layout={"flex_flow": "row wrap", "align_items": "flex-start"})

    def _values(self, names: Sequence[str]) -> dict:
        return {name: self.controls[name].value for name in names}

    def _follow(self, name: str, _) -> None:
        with self._lock:
            self._changed.add(name)
            busy, self._busy = self._busy, True
            self.add_class("mdn-busy")
        if busy:
            return
        if self.threaded:
            threading.Thread(target=self._work, daemon=True).start()
        else:
            self._work()

    def _work(self) -> None:
        """Redraw until nothing has changed meanwhile."""
        while True:
            with self._lock:
                changed, self._changed = self._changed, set()
                self._busy = bool(changed)
                if not changed:
                    self.remove_class("mdn-busy")
                    break
            self.progress.begin()
            self.say("")
            try:
                self._redraw(changed)
            except Stopped:
                with self._lock:  # what was changed meanwhile waits, too
                    changed |= self._changed
                    self._mark(changed)
                    self._changed = set()
                told = ["Nothing was written."] if changed & {*self._actions} else []
                told += ["What was not drawn yet is as it was before; the next change draws it."] if self._stale else []
                self.say("Stopped. " + " ".join(told))
            except Exception as error:  # nobody reads the traceback of a thread
                self.say(str(error) or type(error).__name__)
            self.progress.end()
            self._leave_pictures()
        if self.threaded:
            _settle()

    def _mark(self, changed: set[str]) -> None:
        self._stale |= {place for place, _, names in self._drawings if changed & {*names, "projector"}}

    def _redraw(self, changed: set[str]) -> None:
        if "projector" in changed:
            (self.add_class if self.controls["projector"].value else self.remove_class)("mdn-large")
        self._mark(changed)
        for place, function, names in self._drawings:
            if place in self._stale:
                drawn, dpi = function(**self._values(names)), DPI[self.controls["projector"].value]
                place.value = drawn if isinstance(drawn, str) else drawn.png(dpi=dpi, level=1)
                place.layout.display = None
                self._stale.discard(place)
        for name in changed & {*self._actions}:
            self.say(self._actions[name](), colour=figures.GREEN)

    def say(self, text: str, *, colour: str = figures.RED) -> None:
        """Show a message under the controls."""
        self.message.value = f"<b style='color:{colour}'>{html.escape(text)}</b>" if text else ""


def _side_by_side(pictures: Sequence[bytes], columns: int) -> bytes:
    """PNG pictures as one, so many in a row."""
    images = [PIL.Image.open(io.BytesIO(picture)) for picture in pictures]
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    size = max(sum(image.width for image in row) for row in rows), sum(max(i.height for i in row) for row in rows)
    sheet, top = PIL.Image.new("RGB", size, "white"), 0
    for row in rows:
        left = 0
        for image in row:
            sheet.paste(image, (left, top))
            left += image.width
        top += max(image.height for image in row)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


LAID = {"style": {"description_width": "9em"}, "layout": {"width": "22em"}}
WIDE = LAID | {"layout": {"width": "36em"}}  # where one of many is picked


def _slider(
    name: str,
    value: float | int,
    low: float | int = 0,
    high: float | int = 1,
    step: float | int = 0.02,
    laid: dict = LAID,
) -> ipw.Widget:
    """A slider that waits for its release, of integers where its value is one."""
    kind = ipw.IntSlider if isinstance(value, int) else ipw.FloatSlider
    return kind(value, min=low, max=high, step=step, description=name, continuous_update=False, **laid)


def _middle(image: np.ndarray, shape: tuple[int, int], *, fill: bool = False) -> np.ndarray:
    """The middle of an image, at most of `shape`; with `fill` of that shape, mirrored where it is too small."""
    if fill:
        image = np.pad(image, [(0, max(0, n - m)) for n, m in zip(shape, image.shape, strict=True)], mode="symmetric")
    top, left = (max(0, m - n) // 2 for m, n in zip(image.shape, shape, strict=False))
    return image[top : top + shape[0], left : left + shape[1]]


@dataclass(frozen=True)
class Sample:
    """A micrograph and, where they are known, its true boundaries, bool [H, W]; made up, its calibration is assumed."""

    micrograph: Micrograph
    truth: np.ndarray | None = None
    made_up: bool = False


def _registered(name: str) -> Sample:
    """A real micrograph within its usable box, with its boundaries where these are traced and at hand."""
    image, source = load_source(name), sources()[name]
    left, top, right, low = source.box or (0, 0, image.pixels.shape[1], image.pixels.shape[0])
    pixels = image.pixels[top:low, left:right]
    traced = source.traced and at_hand(source.traced)
    return Sample(replace(image, pixels=pixels), traced_boundaries(name) if traced else None)


def _made_up(pixels: np.ndarray) -> Sample:
    return Sample(Micrograph(pixels=pixels, um_per_px=ASSUMED), made_up=True)


def _simulated(shape: tuple[int, int]) -> Sample:
    """The noisy image of a training pair, whose boundaries are known."""
    grains = grow(AllenCahn(shape=shape), n_grains=60, time=30.0, key=jax.random.key(5))
    reference = stand_in("etched", shape, key=jax.random.key(6))
    pair = make_pair(grains, reference, config=PairConfig(magnitude=0.6), key=jax.random.key(7))
    return Sample(Micrograph(pixels=pair.noisy, um_per_px=ASSUMED), pair.boundaries | pair.twin_boundaries, True)


class _Choice:
    """Micrographs to pick from by name, and an upload that adds to them; `self[name]` draws or reads a `Sample`.

    One that is given, a simulated pair if wanted, stand-ins of `shape`, and the registered ones that need no download.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        given: Micrograph | np.ndarray | None = None,
        *,
        argument: str = "micrograph",
        pair: bool = False,
    ):
        self._samples: dict[str, Callable[[], Sample]] = {}
        self._um_per_px: dict[str, float | None] = {}  # of those that are not made up
        self._burnt_in: dict[str, bool] = {}  # of those that were asked for
        if given is not None:
            image = given if isinstance(given, Micrograph) else Micrograph(pixels=np.asarray(given))
            self._samples["given"], self._um_per_px["given"] = lambda: Sample(image), image.um_per_px
        if pair:
            self._samples["simulated, truth known"] = functools.cache(lambda: _simulated(shape))
        for number, kind in enumerate(STAND_INS):
            draw = functools.partial(stand_in, kind, shape, key=jax.random.key(number))
            self._samples[f"stand-in, {kind}"] = functools.cache(lambda d=draw: _made_up(d()))
        for name, source in sources().items():
            if source.use != "annotation" and at_hand(source.file):
                self._samples[name] = functools.cache(functools.partial(_registered, name))
                self._um_per_px[name] = source.um_per_px
        fitting = {"style": {"description_width": "initial"}, "layout": {"width": "22em"}}
        self.pick = ipw.Dropdown(options=list(self._samples), description="micrograph", **fitting)
        self.upload = ipw.FileUpload(
            accept="image/*,.tif,.tiff", multiple=False, description="your own", layout={"width": "auto"}
        )
        self.limits = ipw.HTML(
            f"TIFF, PNG or JPEG of up to {MOST / 1e6:g} megapixels and, under <code>make lab</code>, {MOST_MB} MB "
            f"(10 MB in a JupyterLab started otherwise); a larger one by the argument <code>{argument}=</code>"
        )

    def __getitem__(self, name: str) -> Sample:
        return self._samples[name]()

    def um_per_px(self, name: str) -> float | None:
        """Its calibration, known without drawing it."""
        return self._um_per_px.get(name, ASSUMED)

    def scale(self, name: str, shape: tuple[int, int]) -> float | None:
        """Calibration for the scale bar of its middle, None where one is burnt in."""
        if name not in self._burnt_in:
            self._burnt_in[name] = _middle(scale_bar_mask(self[name].micrograph.pixels), shape).any()
        return None if self._burnt_in[name] else self.um_per_px(name)

    def grey(self, name: str, shape: tuple[int, int], *, fill: bool = False) -> np.ndarray:
        """Luminance in [0, 1] of the middle, of 12 bits in 16, too: the network stretches it anyway."""
        pixels = self[name].micrograph.pixels
        return _middle(luminance(pixels, shown_range(pixels)), shape, fill=fill)

    def serve(self, demo: Demo) -> Demo:
        """Take uploads for a demo, and say in it when one is no image."""

        def take(change) -> None:
            if not change["new"]:
                return
            file, self.upload.value = change["new"][0], ()  # or the same file again would be no change
            name = Path(file["name"]).name
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / name
                try:
                    path.write_bytes(file["content"])
                    image = read_micrograph(path)
                    height, width = image.pixels.shape[:2]
                    if height * width > MOST:
                        raise ValueError(f"{name}: {width} × {height} px; accepted: {MOST / 1e6:g} million at most")
                except (ValueError, OSError) as error:
                    demo.say(str(error).replace(f"{folder}{os.sep}", ""))
                    return
            while name in self._samples:
                name += " again"
            self._samples, self._um_per_px[name] = {name: lambda: Sample(image), **self._samples}, image.um_per_px
            self.pick.options = list(self._samples)  # which picks the first of them

        self.upload.observe(take, "value")
        return demo


def explore_phase_field() -> Demo:
    """Grains coarsen under a time slider, their energy and mean area beside them (Appendix A).

    New grains, kappa or gamma are grown over the whole time at once; the slider then looks at that run. The parabolic
    law, mean area linear in time, is fitted to its second half: the start first has to forget its even sizes.
    """
    times, progress = np.linspace(0, 200, 21).tolist(), Progress()

    @functools.lru_cache(maxsize=16)
    def grown(n_grains: int, kappa: float, gamma: float):
        progress(0, "growing grains")
        run, params = [], AllenCahn(shape=(CELLS, CELLS), kappa=kappa, gamma=gamma)
        for grains in coarsening(params, n_grains=n_grains, times=times, key=jax.random.key(0)):
            run.append(grains)
            progress(len(run) / len(times), f"growing grains, time {grains.time:g} of {times[-1]:g}")
        half = len(times) // 2
        area = [grains.labels.size / grains.n_grains for grains in run]
        rate, start = np.polyfit(times[half:], area[half:], 1)
        return run, (start, rate, times[half], times[-1])

    def structure(n_grains, kappa, gamma, time):
        return figures.plot_structures([grown(n_grains, kappa, gamma)[0][times.index(time)]])

    def curves(n_grains, kappa, gamma, time):
        run, law = grown(n_grains, kappa, gamma)
        return figures.plot_coarsening(run, now=times.index(time), law=law, stacked=True)

    slider = ipw.SelectionSlider(
        options=times, value=20.0, description="time (1/(Lα))", continuous_update=False, **LAID
    )
    play = ipw.Play(min=0, max=len(times) - 1, value=times.index(20.0), interval=600, description="play")
    ipw.link((play, "value"), (slider, "index"))
    controls = {
        "time": slider, "play": play, "n_grains": _slider("grains", 80, 20, 100, 10),
        "kappa": _slider("kappa κ (α dx²)", 2.0, 1, 4, 0.5), "gamma": _slider("gamma γ (β)", 1.0, 0.7, 2, 0.1),
    }  # fmt: skip
    names = ("n_grains", "kappa", "gamma", "time")
    return Demo(controls, [(structure, names), (curves, names)], progress=progress, columns=2)


def explore_blend(reference: Micrograph | np.ndarray | None = None) -> Demo:
    """Every panel of Fig. 1 under the strength of each defect and the share of magnitude mixed in.

    reference: a micrograph to start with, [H, W] or [H, W, 3]; stand-ins and uploads can be picked as well.
    """
    shape, progress = (256, 256), Progress()
    choice = _Choice(shape, reference, argument="reference")

    @functools.cache
    def structure():
        progress(0.1, "growing grains")
        grains = grow(AllenCahn(shape=shape), n_grains=100, time=20.0, key=jax.random.key(0))
        progress(0.8, "adding defects, blending")
        return grains

    def panels(micrograph, magnitude, **strengths):
        config = PairConfig(magnitude=magnitude, defects=DefectStrengths(**strengths))
        pair = make_pair(structure(), choice.grey(micrograph, shape, fill=True), config=config, key=jax.random.key(1))
        return figures.plot_pair(pair, um_per_px=choice.scale(micrograph, shape))

    usual = DefectStrengths()
    sliders = {kind: _slider(kind.replace("_", " "), float(getattr(usual, kind))) for kind in KINDS}
    controls = {"micrograph": choice.pick, "upload": choice.upload, "limits": choice.limits}
    controls |= {"magnitude": _slider("magnitude of f", 1.0)}
    groups = {"of the surface, strength 0 to 1": SURFACE, "of the camera": CAMERA}
    groups = {f"Defects {title}": [defect.__name__ for defect in kinds] for title, kinds in groups.items()}
    drawings = [(panels, ("micrograph", "magnitude", *KINDS))]
    return choice.serve(Demo({**controls, **sliders}, drawings, progress=progress, groups=groups))


def explore_denoising(
    denoiser: Denoiser | None = None,
    micrograph: Micrograph | np.ndarray | None = None,
    *,
    save_to: str | os.PathLike = ".",
) -> Demo:
    """A micrograph before and after, under a swipe; what was removed, boundaries and grain size beside it.

    denoiser: by default the one with the shipped weights.
    micrograph: one to start with, as of `read_micrograph`; the way for files too large to upload.
    save_to: folder for what the Save button writes: the whole denoised micrograph as TIFF, its dtype and calibration
        kept, under a name that is still free.
    """
    denoiser, progress = denoiser or load_denoiser(), Progress()
    choice = _Choice((256, 256), micrograph, pair=True)

    @functools.lru_cache(maxsize=4)
    def burnt_in(name):
        progress(0, "looking for a burnt-in scale bar")
        return scale_bar_mask(choice[name].micrograph.pixels)

    @functools.lru_cache(maxsize=4)
    def restored(name, whole):
        """The pixels, where something is burnt in, what the network sees, and what it makes of that."""
        pixels, bar = choice[name].micrograph.pixels, burnt_in(name)
        if not whole:
            pixels, bar = (_middle(part, (LARGEST, LARGEST)) for part in (pixels, bar))
        seen = covered(pixels, bar)
        clean = denoiser.restore(luminance(seen), report=lambda share: progress(0.7 * share, "denoising"))
        return pixels, bar, seen, clean

    def pair(name, match, whole=False):
        whole = whole or max(choice[name].micrograph.pixels.shape[:2]) <= LARGEST  # then both are one
        pixels, bar, seen, clean = restored(name, whole)
        clean = denoiser.finish(seen, clean, match_histogram=match)
        clean[bar] = pixels[bar]
        return pixels, clean

    def shown(name, match):
        """Both in [0, 1] between the black and white of the first; unmatched greys fill all of the dtype's."""
        pixels, clean = pair(name, match)
        levels = shown_range(pixels)
        return to_float(pixels, levels), to_float(clean, levels if match else grey_range(pixels))

    def bar_shown(name):
        return _middle(burnt_in(name), (LARGEST, LARGEST))

    @functools.lru_cache(maxsize=8)
    def measured(name, match):
        """Boundaries and grains beside what is burnt in: of the denoised micrograph or, with None, of the given one."""
        image, field = luminance(shown(name, bool(match))[match is not None]), free_field(bar_shown(name))
        progress(0.7 if match is None else 0.85, "looking for boundaries and grains")
        found = np.zeros(image.shape, bool)
        found[field] = detect_boundaries(image[field])
        return image, found, segment_grains(image[field])

    def scale(name, um_per_px):
        return None if bar_shown(name).any() else um_per_px or None  # it has a bar already

    def swipe(micrograph, match, position, um_per_px):
        return figures.plot_swipe(*shown(micrograph, match), position, um_per_px=scale(micrograph, um_per_px))

    def removed(micrograph, match, um_per_px):
        return figures.plot_removed(*shown(micrograph, match), um_per_px=um_per_px or None)

    def boundaries(title, name, match, um_per_px):
        image, found, _ = measured(name, match)
        truth, bar = choice[name].truth, {"um_per_px": scale(name, um_per_px)}
        if truth is None:
            return figures.plot_boundaries(image, found, title=f"boundaries found, {title}", **bar)
        truth = _middle(truth, (LARGEST, LARGEST))
        title = f"boundaries {title}: F = {boundary_score(found, truth).f:.2f}"
        return figures.plot_boundaries(image, found, truth, title=title, **bar)

    def boundaries_before(micrograph, um_per_px):
        return boundaries("before", micrograph, None, um_per_px)

    def boundaries_after(micrograph, match, um_per_px):
        return boundaries("after", micrograph, match, um_per_px)

    def report(micrograph, match, um_per_px):
        size, lines = choice[micrograph].micrograph.pixels.shape[:2], []
        if max(size) > LARGEST:
            lines.append(f"Shown is the middle {LARGEST} px of {size[1]} × {size[0]}; Save denoises the whole.")
        if (bar := bar_shown(micrograph)).any():
            lines.append(in_words(bar, free_field(bar)))
        if choice[micrograph].made_up and um_per_px == ASSUMED:
            lines.append(f"This picture is made up: {ASSUMED:g} µm per px is assumed.")
        for title, key in (("before", None), ("after", match)):
            if not um_per_px > 0:
                oblong = "by the file a pixel is {:.4g} × {:.4g} µm, and only square ones are measured"
                sides = choice[micrograph].micrograph.metadata.get("sides_um")
                told = oblong.format(*sides) if sides else "no calibration"
                lines.append(f"Grain size: {told}. Fill in µm per px to have it.")
                break
            try:
                found = grain_size(measured(micrograph, key)[2], um_per_px=um_per_px)
            except ValueError as error:  # too small a picture, or no boundary in it
                lines.append(f"Grain size {title}: none ({error}).")
                continue
            low, high = found.interval_95
            lines.append(
                f"Grain size {title}: ASTM G {found.astm_g:.1f} (95 %: {low:.1f} to {high:.1f}), "
                f"mean intercept {found.mean_intercept_um:.3g} µm, {found.n_grains} grains."
                + "".join(f" Caution: {warning}." for warning in found.warnings)
            )
        return "<br>".join(map(html.escape, lines))

    def save() -> str:
        name, match = controls["micrograph"].value, controls["match"].value
        _, clean = pair(name, match, whole=True)
        stem, number = f"{Path(name.replace(', ', '_').replace(' ', '_')).stem}_denoised", 1
        path = Path(save_to) / f"{stem}.tif"
        while path.exists():
            number += 1
            path = Path(save_to) / f"{stem}_{number}.tif"
        calibration = controls["um_per_px"].value or None
        metadata = in_tiff(choice[name].micrograph.metadata)
        left = metadata.pop("tiff_tags_left", [])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_micrograph(path, clean, like=Micrograph(pixels=clean, um_per_px=calibration, metadata=metadata))
        told = "" if calibration else ", without a calibration: none is known"
        return f"Saved {path.resolve()}{told}" + (f". Tags that are not in it: {some(left)}" if left else "")

    controls = {
        "micrograph": choice.pick, "upload": choice.upload, "limits": choice.limits,
        "position": _slider("swipe", 0.5, laid=WIDE),
        "match": ipw.Checkbox(True, description="match histogram", indent=False, layout={"margin": "0 1em"}),
        "um_per_px": ipw.BoundedFloatText(min=0, max=1e4, step=0.01, description="µm per px", **LAID),
        "save": ipw.Button(description="Save", icon="save", tooltip="the whole denoised micrograph, as TIFF"),
    }  # fmt: skip

    def calibrate(change=None) -> None:
        controls["um_per_px"].value = choice.um_per_px(choice.pick.value) or 0

    calibrate()
    choice.pick.observe(calibrate, "value")  # before the demo follows it
    drawings = [
        (swipe, ("micrograph", "match", "position", "um_per_px")), (removed, ("micrograph", "match", "um_per_px")),
        (boundaries_before, ("micrograph", "um_per_px")), (boundaries_after, ("micrograph", "match", "um_per_px")),
    ]  # fmt: skip
    reports, actions = [(report, ("micrograph", "match", "um_per_px"))], {"save": save}
    return choice.serve(Demo(controls, drawings, reports=reports, actions=actions, progress=progress, columns=2))


def explore_attention(denoiser: Denoiser | None = None, micrograph: Micrograph | np.ndarray | None = None) -> Demo:
    """Channel weights, spatial map and one channel's features, block by block.

    denoiser, micrograph: as of `explore_denoising`; shown is the middle of 384 px.
    """
    denoiser, progress = denoiser or load_denoiser(), Progress()
    choice, config, shape = _Choice((256, 256), micrograph), denoiser.network.config, (384, 384)

    @functools.lru_cache(maxsize=4)
    def maps(micrograph):
        progress(0.3, "passing through the network")
        found = attention_maps(denoiser, choice.grey(micrograph, shape))
        progress(0.7, "drawing")
        return found

    def block_by_block(micrograph, block, channel):
        look = {"block": block - 1, "channel": channel - 1, "um_per_px": choice.scale(micrograph, shape)}
        return figures.plot_block(maps(micrograph), **look)

    def overall(micrograph):
        return figures.plot_attention(maps(micrograph), um_per_px=choice.scale(micrograph, shape))

    controls = {
        "micrograph": choice.pick, "upload": choice.upload, "limits": choice.limits,
        "block": _slider("block", 1, 1, config.blocks, 1, WIDE),
        "channel": _slider("channel", 1, 1, config.width, 1, WIDE),
    }  # fmt: skip
    drawings = [(block_by_block, ("micrograph", "block", "channel")), (overall, ("micrograph",))]
    return choice.serve(Demo(controls, drawings, progress=progress))


class TrainingWatch(_Pictured):
    """Curves of a training while it runs, and a button that ends it: `history = await watch.fit(model, ...)`.

    Once it has ended they stay in a saved notebook.
    """

    def __init__(self):
        self._halt = threading.Event()
        self.button = ipw.Button(description="Stop, keep the best", icon="stop", layout={"width": "14em"})
        self.button.on_click(lambda _: self.stop())
        self.message = ipw.HTML("The first point comes with the first evaluation.")
        self.picture = ipw.Image(format="png", layout={"max_width": "100%"})
        self.button.add_class("mdn-stop")
        self.message.add_class("mdn-message")
        shown = ipw.Box((self.picture,))
        shown.add_class("mdn-pictures")
        super().__init__((ipw.HBox((self.button, self.message)), shown), (self.picture,))

    async def fit(self, model: nnx.Module, train: tuple, validation: tuple, **options) -> training.History:
        """`training.fit` in a thread of its own: the kernel hears the button while the cell awaits it.

        Interrupting the kernel presses the button.
        """
        options |= {"report": self.report, "stop": lambda: self.stopped}
        try:
            return await asyncio.to_thread(training.fit, model, train, validation, **options)
        except BaseException:
            self.stop()  # the thread, too
            raise
        finally:
            self.button.description, self.button.disabled = "Stopped" if self.stopped else "Done", True
            self._leave_pictures()

    def _finished(self) -> bool:
        return super()._finished() and self.button.description in ("Stopped", "Done")

    @property
    def stopped(self) -> bool:
        """Whether the button was pressed."""
        return self._halt.is_set()

    def stop(self) -> None:
        """What the button does."""
        self._halt.set()
        self.button.disabled, self.button.description = True, "Stopping"

    def report(self, history: training.History) -> None:
        """Draw the curves anew."""
        best, at = history.validation_psnr[history.best], history.step[history.best]
        self.picture.value = figures.plot_history(history)._repr_png_()
        where = f"at step {at}" if at else "of the weights that it started from"
        self.message.value = f"Step {history.step[-1]}; best on validation {best:.2f} dB, {where}."
