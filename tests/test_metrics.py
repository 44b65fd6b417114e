"""Metrics on cases whose answer is known by hand."""

import os

import numpy as np
import pytest

from mdn import metrics, micrographs

RNG = np.random.default_rng(0)
TRUTH = RNG.random((64, 64))


def test_psnr_of_a_constant_error():
    assert metrics.psnr(TRUTH + 0.1, TRUTH) == pytest.approx(20.0)
    assert metrics.psnr(TRUTH, TRUTH) == np.inf


def test_alignment_undoes_gain_and_offset_and_leaves_noise():
    noisy = TRUTH + 0.1 * RNG.standard_normal(TRUTH.shape)
    assert np.allclose(metrics.align(0.3 * TRUTH + 0.5, TRUTH), TRUTH)
    assert metrics.psnr(0.3 * noisy + 0.5, TRUTH) < metrics.psnr(noisy, TRUTH) - 3
    assert metrics.aligned_psnr(0.3 * noisy + 0.5, TRUTH) == pytest.approx(metrics.aligned_psnr(noisy, TRUTH))
    assert metrics.aligned_psnr(noisy, TRUTH) >= metrics.psnr(noisy, TRUTH)
    flat = metrics.align(np.full_like(TRUTH, 0.2), TRUTH)
    assert np.allclose(flat, TRUTH.mean())


def test_matching_hides_a_monotonic_error():
    assert metrics.matched_psnr(TRUTH**2, TRUTH, TRUTH) > 100 > 30 > metrics.psnr(TRUTH**2, TRUTH)


def test_ssim_with_the_settings_of_wang():
    from skimage.metrics import structural_similarity

    noisy = TRUTH + 0.1 * RNG.standard_normal(TRUTH.shape)
    assert metrics.ssim(TRUTH, TRUTH) == pytest.approx(1)
    assert 0 < metrics.ssim(noisy, TRUTH) < 1
    defaults = structural_similarity(noisy, TRUTH, data_range=1)
    assert metrics.ssim(noisy, TRUTH) != pytest.approx(defaults, abs=1e-4)


@pytest.mark.parametrize("function", [metrics.psnr, metrics.align, metrics.aligned_psnr, metrics.ssim])
@pytest.mark.parametrize(
    ("image", "named"),
    [
        (TRUTH[:32], "shape"),
        (TRUTH[0], "image"),
        (np.full_like(TRUTH, np.nan), "NaN"),
        (TRUTH[:0], "image"),
        (TRUTH.astype(complex), "complex"),
    ],
)
def test_bad_images_are_named(function, image, named):
    with pytest.raises(ValueError, match=named):
        function(image, TRUTH)


def voronoi(n, size, seed=0):
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:size, :size]
    return cKDTree(rng.random((n, 2)) * size).query(np.stack([yy, xx], -1))[1].astype(np.int32)


def grooved(labels, depth=0.5, noise=0.03, seed=0):
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    grey = 0.6 + 0.1 * rng.random(labels.max() + 1)[labels]
    distance = ndimage.distance_transform_edt(~metrics.label_boundaries(labels))
    grey = grey * (1 - depth * np.exp(-(distance**2) / 4))
    return grey + noise * rng.standard_normal(grey.shape)


def stepped(labels, noise=0.02, seed=0):
    rng = np.random.default_rng(seed)
    return np.where(labels % 2, 0.3, 0.7) + noise * rng.standard_normal(labels.shape)


def test_strength_ignores_gain_and_offset():
    image = grooved(voronoi(20, 128))
    assert np.allclose(metrics.boundary_strength(0.3 * image + 7), metrics.boundary_strength(image), atol=1e-9)
    assert not metrics.boundary_strength(np.full((32, 32), 0.4)).any()


def test_grooves_are_found_and_so_are_steps():
    labels = voronoi(40, 256)
    truth = metrics.label_boundaries(labels)
    assert metrics.boundary_score(metrics.detect_boundaries(grooved(labels)), truth).f > 0.95
    columns = np.broadcast_to(np.arange(256) // 32, (256, 256)).astype(np.int32)
    score = metrics.boundary_score(metrics.detect_boundaries(stepped(columns)), metrics.label_boundaries(columns))
    assert score.f > 0.95


def test_strength_peaks_on_a_groove_and_on_a_step():
    x = np.arange(64.0)[None].repeat(64, 0)
    for profile in (1 - 0.5 * np.exp(-((x - 32) ** 2) / 4), np.where(x < 32.5, 0.3, 0.7)):
        assert abs(metrics.boundary_strength(profile)[32].argmax() - 32.5) <= 1


def test_nothing_is_found_in_noise_and_little_among_pits():
    noise = 0.5 + 0.02 * RNG.standard_normal((256, 256))
    assert metrics.detect_boundaries(noise).mean() < 0.005
    assert not metrics.detect_boundaries(np.full((64, 64), 0.5)).any()
    pits = noise.copy()
    for y, x in RNG.integers(8, 248, (100, 2)):
        pits[y - 2 : y + 2, x - 2 : x + 2] = 0.1
    assert metrics.detect_boundaries(pits).mean() < 0.01


def test_boundaries_are_one_pixel_thin_and_bool():
    found = metrics.detect_boundaries(grooved(voronoi(20, 128)))
    assert found.dtype == bool
    blocks = found[:-1, :-1] & found[1:, :-1] & found[:-1, 1:] & found[1:, 1:]
    assert blocks.sum() < 0.02 * found.sum()


def test_score_of_a_line_moved_within_and_beyond_the_tolerance():
    truth = np.zeros((64, 64), bool)
    truth[30] = True
    for shift, f in ((0, 1), (3, 1), (4, 0)):
        assert metrics.boundary_score(np.roll(truth, shift, 0), truth, tolerance=3).f == f
    half, both = truth.copy(), truth.copy()
    half[:, 32:] = False
    both[10] = True
    assert metrics.boundary_score(half, truth, tolerance=0) == pytest.approx((1, 0.5, 2 / 3))
    assert metrics.boundary_score(both, truth) == pytest.approx((0.5, 1, 2 / 3))


def test_score_of_nothing():
    line, nothing = np.eye(32, dtype=bool), np.zeros((32, 32), bool)
    assert metrics.boundary_score(nothing, nothing) == (1, 1, 1)
    assert metrics.boundary_score(nothing, line) == (1, 0, 0)
    assert metrics.boundary_score(line, nothing) == (0, 1, 0)
    with pytest.raises(ValueError, match=r"found.*bool"):
        metrics.boundary_score(line.astype(float), line)
    with pytest.raises(ValueError, match="shape"):
        metrics.boundary_score(line[:4], line)


def test_the_chosen_threshold_is_the_best_of_those_tried_and_of_finer_steps_around_it():
    labels = [voronoi(20, 128, seed) for seed in (1, 2)]
    images = [grooved(each, depth=0.4, noise=0.08, seed=seed) for seed, each in enumerate(labels)]
    truths = [metrics.label_boundaries(each) for each in labels]
    tried = (0.02, 0.12, 0.45)
    chosen = metrics.choose_threshold(images, truths, tried)

    def mean_f(threshold):
        pairs = zip(images, truths, strict=True)
        return np.mean([metrics.boundary_score(metrics.detect_boundaries(i, threshold), t).f for i, t in pairs])

    assert max(tried, key=mean_f) == 0.12
    between = [t for side in (0.02, 0.45) for t in np.geomspace(0.12, side, 5)[1:-1]]
    assert chosen == pytest.approx(max((*tried, *between), key=mean_f)) and mean_f(chosen) > mean_f(0.12)
    assert metrics.choose_threshold(images, truths, [0.12]) == 0.12
    with pytest.raises(ValueError, match="images"):
        metrics.choose_threshold([], [])
    with pytest.raises(ValueError, match="threshold"):
        metrics.detect_boundaries(images[0], -1)


def test_label_boundaries_open_and_periodic():
    labels = np.zeros((8, 8), np.int32)
    labels[:, 4:] = 1
    assert np.array_equal(np.flatnonzero(metrics.label_boundaries(labels)[0]), [3])
    assert np.array_equal(np.flatnonzero(metrics.label_boundaries(labels, periodic=True)[0]), [3, 7])


def test_split_and_merge_are_told_apart():
    one, two = np.zeros((8, 8), int), np.zeros((8, 8), int)
    two[4:] = 1
    assert metrics.variation_of_information(two, one) == pytest.approx((1, 0))  # cut in two: one bit
    assert metrics.variation_of_information(one, two) == pytest.approx((0, 1))
    assert metrics.variation_of_information(two + 5, two) == pytest.approx((0, 0))


def test_grain_greys_are_of_the_interior():
    labels = np.repeat([3, 8], 16)[None].repeat(32, 0)
    image = np.where(labels == 3, 0.2, 0.8)
    image[metrics.label_boundaries(labels)] = 0.0
    assert metrics.grain_greys(image, labels) == pytest.approx([0.2, 0.8])
    labels[:, 0] = 1
    assert np.isnan(metrics.grain_greys(image, labels)[0])
    with pytest.raises(ValueError, match="labels"):
        metrics.grain_greys(image, labels[:9])


def test_masks_tell_where_the_error_is():
    mask = np.zeros(TRUTH.shape, bool)
    mask[:8] = True
    wrong = TRUTH + np.where(mask, 0.1, 0.01)
    assert metrics.masked_psnr(wrong, TRUTH, mask) == pytest.approx(20)
    assert metrics.masked_psnr(wrong, TRUTH, ~mask) == pytest.approx(40)
    assert np.isnan(metrics.masked_psnr(wrong, TRUTH, np.zeros_like(mask)))
    with pytest.raises(ValueError, match="mask"):
        metrics.masked_psnr(wrong, TRUTH, mask[:8])
    with pytest.raises(ValueError, match=r"mask.*bool"):
        metrics.masked_psnr(wrong, TRUTH, mask.astype(float))


def test_the_band_reaches_as_far_as_it_says():
    line = np.zeros((32, 32), bool)
    line[16] = True
    assert np.array_equal(np.flatnonzero(metrics.boundary_band(line, 3)[:, 5]), np.arange(13, 20))
    assert np.array_equal(metrics.boundary_band(line, 0), line)
    assert not metrics.boundary_band(np.zeros((8, 8), bool)).any()
    with pytest.raises(ValueError, match="width"):
        metrics.boundary_band(line, -1)


def test_share_restored_to_within_a_tenth():
    mask = np.zeros(TRUTH.shape, bool)
    mask[:4] = True
    image = TRUTH + 0.5  # what lies outside the mask does not count
    image[:3], image[3] = TRUTH[:3] - 0.09, TRUTH[3] + 0.11
    assert metrics.restored_share(image, TRUTH, mask) == 0.75
    assert metrics.restored_share(image, TRUTH, mask, within=0.2) == 1
    assert np.isnan(metrics.restored_share(image, TRUTH, np.zeros_like(mask)))
    with pytest.raises(ValueError, match="within"):
        metrics.restored_share(image, TRUTH, mask, within=0)


def test_recall_of_twins_apart_from_that_of_grains():
    grains, twins = np.zeros((2, 64, 64), bool)
    grains[10], twins[40] = True, True
    found = grains.copy()
    found[42, :32] = True  # half of the twin, two px off
    assert metrics.boundary_recall(found, grains) == 1
    assert metrics.boundary_recall(found, twins) == pytest.approx(0.5, abs=0.05)
    assert metrics.boundary_recall(np.zeros_like(found), twins) == 0
    assert np.isnan(metrics.boundary_recall(found, np.zeros_like(twins)))


def test_grey_error_over_grains():
    labels = np.repeat(np.arange(4), 16)[None].repeat(32, 0)
    noisy = 0.1 + 0.2 * labels + 0.0
    shifted = noisy + np.array([0.0, 0.02, -0.02, 0.1])[labels]
    error = metrics.grain_grey_error(shifted, noisy, labels)
    assert error.median == pytest.approx(0.02)
    assert 0.02 < error.p95 <= 0.1 + 1e-9
    assert metrics.grain_grey_error(noisy, noisy, labels) == (0, 0)
    thin = np.arange(32)[None].repeat(32, 0)
    assert all(np.isnan(metrics.grain_grey_error(noisy[:, :32], noisy[:, :32], thin)))


def test_interval_of_a_mean_covers_it_as_often_as_it_says():
    draws = 3 + np.random.default_rng(1).standard_normal((400, 12))
    found = [metrics.mean_interval(values) for values in draws]
    covered = np.mean([low <= 3 <= high for _, low, high in found])
    assert 0.92 < covered < 0.98
    assert metrics.mean_interval([1.0, np.nan, 3.0]).mean == 2
    assert metrics.mean_interval([2.0, 2.0]) == (2, 2, 2)
    assert np.isnan(metrics.mean_interval([2.0]).low) and np.isnan(metrics.mean_interval([np.nan]).mean)
    for bad in ([], [[1.0]], [np.inf, 1.0]):
        with pytest.raises(ValueError, match="values"):
            metrics.mean_interval(bad)


@pytest.mark.skipif("MDN_MICROGRAPHS" not in os.environ, reason="needs the annotated steel")
def test_the_detector_finds_what_was_traced_by_hand_on_steel():
    steel = micrographs.luminance(micrographs.load_source("steel_nist").pixels)
    score = metrics.boundary_score(metrics.detect_boundaries(steel), micrographs.traced_boundaries("steel_nist"))
    assert score.f > 0.9
    assert score.precision > 0.9
