"""A folder of micrographs at a time: what is kept, what is left out, what is not done again, what the report holds."""

import csv
import json
import os
from html.parser import HTMLParser

import numpy as np
import psutil
import pytest
import tifffile
from flax import nnx
from PIL import Image, ImageDraw

from mdn import batch, report
from mdn.burnt_in import free_field, scale_bar_mask
from mdn.figures import plot_quality
from mdn.inference import Denoiser
from mdn.micrographs import Micrograph, read_micrograph, write_micrograph
from mdn.network import DenoisingNetwork, NetworkConfig

HOSTILE = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def tiny():
    return Denoiser(DenoisingNetwork(NetworkConfig(width=4, blocks=2), rngs=nnx.Rngs(0)))


def metal(shape=(64, 96), dtype=np.uint8, seed=0):
    """Four grey grains with dark boundaries and noise, no pixel at black or white."""
    rng = np.random.default_rng(seed)
    h, w = shape[:2]
    image = 0.45 + 0.2 * ((np.arange(h)[:, None] // 24 + np.arange(w) // 32) % 2)
    image[::24], image[:, ::32] = 0.2, 0.2
    image = np.clip(image + 0.03 * rng.standard_normal((h, w)), 0.1, 0.85)
    image = np.stack([image, 0.9 * image, 0.8 * image], -1) if len(shape) == 3 else image
    return image.astype(dtype) if dtype == np.float32 else np.rint(image * np.iinfo(dtype).max).astype(dtype)


def run(tiny, folder, output, **options):
    return list(batch.denoise_folder(tiny, batch.find_micrographs(folder), output, passes=2, **options))


@pytest.fixture(scope="module")
def mixed(tiny, tmp_path_factory):
    """One run over a folder of many kinds: (folder, output, records by file)."""
    folder, output = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("out")
    known = Micrograph(pixels=metal(), um_per_px=0.25, metadata={"description": "steel, nital", "Software": "maker"})
    write_micrograph(folder / "known.tif", metal(), like=known)
    tags = [(271, 2, None, b"maker", True), (52000, 4, 1, 8, True)]
    tifffile.imwrite(folder / "deep.tif", metal(dtype=np.uint16), extratags=tags)
    tifffile.imwrite(folder / "real.tif", 4000 * metal(dtype=np.float32))
    tifffile.imwrite(folder / "stack.tif", np.stack([metal(), metal(seed=2)]))
    Image.fromarray(metal((64, 96, 3))).save(folder / "a.png")
    tifffile.imwrite(folder / "a.tif", metal(seed=1))
    exif = Image.Exif()
    exif[270] = "annealed 1 h"
    Image.fromarray(metal((64, 96, 3))).save(folder / "photo.jpg", exif=exif)
    Image.fromarray(metal()).save(folder / HOSTILE)
    Image.fromarray(metal()).save(folder / f"{'long' * 60}.png")
    (folder / "=broken.tif").write_text("<b>no image</b>")
    tifffile.imwrite(folder / "traced.tif", metal() > 90)
    Image.fromarray(metal()).save(folder / "tags.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    (folder / "cut.jpg").write_bytes((folder / "photo.jpg").read_bytes()[:300])
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "folder.tif").mkdir()
    (folder / "._hidden.tif").write_text("a Mac's")
    return folder, output, {record["file"]: record for record in run(tiny, folder, output, um_per_px=0.5)}


def test_every_kind_keeps_its_size_and_dtype(mixed):
    folder, output, records = mixed
    done = {name: record for name, record in records.items() if record["status"] == "done"}
    assert len(done) == 11
    for name, record in done.items():
        before = read_micrograph(folder / name)
        after = read_micrograph(output / "denoised" / record["result"])
        kept = np.uint8 if before.pixels.dtype == bool else before.pixels.dtype
        assert record["kept"] and (after.pixels.shape, after.pixels.dtype) == (before.pixels.shape, kept)
        assert not np.array_equal(after.pixels, before.pixels)
    assert (
        len({record["result"] for record in done.values()}) == len(done) == len(list((output / "denoised").iterdir()))
    )
    assert {"a.png.tif", "a.tif.tif"} <= {record["result"] for record in done.values()}


def test_um_per_px_is_for_files_that_carry_none(mixed):
    _, output, records = mixed
    assert records["known.tif"]["calibration"] == "file"
    known = read_micrograph(output / "denoised" / "known.tif.tif")
    assert known.um_per_px == 0.25 and known.metadata["description"] == "steel, nital"
    assert known.metadata["Software"] == "maker"
    for name in ("deep.tif", "photo.jpg", "a.png"):
        assert records[name]["calibration"] == "um_per_px"
        assert read_micrograph(output / "denoised" / records[name]["result"]).um_per_px == pytest.approx(0.5)
    photo = read_micrograph(output / "denoised" / "photo.jpg.tif")
    assert "annealed 1 h" in photo.metadata["description"]
    assert records["deep.tif"]["warnings"]["tags"] == "Tags of this file that are not in the result: 52000."
    assert 271 in read_micrograph(output / "denoised" / "deep.tif.tif").metadata["tiff_tags"]
    assert "tags" not in records["known.tif"]["warnings"]
    assert "first of 2 pages" in records["stack.tif"]["warnings"]["stack"]


def test_what_cannot_be_read_is_listed_with_its_reason(mixed):
    _, _, records = mixed
    left_out = {name: record["reason"] for name, record in records.items() if record["status"] != "done"}
    assert set(left_out) == {"=broken.tif", "cut.jpg", "dangling.png", "folder.tif"} and all(left_out.values())
    assert left_out["dangling.png"] == "a link to a file that is not there"
    assert not any("accepted" in reason or "Errno" in reason for reason in left_out.values())


def test_other_files_are_listed_too(mixed, tmp_path):
    folder, _, records = mixed
    assert batch.other_files(folder) == []
    for name in ("b.bmp", "notes.txt", "no suffix", ".hidden.txt", "c.TIF"):
        (tmp_path / name).write_text("text")
    for name in ("more", ".cache", "results"):
        (tmp_path / name).mkdir()
    others = batch.other_files(tmp_path, besides=[tmp_path / "results"])
    assert [record["file"] for record in others] == ["b.bmp", "more", "no suffix", "notes.txt"]
    assert "a folder" in others[1]["reason"] and "a folder" not in others[2]["reason"]
    report.write_table([*records.values(), *others], tmp_path / "denoised.csv")
    with (tmp_path / "denoised.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert rows["b.bmp"]["status"] == "left out" and ".tif" in rows["b.bmp"]["reason"]
    page = Page(report.summary([*records.values(), *others]))
    assert "b.bmp" in page.text and f"{len(others) + 4} left out" in page.text


def test_the_table_has_a_line_a_file_and_no_formulas(mixed, tmp_path):
    _, _, records = mixed
    report.write_table(list(records.values()), tmp_path / "denoised.csv")
    with (tmp_path / "denoised.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(records) and "'=broken.tif" in rows
    row = rows["known.tif"]
    assert float(row["g_low_after"]) < float(row["astm_g_after"]) < float(row["g_high_after"])
    assert float(row["ra_percent_before"]) > 0 and float(row["removed_percent"]) > 0
    assert (row["dtype"], row["um_per_px"], row["status"]) == ("uint8 grey", "0.25", "done")
    assert "Fewer than 50 grains" in row["warnings"]
    assert rows["cut.jpg"]["reason"] and not rows["cut.jpg"]["astm_g_after"]


class Page(HTMLParser):
    """Tags, what they refer to, and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.addresses, self.handlers, self.text = [], [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href")]
        self.handlers += [key for key, _ in attrs if key.startswith("on")]

    def handle_data(self, data):
        self.text += data


def test_the_report_stands_alone_and_runs_nothing(mixed, tmp_path):
    _, _, records = mixed
    report.write_report(list(records.values()), tmp_path / "report.html", notes="<i>mine</i>")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("img") == 11 and not page.handlers and not {"script", "link", "i", "b"} & set(page.tags)
    assert all(address.startswith(("data:image/jpeg;base64,", "#m")) for address in page.addresses)
    assert HOSTILE in page.text and "cut.jpg" in page.text and "annealed 1 h" in page.text
    assert "Fewer than 50 grains" in page.text and "<i>mine</i>" in page.text
    assert "http" not in page.text
    assert not list(tmp_path.glob(".*"))


def test_a_run_that_was_stopped_goes_on(tiny, tmp_path, monkeypatch):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(metal(seed=i)).save(folder / f"{i}.png")
    first = batch.denoise_folder(tiny, batch.find_micrographs(folder), output, passes=2)
    next(first), first.close()  # stopped after one
    assert [p.name for p in (output / "records").glob("*.json")] == ["0.png.json"]
    stamp = (output / "denoised" / "0.png.tif").stat().st_mtime_ns
    records = run(tiny, folder, output)
    assert [record.get("again", False) for record in records] == [True, False, False]
    assert (output / "denoised" / "0.png.tif").stat().st_mtime_ns == stamp

    (output / "denoised" / "1.png.tif").unlink()  # a result is gone
    (output / "records" / "2.png.json").write_text('{"status": "do')  # a record is cut
    assert [record.get("again", False) for record in run(tiny, folder, output)] == [True, False, False]
    Image.fromarray(metal(seed=9)).save(folder / "0.png")  # a micrograph is new
    os.utime(folder / "0.png", ns=(stamp + 10**9, stamp + 10**9))
    assert [record.get("again", False) for record in run(tiny, folder, output)] == [False, True, True]
    assert not any(record.get("again") for record in run(tiny, folder, output, um_per_px=0.5))

    monkeypatch.setattr(batch, "write_micrograph", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):  # no file's fault: not listed as one
        run(tiny, folder, output)


def test_oblong_pixels_are_told_with_both_sides(tiny, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", metal(), resolution=(20000, 10000), resolutionunit="CENTIMETER")
    for n, (scale, told) in enumerate(((None, "no ASTM G"), (0.7, "um_per_px is taken instead"))):
        (record,) = run(tiny, tmp_path, tmp_path / f"out{n}", um_per_px=scale)
        words = record["warnings"]["oblong pixels"]
        assert "0.5 × 1 µm by this file" in words and told in words and "no calibration" not in record["warnings"]
        assert record["um_per_px"] == scale


def test_12_bits_in_16_are_shown_and_measured_as_the_same_in_8(tiny, tmp_path, monkeypatch):
    pictures, plot = [], batch.plot_quality
    monkeypatch.setattr(batch, "plot_quality", lambda *a, **k: pictures.append(a) or plot(*a, **k))
    for name, image in (("a", metal()), ("b", metal().astype(np.uint16) * 16), ("c", metal() * np.float32(7))):
        tifffile.imwrite(tmp_path / f"{name}.tif", image)
    eight, sixteen, real = run(tiny, tmp_path, tmp_path / "out")
    shown, same, others = (np.stack(given[:2]) for given in pictures)
    assert np.abs(shown - same).max() < 0.05 and np.ptp(others) > 0.9
    for number in ("removed_percent", "uncertainty_percent"):
        assert sixteen[number] == pytest.approx(eight[number], rel=0.05)
        assert real[number] == pytest.approx(eight[number] * 255 / np.ptp(metal().astype(float)), rel=0.05)
    assert sixteen["before"] == eight["before"]


def test_uncertainty_is_in_the_unit_of_what_was_removed(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "uncertainty_map", lambda denoiser, image, **_: np.ones(image.shape[:2], np.float32))
    tifffile.imwrite(tmp_path / "a.tif", metal())
    (record,) = run(tiny, tmp_path, tmp_path / "out")
    low, high = np.percentile(metal(), (1, 99))
    assert record["uncertainty_percent"] == pytest.approx(100 * (high - low) / 255, rel=1e-4)


def test_what_goes_wrong_with_one_file_stops_no_other(tiny, tmp_path, monkeypatch):
    for i in range(2):
        Image.fromarray(metal((64, 96 + i))).save(tmp_path / f"{i}.png")
    uncertain = batch.uncertainty_map

    def fails(denoiser, image, **options):
        if image.shape[1] == 96:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore")
        return uncertain(denoiser, image, **options)

    monkeypatch.setattr(batch, "uncertainty_map", fails)
    first, second = run(tiny, tmp_path, tmp_path / "out")
    assert (first["status"], first["reason"]) == ("left out", "RESOURCE_EXHAUSTED: out of memory")
    assert second["status"] == "done" and not (tmp_path / "out" / "denoised" / "0.png.tif").exists()
    assert json.loads((tmp_path / "out" / "records" / "0.png.json").read_text())["status"] == "left out"


def test_bad_folders_and_scales_are_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="input_dir"):
        batch.find_micrographs(tmp_path)
    Image.fromarray(metal()).save(tmp_path / "a.png")
    for scale in (0, -1, float("nan"), "0.5"):
        with pytest.raises((ValueError, TypeError), match="um_per_px"):
            run(tiny, tmp_path, tmp_path / "out", um_per_px=scale)
    (tmp_path / "denoised").mkdir()
    Image.fromarray(metal()).save(tmp_path / "denoised" / "a.png")
    with pytest.raises(ValueError, match="another folder"):
        run(tiny, tmp_path / "denoised", tmp_path)


# ---- scale bars ----


def with_bar(colour=255, ground=None, size=(240, 320, 3)):
    image = Image.fromarray(metal(size))
    draw = ImageDraw.Draw(image)
    if ground is not None:
        draw.rectangle((190, 190, 310, 230), fill=ground)
    draw.rectangle((200, 218, 299, 222), fill=colour)
    draw.text((230, 200), "50 µm", fill=colour)
    return np.array(image)


@pytest.mark.parametrize(
    "colour, ground",
    [((255,) * 3, None), ((0,) * 3, None), ((255, 220, 0), None), ((0,) * 3, (255,) * 3), ((255,) * 3, (0,) * 3)],
)
def test_a_burnt_in_bar_and_its_label_stay_as_they_are(tiny, tmp_path, colour, ground):
    image = with_bar(colour, ground)
    mask = scale_bar_mask(image)
    assert mask[218:223, 200:300].all() and mask.mean() < 0.12
    drawn = np.abs(image.astype(int) - metal((240, 320, 3))).max(-1) > 0
    assert mask[drawn].all()
    Image.fromarray(image).save(tmp_path / "a.png")
    (record,) = run(tiny, tmp_path, tmp_path / "out", um_per_px=0.5)
    result = read_micrograph(tmp_path / "out" / "denoised" / "a.png.tif").pixels
    assert np.array_equal(result[mask], image[mask]) and not np.array_equal(result[~mask], image[~mask])
    assert "left untouched" in record["warnings"]["scale bar"]


@pytest.mark.parametrize("quality", [None, 85])
def test_an_info_strip_stays_and_grains_are_counted_beside_it(tmp_path, quality):
    image = Image.fromarray(np.concatenate([metal((240, 320)), np.zeros((30, 320), np.uint8)]))
    ImageDraw.Draw(image).text((20, 248), "20 kV   x500   50 µm  _____", fill=255)
    path = tmp_path / ("a.jpg" if quality else "a.png")
    image.save(path, **({"quality": quality} if quality else {}))
    mask = scale_bar_mask(read_micrograph(path).pixels)
    assert mask[241:].all() and not mask[:238].any()
    assert free_field(mask)[0].stop in range(238, 242) and free_field(mask)[1] == slice(0, 320)
    assert scale_bar_mask(np.asarray(image)[::-1])[:29].all()


def test_metal_is_no_scale_bar():
    rng = np.random.default_rng(0)
    plain = metal((240, 320))
    twin = plain.copy()
    twin[100:106, 80:200] = 240 + rng.integers(-8, 9, (6, 120))  # straight and bright, but grainy
    slanted = Image.fromarray(plain)
    ImageDraw.Draw(slanted).line((60, 100, 220, 112), fill=0, width=4)  # a deep scratch
    mount = plain.copy()
    mount[200:] = 40 + rng.integers(-3, 4, (40, 320))  # dark, but not black
    clipped = np.clip(plain.astype(int) * 2, 0, 255).astype(np.uint8)
    for image in (plain, twin, np.asarray(slanted), mount, clipped, np.zeros_like(plain), np.full_like(plain, 255)):
        assert not scale_bar_mask(image).any()
    with pytest.raises(ValueError, match="accepted"):
        scale_bar_mask(np.zeros(3))


def test_the_largest_free_field():
    mask = np.zeros((100, 200), bool)
    assert free_field(mask) == (slice(0, 100), slice(0, 200))
    mask[90:], mask[:5] = True, True
    assert free_field(mask) == (slice(5, 90), slice(0, 200))
    mask[:] = False
    mask[20:80, 190:] = True
    assert free_field(mask) == (slice(0, 100), slice(0, 190))
    assert free_field(np.ones((4, 4), bool))[0].stop == 0


def test_the_quality_figure_says_what_it_has():
    edges = np.zeros((40, 60), bool)
    edges[20] = True
    size = {"astm_g": 7.0, "g_low": 6.5, "g_high": 7.5, "ra_percent": 9.0}
    pixels = {"intercept_px": 20.0, "ra_percent": 9.0}
    for sizes, label in (({"before": size, "after": size}, "ASTM"), ({"after": pixels}, "no calibration"), ({}, "px")):
        image, spread = np.full((40, 60), 0.5), np.full((40, 60), np.nan)
        figure = plot_quality(image, image, spread, edges, edges[::-1], sizes, um_per_px=0.5)
        assert label in figure.axes[5].get_xlabel() and len(figure._repr_png_()) > 1000
        legend = [text.get_text() for text in figure.axes[4].get_legend().get_texts()]
        assert legend == ["before and after", "before only", "after only"]


@pytest.mark.slow
def test_fifty_files_of_which_three_are_broken(tiny, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(47):
        Image.fromarray(metal((64 + number % 3, 96), seed=number)).save(folder / f"{number:02d}.png")
    (folder / "cut.png").write_bytes((folder / "00.png").read_bytes()[:300])
    (folder / "empty.tif").touch()
    (folder / "notes.tif").write_text("no image")
    records = run(tiny, folder, tmp_path / "out")
    broken = {record["file"]: record["reason"] for record in records if record["status"] != "done"}
    assert len(records) == 50 and set(broken) == {"cut.png", "empty.tif", "notes.tif"} and all(broken.values())
    assert len(list((tmp_path / "out" / "denoised").iterdir())) == 47
    report.write_table(records, tmp_path / "denoised.csv")
    report.write_report(records, tmp_path / "report.html")
    with (tmp_path / "denoised.csv").open(encoding="utf-8-sig", newline="") as file:
        assert sum(bool(row["reason"]) for row in csv.DictReader(file)) == 3
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "47 denoised, 3 left out" in page.text and page.tags.count("img") == 47
    assert all(f"{name}{reason}" in page.text for name, reason in broken.items())


@pytest.mark.slow
def test_two_hundred_files_in_flat_memory(tiny, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(200):
        Image.fromarray(metal((64 + number % 3, 96), seed=number)).save(folder / f"{number:03d}.png")
    resident, process = [], psutil.Process()
    for record in batch.denoise_folder(tiny, batch.find_micrographs(folder), tmp_path / "out", passes=2):
        assert record["status"] == "done"
        resident.append(process.memory_info().rss / 2**20)
    assert len(resident) == 200
    assert resident[-1] < resident[50] + 150  # MiB
