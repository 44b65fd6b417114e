"""Training (Eq. 11, Section III): MSE and L2 under Adam, resumable, for any network of images to images.

On several devices the batch is shared out and the parameters are held by each; XLA's partitioner adds what that takes
to the compiled step, so that loss, batch-norm statistics and gradients are those of the whole batch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from tqdm.auto import tqdm

from mdn.files import write_whole
from mdn.network import NetworkConfig, stretch
from mdn.processes import agreed, in_turn

FAINT = 0.03  # of the grey range: a step of the truth that weighs half of a strong one
CHECKPOINTS = 2  # kept: the last, and the one before to fall back on
Images = Float[np.ndarray, "_n _h _w"]  # noisy and clean agree in shape, training and validation need not


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the network is trained; the defaults are the paper's where it says (Adam, 1e-4, MSE + L2).

    Args:
        steps: optimiser steps.
        batch: images a step.
        crop: side of the random square cut from each image, in px; None takes whole images.
        learning_rate: of Adam; with the "cosine" schedule, its peak.
        schedule: "constant" (the paper) or "cosine" (warm-up over a twentieth of the steps, then a cosine to 0).
        l2: lambda of Eq. 11, on convolution and dense kernels only.
        edges: weight of the error of the grey's differences from pixel to pixel, which boundaries are made of.
        boundaries: how much more a squared error weighs beside an edge of the truth, faint or strong alike.
        average: decay of an exponential average of the weights, which is what is evaluated and kept; 0 for none.
        symmetries: whether each crop is turned and mirrored at random.
        grey_jitter: largest random change of a crop's gain and offset, clipped: a micrograph's own extremes decide
            how it is stretched, and should not decide what comes out.
        clean_share: share of the crops whose input is the truth itself: what is clean is to be left as it is.
        dropout_until: share of the steps that dropout is active for; the rest settles the batch-norm statistics
            on the features as the evaluated network has them.
        evaluate_every: steps between two evaluations and checkpoints.

    Raises:
        ValueError: naming the field, what was given and what is accepted.
    """

    steps: int = 15_000
    batch: int = 16
    crop: int | None = 64
    learning_rate: float = 1e-4
    schedule: str = "constant"
    l2: float = 1e-6
    edges: float = 0.0
    boundaries: float = 0.0
    average: float = 0.0
    symmetries: bool = True
    grey_jitter: float = 0.0
    clean_share: float = 0.0
    dropout_until: float = 1.0
    evaluate_every: int = 250

    def __post_init__(self):
        for name in ("steps", "batch", "evaluate_every", "crop"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value > 0) and not (name == "crop" and value is None):
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate!r}")
        if self.l2 < 0 or not 0 <= self.dropout_until <= 1:
            raise ValueError(
                f"l2 must not be negative and dropout_until lie in [0, 1], got {self.l2}, {self.dropout_until}"
            )
        for name in ("edges", "boundaries"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)!r}")
        if not 0 <= self.average < 1 or not 0 <= self.grey_jitter < 1:
            raise ValueError(f"average and grey_jitter must lie in [0, 1), got {self.average}, {self.grey_jitter}")
        if not 0 <= self.clean_share <= 1:
            raise ValueError(f"clean_share must lie in [0, 1], got {self.clean_share!r}")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule must be 'constant' or 'cosine', got {self.schedule!r}")

    def optimiser(self) -> optax.GradientTransformation:
        """Adam with default betas."""
        if self.schedule == "constant":
            return optax.adam(self.learning_rate)
        warm_up = max(1, self.steps // 20)
        return optax.adam(
            optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warm_up, max(self.steps, warm_up + 1))
        )


RECIPES = {  # the paper's, as printed, and what did best within its family on validation pairs: network and training
    "paper": (NetworkConfig(gate="leaky_relu"), TrainingConfig(symmetries=False)),
    "best": (
        NetworkConfig(width=64, scale=2, dropout=0.05),
        TrainingConfig(
            steps=6000, batch=8, crop=128, learning_rate=1.5e-3, schedule="cosine", clean_share=0.1, dropout_until=0.5,
            evaluate_every=400,
        ),
    ),
}  # fmt: skip


@dataclass
class History:
    """What happened, one entry an evaluation.

    Attributes:
        step: optimiser steps done; 0 where the start was evaluated, too.
        seconds: of training since the start, over all sittings.
        train_loss: mean of Eq. 11 over the steps since the last entry; at step 0 that of the first batch.
        validation_loss: MSE on the validation pairs.
        validation_psnr: mean PSNR on the validation pairs, in dB.
    """

    step: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_psnr: list[float] = field(default_factory=list)

    @property
    def best(self) -> int:
        """Index of the entry with the highest validation PSNR."""
        return int(np.argmax(self.validation_psnr))


def loss(
    model: nnx.Module,
    noisy: Float[Array, "n h w 1"],
    clean: Float[Array, "n h w 1"],
    l2: float,
    edges: float = 0.0,
    boundaries: float = 0.0,
) -> Float[Array, ""]:
    """Mean squared error and L2 regularisation, and what boundaries weigh where that is asked for.

        L = MSE(I_clean, I_gt) + lambda sum_i ||w_i||_2^2, over convolution and dense kernels           (11)
            + boundaries x mean [b (I_clean - I_gt)^2],   b = s / (s + 0.03)
            + edges x [MSE(d_x I_clean, d_x I_gt) + MSE(d_y I_clean, d_y I_gt)]

    The least squared error of a faint line that may as well be noise is to leave it out. With b it is not: beside
    an edge of the truth an error counts more, and hardly less where the edge is faint.

    Args:
        model: the network, in training or evaluation mode.
        noisy, clean: [n, h, w, 1] in [0, 1].
        l2: lambda.
        edges, boundaries: weights of the further lines, which are ours. d_x and d_y are differences of neighbours, s
            the largest one of the truth within 2 px.

    Source: Eq. 11.
    """
    kernels = [leaf for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)) if leaf.ndim > 1]
    error = model(noisy) - clean
    value = jnp.mean(error**2) + l2 * sum(jnp.sum(w * w) for w in kernels)
    if boundaries:
        x, y = (jnp.diff(clean, axis=axis, append=jnp.take(clean, jnp.array([-1]), axis)) for axis in (2, 1))
        step = nnx.max_pool(jnp.maximum(jnp.abs(x), jnp.abs(y)), (5, 5), (1, 1), "SAME")
        value += boundaries * jnp.mean(step / (step + FAINT) * error**2)
    if edges:
        value += edges * sum(jnp.mean(jnp.diff(error, axis=axis) ** 2) for axis in (1, 2))
    return value


def _step_function(config: TrainingConfig, graph, rest, dropout: bool, sharding=None) -> Callable:
    """One optimiser step as a pure function of (parameters, batch statistics, moments, average), key and batch.

    `sharding` is that of the new state and the loss; by default what follows from the arguments'.
    """
    optimiser = config.optimiser()

    @partial(jax.jit, out_shardings=sharding)
    def step(state, key, noisy, clean, number=0):
        params, statistics, moments, average = state

        def objective(params):
            model = nnx.merge(graph, params, statistics, rest, copy=True)
            nnx.reseed(model, dropout=key)
            model = nnx.view(model, deterministic=not dropout, use_running_average=False)
            value = loss(model, noisy[..., None], clean[..., None], config.l2, config.edges, config.boundaries)
            return value, nnx.state(model, nnx.BatchStat)

        (value, statistics), gradients = jax.value_and_grad(objective, has_aux=True)(params)
        updates, moments = optimiser.update(gradients, moments, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(config.average, (1 + number) / (10 + number))  # the start is forgotten sooner
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, (params, statistics))
        return (params, statistics, moments, average), value

    return step


def train_step(
    model: nnx.Module,
    moments,
    noisy: Images,
    clean: Images,
    *,
    config: TrainingConfig,
    key: Array,
    dropout: bool = True,
):
    """One step on one batch, for a look at it; `fit` keeps the compiled step between batches.

    Args:
        model: the network, updated in place.
        moments: state of `config.optimiser()`, or None at the start.
        noisy, clean: float32 [n, h, w].
        config: learning rate and L2.
        key: of the dropout.
        dropout: whether dropout is active.

    Returns:
        The optimiser's state and the loss of Eq. 11 before the step.
    """
    graph, params, statistics, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    moments = config.optimiser().init(params) if moments is None else moments
    step = _step_function(config, graph, rest, dropout)
    state = (params, statistics, moments, (params, statistics))
    (params, statistics, moments, _), value = step(state, key, noisy, clean)
    nnx.update(model, params, statistics)
    return moments, float(value)


def _mesh(batch: int) -> Mesh:
    """All devices of all processes on one axis; in one process, as many of them as the batch shares out over."""
    devices = jax.devices()
    n = next(n for n in range(len(devices), 0, -1) if batch % n == 0)
    if n < len(devices) and jax.process_count() > 1:
        raise ValueError(f"batch: {batch} images; accepted: a multiple of the {len(devices)} devices of all processes")
    return Mesh(devices[:n], ("data",))


def _local(tree):
    """What every device holds alike, as arrays of this process alone."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)


def _batch(
    noisy: Images, clean: Images, config: TrainingConfig, seed: np.ndarray, step: int, rows: slice = slice(None)
) -> tuple[Images, Images]:
    """The batch of a step, or some rows of it: a function of seed and step alone, so that a run can go on anywhere."""
    per_epoch = max(1, len(noisy) // config.batch)
    epoch, position = divmod(step, per_epoch)
    order = np.random.default_rng([*seed, 0, epoch]).permutation(len(noisy))
    chosen = np.resize(order[position * config.batch : (position + 1) * config.batch], config.batch)
    rng = np.random.default_rng([*seed, 1, step])
    sides = noisy.shape[1:] if config.crop is None else (min(config.crop, s) for s in noisy.shape[1:])
    height, width = sides
    crops = []
    wanted = range(config.batch)[rows]
    for place, i in enumerate(chosen):
        top, left = rng.integers(noisy.shape[1] - height + 1), rng.integers(noisy.shape[2] - width + 1)
        down, across = (rng.choice([-1, 1]), rng.choice([-1, 1])) if config.symmetries else (1, 1)
        turned = config.symmetries and height == width and rng.integers(2)
        spotless = config.clean_share and rng.uniform() < config.clean_share
        moved = (rng.uniform(-1, 1), rng.uniform(-0.5, 0.5)) if config.grey_jitter else (0.0, 0.0)
        if place not in wanted:  # drawn for all the same: the others' draws stay theirs
            continue
        both = np.stack([a[i, top : top + height, left : left + width] for a in (noisy, clean)])[..., ::down, ::across]
        both = both.swapaxes(1, 2) if turned else both
        if spotless and both[1].min() < both[1].max():  # what is one grey does not tell which when it is stretched
            both = np.stack([stretch(both[1]), both[1]])
        if config.grey_jitter:
            gain, offset = 1 + config.grey_jitter * moved[0], config.grey_jitter * moved[1]
            both = np.stack([np.clip(np.float32(gain) * (both[0] - 0.5) + np.float32(0.5 + offset), 0, 1), both[1]])
        crops.append(both)
    x, y = np.stack(crops, 1)
    return np.ascontiguousarray(x), np.ascontiguousarray(y)


def predict(model: nnx.Module, images: Images, *, batch: int = 8) -> Images:
    """Evaluate the network on equal-sized images: no dropout, running statistics; inputs as they are.

    Args:
        model: the network.
        images: float32 [n, h, w] in [0, 1], stretched as in training.
        batch: images at a time.

    Returns:
        float32 [n, h, w].
    """
    graph, state = nnx.split(nnx.view(model, deterministic=True, use_running_average=True))
    parts = [images[i : i + batch] for i in range(0, len(images), batch)]
    return np.concatenate([np.asarray(_apply(graph, state, part)) for part in parts])


@partial(jax.jit, static_argnums=0)  # compiled once a network, not once an evaluation
def _apply(graph, state, x):
    return nnx.merge(graph, state)(x[..., None])[..., 0]


def fit(
    model: nnx.Module,
    train: tuple[Images, Images],
    validation: tuple[Images, Images],
    *,
    config: TrainingConfig | None = None,
    directory: str | Path | None = None,
    key: Array,
    keep_start: bool = False,
    progress: bool = True,
    report: Callable[[History], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> History:
    """Train the network; it ends with the weights that were best on the validation pairs, stopped early or not.

    The batch is shared out evenly over all devices: in one process, over as many of them as divide it. After
    `jax.distributed.initialize`, every process calls `fit` with the same arguments; each takes part with its own
    devices, process 0 alone writes and shows the bar, and a directory is one that all of them see.

    The same key and pairs give the same weights, bit for bit, on the same machine and as many cores of a CPU, however
    often it was killed and gone on with; another number of cores rounds differently, and Adam carries that on.

    Args:
        model: any NNX module from [n, h, w, 1] to the same; updated in place.
        train, validation: (noisy, clean), each float32 [n, h, w] in [0, 1]. Each noisy image is stretched to its
            1-99 % grey range first, as at inference.
        config: how to train; the paper's way by default.
        directory: where checkpoints and history.json go. A run found there is gone on with: from its last
            checkpoint, or, with a warning, from the one before where a checksum says that the last is damaged.
        key: a `jax.random.key`: order of the data and dropout.
        keep_start: for fine-tuning: whether the weights given are evaluated as step 0, and kept where none are better.
        progress: whether to show a bar with the losses.
        report: called with the history after each evaluation.
        stop: asked after each step; once it is true the network is evaluated a last time and the training ends.
            Of several processes, process 0's answer counts.
            An interrupt leaves the best weights so far in the model, too, and is raised again.

    Returns:
        The history over all sittings.

    Raises:
        ValueError: if images and truths do not agree in shape, are empty or not finite, or the directory holds a
            run of another configuration, network, key or set of pairs, or no checkpoint that is whole; if there are
            several processes and the batch is no multiple of their devices.
        OSError: naming the checkpoint, where the disk is full or takes no files; the one before is kept.

    Source: Eq. 11 and Section II.B.d.
    """
    config = config or TrainingConfig()
    for name, (noisy, clean) in (("train", train), ("validation", validation)):
        if noisy.ndim != 3 or noisy.shape != clean.shape or not len(noisy):
            raise ValueError(f"{name} must be two equal, non-empty [n, h, w] arrays, got {noisy.shape}, {clean.shape}")
        if not (np.isfinite(noisy).all() and np.isfinite(clean).all()):
            raise ValueError(f"{name} holds NaN or infinity; accepted: finite images in [0, 1]")
    mesh = _mesh(config.batch)
    everywhere, shared = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    train, validation = _stretched(train), _stretched(validation)
    graph, params, statistics, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    state = (params, statistics, config.optimiser().init(params), (params, statistics))
    best, start, history = state[3], 0, History()
    if directory is not None:
        directory = Path(directory).resolve()
        in_turn(_claim, directory, config, model, key, train)
        state, best, start, history = in_turn(_restore, directory, state, best)
    state, best = jax.device_put((state, best), everywhere)
    steps = {dropout: _step_function(config, graph, rest, dropout, everywhere) for dropout in (True, False)}
    seed, losses, clock = np.asarray(jax.random.key_data(key)), [], time.monotonic()
    earlier = history.seconds[-1] if history.step else 0.0
    share = config.batch // jax.process_count()
    rows = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    shown = progress and jax.process_index() == 0

    def evaluate(number: int, train_loss: float) -> None:
        error = agreed(np.mean((predict(model, validation[0]) - validation[1]) ** 2, axis=(1, 2)))
        history.step.append(number)
        history.seconds.append(earlier + time.monotonic() - clock)
        history.train_loss.append(train_loss)
        history.validation_loss.append(float(error.mean()))
        history.validation_psnr.append(float(np.mean(-10 * np.log10(error))))

    if keep_start and not history.step:
        noisy, clean = (jnp.asarray(part)[..., None] for part in _batch(*train, config, seed, 0))
        view = nnx.view(model, deterministic=True, use_running_average=True)
        evaluate(0, float(loss(view, noisy, clean, config.l2, config.edges, config.boundaries)))
        if report is not None:
            report(history)
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, disable=not shown, mininterval=1)
    try:
        for number in bar:
            own = _batch(*train, config, seed, number, rows)
            batch = [jax.make_array_from_process_local_data(shared, part) for part in own]
            step = steps[number < config.dropout_until * config.steps]
            state, value = step(state, jax.random.fold_in(key, number), *batch, number)
            losses.append(value)
            last = number + 1 == config.steps or (stop is not None and bool(agreed(stop())))
            if last or (number + 1) % config.evaluate_every == 0:
                nnx.update(model, *_local(state[3]))
                evaluate(number + 1, float(np.mean(losses)))
                losses = []
                if history.best == len(history.step) - 1:
                    best = state[3]
                if directory is not None:
                    in_turn(_save, directory, state, best, history)
                reached = f"{history.validation_psnr[-1]:.2f} dB"
                bar.set_postfix(loss=f"{history.train_loss[-1]:.4f}", validation=reached)
                if report is not None:
                    report(history)
            if last:
                break
    finally:
        nnx.update(model, *_local(best))
    return history


def _stretched(pairs: tuple[Images, Images]) -> tuple[Images, Images]:
    return np.stack([stretch(image) for image in pairs[0]]), np.asarray(pairs[1], np.float32)


def _claim(
    directory: Path, config: TrainingConfig, model: nnx.Module, key: Array, train: tuple[Images, Images]
) -> None:
    """Note what is trained on what beside the checkpoints, or refuse to go on with something else."""
    directory.mkdir(parents=True, exist_ok=True)
    _clear(directory)
    run = {
        "training": asdict(config),
        "network": repr(getattr(model, "config", type(model).__name__)),
        "shapes": [list(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))],
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "pairs": hashlib.sha256(b"".join(np.ascontiguousarray(a) for a in train)).hexdigest(),
    }
    path, wanted = directory / "config.json", json.dumps(run, indent=1)
    if path.exists() and path.read_bytes() != wanted.encode():
        try:
            found = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove {directory}, or put the file back") from error
        odd = [f"{name} ({found.get(name)!r}, not {run[name]!r})" for name in run if found.get(name) != run[name]]
        raise ValueError(
            f"directory: {directory} holds a run of another configuration: {'; '.join(odd)}; remove it or name another"
        )
    write_whole(path, wanted.encode())


def _manager(directory: Path) -> ocp.CheckpointManager:
    """The last checkpoint and the one before, to fall back on; a process waits for no other."""
    (directory / "last").mkdir(exist_ok=True)
    this = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix=f"process{this}"
    )
    options = ocp.CheckpointManagerOptions(max_to_keep=CHECKPOINTS, create=False, multiprocessing_options=alone)
    return ocp.CheckpointManager(directory / "last", options=options)


def _save(directory: Path, state, best, history: History) -> None:
    """Checkpoint: the last state, the best weights so far and the history; then the checksums of its files."""
    if jax.process_index() > 0:
        return
    leaves = {f"{index:04d}": np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves((state, best)))}
    items = ocp.args.Composite(arrays=ocp.args.StandardSave(leaves), history=ocp.args.JsonSave(asdict(history)))
    step = history.step[-1]
    _sums(directory, step).unlink(missing_ok=True)  # of a checkpoint that was damaged and is made anew
    try:
        with _manager(directory) as manager:
            manager.save(step, args=items)
            manager.wait_until_finished()
            kept = manager.all_steps()
    except Exception as error:  # Orbax and TensorStore wrap what the system said in kinds of their own
        _clear(directory)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OSError(
            getattr(error, "errno", None), f"no checkpoint in {directory / 'last' / str(step)}: {reason}"
        ) from error
    _note(directory, step, kept, history)


def _clear(directory: Path) -> None:
    """Remove checkpoints that were begun and not ended; a write still under way may put a file back for a moment."""
    for _ in range(20):
        unfinished = list((directory / "last").glob("*orbax-checkpoint-tmp*"))
        if not unfinished:
            return
        for folder in unfinished:
            shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def _note(directory: Path, step: int, kept: Sequence[int], history: History) -> None:
    """What stands beside a checkpoint: the checksums of its files, and history.json last."""
    if not _sums(directory, step).exists():
        write_whole(_sums(directory, step), "".join(_checksums(directory / "last", step)).encode())
    for path in directory.glob("last.*.sha256"):
        if path not in [_sums(directory, step) for step in kept]:
            path.unlink()
    write_whole(directory / "history.json", json.dumps(asdict(history), indent=1).encode())


def _sums(directory: Path, step: int) -> Path:
    return directory / f"last.{step}.sha256"


def _checksums(last: Path, step: int) -> list[str]:
    """Lines as `sha256sum` writes them in the folder `last`."""
    files = sorted(path for path in (last / str(step)).rglob("*") if path.is_file())
    return [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(last)}\n" for path in files]


def _damage(directory: Path, step: int) -> str | None:
    """What is wrong with a checkpoint, or None. One without checksums (of mdn 0.1.0, or cut short there) is taken."""
    try:
        told = _sums(directory, step).read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return None
    except ValueError:
        return f"{_sums(directory, step)} is damaged"
    odd = sorted(set(told) ^ set(_checksums(directory / "last", step)))
    return (
        f"{directory / 'last' / odd[0][66:].strip()} is damaged: its sha256 is not the one that was written"
        if odd
        else None
    )


def _restore(directory: Path, state, best):
    """State, best weights, step and history of the last good checkpoint; what was given where there is none.

    Raises ValueError where there are checkpoints and not one is whole.
    """
    leaves, tree = jax.tree.flatten((state, best))
    template = {f"{index:04d}": np.empty(leaf.shape, leaf.dtype) for index, leaf in enumerate(leaves)}
    items = ocp.args.Composite(arrays=ocp.args.StandardRestore(template), history=ocp.args.JsonRestore())
    with _manager(directory) as manager:
        damaged = {}
        for step in sorted(manager.all_steps(), reverse=True):
            damaged[step] = _damage(directory, step)
            if damaged[step] is None:
                try:
                    found = manager.restore(step, args=items)
                    break
                except Exception as error:
                    damaged[step] = f"{directory / 'last' / str(step)} cannot be read ({error!r})"
        else:
            if damaged:
                raise ValueError(
                    f"directory: {'; '.join(damaged.values())}; no checkpoint is whole: "
                    f"remove {directory} to begin anew"
                )
            return state, best, 0, History()
        for later in list(damaged)[:-1]:
            warnings.warn(f"{damaged[later]}; training goes on from step {step}", stacklevel=3)
            manager.delete(later)
        kept = sorted(manager.all_steps())
        if jax.process_index() == 0:
            for older in kept[:-CHECKPOINTS]:  # a kill may have come before Orbax removed it
                manager.delete(older)
        kept = kept[-CHECKPOINTS:]
    history = History(**found["history"])
    if jax.process_index() == 0:
        _note(directory, step, kept, history)  # a kill may have come between the checkpoint and them
    state, best = jax.tree.unflatten(tree, [found["arrays"][name] for name in sorted(template)])
    return state, best, step, history
