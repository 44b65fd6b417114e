"""Damaged files for `read_micrograph` and `load_weights`: python tests/fuzz.py KIND N [SEED] prints what came of them.

A process of its own, so that a crash, a hang (5 s of processor time a file) and the peak of memory are seen.
Each mutant is a function of kind, seed and number alone.
"""

import io
import json
import logging
import resource
import signal
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

KINDS = ("tiff", "png", "jpeg", "safetensors")
HUGE = (0, 1, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)


def tiff(pixels, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def pillow(image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def originals(kind: str) -> list[bytes]:
    """Small files of a kind, one of each sort that is read."""
    grey = (np.indices((20, 24)).sum(0) * 5 + np.arange(24) ** 2 % 7).astype(np.uint8)
    colour = np.stack([grey, grey.T.reshape(20, 24), 255 - grey], -1)
    rgb, wide = Image.fromarray(colour), grey.astype(np.uint16) * 16
    if kind == "tiff":
        return [
            tiff(grey, resolution=(2e4, 2e4), resolutionunit="CENTIMETER", description="steel"),
            tiff(wide, byteorder=">", rowsperstrip=5),
            tiff(grey.astype(np.float32) - 9, imagej=True, resolution=(4, 4), metadata={"unit": "um"}),
            tiff(colour, photometric="rgb", compression="zlib", rowsperstrip=4),
            tiff(wide, tile=(16, 16), compression="zlib", predictor=True, bigtiff=True),
            tiff(
                np.stack([grey, grey]), ome=True, metadata={"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
            ),
            tiff(colour.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
            pillow(rgb.convert("P"), format="TIFF", compression="tiff_lzw"),
            pillow(rgb.convert("CMYK"), format="TIFF"),
            pillow(rgb, format="TIFF", compression="jpeg"),
            pillow(rgb, format="TIFF", compression="packbits"),
            tiff(
                grey,
                imagej=True,
                metadata={"unit": "um", "Info": "etched", "Overlays": [b"one", b"other"]},
                extratags=[(271, 2, None, b"maker", True), (34118, 2, None, b"\r\nAP_WD\r\nWD = 8.5 mm\r\n", True)],
            ),
        ]
    if kind == "png":
        images = (rgb, rgb.convert("L"), rgb.convert("P"), rgb.convert("RGBA"), rgb.convert("1"), Image.fromarray(wide))
        return [pillow(image, format="PNG", dpi=(50800, 50800)) for image in images]
    if kind == "jpeg":
        return [
            pillow(rgb, format="JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
            pillow(rgb.convert("L"), format="JPEG", quality=95),
            pillow(rgb.convert("CMYK"), format="JPEG"),
            pillow(rgb, format="JPEG", progressive=True),
        ]
    from flax import nnx
    from safetensors.numpy import load, save

    from mdn.network import DenoisingNetwork, NetworkConfig, read_metadata, save_weights

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.safetensors"
        model = DenoisingNetwork(NetworkConfig(width=4, blocks=1, reduction=2), rngs=nnx.Rngs(0))
        save_weights(path, model, metadata={"training": json.dumps({"step": 5})})
        header = {name: text for name, text in read_metadata(path).items() if name != "sha256"}
        return [path.read_bytes(), path.read_bytes(), save(load(path.read_bytes()), header)]  # and one of mdn 0.1.0


def mutant(kind: str, files: list[bytes], number: int, seed: int) -> tuple[bytes, int, str]:
    """A damaged file, which original it was and how it was damaged."""
    rng = np.random.default_rng([KINDS.index(kind), seed, number])
    which = number % len(files)
    data, how = bytearray(files[which]), ("flip", "cut", "insert", "delete", "field", "size", "size")[rng.integers(7)]
    at = int(rng.integers(len(data) if rng.integers(2) else min(len(data), 400)))
    if how == "flip":
        for place in (at, *rng.integers(len(data), size=rng.integers(4))):
            data[place] ^= int(rng.integers(1, 256))
    elif how == "cut":
        del data[at:]
    elif how == "insert":
        data[at:at] = rng.bytes(int(rng.integers(1, 40)))
    elif how == "delete":
        del data[at : at + int(rng.integers(1, 40))]
    elif how == "field":
        value, form = HUGE[rng.integers(len(HUGE))], ("<I", ">I", "<H", ">H")[rng.integers(4)]
        data[at : at + struct.calcsize(form)] = struct.pack(form, value & (0xFFFFFFFF if form[1] == "I" else 0xFFFF))
    else:
        data = bytearray(resized(kind, bytes(data), rng))
    if kind == "png" and how in ("flip", "field") and rng.integers(2):
        data, how = bytearray(with_right_crcs(bytes(data))), how + ", right CRC"
    return bytes(data), which, how


def resized(kind: str, data: bytes, rng) -> bytes:
    """The same file with a dimension, a count or a length that is not its own."""
    value, new = HUGE[rng.integers(len(HUGE))], bytearray(data)
    if kind == "png":
        place = 16 + 4 * int(rng.integers(2))
        new[place : place + 4] = struct.pack(">I", value)
        return with_right_crcs(bytes(new))
    if kind == "jpeg":
        place = next(i for i in range(len(data)) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC2)) + 5
        place += 2 * int(rng.integers(2))
        new[place : place + 2] = struct.pack(">H", value & 0xFFFF)
        return bytes(new)
    if kind == "tiff":
        order, big = "><"[data[:2] == b"II"], data[2] == 43 or data[3] == 43
        start = struct.unpack_from(order + "Q" if big else order + "I", data, 8 if big else 4)[0]
        n = struct.unpack_from(order + ("Q" if big else "H"), data, start)[0]
        entry = start + (8 if big else 2) + (20 if big else 12) * int(rng.integers(n))
        if rng.integers(4):  # the value, else the count
            form = {3: "H", 4: "I", 16: "Q"}.get(struct.unpack_from(order + "H", data, entry + 2)[0], "I")
            place = entry + (12 if big else 8)
        else:
            form, place = "Q" if big else "I", entry + 4
        new[place : place + struct.calcsize(form)] = struct.pack(order + form, value & 0xFFFF if form == "H" else value)
        return bytes(new)
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + length])
    config = json.loads(header["__metadata__"]["config"])
    choice = int(rng.integers(4))
    if choice == 0:
        return struct.pack("<Q", value) + data[8:]
    if choice == 1:
        config[list(config)[rng.integers(len(config))]] = (value, -1, 1e308, None, [], "sigmoid")[rng.integers(6)]
        header["__metadata__"]["config"] = json.dumps(config)
    else:
        tensor = header[sorted(header)[int(rng.integers(1, len(header)))]]
        if choice == 2:
            tensor["shape"] = [value, *tensor["shape"][1:]]
        else:
            tensor["dtype"] = ("F64", "I32", "BF16", "F16", "BOOL", "F8_E4M3")[rng.integers(6)]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def with_right_crcs(png: bytes) -> bytes:
    """The checksums of the chunks made right, so that what is in them reaches the decoder."""
    new, at = bytearray(png), 8
    while at + 12 <= len(png):
        end = at + 8 + struct.unpack_from(">I", png, at)[0]
        if end + 4 > len(png):
            break
        new[end : end + 4] = struct.pack(">I", zlib.crc32(png[at + 4 : end]))
        at = end + 4
    return bytes(new)


def run(kind: str, n: int, seed: int = 0) -> dict:
    """Read n mutants; raises where anything but a ValueError that names the file or a right result comes of one."""
    logging.disable(logging.CRITICAL)
    files, counts, whole = originals(kind), {"refused": 0, "read, same": 0, "read, altered": 0}, []
    suffix = {"tiff": ".tif", "png": ".png", "jpeg": ".jpg"}.get(kind, ".safetensors")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(-len(files), n):
            data, which, how = (files[number], -1, "") if number < 0 else mutant(kind, files, number, seed)
            path = Path(folder) / f"mutant-{number}{suffix}"
            path.write_bytes(data)
            signal.setitimer(signal.ITIMER_PROF, 5)  # seconds of processor time; then SIGPROF ends the process
            try:
                found = read(kind, path)
            except ValueError as error:
                assert number >= 0, error
                assert path.name in str(error) and len(str(error)) > len(str(path)) + 20, (kind, seed, number, error)
                counts["refused"] += 1
            except BaseException as error:
                error.add_note(f"{kind} {seed} {number}: {how}")
                raise
            else:
                if number < 0:
                    whole.append(found)
                    continue
                same = np.array_equal(found, whole[which])
                # What is cut short, or under a checksum, is never taken for another image
                sure = how == "cut" or (kind == "png" and "right" not in how and how != "size")
                sure |= kind == "safetensors" and which < 2
                assert same or not sure, (kind, seed, number, how)
                counts["read, same" if same else "read, altered"] += 1
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                path.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"kind": kind, "files": n, **counts, "peak_bytes": peak}


def read(kind: str, path: Path) -> np.ndarray:
    if kind == "safetensors":
        import jax

        from mdn.network import load_weights

        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(load_weights_state(load_weights(path)))])
    from mdn.micrographs import check_image, read_micrograph

    image = read_micrograph(path)
    assert image.um_per_px is None or (np.isfinite(image.um_per_px) and image.um_per_px > 0)
    pixels = check_image(image.pixels)
    assert pixels.dtype.isnative and type(pixels) is np.ndarray
    return pixels


def load_weights_state(model):
    from flax import nnx

    return nnx.state(model, (nnx.Param, nnx.BatchStat))


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), *map(int, sys.argv[3:]))))
