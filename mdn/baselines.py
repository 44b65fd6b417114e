"""What the network is measured against (I): classical filters behind one signature, and DnCNN.

Filters take and give float images [h, w] in [0, 1]; each has one main parameter, two where it takes two, tuned on
validation pairs before it is compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from scipy import ndimage
from skimage.draw import line
from skimage.morphology import area_closing, black_tophat, disk, skeletonize
from skimage.restoration import (
    denoise_bilateral,
    denoise_nl_means,
    denoise_tv_chambolle,
    denoise_wavelet,
    inpaint_biharmonic,
)
from skimage.transform import probabilistic_hough_line

from mdn.defects import KINDS, DefectStrengths, add_defects
from mdn.files import write_whole
from mdn.metrics import (
    align,
    aligned_psnr,
    boundary_recall,
    boundary_score,
    choose_threshold,
    detect_boundaries,
    image_scores,
    masked_psnr,
    restored_share,
)
from mdn.network import checksum, stretch

Number = float | int
Parameter = Number | tuple[Number, ...]
Method = Callable[[np.ndarray], np.ndarray]
Triple = tuple[np.ndarray, np.ndarray, np.ndarray]  # noisy, clean and true boundaries (bool), each [N, H, W]
SIGMAS = (0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.22, 0.32, 0.45, 0.64)  # estimates miss noise that is correlated
LARGEST_SPOT = 80  # px of area: a pit or a speck of dust, not a piece of a boundary
SHORTEST_SCRATCH = 50  # px of a straight line: boundaries bend sooner, most of them


def gaussian(image: Float[np.ndarray, "h w"], sigma: Number) -> Float[np.ndarray, "h w"]:
    """Convolution with a Gaussian of standard deviation `sigma` in px."""
    return ndimage.gaussian_filter(image, sigma, mode="reflect")


def median(image: Float[np.ndarray, "h w"], radius: Number) -> Float[np.ndarray, "h w"]:
    """Median over a disc of `radius` px (Tukey 1977)."""
    return ndimage.median_filter(image, footprint=disk(int(radius)), mode="reflect")


def wavelet(image: Float[np.ndarray, "h w"], sigma: Number) -> Float[np.ndarray, "h w"]:
    """Soft BayesShrink thresholds of db2 wavelets for noise of standard deviation `sigma` (Chang et al. 2000)."""
    return denoise_wavelet(image, sigma, "db2", mode="soft", method="BayesShrink", rescale_sigma=True)


def non_local_means(image: Float[np.ndarray, "h w"], sigma: Number) -> Float[np.ndarray, "h w"]:
    """Mean over like patches of 5 px within 13, h = 0.8 sigma of the noise (Buades et al. 2005)."""
    return denoise_nl_means(image, patch_size=5, patch_distance=6, h=0.8 * sigma, sigma=sigma)


def total_variation(image: Float[np.ndarray, "h w"], weight: Number) -> Float[np.ndarray, "h w"]:
    """min_u |u - x|^2 / 2 + weight |grad u|_1 (Rudin, Osher, Fatemi 1992; Chambolle 2004)."""
    return denoise_tv_chambolle(image, weight=weight)


def bilateral(image: Float[np.ndarray, "h w"], contrast: Number, sigma: Number) -> Float[np.ndarray, "h w"]:
    """Mean over a Gaussian of `sigma` px, of greys that differ by about `contrast` at most (Tomasi, Manduchi 1998)."""
    window = 1 + 2 * round(2 * sigma)
    return denoise_bilateral(image, win_size=window, sigma_color=contrast, sigma_spatial=sigma, mode="symmetric")


def bm3d(image: Float[np.ndarray, "h w"], sigma: Number) -> Float[np.ndarray, "h w"]:
    """Like blocks filtered together in 3-D, for noise of standard deviation `sigma` (Dabov et al. 2007)."""
    from bm3d import bm3d

    return bm3d(image, sigma)


def closing(image: Float[np.ndarray, "h w"], area: Number) -> Float[np.ndarray, "h w"]:
    """Dark spots of fewer than `area` px filled up to their rim (Vincent 1993). A disc would fill boundaries too."""
    return area_closing(image, int(area))


def inpainting(image: Float[np.ndarray, "h w"], threshold: Number) -> Float[np.ndarray, "h w"]:
    """Dark spots and straight dark lines are cut out and filled by a biharmonic surface (Damelin, Hoang 2018).

    Dark: black top-hat over a disc of 4 px above `threshold`. Spots: of at most 80 px. Lines: of at least 50 px, by a
    probabilistic Hough transform. It cannot tell a straight boundary from a scratch.
    """
    dark = black_tophat(image, disk(4)) > threshold
    pieces, _ = ndimage.label(dark, np.ones((3, 3)))
    area = np.bincount(pieces.ravel())
    spots, scratches = dark & (area <= LARGEST_SPOT)[pieces], np.zeros_like(dark)
    thin = skeletonize(dark)
    for (x0, y0), (x1, y1) in probabilistic_hough_line(thin, 20, SHORTEST_SCRATCH, line_gap=4, rng=0):
        scratches[line(y0, x0, y1, x1)] = True
    cut = ndimage.binary_dilation(spots | (dark & ndimage.binary_dilation(scratches, disk(2))))
    if cut.all() or not cut.any():
        return image
    return inpaint_biharmonic(image, cut, split_into_regions=True)


@dataclass(frozen=True)
class Baseline:
    """A filter by name: `apply(image, parameter)`, and the values of its parameter to try, rising.

    A filter of two parameters takes them as a tuple.
    """

    name: str
    filter: Callable[..., np.ndarray]
    grid: tuple[Parameter, ...]

    def apply(self, image: np.ndarray, parameter: Parameter) -> np.ndarray:
        """The image [H, W] filtered, float32 in [0, 1]; ValueError for other ranks, NaN, a parameter <= 0."""
        image = np.asarray(image, np.float32)
        if image.ndim != 2 or image.size == 0 or not np.isfinite(image).all():
            raise ValueError(f"image: shape {image.shape}; accepted: [H, W], not empty, finite")
        values = parameter if isinstance(parameter, tuple) else (parameter,)
        if not all(value > 0 for value in values):
            raise ValueError(f"parameter: {parameter}; accepted: above 0, {self.name} tries {self.grid}")
        return np.clip(self.filter(image, *values), 0, 1).astype(np.float32)

    def at_end(self, parameter: Parameter) -> bool:
        """Whether a value of the grid is the first or the last of its axis: what lies beyond it was not tried."""
        grid = np.reshape(np.array(self.grid, float), (len(self.grid), -1))
        return bool(np.any((np.atleast_1d(parameter) == grid.min(0)) | (np.atleast_1d(parameter) == grid.max(0))))


BASELINES: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        Baseline("gaussian", gaussian, (0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)),
        Baseline("median", median, (1, 2, 3, 4, 6)),
        Baseline("bilateral", bilateral, tuple(product((0.02, 0.05, 0.1, 0.2, 0.4, 0.8), (1, 2, 4, 8)))),
        Baseline("wavelet", wavelet, SIGMAS),
        Baseline("non-local means", non_local_means, SIGMAS),
        Baseline("total variation", total_variation, (0.005, 0.01, 0.02, 0.03, 0.06, 0.1, 0.15, 0.22, 0.32, 0.5, 0.8)),
        Baseline("closing", closing, (2, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096)),
        Baseline("inpainting", inpainting, (0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)),
        Baseline("BM3D", bm3d, SIGMAS[2:]),
    )
    if baseline.name != "BM3D" or find_spec("bm3d")  # free for non-commercial use only: an extra of its own
}


def tune(
    baseline: Baseline,
    noisy: Sequence[np.ndarray] | np.ndarray,
    clean: Sequence[np.ndarray] | np.ndarray,
    score: Callable[[np.ndarray, np.ndarray], float] = aligned_psnr,
) -> Parameter:
    """The parameter of the baseline's grid with the highest mean score(filtered, clean) on validation pairs.

    noisy, clean: as many images [H, W] of each, in [0, 1]. Raises ValueError for none, or unequal numbers.
    """
    return tuned_parameters(baseline, noisy, clean, (score,))[0]


def tuned_parameters(baseline: Baseline, noisy, clean, scores: Sequence[Callable]) -> list[Parameter]:
    """The best parameter by each score; every image is filtered once a parameter."""
    if len(noisy) == 0 or len(noisy) != len(clean):
        raise ValueError(f"noisy: {len(noisy)} images, clean: {len(clean)}; accepted: as many, at least one")
    means = []
    for parameter in baseline.grid:
        outputs = [(baseline.apply(x, parameter), y) for x, y in zip(noisy, clean, strict=True)]
        means.append([np.mean([score(x, y) for x, y in outputs]) for score in scores])
    return [baseline.grid[int(np.argmax(column))] for column in zip(*means, strict=True)]


def tuned_filters(
    noisy: np.ndarray, clean: np.ndarray, scores: Sequence[Callable[[np.ndarray, np.ndarray], float]] = (aligned_psnr,)
) -> dict[str, Method]:
    """Every classical filter with its parameter tuned on validation pairs [N, H, W], named with that parameter.

    scores: as of `tune`; a filter whose best parameters differ between them is there once for each.
    """
    tuned = {name: tuned_parameters(baseline, noisy, clean, scores) for name, baseline in BASELINES.items()}
    return dict(named_filter(name, value) for name, values in tuned.items() for value in dict.fromkeys(values))


def named_filter(name: str, parameter: Parameter) -> tuple[str, Method]:
    """A classical filter under its name with its parameter: what `tuned_filters` is made of."""
    named = ", ".join(f"{v:g}" for v in (parameter if isinstance(parameter, tuple) else (parameter,)))
    return f"{name} ({named})", partial(BASELINES[name].apply, parameter=parameter)


def score_methods(methods: dict[str, Method], validation: Triple, test: Triple) -> dict[str, list[dict[str, float]]]:
    """Score each method on test pairs; its boundary threshold is the one that suits it on validation pairs.

    Args:
        methods: from a name to a function of an image [H, W] in [0, 1].
        validation, test: (noisy, clean, boundaries), each [N, H, W], the true boundaries bool.

    Returns:
        For each method one dict a test pair: the columns of `metrics.image_scores`, boundary F, precision, recall.
    """
    scores = {}
    for name, method in methods.items():
        threshold = choose_threshold([method(x) for x in validation[0]], validation[2])
        scores[name] = []
        for noisy, clean, truth in zip(*test, strict=True):
            output = method(noisy)
            found = boundary_score(detect_boundaries(output, threshold), truth)
            shape = {"boundary F": found.f, "precision": found.precision, "recall": found.recall}
            scores[name].append(image_scores(output, noisy, clean) | shape | {"threshold": threshold})
    return scores


def one_defect(
    clean: Float[np.ndarray, "h w"], boundaries: Bool[np.ndarray, "h w"], kind: str, strength: Number, *, key: Array
) -> tuple[Float[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """The image with one kind of defect (of `defects.KINDS`) alone, and where it is visible; ValueError for others."""
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r}; accepted: {', '.join(KINDS)}")
    strengths = DefectStrengths(**dict.fromkeys(KINDS, 0.0) | {kind: strength})
    image, bits = add_defects(clean, boundaries, strengths=strengths, key=key)
    return image, bits > 0


def score_removal(
    methods: dict[str, Method],
    thresholds: dict[str, Number],
    clean: Float[np.ndarray, "n h w"],
    boundaries: Bool[np.ndarray, "n h w"],
    twins: Bool[np.ndarray, "n h w"],
    *,
    key: Array,
    kinds: Sequence[str] = KINDS,
    strengths: Sequence[Number] = (0.25, 0.5, 1.0),
) -> list[dict]:
    """How much of each kind of defect, alone on clean images and without a blend, each method takes away.

    Args:
        methods: from a name to a function of an image [H, W] in [0, 1].
        thresholds: of the boundary detector, by method.
        clean, boundaries, twins: truths [N, H, W], their boundaries (corrosion follows them), those of twins.
        key: of the defects, which are the same for all methods.

    Returns:
        One dict a kind, strength, method and image: "restored", the share of the defect's visible pixels that are
        within 0.1 of the truth once the output is aligned to it, "error removed", the share of the squared error at
        these pixels that the output no longer has (below 0 where it has more), both images aligned, and "twin recall".
        NaN where there are none.
    """
    rows = []
    for kind, strength, i in product(kinds, strengths, range(len(clean))):
        one = jax.random.fold_in(jax.random.fold_in(key, KINDS.index(kind)), i)
        image, visible = one_defect(clean[i], boundaries[i], kind, strength, key=one)
        truth = clean[i].astype(float)
        before = masked_psnr(align(image, truth), truth, visible)
        for name, method in methods.items():
            output = method(image)
            aligned = align(output, truth)
            removed = 1 - 10 ** ((before - masked_psnr(aligned, truth, visible)) / 10)
            recall = boundary_recall(detect_boundaries(output, thresholds[name]), twins[i])
            rows.append({"kind": kind, "strength": strength, "method": name, "image": i})
            restored = restored_share(aligned, truth, visible)
            rows[-1] |= {"restored": restored, "error removed": removed, "twin recall": recall}
    return rows


class DnCNN(nnx.Module):
    """A convolutional network without attention that predicts the noise (Zhang et al. 2017).

    x - W_L * relu(BN(W_{L-1} * ... relu(BN(W_2 * relu(W_1 * x + b_1))))) - b_L, all kernels 3 x 3, L = depth.
    Evaluated through nnx.view(model, deterministic=True, use_running_average=True), like every network here.
    """

    def __init__(self, *, width: int = 32, depth: int = 10, rngs: nnx.Rngs):
        if width < 1 or depth < 3:
            raise ValueError(f"width: {width}, depth: {depth}; accepted: width from 1, depth from 3")

        def conv(n, m, **options):
            return nnx.Conv(n, m, (3, 3), kernel_init=nnx.initializers.he_normal(), rngs=rngs, **options)

        self.width, self.depth = width, depth
        self.first = conv(1, width)
        self.middle = nnx.List([conv(width, width, use_bias=False) for _ in range(depth - 2)])
        self.norms = nnx.List([nnx.BatchNorm(width, momentum=0.9, rngs=rngs) for _ in range(depth - 2)])
        self.last = conv(width, 1)

    def set_view(self, deterministic: bool | None = None):
        """Takes the flag of dropout, which DnCNN lacks: nnx.view refuses a flag that no module takes."""

    def __call__(self, image: Float[Array, "n h w 1"]) -> Float[Array, "n h w 1"]:
        x = jax.nn.relu(self.first(image))
        for conv, norm in zip(self.middle, self.norms, strict=True):
            x = jax.nn.relu(norm(conv(x)))
        return image - self.last(x)


def as_method(model: nnx.Module) -> Method:
    """A trained model as a function of images [H, W], applied as the network is: range stretched first."""
    graph, state = nnx.split(nnx.view(model, deterministic=True, use_running_average=True))
    apply = jax.jit(lambda x: nnx.merge(graph, state)(x[None, :, :, None])[0, :, :, 0])
    return lambda image: np.clip(np.asarray(apply(stretch(image))), 0, 1)


def save_dncnn(path: str | Path, model: DnCNN) -> None:
    """Write a DnCNN's parameters, batch-norm statistics, size and a checksum as safetensors, whole or not at all."""
    state = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    tensors = {".".join(map(str, name)): np.asarray(leaf[...], np.float32) for name, leaf in state}
    header = {"dncnn": json.dumps({"width": model.width, "depth": model.depth})}
    write_whole(Path(path), save(tensors, {**header, "sha256": checksum(header, tensors)}))


def load_dncnn(path: str | Path) -> DnCNN:
    """The DnCNN of a file of `save_dncnn`.

    Raises FileNotFoundError where there is no such file, ValueError where it holds no DnCNN or is not the file that
    was written; one without a checksum is taken.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        with safe_open(path, "np") as file:
            header = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.get("sha256", checksum(header, tensors)) != checksum(header, tensors):
            raise ValueError("damaged: its sha256 is not the one that its header tells")
        model = DnCNN(**json.loads(header["dncnn"]), rngs=nnx.Rngs(0))
        state = nnx.state(model, (nnx.Param, nnx.BatchStat))
        for name, leaf in nnx.to_flat_state(state):
            leaf[...] = jnp.asarray(tensors[".".join(map(str, name))]).reshape(leaf.shape)
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise ValueError(f"{path} does not hold a DnCNN ({error!r}); accepted: a file of save_dncnn") from error
    nnx.update(model, state)
    return model
