"""What holds for every test: shapes and dtypes are checked as the code runs, and nothing broadcasts by rank.

The import hook has to be in place before anything imports mdn, the compilation cache before jax is imported.
"""

import os
from pathlib import Path

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "xla"))
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("mdn", "beartype.beartype")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def strict_dtypes():
    """No implicit promotion between dtypes; for our own code alone (optax's Adam fails under it)."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def denoiser():
    """A small untrained network, for what does not depend on its weights."""
    from flax import nnx

    from mdn.inference import Denoiser
    from mdn.network import DenoisingNetwork, NetworkConfig

    return Denoiser(DenoisingNetwork(NetworkConfig(width=8, blocks=2), rngs=nnx.Rngs(0)))
