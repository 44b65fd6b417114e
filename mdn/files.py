"""Files that are whole or not there, whenever the disk fills up or the process is killed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

ABANDONED = 3600.0  # s without a change: a younger part may be another process's write under way


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; where the disk is full or takes no files, an OSError names the path."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:  # a full disk does not say which file it was
        with suppress(OSError):
            part.unlink()
        raise OSError(error.errno, f"{path} is not written: {error.strerror or error}") from error


def sweep(parts: Iterable[Path]) -> None:
    """Remove what killed processes left of writes of theirs: the files among `parts` that are an hour old."""
    for part in parts:
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()
