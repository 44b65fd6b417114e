"""Teaching demos: one call a notebook cell, drawn by the figure functions that the notebooks use.

Each returns a `Demo`. Without a front end, as under papermill, its first picture is there all the same.
"""

from __future__ import annotations

import asyncio
import functools
import html
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import ipywidgets as ipw
import jax
import numpy as np
from flax import nnx

from mdn import figures, training
from mdn.attention import attention_maps
from mdn.defects import KINDS, DefectStrengths
from mdn.inference import Denoiser, load_denoiser
from mdn.micrographs import luminance, read_micrograph
from mdn.phase_field import AllenCahn, coarsen, grow
from mdn.synthesis import STAND_INS, PairConfig, make_pair, stand_in

LARGEST = 1024  # px a side of what is denoised: the middle of a larger upload


class Demo(ipw.VBox):
    """Controls above pictures that follow them; a message tells what is wrong with an input.

    controls: widgets by name; the figures are drawn from their values.
    drawings: functions to a Figure, each with the names of the controls that it takes and is drawn anew for.
    """

    def __init__(self, controls: dict[str, ipw.Widget], drawings: Sequence[tuple[Callable, Sequence[str]]]):
        self.controls, self.message = controls, ipw.HTML()
        self.pictures = tuple(ipw.Image(format="png", layout={"max_width": "100%"}) for _ in drawings)
        self._drawings = tuple(zip(self.pictures, drawings, strict=True))
        for name, control in controls.items():
            control.observe(functools.partial(self._follow, name), "value")
        for picture, drawing in self._drawings:
            self._draw(picture, *drawing)
        bar = ipw.Box(tuple(controls.values()), layout={"flex_flow": "row wrap", "align_items": "center"})
        super().__init__((bar, self.message, *self.pictures))

    def _draw(self, picture: ipw.Image, function: Callable, names: Sequence[str]) -> None:
        picture.value = function(**{name: self.controls[name].value for name in names})._repr_png_()

    def _follow(self, name: str, change) -> None:
        self.say("")
        for picture, (function, names) in self._drawings:
            if name in names:
                try:
                    self._draw(picture, function, names)
                except ValueError as error:
                    self.say(str(error))

    def say(self, text: str) -> None:
        """Show a message under the controls."""
        self.message.value = f"<b style='color:{figures.RED}'>{html.escape(text)}</b>" if text else ""

    def _repr_mimebundle_(self, **kwargs):
        """The widget and, for viewers that have none, its first picture."""
        return super()._repr_mimebundle_(**kwargs) | {"image/png": bytes(self.pictures[0].value)}


def _share(name: str, value: float) -> ipw.FloatSlider:
    """A slider from 0 to 1."""
    options = {"description": name, "continuous_update": False, "style": {"description_width": "initial"}}
    return ipw.FloatSlider(value, min=0, max=1, step=0.02, **options)


def _middle(image: np.ndarray, shape: tuple[int, int], *, fill: bool = False) -> np.ndarray:
    """The middle of an image, at most of `shape`; with `fill` of that shape, mirrored where it is too small."""
    if fill:
        image = np.pad(image, [(0, max(0, n - m)) for n, m in zip(shape, image.shape, strict=True)], mode="symmetric")
    corner = [max(0, m - n) // 2 for n, m in zip(shape, image.shape, strict=True)]
    return image[corner[0] : corner[0] + shape[0], corner[1] : corner[1] + shape[1]]


class _Choice:
    """Micrographs to pick from by name, stand-ins of `shape` and one that is given, and an upload that adds to them.

    `self[name]` is luminance in [0, 1].
    """

    def __init__(self, shape: tuple[int, int], given: np.ndarray | None = None):
        self._images = {} if given is None else {"given": functools.partial(luminance, given)}
        for number, kind in enumerate(STAND_INS):
            draw = functools.partial(stand_in, kind, shape, key=jax.random.key(number))
            self._images[f"stand-in, {kind}"] = functools.cache(draw)
        self.pick = ipw.Dropdown(options=list(self._images), description="micrograph")
        self.upload = ipw.FileUpload(accept="image/*,.tif,.tiff", multiple=False, description="your own")

    def __getitem__(self, name: str) -> np.ndarray:
        return self._images[name]()

    def serve(self, demo: Demo) -> Demo:
        """Take uploads for a demo, and say in it when one is no image."""

        def take(change) -> None:
            if not change["new"]:
                return
            name = Path(change["new"][0]["name"]).name
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / name
                try:
                    path.write_bytes(change["new"][0]["content"])
                    image = luminance(read_micrograph(path).pixels)
                except (ValueError, OSError) as error:
                    demo.say(str(error).replace(f"{folder}/", ""))
                    return
            while name in self._images:
                name += " again"
            self._images = {name: lambda: image, **self._images}
            self.pick.options = list(self._images)  # which picks the first of them

        self.upload.observe(take, "value")
        return demo


def explore_phase_field() -> Demo:
    """Grains coarsen under a time slider, their energy and mean area beside them (Appendix A)."""
    times = np.linspace(0, 100, 11).tolist()

    @functools.cache
    def grown(n_grains: int):
        return coarsen(AllenCahn(shape=(96, 96)), n_grains=n_grains, times=times, key=jax.random.key(0))

    controls = {
        "n_grains": ipw.Dropdown(options=(20, 40, 80), value=40, description="grains"),
        "time": ipw.SelectionSlider(options=times, value=20.0, description="time", continuous_update=False),
    }
    drawings = (
        lambda n_grains, time: figures.plot_structures([grown(n_grains)[times.index(time)]]),
        lambda n_grains, time: figures.plot_coarsening(grown(n_grains)[: times.index(time) + 1]),
    )
    return Demo(controls, [(drawing, tuple(controls)) for drawing in drawings])


def explore_blend(reference: np.ndarray | None = None) -> Demo:
    """Every panel of Fig. 1 under the strength of each defect and the share of magnitude mixed in.

    reference: a micrograph to start with, [H, W] or [H, W, 3]; stand-ins and uploads can be picked as well.
    """
    shape = (192, 192)
    grains = grow(AllenCahn(shape=shape), n_grains=60, time=20.0, key=jax.random.key(0))
    choice = _Choice(shape, reference)

    def panels(micrograph, magnitude, **strengths):
        config = PairConfig(magnitude=magnitude, defects=DefectStrengths(**strengths))
        image = _middle(choice[micrograph], shape, fill=True)
        return figures.plot_pair(make_pair(grains, image, config=config, key=jax.random.key(1)))

    usual = DefectStrengths()
    sliders = {kind: _share(kind.replace("_", " "), getattr(usual, kind)) for kind in KINDS}
    controls = {"micrograph": choice.pick, "magnitude": _share("magnitude of f", 1.0), **sliders}
    return choice.serve(Demo({**controls, "upload": choice.upload}, [(panels, tuple(controls))]))


def explore_denoising(denoiser: Denoiser | None = None) -> Demo:
    """A micrograph before and after, under a swipe; what was removed beside it. Default: the shipped weights."""
    denoiser = denoiser or load_denoiser()
    choice = _Choice((256, 256))

    @functools.lru_cache(maxsize=8)
    def pair(micrograph, match):
        before = _middle(choice[micrograph], (LARGEST, LARGEST))
        return before, denoiser(before, match_histogram=match)

    def swipe(micrograph, match, position):
        return figures.plot_swipe(*pair(micrograph, match), position)

    def removed(micrograph, match):
        before, after = pair(micrograph, match)
        return figures.plot_before_after([{"name": micrograph, "before": before, "after": after}])

    controls = {
        "micrograph": choice.pick, "position": _share("swipe", 0.5),
        "match": ipw.Checkbox(True, description="match histogram", indent=False), "upload": choice.upload,
    }  # fmt: skip
    drawings = [(swipe, ("micrograph", "match", "position")), (removed, ("micrograph", "match"))]
    return choice.serve(Demo(controls, drawings))


def explore_attention(denoiser: Denoiser | None = None) -> Demo:
    """Channel weights and spatial maps, block by block; block 0 is their mean. Default: the shipped weights."""
    denoiser = denoiser or load_denoiser()
    choice, n_blocks = _Choice((256, 256)), len(denoiser.network.blocks)

    @functools.lru_cache(maxsize=4)
    def maps(micrograph):
        return attention_maps(denoiser, _middle(choice[micrograph], (384, 384)))

    def drawing(micrograph, block):
        return figures.plot_attention(maps(micrograph), block=block - 1 if block else None)

    slider = ipw.IntSlider(0, 0, n_blocks, description="block", continuous_update=False)
    controls = {"micrograph": choice.pick, "block": slider}
    return choice.serve(Demo({**controls, "upload": choice.upload}, [(drawing, tuple(controls))]))


class TrainingWatch(ipw.VBox):
    """Curves of a training while it runs, and a button that ends it: `history = await watch.fit(model, ...)`."""

    def __init__(self):
        self.button = ipw.Button(description="Stop, keep the best", icon="stop", layout={"width": "14em"})
        self.button.on_click(lambda _: self.stop())
        self.message = ipw.HTML("The first point comes with the first evaluation.")
        self.picture = ipw.Image(format="png", layout={"max_width": "100%"})
        for part, name in ((self.button, "stop"), (self.message, "message"), (self.picture, "picture-0")):
            part.add_class(f"mdn-{name}")
        super().__init__((ipw.HBox((self.button, self.message)), self.picture))
        self.add_class("mdn-demo")

    async def fit(self, model: nnx.Module, train: tuple, validation: tuple, **options) -> training.History:
        """`training.fit` in a thread of its own: the kernel hears the button while the cell awaits it.

        Interrupting the kernel presses the button.
        """
        options |= {"report": self.report, "stop": lambda: self.stopped}
        try:
            return await asyncio.to_thread(training.fit, model, train, validation, **options)
        except BaseException:
            self.stop()
            raise

    @property
    def stopped(self) -> bool:
        """Whether the button was pressed."""
        return self.button.disabled

    def stop(self) -> None:
        """What the button does."""
        self.button.disabled, self.button.description = True, "Stopping"

    def report(self, history: training.History) -> None:
        """Draw the curves anew."""
        best, at = history.validation_psnr[history.best], history.step[history.best]
        self.picture.value = figures.plot_history(history)._repr_png_()
        self.message.value = f"Step {history.step[-1]}; best on validation {best:.2f} dB, at step {at}."
