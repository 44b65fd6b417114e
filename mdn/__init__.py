"""mdn: denoising micrographs with phase-field grains and an attention-residual network.

Data flows down this list:

| module          | holds                                            | paper            | notebook |
|-----------------|--------------------------------------------------|------------------|----------|
| `processes`     | several of them about one folder                 | beyond           | 03       |
| `files`         | files whole or not there                         | beyond           | all      |
| `phase_field`   | Allen-Cahn grain growth                          | App. A, Fig. 1a  | 01       |
| `verification`  | answers known in closed form                     | beyond           | 01       |
| `micrographs`   | image files, the registry of real micrographs    | App. B, Fig. 1f  | 02, 06   |
| `burnt_in`      | scale bars and info strips                       | beyond           | 03, 06   |
| `defects`       | scratches, pits, stains ...                      | II.A, III.a      | 02       |
| `synthesis`     | grey levels, Fourier blend, pairs, stand-ins     | II.A, Figs. 1-2  | 02       |
| `dataset`       | pairs on disk, split without leakage             | III              | 03       |
| `metrics`       | PSNR, SSIM, boundaries                           | beyond           | 04       |
| `network`       | the attention-residual network                   | II.B, Fig. 3     | 03       |
| `training`      | loss, Adam, checkpoints                          | Eq. 11           | 03       |
| `inference`     | `load_denoiser`, tiles                           | III.b, Fig. 4    | 04, 06   |
| `large`         | images larger than memory                        | beyond           | -        |
| `attention`     | channel weights and spatial maps                 | I                | 05       |
| `uncertainty`   | where not to trust the result                    | beyond           | 06       |
| `grains`        | segmentation, ASTM grain size                    | III.b            | 04, 06   |
| `baselines`     | classical filters and DnCNN                      | I                | 04       |
| `figures`       | one function a figure                            | Figs. 1-4        | all      |
| `batch`         | a folder of micrographs, one at a time           | beyond           | 06       |
| `report`        | its table and quality report                     | beyond           | 06       |
| `widgets`       | teaching demos                                   | -                | all      |

Names below resolve on first use, so that `import mdn` costs next to nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "phase_field": ("AllenCahn", "Grains", "coarsen", "evolve", "grow"),
    "micrographs": ("Micrograph", "read_micrograph", "write_micrograph"),
    "synthesis": ("Pair", "PairConfig", "make_pair"),
    "dataset": ("DatasetConfig", "load_pairs", "make_dataset"),
    "network": ("DenoisingNetwork", "NetworkConfig", "load_weights", "save_weights"),
    "training": ("History", "TrainingConfig", "fit"),
    "inference": ("Denoiser", "load_denoiser"),
    "large": ("denoise_large",),
    "attention": ("attention_maps",),
    "uncertainty": ("familiarity", "uncertainty_map"),
    "grains": ("grain_size", "segment_grains"),
}
_MODULES = (
    *(*_HOME, "verification", "defects", "metrics", "baselines", "figures"),
    *("files", "processes", "burnt_in", "batch", "report", "widgets"),
)
_NAMES = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str):
    if name in _NAMES:
        return getattr(import_module(f"mdn.{_NAMES[name]}"), name)
    if name in _MODULES:
        return import_module(f"mdn.{name}")
    raise AttributeError(f"module 'mdn' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
