"""The attention-residual network (Section II.B, Eqs. 1-10, Fig. 3).

    I_clean = f_reconstruction(f_information(f_feature(I_noisy)))                                  (1)

Images are float32 [n, h, w, 1] in [0, 1]; features are [n, h, w, width]. `nnx.view(model,
deterministic=True, use_running_average=True)` is the network as evaluated: no dropout, running statistics.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from safetensors import safe_open
from safetensors.numpy import save

from mdn.files import write_whole

Inside = Float[Array, "1 _h _w 1"] | None

MAX_BYTES = 400_000_000  # of a weights' file
GATES = {"sigmoid": jax.nn.sigmoid, "leaky_relu": partial(jax.nn.leaky_relu, negative_slope=0.2)}


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Size of the network; the defaults give 143,153 parameters.

    Args:
        width: channels of every feature map.
        scale: n: features live on a grid n times coarser, the n^2 pixels of a cell its channels (pixel unshuffle,
            as in FFDNet, Zhang et al. 2018). 1 is the paper's; 2 sees twice as far at a quarter of the work.
        blocks: attention-residual blocks.
        reduction: the attention's hidden layer has width / reduction units.
        dropout: rate after each block.
        gate: "sigmoid" (squeeze-excitation) or "leaky_relu" (Eq. 5 as printed).
        attention: False leaves Eqs. 5-6 out, for the ablation.

    Raises:
        ValueError: naming the field, what was given and what is accepted.
    """

    width: int = 32
    scale: int = 1
    blocks: int = 6
    reduction: int = 4
    dropout: float = 0.1
    gate: str = "sigmoid"
    attention: bool = True

    def __post_init__(self):
        sizes = (self.width, self.scale, self.blocks, self.reduction)
        if not all(isinstance(n, int) and n > 0 for n in sizes) or self.width % self.reduction:
            raise ValueError(
                "width, scale, blocks and reduction must be positive integers and reduction divide width, "
                f"got {', '.join(map(repr, sizes))}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout!r}")
        if self.gate not in GATES:
            raise ValueError(f"gate must be one of {sorted(GATES)}, got {self.gate!r}")


@jax.custom_vjp
def conv3x3(x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "n h w o"]:
    """A 3 x 3 convolution that keeps the size, its borders padded with zeros.

    XLA's weight gradient is several times slower on a CPU than its forward pass. There it is taken as a sum
    over horizontal strips instead, each small enough to stay in cache; elsewhere it is XLA's own.
    """
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _conv_forward(x, kernel):
    return conv3x3(x, kernel), (x, kernel)


def _conv_backward(saved, g):
    x, kernel = saved
    grad_x = conv3x3(g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    return grad_x, jax.lax.platform_dependent(x, g, cpu=_kernel_gradient, default=partial(_strip_gradient, strips=1))


def _kernel_gradient(x, g):
    strips = next(s for s in (32, 16, 8, 4, 2, 1) if x.shape[1] % s == 0)
    return _strip_gradient(x, g, strips=strips)


def _strip_gradient(x, g, *, strips: int):
    rows = x.shape[1] // strips
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        jax.lax.conv_general_dilated(
            padded[:, r : r + rows + 2], g[:, r : r + rows], (1, 1), "VALID",
            dimension_numbers=("CHWN", "IHWO", "HWNC"),
        )
        for r in range(0, x.shape[1], rows)
    )  # fmt: skip


conv3x3.defvjp(_conv_forward, _conv_backward)


class Conv(nnx.Module):
    """Conv_3x3 with He-normal kernel [3, 3, inputs, outputs] and, only where no batch norm follows, a bias.

    Args:
        inputs, outputs: channels.
        bias: whether it has one.
        rngs: random streams, of which `params` draws the kernel.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False, rngs: nnx.Rngs):
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), (3, 3, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h w o"]:
        y = conv3x3(x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...].reshape(1, 1, 1, -1)


class ConvUnit(nnx.Module):
    """sigma(BN(Conv_3x3(x))): the unit of which Eqs. 2-4, 8 and 9 are made, sigma a LeakyReLU of slope 0.2.

    Here and in what is made of it, `inside` is 1 on the image and 0 around it: an image laid on a larger grid is
    then padded with zeros before every convolution, as it is on its own.

    Args:
        inputs, outputs: channels.
        rngs: random streams, of which `params` draws the kernel.
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.conv = Conv(inputs, outputs, rngs=rngs)
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w i"], inside: Inside = None) -> Float[Array, "n h w o"]:
        y = self.conv(x)
        y = jax.nn.leaky_relu(y if self.norm is None else self.norm(y), 0.2)
        return y if inside is None else y * inside

    def fold(self) -> None:
        """Take the batch norm of evaluation into the convolution before it."""
        norm, parts = self.norm, (self.conv.kernel, self.norm.scale, self.norm.bias, self.norm.mean, self.norm.var)
        kernel, gamma, beta, mean, var = (np.asarray(part[...]) for part in parts)  # NumPy: nothing to compile
        scale = gamma / np.sqrt(var + np.float32(norm.epsilon))
        self.conv.kernel = nnx.Param(jax.device_put(kernel * scale))
        self.conv.bias = nnx.data(nnx.Param(jax.device_put(beta - mean * scale)))
        self.norm = None


class FeatureExtraction(nnx.Module):
    """Low-level features of the noisy image.

    x_0 = sigma(BN(Conv_3x3(I_noisy)))                                                         (2)
    x_1 = sigma(BN(Conv_3x3(x_0)))                                                             (3)

    Args:
        width: channels of the features.
        inputs: channels of the image: the pixels of a cell.
        rngs: random streams, of which `params` draws the kernels.
    """

    def __init__(self, width: int, inputs: int = 1, *, rngs: nnx.Rngs):
        self.first = ConvUnit(inputs, width, rngs=rngs)
        self.second = ConvUnit(width, width, rngs=rngs)

    def __call__(self, image: Float[Array, "n h w i"], inside: Inside = None) -> Float[Array, "n h w c"]:
        return self.second(self.first(image, inside), inside)


class ChannelAttention(nnx.Module):
    """One weight a channel, from the mean of each channel over the whole image.

        y = gate(W_2 sigma(W_1 GAP(x_res)))                                                        (5)
        x_att = x_res * y                                                                          (6)

    The paper prints sigma (LeakyReLU) for both dense layers; squeeze-excitation's sigmoid is the default gate.

    Args:
        width: channels of the features.
        reduction: the hidden layer has width / reduction units.
        gate: "sigmoid" or "leaky_relu".
        rngs: random streams, of which `params` draws the kernels.
    """

    def __init__(self, width: int, reduction: int, gate: str, *, rngs: nnx.Rngs):
        self.squeeze = nnx.Linear(width, width // reduction, rngs=rngs)
        self.excite = nnx.Linear(width // reduction, width, rngs=rngs)
        self.gate = gate

    def weights(self, x: Float[Array, "n h w c"]) -> Float[Array, "n c"]:
        """y of Eq. 5."""
        return self.gated(x.mean((1, 2)))

    def gated(self, pooled: Float[Array, "n c"]) -> Float[Array, "n c"]:
        """y of Eq. 5 from GAP(x_res)."""
        return GATES[self.gate](self.excite(jax.nn.leaky_relu(self.squeeze(pooled), 0.2)))

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        return x * self.weights(x)[:, None, None, :]


class AttentionResidualBlock(nnx.Module):
    """Residual learning, then attention, then dropout.

    x_res = x + sigma(BN(Conv_3x3(sigma(BN(Conv_3x3(x))))))                                    (4)
    x_{n+1} = Dropout(x_att)                                                                   (7)

    Args:
        config: `width`, `reduction`, `gate`, `attention` and `dropout` of it count.
        rngs: random streams, of which `params` draws the kernels and `dropout` the masks.
    """

    def __init__(self, config: NetworkConfig, *, rngs: nnx.Rngs):
        self.first = ConvUnit(config.width, config.width, rngs=rngs)
        self.second = ConvUnit(config.width, config.width, rngs=rngs)
        self.attention = (
            ChannelAttention(config.width, config.reduction, config.gate, rngs=rngs) if config.attention else None
        )
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)

    def residual(self, x: Float[Array, "n h w c"], inside: Inside = None) -> Float[Array, "n h w c"]:
        """x_res of Eq. 4."""
        return x + self.second(self.first(x, inside), inside)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        x = self.residual(x)
        return self.dropout(x if self.attention is None else self.attention(x))


class Reconstruction(nnx.Module):
    """Features to a clean image.

    x_rec1 = sigma(BN(Conv_3x3(x_n)))                                                          (8)
    x_rec2 = sigma(BN(Conv_3x3(x_rec1)))                                                       (9)
    I_clean = sigmoid(Conv_3x3(x_rec2))                                                       (10)

    Args:
        width: channels of the features.
        outputs: channels of the image: the pixels of a cell.
        rngs: random streams, of which `params` draws the kernels.
    """

    def __init__(self, width: int, outputs: int = 1, *, rngs: nnx.Rngs):
        self.first = ConvUnit(width, width, rngs=rngs)
        self.second = ConvUnit(width, width, rngs=rngs)
        self.output = Conv(width, outputs, bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"], inside: Inside = None) -> Float[Array, "n h w o"]:
        return jax.nn.sigmoid(self.output(self.second(self.first(x, inside), inside)))


class DenoisingNetwork(nnx.Module):
    """The whole network of Fig. 3: noisy [n, h, w, 1] in [0, 1] to clean of the same shape (Eq. 1).

    `DenoisingNetwork(rngs=nnx.Rngs(0))` is the paper's, untrained; `load_denoiser` has trained weights.

    Args:
        config: its size, by default the paper's.
        rngs: random streams, of which `params` draws the weights and `dropout` the masks.
    """

    def __init__(self, config: NetworkConfig | None = None, *, rngs: nnx.Rngs):
        self.config = config = config or NetworkConfig()
        rngs = nnx.Rngs(params=rngs.params(), dropout=rngs.dropout())  # a stream named so is what reseeding finds
        self.features = FeatureExtraction(config.width, config.scale**2, rngs=rngs)
        self.blocks = nnx.List([AttentionResidualBlock(config, rngs=rngs) for _ in range(config.blocks)])
        self.reconstruction = Reconstruction(config.width, config.scale**2, rngs=rngs)

    def encode(self, image: Float[Array, "n h w 1"], inside: Inside = None) -> Float[Array, "n _hs _ws c"]:
        """x_1 of Eq. 3, on a grid `scale` times coarser: [n, ceil(h / scale), ceil(w / scale), width]."""
        s, (n, h, w, _) = self.config.scale, image.shape
        if s > 1:
            image = jnp.pad(image, ((0, 0), (0, -h % s), (0, -w % s), (0, 0)), mode="edge")
            rows, columns = image.shape[1] // s, image.shape[2] // s
            image = image.reshape(n, rows, s, columns, s).transpose(0, 1, 3, 2, 4).reshape(n, rows, columns, s * s)
        return self.features(image, inside)

    def decode(
        self, x: Float[Array, "n _hs _ws c"], shape: tuple[int, int], inside: Inside = None
    ) -> Float[Array, "n h w 1"]:
        """I_clean of Eq. 10 from the last features, for an image of `shape` (h, w)."""
        s, image = self.config.scale, self.reconstruction(x, inside)
        if s > 1:
            n, rows, columns, _ = image.shape
            image = image.reshape(n, rows, columns, s, s).transpose(0, 1, 3, 2, 4)
            image = image.reshape(n, rows * s, columns * s, 1)[:, : shape[0], : shape[1]]
        return image

    def __call__(self, image: Float[Array, "n h w 1"]) -> Float[Array, "n h w 1"]:
        x = self.encode(image)
        for block in self.blocks:
            x = block(x)
        return self.decode(x, image.shape[1:3])


def folded(network: DenoisingNetwork) -> DenoisingNetwork:
    """The evaluated network without its batch norms and dropout.

    Each norm's scale and shift are taken into the kernel and bias of the convolution before it, so that

        BN(Conv(x)) = gamma (Conv(x) - mu) / sqrt(v + epsilon) + beta

    is one convolution. For inference alone: it cannot be trained or saved.
    """
    network = nnx.clone(network)
    for part in (network.features, *network.blocks, network.reconstruction):
        part.first.fold()
        part.second.fold()
    return nnx.view(network, deterministic=True)


def count_parameters(model: nnx.Module) -> int:
    """Number of trained parameters (batch-norm statistics are not trained)."""
    return sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


def _tensors(model: nnx.Module) -> dict[str, Array]:
    """Parameters and batch-norm statistics by dotted name."""
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def checksum(header: dict[str, str], tensors: dict[str, np.ndarray]) -> str:
    """Checksum of a weights' file: every tensor by name, shape and bytes, and every other entry of the header."""
    digest = hashlib.sha256(json.dumps(sorted((k, v) for k, v in header.items() if k != "sha256")).encode())
    for name, value in sorted(tensors.items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def save_weights(path: str | Path, model: DenoisingNetwork, *, metadata: dict[str, str] | None = None) -> None:
    """Write parameters, batch-norm statistics and the configuration as safetensors, whole or not at all.

    The entry "sha256" of the header is a checksum of all the rest, which `load_weights` looks at.

    Args:
        path: file to write.
        model: the network.
        metadata: further text entries of the file's header.

    Raises:
        OSError: naming the file, where the disk is full or takes no files.
    """
    path = Path(path)
    tensors = {name: np.asarray(value, np.float32) for name, value in _tensors(model).items()}
    header = {**(metadata or {}), "config": json.dumps(asdict(model.config))}
    write_whole(path, save(tensors, {**header, "sha256": checksum(header, tensors)}))


def _read(path: Path, max_bytes: int = MAX_BYTES) -> tuple[dict[str, str], dict[str, np.ndarray], NetworkConfig]:
    """Header, tensors and configuration of a safetensors file; a file without a checksum (mdn 0.1.0) is taken."""
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        if not path.is_file():
            raise ValueError("no regular file")
        if (size := path.stat().st_size) > max_bytes:
            raise ValueError(
                f"{size:,} bytes, above the limit of max_bytes={max_bytes:,}; "
                f"if the file is to be trusted, load_weights(path, max_bytes={size}) reads it"
            )
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            config = NetworkConfig(**json.loads(header["config"]))
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            given = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
            _check_architecture(given, config)  # before anything is read: a small file may claim gigabytes
            tensors = {name: file.get_tensor(name) for name in parts}
        if "sha256" in header and header["sha256"] != checksum(header, tensors):
            raise ValueError("damaged: its sha256 is not the one that its header tells")
        if not all(np.isfinite(value).all() for value in tensors.values()):
            raise ValueError("weights that are NaN or infinite")
    except Exception as error:  # the decoder, JSON and NumPy raise a dozen kinds; the reader needs one
        accepted = "accepted: a safetensors file of mdn.save_weights, its configuration in the header"
        raise ValueError(f"{path} does not hold weights of mdn.DenoisingNetwork ({error!r}); {accepted}") from error
    return header, tensors, config


def _check_architecture(given: dict[str, tuple[tuple[int, ...], str]], config: NetworkConfig) -> None:
    """Refuse tensors, by shape and dtype, that are not those of the network; a header may ask for a giant one."""
    possible = config.blocks <= len(given) and max(config.width, config.scale) <= 1 << 16
    expected = _expected(config) if possible else {"blocks, width, scale": ((len(given), 1 << 16, 1 << 16), "int")}
    if given != expected:
        odd = sorted(n for n in expected.keys() | given.keys() if expected.get(n) != given.get(n))
        raise ValueError(
            f"weights of another architecture than {config}: {len(odd)} tensors differ, "
            f"first {odd[0]} with {given.get(odd[0])} where {expected.get(odd[0])} is accepted"
        )


def _expected(config: NetworkConfig) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each tensor of a network; its blocks are all like the first."""
    expected, first = {}, "blocks.0."
    for name, shape in _shapes(replace(config, blocks=1)).items():
        copies = config.blocks if name.startswith(first) else 1
        expected |= {name.replace(first, f"blocks.{number}.", 1): (shape, "F32") for number in range(copies)}
    return expected


@cache
def _shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor; nothing is allocated."""
    shapes = jax.eval_shape(lambda: _tensors(DenoisingNetwork(config, rngs=nnx.Rngs(0))))
    return {name: value.shape for name, value in shapes.items()}


def read_metadata(path: str | Path, *, max_bytes: int = MAX_BYTES) -> dict[str, str]:
    """What the header of a weights' file says: the network's configuration and how it was trained.

    Raises:
        FileNotFoundError, ValueError: as `load_weights`.
    """
    return _read(Path(path), max_bytes)[0]


def load_weights(path: str | Path, *, max_bytes: int = MAX_BYTES) -> DenoisingNetwork:
    """Build the network that a safetensors file describes and fill in its weights.

    Args:
        path: a regular file.
        max_bytes: a larger file is refused before it is read; reading takes some four times its size.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file and cause, if it is no safetensors file, its tensors are not those of its
            configuration, they are not finite, or the file is not the one that was written (checksum).
    """
    _, stored, config = _read(Path(path), max_bytes)
    # Abstract: to draw weights that are then overwritten would take seconds of compiling
    model = nnx.eval_shape(lambda: DenoisingNetwork(config, rngs=nnx.Rngs(0)))
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    for name, leaf in nnx.to_flat_state(state):
        leaf.set_value(jax.device_put(stored[".".join(map(str, name))]))
    nnx.update(model, state, _streams(config))
    return model


@partial(jax.jit, static_argnums=0)
def _streams(config: NetworkConfig):
    """The random streams of a new network, of dropout."""
    return nnx.state(DenoisingNetwork(config, rngs=nnx.Rngs(0)), nnx.RngState)


def stretch_limits(image: Float[np.ndarray, "h w"]) -> tuple[float, float]:
    """The grey levels that `stretch` lays on 0 and 1."""
    low, high = np.percentile(image, (1, 99))
    return float(low), float(high)


def stretch(image: Float[np.ndarray, "h w"], limits: tuple[float, float] | None = None) -> Float[np.ndarray, "h w"]:
    """The image's 1-99 % grey range (or the limits given) laid on [0, 1]: what the network sees, whatever the exposure.

    A constant image comes back as 0.5.
    """
    low, high = limits or stretch_limits(image)
    if high - low < 1e-6:
        return np.full(image.shape, 0.5, np.float32)
    return np.clip((image - low) / (high - low), 0, 1).astype(np.float32)
