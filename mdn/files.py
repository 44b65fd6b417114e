"""Files that are whole or not there, whenever the disk fills up, the power goes or the process is killed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ABANDONED = 3600.0  # s without a change: a younger part may be another process's write under way


@contextmanager
def beside(path: Path, part: Path) -> Iterator[Path]:
    """Write a file at `part`, beside its place, and have it moved to `path` once it is whole and on the disk.

    Raises:
        OSError: naming `path`, where the disk is full or takes no files. Nothing is left at `part` then.
    """
    try:
        yield part
        if part.is_file():
            with part.open("r+b") as file:
                os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:  # a full disk does not say which file it was
        raise OSError(error.errno, f"{path} is not written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; raises as `beside`."""
    with beside(path, path.with_name(path.name + ".part")) as part:
        part.write_bytes(data)


def sweep(parts: Iterable[Path]) -> None:
    """Remove what killed processes left of writes of theirs: files and folders among `parts` an hour old."""
    for part in parts:
        with suppress(OSError):
            changed = max(each.stat().st_mtime for each in (part, *part.rglob("*")))
            if time.time() - changed > ABANDONED:
                shutil.rmtree(part) if part.is_dir() else part.unlink()
