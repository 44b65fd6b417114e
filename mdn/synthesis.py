"""Training pairs from grown grains and a real micrograph (Section II.A, Figs. 1 and 2).

a phase field -> b grey levels, the truth -> c defects -> d phase of c, magnitude of f -> e histogram of f.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt16
from scipy import ndimage
from scipy.spatial.transform import Rotation
from skimage.exposure import match_histograms

from mdn.defects import (
    KINDS,
    DefectStrengths,
    add_defects,
    deep_scratch,
    etch_pit,
    faint_scratch,
    generator,
    smooth_noise,
)
from mdn.phase_field import Grains, check_key, voronoi

ORDER_ON_BOUNDARY = 0.63557  # sum of eta squared in the middle of a flat boundary, gamma = 1
PLANES = np.array([[1, 1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / math.sqrt(3)  # {111}
FLATTEST = 0.35  # sine of a plane's tilt below which its trace has no clear direction
SMALLEST = 8.0  # px, diameter of a grain that can carry twins
THINNEST = 2.5  # px, of a lamella and of the matrix between two: thinner ones are one groove
LAMELLAE = 4  # of one variant in a grain, at most
FAR = np.float32(1e4)  # px, outside every grain
STAND_INS = ("etched", "twinned", "textured")
LOOKS = ("groove", "line", "step", "halo")


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """How a pair is made. The defaults are the paper's recipe with its stated choices.

    Args:
        groove_depth: how dark a grain boundary is in the truth, 0 (a step of grey alone) to 1 (black).
        sharpness: exponent on the groove's profile; the order's own is 1, and 4 has half its width.
        grey: range of the grains' grey levels.
        skew: exponent on the uniform draw of a level; above 1 most grains are bright and a few dark.
        twin_fraction: share of the grains that can carry annealing twins which do, as in `annealing_twins`.
        twin_groove: depth of a twin boundary's groove as a share of `groove_depth`.
        look: what etching makes of a boundary before any defect, one of `LOOKS`: the truth's groove, a thin line,
            a mere step of grey, or a line between two bright flanks. The truth does not follow it.
        missing: share of the field in [0, 1] where etching has left boundaries all but unseen.
        defects: strength of each defect.
        blur: of the microscope, standard deviation in px.
        magnitude: share of the reference's log magnitude in the blend; 1 is the paper's full swap, 0 leaves c.
        match: whether the noisy image takes the reference's histogram.
        gamma: of the camera, an exponent on the noisy greys.

    Raises:
        ValueError: naming the field, what was given and what is accepted.
    """

    groove_depth: float | int = 0.6
    sharpness: float | int = 1.0
    grey: Sequence[float | int] = (0.4, 0.95)
    skew: float | int = 1.0
    twin_fraction: float | int = 0.3
    twin_groove: float | int = 0.4
    look: str = "groove"
    missing: float | int = 0.0
    defects: DefectStrengths = field(default_factory=DefectStrengths)
    blur: float | int = 0.0
    magnitude: float | int = 1.0
    match: bool = True
    gamma: float | int = 1.0

    def __post_init__(self):
        for name in ("groove_depth", "twin_fraction", "twin_groove", "missing", "magnitude"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and 0 <= value <= 1):
                raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
        if len(self.grey) != 2 or not 0 <= self.grey[0] <= self.grey[1] <= 1:
            raise ValueError(f"grey must be an increasing range within [0, 1], got {self.grey!r}")
        for name in ("sharpness", "skew", "gamma"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and 0 < value < math.inf):
                raise ValueError(f"{name} must be positive and finite, got {value!r}")
        if self.look not in LOOKS:
            raise ValueError(f"look must be one of {LOOKS}, got {self.look!r}")
        if not (isinstance(self.blur, Real) and 0 <= self.blur < math.inf):
            raise ValueError(f"blur must be px from 0 on, got {self.blur!r}")

    @classmethod
    def draw(cls, key: Array) -> PairConfig:
        """One of the varied pairs.

        Boundaries range from deep grooves between grains of one grey to steps between strong greys, the darkest
        pixel of the truth always near the bottom of the range, as an exposure that uses its range would have it.
        Three pairs in ten take the full magnitude swap, three a partial one, four are degraded in space alone.
        """
        rng = generator(key)
        look = str(rng.choice(LOOKS, p=[0.4, 0.25, 0.15, 0.2]))
        depth = float(rng.uniform(0.15, 0.45) if look == "step" else rng.uniform(0.3, 0.85))
        flat = look != "step" and rng.uniform() < 0.2  # almost no contrast between grains
        darkest = float(rng.uniform(0.8, 0.9) if flat else np.clip(rng.uniform(0.12, 0.35) / (1 - depth), 0, 0.9))
        magnitude = float(rng.choice([1.0, rng.uniform(0, 1), 0.0], p=[0.3, 0.3, 0.4]))
        return cls(
            groove_depth=depth,
            sharpness=float(rng.choice([1.0, rng.uniform(1.5, 4)], p=[0.3, 0.7])),
            grey=(darkest, 0.95),
            skew=float(rng.uniform(0.7, 3)),
            twin_fraction=float(rng.choice([0.0, rng.uniform(0.1, 0.7)])),
            twin_groove=float(rng.uniform(0.2, 0.9)),
            look=look,
            missing=float(rng.choice([0.0, rng.uniform(0, 0.35)])),
            defects=DefectStrengths.draw(jax.random.fold_in(key, 1)),
            blur=float(rng.choice([0.0, rng.uniform(0.3, 1.5)])),
            magnitude=magnitude,
            match=bool(magnitude > 0 and rng.uniform() < 0.7),
            gamma=float(np.exp(rng.uniform(-0.35, 0.35))),
        )


@dataclass(frozen=True)
class Pair:
    """One training pair with every panel of Fig. 1; images are float32 [H, W] in [0, 1].

    Attributes:
        phase_field: (a) sum of eta squared, without what overshoots 1.
        clean: (b) the truth.
        defective: (c) with spots and lines.
        blended: (d) phase of c with the magnitude of f.
        noisy: (e) histogram-matched to f, the network's input.
        reference: (f) the experimental micrograph.
        labels: int32, the grain of each pixel.
        twins: which pixels lie in a twin of their grain.
        boundaries: grain boundaries, where labels change.
        twin_boundaries: where a grain changes between itself and a twin, or between twins; no grain boundary.
        defects: bit mask, one bit a kind of `defects.KINDS`.
    """

    phase_field: Float[np.ndarray, "h w"]
    clean: Float[np.ndarray, "h w"]
    defective: Float[np.ndarray, "h w"]
    blended: Float[np.ndarray, "h w"]
    noisy: Float[np.ndarray, "h w"]
    reference: Float[np.ndarray, "h w"]
    labels: Int[np.ndarray, "h w"]
    twins: Bool[np.ndarray, "h w"]
    boundaries: Bool[np.ndarray, "h w"]
    twin_boundaries: Bool[np.ndarray, "h w"]
    defects: UInt16[np.ndarray, "h w"]

    @property
    def defect_mask(self) -> Bool[np.ndarray, "h w"]:
        """Where any defect is visible."""
        return self.defects > 0


def _boundaries(labels: Int[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    return (labels != np.roll(labels, 1, 0)) | (labels != np.roll(labels, 1, 1))


def _from_centres(labels: Int[np.ndarray, "h w"]) -> tuple[Float[np.ndarray, "2 h w"], Bool[np.ndarray, " n"]]:
    """Rows and columns from the centre of a cell's grain, and which grains this does not cut: none round the torus."""
    n, offset = int(labels.max()) + 1, np.empty((2, *labels.shape), np.float32)
    whole = np.ones(n, bool)
    for axis, size in enumerate(labels.shape):
        at, half = np.indices(labels.shape)[axis], size // 2
        lines = np.bincount((labels * size + at).ravel(), minlength=n * size).reshape(n, size)
        mean = np.angle(lines @ np.exp(2j * np.pi * np.arange(size) / size))  # of angles, for the torus
        centre = np.round(mean * size / (2 * np.pi)).astype(int)
        offset[axis] = (at - centre[labels] + half) % size - half
        whole &= lines[np.arange(n), (centre - half) % size] == 0
    return offset, whole


def _traces(n: int, rng: np.random.Generator) -> tuple[Float[np.ndarray, "2 2 n"], Float[np.ndarray, "2 n"]]:
    """Two {111} planes each of n random crystals: their traces' unit normals [axis, plane, n], sines of their tilts."""
    crystals = Rotation.from_quat(rng.standard_normal((n, 4)))  # normalised: uniform over orientations
    normal = np.einsum("nij,pj->ipn", crystals.as_matrix(), PLANES)
    sine = np.hypot(normal[0], normal[1])
    chosen = np.argsort(rng.uniform(size=sine.shape) + (sine < FLATTEST), axis=0)[:2]
    sine = np.take_along_axis(sine, chosen, 0)
    return np.take_along_axis(normal[:2], chosen[None], 1) / sine, sine


def _lamellae(
    u: Float[np.ndarray, " p"],
    v: Float[np.ndarray, " p"],
    count: Int[np.ndarray, " n"],
    scale: Float[np.ndarray, " n"],
    through: Bool[np.ndarray, " n"],
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " n"]]:
    """Depth of each cell in its grain's stack of lamellae, and the u at which each stack begins, in px.

    The cells lie grain by grain, `count` of each, at u across and v along the lamellae, whose thickness goes with
    `scale`. The first lamella of a grain `through` runs through it.
    """
    first, n = np.cumsum(count) - count, len(count)
    low, high = np.minimum.reduceat(u, first), np.maximum.reduceat(u, first)
    begin = start = low + (high - low) * rng.uniform(0.1, 0.7, n)
    number, depth = rng.geometric(0.5, n), np.full(len(u), -FAR)

    def spread(a):
        return np.repeat(a.astype(np.float32), count)

    def inside(start, thick, blunt):
        side, part = rng.choice([-1, 1], n), rng.uniform(0.3, 0.75, n)
        stop = np.where(blunt & (bottom < top), bottom + (top - bottom) * part, side * FAR)
        return np.minimum(np.minimum(u - spread(start), spread(start + thick) - u), spread(side) * (spread(stop) - v))

    for lamella in range(LAMELLAE):
        thick, gap = np.maximum(scale * rng.lognormal(-2.0, 0.8, (2, n)), THINNEST)
        beside = FAR * (np.abs(u - spread(start + thick / 2)) > 1)
        bottom, top = np.minimum.reduceat(v + beside, first), np.maximum.reduceat(v - beside, first)
        blunt, core_blunt, cored = rng.uniform(size=(3, n)) < np.array([[0.4], [0.4], [0.5]])
        blunt &= (thick < 0.3 * scale) & (~through | (lamella > 0))  # a blunt end is a short step
        core = thick * rng.uniform(0.1, 0.4, n)  # a lamella of the matrix within the twin
        core_start = start + (thick - core) * rng.uniform(0.2, 0.8, n)
        core_start[blunt | ~cored | (core < 2)] = FAR
        twin = inside(np.where(lamella < number, start, FAR), thick, blunt)
        depth = np.maximum(depth, np.minimum(twin, -inside(core_start, core, core_blunt)))
        start = start + thick + gap
    return depth, begin


def annealing_twins(labels: np.ndarray, *, fraction: float | int, key: Array) -> Float[np.ndarray, "2 h w"]:
    """Depth of each pixel in a twin: lamellae along the {111} traces of a random crystal in each grain.

    A plane of unit normal (n_y, n_x, n_z), z that of the section, has its trace across (n_y, n_x), and a lamella on
    it is as wide as its thickness / sqrt(n_y^2 + n_x^2). A grain's lamellae are parallel, thick and thin, some with
    one of the matrix inside, and are one variant; a few grains have another, on a second plane, that ends where it
    meets the first. All come from the grain's boundary, and run through to the other side or end bluntly within.

    Args:
        labels: int [H, W], the grain of each pixel, periodic.
        fraction: share in [0, 1] of the grains that can carry twins which do, to within one grain. Those less than
            8 px across cannot, nor those that reach round the torus, where a straight band does not close.
        key: a `jax.random.key`.

    Returns:
        For each of the two variants the distance in px to its nearest twin boundary, negative outside it.

    Raises:
        ValueError: for a fraction outside [0, 1].

    Source: S. Mahajan et al., Formation of annealing twins in f.c.c. crystals, Acta Mater. 45 (1997) 2633. How many
    and how thick is ours, after micrographs of alpha brass.
    """
    if not (isinstance(fraction, Real) and 0 <= fraction <= 1):
        raise ValueError(f"fraction must lie in [0, 1], got {fraction!r}")
    labels = np.asarray(labels)
    if labels.ndim != 2 or not labels.size or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError(f"labels must be integers [H, W] from 0 on, got {labels.dtype} {labels.shape}")
    check_key(key)
    labels = labels.astype(np.int64)
    rng, area = generator(key), np.bincount(labels.ravel())
    offset, whole = _from_centres(labels)
    able = np.flatnonzero(whole & (2 * np.sqrt(area / np.pi) >= SMALLEST))
    carries = np.zeros(len(area), bool)
    carries[rng.permutation(able)[: int(fraction * len(able) + rng.uniform())]] = True
    cells, count = np.argsort(labels, axis=None, kind="stable"), area[carries]  # grain by grain
    cells = cells[np.repeat(carries, area)]
    across, sine = _traces(len(count), rng)
    (ny, nx), (y, x) = np.repeat(across.astype(np.float32), count, axis=2), offset.reshape(2, -1)[:, cells]
    u, v, scale = ny * y + nx * x, nx * y - ny * x, 2 * np.sqrt(count / np.pi) / sine
    depth, both = np.full((2, labels.size), -FAR), rng.uniform(size=len(count)) < 0.25
    depth[0, cells], begin = _lamellae(u[0], v[0], count, scale[0], both, rng)
    on, count = np.repeat(both, count), count[both]
    second, _ = _lamellae(u[1, on], v[1, on], count, scale[1, both], both[both], rng)
    depth[1, cells[on]] = np.minimum(second, np.repeat(begin[both], count) - u[0, on])
    return depth.reshape(2, *labels.shape)


def shade(
    grains: Grains, *, config: PairConfig | None = None, key: Array
) -> tuple[Float[np.ndarray, "h w"], Int[np.ndarray, "h w"]]:
    """The truth: a random grey for each grain and each variant of its twins, a dark groove along boundaries.

        clean = grey x (1 - depth x groove),    groove = ((1 - order) / (1 - 0.636))^sharpness along grain boundaries

    The grey of a twin comes from the grains' own distribution, a quarter of it or more away from its grain's, and
    changes over one pixel. Twin boundaries have a fainter groove.

    Args:
        grains: a grown structure.
        config: grey levels, twins and groove.
        key: a `jax.random.key`.

    Returns:
        The truth [H, W] in [0, 1], and int8 [H, W]: 1 and 2 in the variants of a grain's twins, 0 elsewhere.

    Source: Section II.A, Fig. 1b; groove and twins are ours.
    """
    config = config or PairConfig()
    grey, groove, variants = _greys(grains, config, key)
    return (grey * (1 - config.groove_depth * groove)).astype(np.float32), variants


def _greys(grains: Grains, config: PairConfig, key: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey of each pixel, its groove from 0 to 1, and the twins' variants."""
    grey_key, step_key, twin_key = jax.random.split(key, 3)
    low, high = config.grey
    labels, n = grains.labels, int(grains.labels.max()) + 1
    depth = annealing_twins(labels, fraction=config.twin_fraction, key=twin_key)
    rank, rng = generator(grey_key).uniform(size=n), generator(step_key)
    step = rng.choice([-1, 1], n) * (np.array([[1], [2]]) + rng.uniform(-0.25, 0.25, (2, n))) / 3
    level = high - (high - low) * (np.stack([rank, *(rank + step)]) % 1) ** config.skew
    share = np.clip(depth + 0.5, 0, 1)
    grey = level[0][labels] + (share * (level[1:] - level[0])[:, labels]).sum(0)
    groove = np.clip((1 - grains.order) / (1 - ORDER_ON_BOUNDARY), 0, 1)
    groove = groove**config.sharpness
    groove = np.maximum(groove, config.twin_groove * np.exp(-0.5 * (np.abs(depth).min(0) / 1.2) ** 2))
    return grey, groove, np.where(depth[0] > 0, 1, np.where(depth[1] > 0, 2, 0)).astype(np.int8)


def _etched(grey: np.ndarray, groove: np.ndarray, config: PairConfig, key: Array) -> Float[np.ndarray, "h w"]:
    """What etching shows of the truth: boundaries by `config.look`, uneven along their length, some missing."""
    if config.look == "groove" and not config.missing:
        return (grey * (1 - config.groove_depth * groove)).astype(np.float32)
    rng, extent = generator(key), min(grey.shape)
    dark, bright = {
        "groove": (groove, 0.0),
        "line": (groove**2.5, 0.0),
        "step": (0.0, 0.0),
        "halo": (groove**1.5, 4 * groove * (1 - groove)),
    }[config.look]
    depth = config.groove_depth * (1 + 0.25 * smooth_noise(grey.shape, 0.04 * extent, rng))
    height = smooth_noise(grey.shape, 0.06 * extent, rng)
    unseen = np.quantile(height, config.missing) if config.missing else -math.inf
    seen = np.clip((height - unseen) / 0.2 + 0.5, 0.1, 1)
    etched = grey * (1 - np.clip(depth, 0, 0.95) * seen * dark) * (1 + rng.uniform(0.1, 0.35) * seen * bright)
    return np.clip(etched, 0, 1).astype(np.float32)


def periodic_component(image: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """The image without the jumps at its borders, whose spectrum has no cross.

    With v the jumps across the borders, s solves the periodic Poisson equation lap s = v; image - s is returned.

    Source: L. Moisan, Periodic plus smooth image decomposition, J. Math. Imaging Vis. 39 (2011).
    """
    v = np.zeros(image.shape)
    v[0] += image[-1] - image[0]
    v[-1] += image[0] - image[-1]
    v[:, 0] += image[:, -1] - image[:, 0]
    v[:, -1] += image[:, 0] - image[:, -1]
    ky, kx = (2 * np.cos(2 * np.pi * np.fft.fftfreq(n)) for n in image.shape)
    laplacian = ky[:, None] + kx[None, :] - 4
    laplacian[0, 0] = 1
    spectrum = np.fft.fft2(v) / laplacian
    spectrum[0, 0] = 0
    return (image - np.fft.ifft2(spectrum).real).astype(np.float32)


def fourier_blend(
    image: np.ndarray, reference: np.ndarray, *, magnitude: float | int = 1.0
) -> Float[np.ndarray, "h w"]:
    """Phase of the simulated image under the Fourier magnitude of the micrograph.

        d = IFFT( |FFT(c)|^(1-m) |FFT(f)|^m exp(i arg FFT(c)) )

    Args:
        image: c, [H, W].
        reference: f, of the same shape; its periodic component is what is transformed.
        magnitude: m in [0, 1]; 1 is the paper's full swap.

    Returns:
        [H, W], about the reference's mean; values may leave [0, 1].

    Raises:
        ValueError: if the shapes differ, an image is not [H, W] or not finite, or m lies outside [0, 1].

    Source: Section II.A.c, Fig. 1d.
    """
    image, reference = _finite(image, "image"), _finite(reference, "reference")
    if image.shape != reference.shape:
        raise ValueError(f"reference must have the image's shape {image.shape}, got {reference.shape}")
    if not 0 <= magnitude <= 1:
        raise ValueError(f"magnitude must lie in [0, 1], got {magnitude!r}")
    spectrum = np.fft.fft2(image)
    own, others = np.abs(spectrum), np.abs(np.fft.fft2(periodic_component(reference)))
    tiny = 1e-12 * max(own.max(), others.max(), 1e-12)
    mixed = np.exp((1 - magnitude) * np.log(own + tiny) + magnitude * np.log(others + tiny))
    return np.fft.ifft2(mixed * np.exp(1j * np.angle(spectrum))).real.astype(np.float32)


def _finite(image, name: str) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim != 2 or not image.size or image.dtype.kind != "f" or not np.isfinite(image).all():
        given = f"shape {image.shape}, dtype {image.dtype}"
        raise ValueError(f"{name} must be finite floats [H, W], not empty, got {given}")
    return image


def match_histogram(image: np.ndarray, reference: np.ndarray) -> Float[np.ndarray, "h w"]:
    """Give the image the grey-level distribution of the reference.

    Args:
        image, reference: floats [H, W], not necessarily of one shape.

    Raises:
        ValueError: if either is not [H, W], empty or not finite.

    Source: Section II.A, Fig. 1e; Section III.b.
    """
    return match_histograms(_finite(image, "image"), _finite(reference, "reference")).astype(np.float32)


def make_pair(grown: Grains, reference: np.ndarray, *, config: PairConfig | None = None, key: Array) -> Pair:
    """One training pair, Fig. 1 step by step.

    Args:
        grown: a grown structure of [H, W] cells, or of n times as many a side: it is made smaller once it is shaded,
            for grains that are small beside the width of an interface.
        reference: an experimental micrograph's luminance, [H, W] in [0, 1].
        config: how the pair is made; the paper's recipe by default.
        key: a `jax.random.key`.

    Returns:
        Every panel of Fig. 1, with labels and masks.

    Raises:
        ValueError: if the reference has another shape or is not finite within [0, 1].

    Source: Section II.A, Fig. 1.
    """
    config = config or PairConfig()
    if not isinstance(grown, Grains):
        raise ValueError(f"grown must be the Grains that mdn.grow returns, got {type(grown).__name__}")
    check_key(key)
    reference = _finite(reference, "reference").astype(np.float32)
    finer = max(1, grown.labels.shape[0] // reference.shape[0])
    if tuple(finer * n for n in reference.shape) != grown.labels.shape:
        raise ValueError(
            f"reference must have the grains' shape {grown.labels.shape}, or a whole fraction, got {reference.shape}"
        )
    if reference.min() < 0 or reference.max() > 1:
        raise ValueError(f"reference must lie in [0, 1], got {reference.min():g} to {reference.max():g}")
    shade_key, defect_key = jax.random.split(key)
    grey, groove, variants = _greys(grown, config, shade_key)
    clean = _coarser(grey * (1 - config.groove_depth * groove), finer)
    etched = _coarser(_etched(grey, groove, config, jax.random.fold_in(shade_key, 1)), finer)
    labels, variants = (a[finer // 2 :: finer, finer // 2 :: finer] for a in (grown.labels, variants))
    boundaries = _boundaries(labels)
    twin_boundaries = _boundaries(variants) & ~boundaries
    defective, bits = add_defects(etched, boundaries, strengths=config.defects, blur=config.blur, key=defect_key)
    blended = fourier_blend(defective, reference, magnitude=config.magnitude) if config.magnitude else defective
    noisy = match_histogram(blended, reference) if config.match else np.clip(blended, 0, 1)
    noisy = noisy if config.gamma == 1 else np.clip(noisy, 0, 1) ** np.float32(config.gamma)
    return Pair(
        np.clip(_coarser(grown.order, finer), 0, 1), clean, defective, blended, noisy, reference,
        labels, variants > 0, boundaries, twin_boundaries, bits,
    )  # fmt: skip


def blank_field(shape: tuple[int, int], *, key: Array) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """A field without grains: one grey under a single kind of defect or, as often, under those of a varied pair.

    Nothing else in it sets the scale, so that what `mdn.network.stretch` stretches is the defects themselves.

    Args:
        shape: pixels (H, W).
        key: a `jax.random.key`.

    Returns:
        The field with its defects and the truth, which is its grey: both float32 [H, W] in [0, 1].

    Source: ours; what is without grains is to stay without them.
    """
    own, drawn, defects = jax.random.split(key, 3)
    rng, strengths = generator(own), DefectStrengths.draw(drawn)
    if rng.uniform() < 0.5:
        kind = rng.choice([kind for kind in KINDS if kind != "thick_boundary"])
        strengths = DefectStrengths(**dict.fromkeys(KINDS, 0.0) | {str(kind): float(rng.uniform(0.05, 1))})
    grey, blur = np.full(shape, rng.uniform(0.3, 0.9), np.float32), max(0.0, rng.uniform(-1, 1.5))
    noisy, _ = add_defects(grey, np.zeros(shape, bool), strengths=strengths, blur=blur, key=defects)
    return noisy, grey


def mounted(
    noisy: Float[np.ndarray, "h w"], clean: Float[np.ndarray, "h w"], *, key: Array
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """A pair at the edge of its specimen: a tenth to a half of the field, from one side, is the dark mount.

    The mount is darker than most of the specimen and takes a share of the field, and with both it moves what the
    network makes of all the rest.

    Args:
        noisy, clean: a pair [H, W] in [0, 1].
        key: a `jax.random.key`.

    Returns:
        Both with the mount, float32 [H, W] in [0, 1]: noisy, scratched and blurred in the one, a grey in the other.

    Source: ours, after the annealed brass of the registry (`mdn.micrographs.sources`), which lies in its mount.
    """
    own, scratched = jax.random.split(key)
    rng, shape = generator(own), noisy.shape
    grey, angle = rng.uniform(0, 0.25), rng.choice(4) * math.pi / 2 + rng.normal(0, 0.05)
    y, x = np.indices(shape) / np.reshape(shape, (2, 1, 1)) - 0.5
    across = x * math.cos(angle) + y * math.sin(angle) + rng.uniform(0, 0.01) * smooth_noise(shape, 4.0, rng)
    inside = across < np.quantile(across, rng.uniform(0.1, 0.5))
    mount = np.full(shape, grey, np.float32)
    rough = faint_scratch(mount, strength=float(rng.uniform()), key=scratched)
    rough += np.float32(rng.choice([0.0, 0.04]) * rng.uniform()) * smooth_noise(shape, rng.uniform(0.3, 1), rng)
    soft = ndimage.gaussian_filter(inside.astype(np.float32), rng.uniform(0.3, 1.5))
    return np.clip(noisy + soft * (rough - noisy), 0, 1).astype(np.float32), np.where(inside, mount, clean)


def _coarser(image: np.ndarray, n: int) -> Float[np.ndarray, "h w"]:
    """Mean over squares of n x n pixels."""
    height, width = image.shape
    return image.reshape(height // n, n, width // n, n).mean((1, 3)).astype(np.float32)


def stand_in(kind: str, shape: tuple[int, int], *, key: Array) -> Float[np.ndarray, "h w"]:
    """A procedural micrograph, for where no real one may be shown or had.

    Curved grains with grooves of uneven width, surface texture, pits, scratches and the microscope's blur.

    Args:
        kind: "etched" (bright grains, dark lines, pits), "twinned" (strong contrast, twins), or "textured"
            (grey grains, weak lines).
        shape: pixels (H, W).
        key: a `jax.random.key`.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in STAND_INS:
        raise ValueError(f"kind must be one of {STAND_INS}, got {kind!r}")
    keys = jax.random.split(key, 7)
    rng = generator(keys[0])
    tiles = voronoi(shape, max(6, round(math.prod(shape) / rng.uniform(900, 2500))), key=keys[1], relaxations=1)
    bend = [smooth_noise(shape, 6.0, rng) + 3 * smooth_noise(shape, 20.0, rng) for _ in range(2)]
    labels = ndimage.map_coordinates(tiles, np.indices(shape) + bend, order=0, mode="grid-wrap")
    low, high, depth, skew = {
        "etched": (0.55, 0.85, 0.75, 2.5), "twinned": (0.35, 0.95, 0.7, 1.2), "textured": (0.3, 0.8, 0.35, 1.0)
    }[kind]  # fmt: skip
    distance = ndimage.distance_transform_edt(~_boundaries(labels))
    width = np.clip(1.3 + 0.5 * smooth_noise(shape, 10.0, rng), 0.5, None)
    order = 1 - (1 - ORDER_ON_BOUNDARY) * np.exp(-0.5 * (distance / width) ** 2)
    look = PairConfig(groove_depth=depth, grey=(low, high), skew=skew, twin_fraction=0.6 if kind == "twinned" else 0.0)
    image, _ = shade(Grains(labels, order.astype(np.float32), 0.0, 0.0), config=look, key=keys[2])
    texture = 0.03 * smooth_noise(shape, 0.7, rng) + 0.02 * smooth_noise(shape, 3.0, rng)
    texture += 0.03 * smooth_noise(shape, 25.0, rng)
    image = np.clip(image * (1 + texture), 0, 1).astype(np.float32)
    image = etch_pit(image, strength=0.6 if kind == "etched" else 0.2, key=keys[3])
    image = faint_scratch(image, strength=0.4, key=keys[4])
    if kind == "textured":
        image = deep_scratch(image, strength=0.2, key=keys[5])
    return np.clip(ndimage.gaussian_filter(image, 0.6), 0, 1).astype(np.float32)
