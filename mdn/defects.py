"""What sample preparation leaves on a micrograph (Sections II.A and III.a): one pure function a defect.

Each takes an image, float32 [H, W] in [0, 1], a strength in [0, 1] and a key, and returns the image with the
defect. A pixel counts as touched by a defect where the defect changes it by more than `VISIBLE`.
"""

from __future__ import annotations

import functools
import io
import math
from dataclasses import dataclass, fields
from numbers import Real

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, UInt16
from PIL import Image
from scipy import ndimage

VISIBLE = 0.04  # of the grey range; about what the eye makes out beside the grain's own grey


def generator(key: Array) -> np.random.Generator:
    """A NumPy generator seeded by a `jax.random.key`: drawing a scratch needs loops, not arrays."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def smooth_noise(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Periodic Gaussian noise of correlation length `scale` pixels, scaled to zero mean and unit variance."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), scale, mode="wrap")
    return (noise - noise.mean()) / (noise.std() + 1e-12)


def _line(shape, rng, angle: float, width: float, length: float) -> Float[np.ndarray, "h w"]:
    """Profile, 1 on the axis, of a slightly bent line whose depth varies along it and which ends somewhere."""
    y, x = np.indices(shape, dtype=np.float32)
    y, x = y - rng.uniform(0, shape[0]), x - rng.uniform(0, shape[1])
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    across = across + rng.normal(0, 2e-4) * along**2
    fade = 1 / (1 + np.exp(np.clip((np.abs(along) - length / 2) / 4, -30, 30)))
    wobble = 0.8 + 0.2 * np.sin(along / rng.uniform(15, 60) + rng.uniform(0, 6))
    return np.exp(-0.5 * (across / width) ** 2) * fade * wobble


def _defect(draw):
    """A defect that checks its input, stays within [0, 1] and leaves the image alone at strength 0."""

    @functools.wraps(draw)
    def defect(image, *boundaries, strength, key):
        image = np.asarray(image)
        if image.ndim != 2 or image.dtype.kind != "f" or not image.size or not np.isfinite(image).all():
            given = f"shape {image.shape}, dtype {image.dtype}"
            raise ValueError(f"image: {given}; accepted: finite floats [H, W] in [0, 1], not empty")
        if boundaries and np.shape(boundaries[0]) != image.shape:
            raise ValueError(f"boundaries: shape {np.shape(boundaries[0])}; accepted: the image's, {image.shape}")
        if not (isinstance(strength, Real) and 0 <= strength <= 1):
            raise ValueError(f"strength: {strength!r}; accepted: a number in [0, 1]")
        if strength == 0:
            return image.astype(np.float32)
        return np.clip(draw(image, *boundaries, strength=strength, key=key), 0, 1).astype(np.float32)

    return defect


@_defect
def deep_scratch(image: Float[np.ndarray, "h w"], *, strength: float | int, key: Array) -> Float[np.ndarray, "h w"]:
    """Dark polishing scratches, 1-5 px wide: a few in any direction, or a family along one; some with a bright lip."""
    rng, dark, lip = generator(key), np.zeros_like(image), np.zeros_like(image)
    angle, family = rng.uniform(0, math.pi), rng.uniform() < 0.35
    for _ in range(rng.integers(4, 12) if family else rng.integers(1, 3 + round(4 * strength))):
        own = angle + rng.normal(0, 0.03) if family else rng.uniform(0, math.pi)
        width = rng.uniform(0.5, 1.4) if rng.uniform() < 0.75 else rng.uniform(1.4, 2.5)
        line = _line(image.shape, rng, own, width, rng.uniform(40, 700))
        dark = np.maximum(dark, line * rng.uniform(0.4, 1) * math.sqrt(strength))
        if rng.uniform() < 0.25:
            shift = [round(2 * width * f(own)) for f in (math.cos, lambda a: -math.sin(a))]
            lip = np.maximum(lip, ndimage.shift(line, shift, order=1) * 0.2 * strength)
    return image * (1 - 0.95 * dark) + lip * (1 - dark)


@_defect
def faint_scratch(image: Float[np.ndarray, "h w"], *, strength: float | int, key: Array) -> Float[np.ndarray, "h w"]:
    """Fine polishing marks, darker or brighter than the grain: one to three anywhere, or families along a direction."""
    rng, change = generator(key), np.zeros_like(image)
    families = rng.choice([0, 0, 1, 1, 2])
    single = [(rng.uniform(0, math.pi), 1) for _ in range(rng.integers(1, 4) if families == 0 else 0)]
    many = [(rng.uniform(0, math.pi), rng.integers(4, 8 + round(20 * strength))) for _ in range(families)]
    for angle, count in single + many:
        for _ in range(count):
            line = _line(image.shape, rng, angle + rng.normal(0, 0.06), rng.uniform(0.4, 0.8), rng.uniform(30, 500))
            change += line * rng.uniform(0.1, 0.3) * strength * rng.choice([-1, -1, -1, 1])
    return image * (1 + change)


@_defect
def etch_pit(image: Float[np.ndarray, "h w"], *, strength: float | int, key: Array) -> Float[np.ndarray, "h w"]:
    """Dark round pits, many small and a few large, denser in some places than in others."""
    rng, dark = generator(key), np.zeros_like(image)
    density = np.exp(smooth_noise(image.shape, 0.12 * min(image.shape), rng)).ravel()
    for radius in (0.6, 1.0, 1.8, 3.0):
        count = rng.poisson(2e-3 * strength * image.size / (1 + radius) ** 2)
        spots = np.zeros(image.size, np.float32)
        spots[rng.choice(image.size, count, p=density / density.sum())] = rng.uniform(0.4, 1.2, count)
        blurred = ndimage.gaussian_filter(spots.reshape(image.shape), radius, mode="wrap")
        dark = np.maximum(dark, np.minimum(blurred * 2 * math.pi * radius**2, 0.9))
    return image * (1 - dark)


@_defect
def water_stain(image: Float[np.ndarray, "h w"], *, strength: float | int, key: Array) -> Float[np.ndarray, "h w"]:
    """One or more dried drops: a faint tint inside, a darker rim."""
    rng = generator(key)
    height = smooth_noise(image.shape, rng.uniform(0.05, 0.12) * min(image.shape), rng) - rng.uniform(0.8, 1.8)
    inside = 1 / (1 + np.exp(np.clip(-height / 0.05, -30, 30)))
    rim = np.exp(-0.5 * (height / 0.08) ** 2)
    return image * (1 - strength * (rng.uniform(0.1, 0.35) * inside + rng.uniform(0.2, 0.5) * rim))


@_defect
def speckle(image: Float[np.ndarray, "h w"], *, strength: float | int, key: Array) -> Float[np.ndarray, "h w"]:
    """Grain of the surface and of the sensor: multiplicative noise, correlated over a pixel or less."""
    rng = generator(key)
    noise = smooth_noise(image.shape, rng.uniform(0.2, 0.9), rng)
    return image * (1 + 0.2 * strength * noise)


@_defect
def thick_boundary(
    image: Float[np.ndarray, "h w"], boundaries: Bool[np.ndarray, "h w"], *, strength: float | int, key: Array
) -> Float[np.ndarray, "h w"]:
    """Corroded boundary layers: dark, of a width that swells and thins along them, on part of the network."""
    rng = generator(key)
    distance = ndimage.distance_transform_edt(~boundaries)
    attacked = np.clip(
        2 * (smooth_noise(image.shape, 0.1 * min(image.shape), rng) - rng.uniform(-0.8, 1.0)) + 0.5, 0, 1
    )
    swollen = np.exp(0.35 * smooth_noise(image.shape, rng.uniform(6, 14), rng))
    frayed = rng.uniform(0.2, 0.7) * smooth_noise(image.shape, rng.uniform(1.5, 3), rng)  # px
    width = (0.5 + rng.uniform(2, 4.5) * strength) * swollen * attacked
    layer = np.clip(3 * attacked, 0, 1) * np.clip(width + frayed * (width > 0.5) - distance + 0.5, 0, 1)
    layer *= rng.uniform(0.6, 0.95) * math.sqrt(strength)
    return image * (1 - ndimage.gaussian_filter(layer, 0.7))


@_defect
def illumination(image: Float[np.ndarray, "h w"], *, strength: float | int, key: Array) -> Float[np.ndarray, "h w"]:
    """Uneven illumination: a slope across the field and a darker rim."""
    rng = generator(key)
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in image.shape)
    angle = rng.uniform(0, 2 * math.pi)
    slope = math.cos(angle) * x[None, :] + math.sin(angle) * y[:, None]
    rim = x[None, :] ** 2 + y[:, None] ** 2
    field = 1 + strength * (rng.uniform(0, 0.3) * slope - rng.uniform(0, 0.2) * rim)
    return image * field


@_defect
def dust(image: Float[np.ndarray, "h w"], *, strength: float | int, key: Array) -> Float[np.ndarray, "h w"]:
    """Dust on a lens, far out of focus: large soft discs, darker or brighter, some with the edge of a ring."""
    rng, change = generator(key), np.zeros_like(image)
    y, x = np.indices(image.shape, dtype=np.float32)
    for _ in range(rng.integers(1, 3 + round(5 * strength))):
        radius = rng.uniform(0.02, 0.12) * min(image.shape)
        away = np.hypot(y - rng.uniform(0, image.shape[0]), x - rng.uniform(0, image.shape[1])) / radius
        disc = 1 / (1 + np.exp(np.clip((away - 1) / rng.uniform(0.05, 0.3), -30, 30)))
        ring = np.exp(-0.5 * ((away - 1) / 0.15) ** 2) * rng.uniform(-0.5, 0.5)
        change += (disc + ring) * rng.uniform(0.1, 0.35) * strength * rng.choice([-1, -1, 1])
    return image * (1 + change)


@_defect
def noise(image: Float[np.ndarray, "h w"], *, strength: float | int, key: Array) -> Float[np.ndarray, "h w"]:
    """The sensor's: shot noise, whose variance goes with the light, and read noise, white both."""
    rng = generator(key)
    sigma = 0.12 * strength * np.sqrt(0.2 + 0.8 * image)
    return image + sigma * rng.standard_normal(image.shape, np.float32)


@_defect
def jpeg(image: Float[np.ndarray, "h w"], *, strength: float | int, key: Array) -> Float[np.ndarray, "h w"]:
    """Traces of a JPEG file: blocks of 8 px and ringing, quality from 95 down to 15; the grid lies anywhere."""
    rows, columns = generator(key).integers(0, 8, 2)
    padded = np.pad(image, ((rows, 0), (columns, 0)), mode="symmetric")
    file = io.BytesIO()
    pixels = Image.fromarray(np.rint(padded * 255).clip(0, 255).astype(np.uint8))
    pixels.save(file, "JPEG", quality=round(95 - 80 * strength))
    read = np.asarray(Image.open(file), np.float32)[rows:, columns:] / 255
    return image + (read - image) * min(1.0, 10 * strength)


@_defect
def pore(image: Float[np.ndarray, "h w"], *, strength: float | int, key: Array) -> Float[np.ndarray, "h w"]:
    """Pores and pulled-out inclusions: large ragged dark spots, their rims rounded and sometimes bright."""
    rng, dark, rim = generator(key), np.zeros_like(image), np.zeros_like(image)
    y, x = np.indices(image.shape, dtype=np.float32)
    for _ in range(rng.integers(1, 3 + round(14 * strength))):
        radius = min(rng.lognormal(1.3, 0.6), 0.1 * min(image.shape)) + 1
        dy, dx = y - rng.uniform(0, image.shape[0]), x - rng.uniform(0, image.shape[1])
        angle, turn = np.arctan2(dy, dx), rng.uniform(0, 2 * math.pi, 4)
        ragged = 1 + sum(rng.normal(0, 0.3 / n) * np.cos(n * angle + turn[n - 1]) for n in (1, 2, 3, 4))
        depth = radius * np.clip(ragged, 0.3, None) - np.hypot(dy, dx * rng.uniform(0.6, 1))
        dark = np.maximum(dark, np.clip(depth / rng.uniform(1, 3) + 0.5, 0, 1) * rng.uniform(0.6, 1))
        if rng.uniform() < 0.4:
            rim = np.maximum(rim, np.exp(-0.5 * ((depth + 1.5) / 1.2) ** 2) * rng.uniform(0.1, 0.3))
    return (image * (1 - dark) + rim * (1 - dark)) * strength**0.5 + image * (1 - strength**0.5)


@_defect
def mottle(
    image: Float[np.ndarray, "h w"], boundaries: Bool[np.ndarray, "h w"], *, strength: float | int, key: Array
) -> Float[np.ndarray, "h w"]:
    """Grain interiors etched rough, some grains more than others: blotches, pits by the hundred, or striations."""
    rng = generator(key)
    grains, n = ndimage.label(~boundaries)
    rough = strength * rng.uniform(size=n + 1).astype(np.float32) ** 2
    texture = np.zeros_like(image)
    for kind in (0, 1, 2):
        chosen = (rng.uniform(size=n + 1) < 0.5).astype(np.float32)
        if kind == 0:
            pattern = smooth_noise(image.shape, rng.uniform(0.8, 4), rng)
        elif kind == 1:
            pattern = -3 * np.clip(smooth_noise(image.shape, rng.uniform(0.5, 1.2), rng) - 1.2, 0, 1)
        else:
            y, x = np.indices(image.shape, dtype=np.float32)
            angle = rng.uniform(0, math.pi, n + 1).astype(np.float32)[grains]
            phase = (x * np.cos(angle) + y * np.sin(angle)) * 2 * math.pi / rng.uniform(3, 9)
            pattern = np.sin(phase + 1.5 * smooth_noise(image.shape, 4.0, rng)) * smooth_noise(image.shape, 5.0, rng)
        texture += 0.14 * pattern * (rough * chosen)[grains]
    return image * (1 + ndimage.gaussian_filter(texture, 0.5))


@dataclass(frozen=True, kw_only=True)
class DefectStrengths:
    """Strength of each defect in [0, 1]; 0 leaves it out. The order of the fields is that of the mask's bits.

    Raises:
        ValueError: naming a strength outside [0, 1].
    """

    deep_scratch: float | int = 0.5
    faint_scratch: float | int = 0.5
    etch_pit: float | int = 0.5
    water_stain: float | int = 0.3
    speckle: float | int = 0.2
    thick_boundary: float | int = 0.2
    illumination: float | int = 0.2
    dust: float | int = 0.0
    noise: float | int = 0.0
    jpeg: float | int = 0.0
    pore: float | int = 0.0
    mottle: float | int = 0.0

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, Real) and 0 <= value <= 1):
                raise ValueError(f"{field.name} must be a number in [0, 1], got {value!r}")

    @classmethod
    def draw(cls, key: Array) -> DefectStrengths:
        """Strengths of one of the varied pairs: each defect in three to seven images of ten, as `SHARES` says."""
        rng = generator(key)
        return cls(**{name: float(rng.uniform(0.05, 1) * (rng.uniform() < SHARES.get(name, 0.5))) for name in KINDS})


KINDS = tuple(field.name for field in fields(DefectStrengths))
SHARES = {"noise": 0.7, "mottle": 0.6, "etch_pit": 0.6, "dust": 0.3, "jpeg": 0.4, "pore": 0.35, "water_stain": 0.4}
SURFACE = (mottle, thick_boundary, water_stain, etch_pit, pore, faint_scratch, deep_scratch, speckle)
CAMERA = (dust, illumination, noise, jpeg)
ON_GRAINS = (mottle, thick_boundary)  # these also take the boundaries


def add_defects(
    image: Float[np.ndarray, "h w"],
    boundaries: Bool[np.ndarray, "h w"],
    *,
    strengths: DefectStrengths,
    blur: float | int = 0.0,
    key: Array,
) -> tuple[Float[np.ndarray, "h w"], UInt16[np.ndarray, "h w"]]:
    """All defects on one image, Fig. 1b to 1c, as they come about: etching, drying, handling; optics; the camera.

    Args:
        image: [H, W] in [0, 1].
        boundaries: grain boundaries, which corrosion follows and which bound a rough grain.
        strengths: one strength a kind.
        blur: standard deviation in px of the microscope's, after the surface's defects and before the camera's.
        key: a `jax.random.key`; each kind draws from its own, whichever others there are.

    Returns:
        The image with its defects, and a bit mask: bit k is set where kind `KINDS[k]` is visible.

    Raises:
        ValueError: for an image that is not [H, W] of finite floats, boundaries of another shape, or blur below 0.

    Source: Section II.A, Fig. 1c; the kinds are those of Section III.a, and the camera's.
    """
    if not (isinstance(blur, Real) and 0 <= blur < math.inf):
        raise ValueError(f"blur: {blur!r}; accepted: px, from 0 on")
    bits = np.zeros(image.shape, np.uint16)
    for defect in (*SURFACE, None, *CAMERA):
        if defect is None:
            image = ndimage.gaussian_filter(image, blur) if blur else image
            continue
        kind, strength = defect.__name__, getattr(strengths, defect.__name__)
        bit = KINDS.index(kind)
        if strength == 0:
            continue
        arguments = (image, boundaries) if defect in ON_GRAINS else (image,)
        after = defect(*arguments, strength=strength, key=jax.random.fold_in(key, bit))
        bits |= np.where(np.abs(after - image) > VISIBLE, np.uint16(1 << bit), np.uint16(0))
        image = after
    return image, bits
