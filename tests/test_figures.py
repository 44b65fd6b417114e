"""Figures draw what they are given, say so in their labels, and leave nothing open."""

import threading
import time
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from flax import nnx
from matplotlib.figure import Figure

from mdn import figures
from mdn.network import DenoisingNetwork, NetworkConfig, count_parameters

RNG = np.random.default_rng(0)
IMAGE = RNG.random((24, 32), np.float32)
LABELS = (np.indices((24, 32)) // 8).sum(0).astype(np.int32)
EDGES = np.roll(LABELS, 1, 1) != LABELS
GRAINS = [SimpleNamespace(labels=LABELS, order=IMAGE, time=float(t), energy=9.0 - t, n_grains=6 - t) for t in range(3)]
PANELS = ("phase_field", "clean", "defective", "blended", "noisy", "reference")
PAIR = SimpleNamespace(**dict.fromkeys(PANELS, IMAGE))
HISTORY = SimpleNamespace(
    step=[1, 2, 3], train_loss=[3.0, 2.0, 1.0], validation_loss=[3.0, 2.5, 2.6], validation_psnr=[1.0, 7.0, 5.0], best=1
)
TABLE = {"columns": ["method", "PSNR", "SSIM"], "rows": [["noisy", 14.0, 0.3], ["network", 25.0, None]]}
MAPS = SimpleNamespace(
    image=IMAGE, spatial=RNG.random((3, 24, 32)), overall=IMAGE, channel_weights=RNG.random((3, 8)).astype(np.float32),
    x_att=RNG.standard_normal((3, 12, 16, 8)),
)  # fmt: skip
SHAPES = [
    dict(zip(("start", "grown", "steel"), (middle + width * RNG.standard_normal((3, 50))), strict=True))
    for middle, width in ((1, 0.3), (6, 2), (0, 3))
]
IMAGE_40 = RNG.random((40, 40), np.float32)
RGB = (255 * RNG.random((24, 32, 3))).astype(np.uint8)
ROW = {"name": "iron", "before": IMAGE, "after": IMAGE / 2, "um_per_px": 0.5}


def network(**config) -> DenoisingNetwork:
    """Shapes alone, which is all that is drawn."""
    return nnx.eval_shape(lambda: DenoisingNetwork(NetworkConfig(**config), rngs=nnx.Rngs(0)))


def words(fig: Figure) -> str:
    """All that is written on a figure."""
    artists = fig.findobj(lambda artist: hasattr(artist, "get_text"))
    return " | ".join(artist.get_text() for artist in artists if artist.get_visible())


LINE = np.linspace(-3.0, 3.0, 9)
CHECKED = {
    "flat": {g: {"x": LINE, "profile": np.tanh(LINE)} for g in (1.0, 1.5)},
    "circle": {g: {"time": LINE, "area": -LINE, "law": -LINE} for g in (1.0, 1.5)},
    "junctions": {"order": IMAGE},
    "manufactured": {"Euler": {"h": np.array([0.01, 0.005]), "error": np.array([4e-3, 1e-3])}},
    "sides": {"sides": np.arange(4, 9), "rate": LINE[:5], "slope": 2.1, "offset": 0.0, "law": 2.0},
    "crowd": dict.fromkeys(("time", "energy", "area", "fit", "early", "late"), 1 + LINE**2),
}
CURVE = SimpleNamespace(
    removed=np.array([0, 0.5]), left=np.array([2, 1.5]), oracle=np.array([2.0, 1.0]), random=np.full(2, 2.0), ause=0.5
)


DRAWN = {  # name: (how to draw it, number of images on it, words that have to be on it)
    "micrograph": (lambda: figures.plot_micrograph(IMAGE, title="iron", um_per_px=0.5), 1, ["iron", "5 µm"]),
    "micrograph in colour": (lambda: figures.plot_micrograph(RGB), 1, []),
    "structures": (lambda: figures.plot_structures(GRAINS), 3, ["time 0, 6 grains", "time 2, 4 grains"]),
    "coarsening": (lambda: figures.plot_coarsening(GRAINS), 0, ["time (1/(Lα))", "energy F", "area (cells)"]),
    "structure": (lambda: figures.plot_structures(GRAINS[1:2]), 1, ["time 1, 5 grains", "32 × 24 cells"]),
    "coarsening with its law": (
        lambda: figures.plot_coarsening(GRAINS, now=1, law=(100.0, 12.5, 1, 2), stacked=True), 0,
        ["time (1/(Lα))", "parabolic law", "k = 12 Lα dx²", "where it is fitted"],
    ),
    "verification": (
        lambda: figures.plot_verification(**CHECKED), 1,
        ["γ = 1.5", "tanh", "circle", "120°", "sides n", "slope 2", "Euler", "energy F", "R / ", "early, 9 grains"],
    ),
    "colouring": (lambda: figures.plot_colouring(LABELS, np.arange(6)), 4, ["6 grains", "order parameter"]),
    "colouring, many": (lambda: figures.plot_colouring(LABELS, np.arange(24)), 4, ["24 order parameters"]),
    "pair": (
        lambda: figures.plot_pair(PAIR, um_per_px=0.5), 6,
        ["(a) phase field", "(b)", "(c)", "(d)", "(e)", "(f)", "phase of c", "magnitude of f", "5 µm"],
    ),
    "combinations": (
        lambda: figures.plot_combinations([IMAGE] * 2, [IMAGE] * 3, [[IMAGE] * 3] * 2), 11,
        ["structure 2", "micrograph 3"],
    ),
    "spectrum": (lambda: figures.plot_spectrum(IMAGE, IMAGE, IMAGE), 3, ["phase", "magnitude", "log magnitude"]),
    "defects": (lambda: figures.plot_defects({"etch pit": IMAGE, "speckle": IMAGE}), 2, ["etch pit", "speckle"]),
    "history": (lambda: figures.plot_history(HISTORY), 0, ["best: 7.00 dB at 2", "loss", "optimiser step"]),
    "clock": (
        lambda: figures.plot_clock([(n, s, s / 2, 10 + s) for n in ("mdn", "PyTorch") for s in (1, 9)], goal=15.0), 0,
        ["mdn", "PyTorch", "minutes of training", "15.0 dB"],
    ),
    "history, empty": (
        lambda: figures.plot_history(SimpleNamespace(step=[], train_loss=[], validation_loss=[], validation_psnr=[])),
        0, ["optimiser step"],
    ),
    "before and after": (
        lambda: figures.plot_before_after([ROW, {"name": "colour", "before": RGB, "after": RGB}]), 6,
        ["iron", "colour", "denoised", "removed", "5 µm"],
    ),
    "removed": (lambda: figures.plot_removed(RGB, RGB // 2, um_per_px=0.5), 1, ["removed", "white − black", "5 µm"]),
    "scores": (lambda: figures.plot_scores(TABLE), 0, ["PSNR", "SSIM", "network", "25.00"]),
    "boundaries": (lambda: figures.plot_boundaries(IMAGE, EDGES, EDGES.T.reshape(24, 32)), 4, ["kept", "invented"]),
    "boundaries found": (lambda: figures.plot_boundaries(IMAGE, EDGES, um_per_px=0.5), 2, ["found", "5 µm"]),
    "attention": (lambda: figures.plot_attention(MAPS), 7, ["mean over 3 blocks", "channel weights", "block 3"]),
    "attention of a block": (lambda: figures.plot_attention(MAPS, block=1, um_per_px=0.5), 7, ["block 2", "5 µm"]),
    "block": (
        lambda: figures.plot_block(MAPS, block=1, channel=4, um_per_px=0.5), 4,
        ["5 µm", "block 2", "channel 5", "feature × its weight", "channel weights y", "change × channel weight"],
    ),
    "uncertainty": (lambda: figures.plot_uncertainty(IMAGE, IMAGE, IMAGE), 3, ["uncertainty", "grey"]),
    "grain sizes": (lambda: figures.plot_grain_sizes({"before": np.arange(1, 9)}), 0, ["before, 8 grains", "R / "]),
    "grain shapes": (
        lambda: figures.plot_grain_shapes(*SHAPES), 0,
        ["start", "grown", "steel", "R / ⟨R⟩", "sides", "13+", "κ⟨R⟩", "probability density"],
    ),
    "grain shapes of two": (
        lambda: figures.plot_grain_shapes(*({n: s[n] for n in ("start", "grown")} for s in SHAPES)), 0, ["grown"],
    ),
    "swipe": (lambda: figures.plot_swipe(IMAGE, IMAGE, 0.3, um_per_px=0.5), 1, ["before", "after", "5 µm"]),
    "strengths": (
        lambda: figures.plot_strengths([("pit", s, m, s / 2) for s in (0.25, 1) for m in ("noisy", "network")], "F"), 0,
        ["pit", "noisy", "network", "strength", "F"],
    ),
    "strengths of many kinds": (
        lambda: figures.plot_strengths([(f"kind {k}", s, "network", s) for k in range(6) for s in (0, 1)], "restored"),
        0, ["kind 5", "restored"],
    ),
    "sparsification": (lambda: figures.plot_sparsification(CURVE), 0, ["uncertainty, AUSE 0.50", "at random", "taken"]),
    "sparsification of two": (
        lambda: figures.plot_sparsification({"flips": CURVE, "dropout": CURVE}), 0, ["flips", "dropout, AUSE 0.50"],
    ),
    "channels": (
        lambda: figures.plot_channels({"defects": LINE.reshape(3, 3), "noise": -LINE.reshape(3, 3)}, "correlation"), 2,
        ["defects", "noise", "correlation", "channel", "block"],
    ),
    "architecture": (lambda: figures.plot_architecture(network(width=8, blocks=2)), 0, ["(a)", "(b)", "(c)"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_has_its_panels_and_labels_and_leaves_nothing_open(name):
    draw, n_images, labels = DRAWN[name]
    style, before = dict(plt.rcParams), plt.get_fignums()
    fig = draw()
    assert isinstance(fig, Figure)
    assert sum(len(ax.images) for ax in fig.findobj(plt.Axes)) == n_images
    for label in labels:
        assert label in words(fig)
    assert fig._repr_png_().startswith(b"\x89PNG")
    assert plt.get_fignums() == before and dict(plt.rcParams) == style


def test_a_structure_says_how_dark_its_own_boundaries_are():
    grown, sharp = (
        SimpleNamespace(**vars(GRAINS[0]) | {"order": order}) for order in (0.47 + 0 * IMAGE, 1 + 0 * IMAGE)
    )
    grown.order[5:] = 1
    assert "Ση² down to 0.47" in words(figures.plot_structures([grown]))
    assert "without a width yet" in words(figures.plot_structures([sharp]))


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_is_cut_off_by_the_edge(name):
    fig = DRAWN[name][0]()
    fig.draw_without_rendering()
    page = fig.bbox.padded(1)
    for ax in fig.findobj(plt.Axes):
        box = ax.get_tightbbox()
        assert box is None or (page.x0 <= box.x0 and box.x1 <= page.x1), name
        assert box is None or (page.y0 <= box.y0 and box.y1 <= page.y1), name


@pytest.mark.parametrize("plot", [figures.plot_micrograph, lambda i, ax: figures.plot_boundaries(i, EDGES, ax=ax)])
def test_a_figure_goes_where_it_is_told(plot):
    fig = Figure()
    ax = fig.subplots()
    assert plot(IMAGE, ax=ax) is fig and ax.images


def test_nothing_is_left_out_of_the_grain_shapes():
    for ax in figures.plot_grain_shapes(*SHAPES).axes:
        assert len(ax.patches) == 3 and [patch.get_fill() for patch in ax.patches] == [False, False, True]
    far = {"start": np.array([-9.0, 0.0, 9.0])}  # the ends of the axis stand for what lies beyond
    steps = figures.plot_grain_shapes(far, far, far).axes[2].patches[0].get_xy()
    low, middle, high = (steps[abs(steps[:, 0] - x) < 0.15, 1].max() for x in (-2.6, 0, 2.6))
    assert low == middle == high > 1


def test_grey_limits_are_fixed():
    dim = figures.plot_micrograph(IMAGE * 0.1).axes[0].images[0]
    assert dim.get_clim() == (0, 1)
    sixteen = figures.plot_micrograph(np.full((4, 4), 65535, np.uint16)).axes[0].images[0]
    assert sixteen.get_array().max() == 1


def test_the_architecture_is_read_from_the_network():
    default = network()
    text = words(figures.plot_architecture(default))
    assert f"{count_parameters(default):,}" in text and "6 × 19,112" in text
    assert "1 → 32" in text and "32 → 8" in text and "sigmoid" in text and "Dropout\n0.1" in text

    other = network(width=16, blocks=3, reduction=2, gate="leaky_relu", dropout=0.25)
    text = words(figures.plot_architecture(other))
    assert f"{count_parameters(other):,}" in text and "3 × " in text
    assert "16 → 8\nLeakyReLU" in text and "8 → 16\nLeakyReLU" in text and "Dropout\n0.25" in text

    without = network(width=16, blocks=12, attention=False)
    text = words(figures.plot_architecture(without))
    assert f"{count_parameters(without):,}" in text and "12 × " in text and "···" in text
    assert "GAP" not in text and "W_1" not in text


def test_the_swipe_parts_the_pictures():
    shown = figures.plot_swipe(IMAGE, 1 - IMAGE, 0.25).axes[0].images[0].get_array()
    assert (shown[:, :8] == IMAGE[:, :8]).all() and (shown[:, 8:] == 1 - IMAGE[:, 8:]).all()


def test_what_was_removed_has_white_in_the_middle_of_its_scale():
    drawn = figures.plot_removed(IMAGE, IMAGE / 2).axes[0].images[0]
    assert np.allclose(drawn.get_array(), IMAGE / 2) and drawn.norm.vmin == -drawn.norm.vmax


def test_the_chosen_channel_stands_out_and_is_shown():
    fig = figures.plot_block(MAPS, block=1, channel=4)
    bars = next(ax.patches for ax in fig.axes if len(ax.patches) == 8)
    assert [bar.get_height() for bar in bars] == pytest.approx(MAPS.channel_weights[1].tolist())
    assert len({bar.get_facecolor() for bar in bars}) == 2 and bars[4].get_facecolor() != bars[3].get_facecolor()
    assert any(np.array_equal(ax.images[0].get_array(), MAPS.x_att[1, :, :, 4]) for ax in fig.axes if ax.images)


def test_a_sharp_start_does_not_flatten_the_energy():
    run = [SimpleNamespace(**vars(GRAINS[0]) | {"energy": 90.0}), *GRAINS[1:]]
    fig = figures.plot_coarsening(run)
    assert fig.axes[0].get_ylim()[1] == pytest.approx(1.08 * 8) and "at time 0, sharp: 90" in words(fig)


def test_boundaries_are_sorted_into_kept_lost_and_invented():
    found, truth = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    found[10], truth[12] = True, True  # kept: two px off
    found[:, 30] = True  # invented but where it nears the truth
    truth[35, :20] = True  # lost
    layers = figures.plot_boundaries(IMAGE_40, found, truth, tolerance=3).axes[0].images[1:]
    kept, lost, invented = (np.asarray(layer.get_array())[..., 3] > 0 for layer in layers)
    assert kept[10].all() and lost[35, :20].all() and not lost[12].any()
    assert invented[20, 30] and not invented[10].any() and not kept[20, 30]

    layers = figures.plot_boundaries(IMAGE_40, found, np.zeros_like(truth)).axes[0].images[1:]
    assert [bool((np.asarray(layer.get_array())[..., 3] > 0).any()) for layer in layers] == [False, False, True]


@pytest.mark.parametrize("bad", [np.zeros((0, 4)), np.zeros(5), np.zeros((4, 4, 2))])
def test_what_is_no_image_is_refused(bad):
    with pytest.raises(ValueError, match=r"image: shape .* accepted: \[H, W\]"):
        figures.plot_micrograph(bad)


def test_blends_have_to_fill_the_grid():
    with pytest.raises(ValueError, match="accepted: 2 rows of 1"):
        figures.plot_combinations([IMAGE] * 2, [IMAGE], [[IMAGE]])


def test_strengths_show_every_value_and_its_interval():
    rows = [(kind, s, name, (s, s - 0.1, s + 0.1)) for kind in "ab" for name in ("x", "network") for s in (0.2, 0.8)]
    fig = figures.plot_strengths(rows, "F")
    for ax in fig.axes:
        *drawn, zero = ax.lines
        assert [line.get_xydata().tolist() for line in drawn] == [[[0.2, 0.2], [0.8, 0.8]]] * 2
        assert list(zero.get_ydata()) == [0, 0]
        box = ax.collections[0].get_paths()[0].get_extents()
        assert (box.y0, box.y1) == pytest.approx((0.1, 0.9))
    assert [line.get_color() for line in fig.axes[0].lines[:-1]] == [figures.INK, figures.RED]


def test_a_table_in_markdown():
    rows = [["a", 0.123], ["b", (0.5, 0.4, 0.6)], ["c", None], ["d", [1, 1, 1]]]
    table = figures.markdown_table(["method", "F"], rows)
    assert table.splitlines()[:3] == ["| method | F |", "| --- | --- |", "| a | 0.12 |"]
    assert table.splitlines()[3:] == ["| b | 0.50 (0.40 to 0.60) |", "| c |  |", "| d | 1 |"]
    assert figures.markdown_table(["x"], [[[0.5, None, None]]]).endswith("| 0.50 |")
    assert figures.markdown_table(["largest |r|"], []).startswith("| largest \\|r\\| |")  # or it is a column more


def test_sparsification_is_relative_to_the_error_of_all():
    lines = figures.plot_sparsification(CURVE).axes[0].lines
    assert [line.get_ydata().tolist() for line in lines] == [[1, 0.75], [1, 0.5], [1, 1]]
    assert lines[0].get_xdata().tolist() == [0, 50]


def test_channels_share_a_scale_about_zero():
    fields = {"a": np.array([[1.0, -2.0]]), "b": np.array([[3.0, np.nan]])}
    assert [ax.images[0].get_clim() for ax in figures.plot_channels(fields, "dB").axes[:2]] == [(-3, 3)] * 2


def test_channels_and_blocks_are_counted_from_one_everywhere():
    bars = next(ax for ax in figures.plot_block(MAPS, block=0, channel=0).axes if len(ax.patches) == 8).patches
    maps, fields = figures.plot_attention(MAPS), figures.plot_channels({"r": MAPS.channel_weights}, "r")
    shown = [ax.images[0] for fig in (maps, fields) for ax in fig.axes if ax.get_xlabel() == "channel"]
    assert len(shown) == 2 and all(tuple(image.get_extent()) == (0.5, 8.5, 3.5, 0.5) for image in shown)
    assert all(list(image.axes.get_yticks()) == [1, 2, 3] for image in shown)
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars] == pytest.approx(range(1, 9))


def test_two_threads_that_draw_leave_the_settings_alone():
    before, ends, inside = dict(plt.rcParams), [threading.Event(), threading.Event()], threading.Event()

    @figures._styled
    def drawn(end):
        inside.set()
        end.wait(5)

    threads = [threading.Thread(target=drawn, args=(end,)) for end in ends]
    threads[0].start()
    inside.wait(5)
    threads[1].start()  # if it began within the first one's settings, it would put those back at its end
    time.sleep(0.1)
    for end, thread in zip(ends, threads, strict=True):
        end.set()
        thread.join()
    assert dict(plt.rcParams) == before


def test_gaps_are_coloured_by_whether_they_hold_zero():
    gaps = {
        "paper": {"first": (0.0, 0.0), "no attention": (-1.0, 0.2)},
        "varied": {"first": (0, 0), "no attention": (0.1, 0.2)},
    }
    fig = figures.plot_gaps(gaps, "dB")
    assert "no attention" in words(fig) and "paper" in words(fig)
    colours = [[line.get_color() for line in ax.lines if line.get_marker() == "o"] for ax in fig.axes]
    assert colours == [["#888888", figures.RED], ["#888888", "#888888"]]
