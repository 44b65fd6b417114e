"""What `batch` records as a table, and as a quality report that opens anywhere."""

from __future__ import annotations

import base64
import csv
import html
import io
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from mdn.files import beside, write_whole

STATES = ("before", "after")
MEASURED = {  # column and what the report calls it
    "astm_g": "ASTM G",
    "g_low": "95 % low",
    "g_high": "95 % high",
    "ra_percent": "%RA",
    "intercept_um": "mean intercept (µm)",
    "intercept_px": "mean intercept (px)",
    "n_grains": "grains",
    "n_intercepts": "intercepts",
}
PLAIN = ("width_px", "height_px", "dtype", "um_per_px", "calibration")


def write_table(records: Sequence[dict], path: str | os.PathLike) -> None:
    """The records of `denoise_folder` as CSV, UTF-8, a line a file; a gap where there is no number.

    ra_percent is E112's relative accuracy of the mean intercept at 95 %, removed_percent the mean of |before - after|
    and uncertainty_percent the mean of `uncertainty_map`, both in % of black to white.
    """
    columns = ["file", "status", "reason", *PLAIN, *(f"{name}_{state}" for state in STATES for name in MEASURED)]
    rows = [[*columns, "removed_percent", "uncertainty_percent", "warnings"]]
    for record in records:
        row = [record["file"], record["status"], record["reason"], *(record.get(name) for name in PLAIN)]
        row += [record.get(state, {}).get(name) for state in STATES for name in MEASURED]
        row += [record.get("removed_percent"), record.get("uncertainty_percent")]
        row += [" | ".join(record["warnings"].values())]
        rows.append([f"{v:.5g}" if isinstance(v, float) else _cell(v) for v in row])
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    write_whole(Path(path), text.getvalue().encode("utf-8-sig"))  # with its mark, so that spreadsheets read µ


def _cell(value):
    """A file's name may start like a spreadsheet's formula: that is then text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


LEGEND = (
    "G: ASTM grain size number (E112, Heyn's intercepts) with its 95 % interval. %RA: its relative accuracy, the "
    "half-width of the 95 % interval of the mean intercept in % of it. %RA and grains (edge ones included) are "
    "those after denoising. Removed: the mean of |before − after|, in % of black to white, which of 12 bits in 16 are "
    "those of the 12; uncertainty is in the same unit. Twins that are found count as grains, which E112 leaves out: in "
    "twinned metals G comes out too fine, before and after alike."
)
WORDS = "style='text-align: left; overflow-wrap: anywhere'"  # in the cell: a notebook shows the table without the sheet
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
h2 { margin-top: 2.5em; border-top: 1px solid #ccc; padding-top: 1em; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1em 0; font-size: 14px; }
th, td { border-bottom: 1px solid #ddd; padding: .3em .7em; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left !important; overflow-wrap: anywhere; }
td:first-child { min-width: 9em; }
.warn { border-left: 4px solid #D55E00; padding: .2em 1em; background: #fdf3ec; }
.warn p { margin: .3em 0; } img { max-width: 100%; } .small { color: #555; font-size: 13px; white-space: pre-wrap; }
"""


def write_report(records: Sequence[dict], path: str | os.PathLike, *, notes: str = "") -> None:
    """The records of `denoise_folder`, with their pictures, as one HTML file that asks for nothing else.

    Whatever comes from a file is escaped. Pictures are read one at a time. notes: a sentence under the title.
    """
    path = Path(path)
    with beside(path, path.with_name(f".{uuid.uuid4().hex}.part")) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(_report(records, notes))


def _report(records: Sequence[dict], notes: str) -> Iterator[str]:
    yield '<!doctype html><html lang="en"><meta charset="utf-8"><title>Denoised micrographs</title>'
    yield f"<style>{STYLE}</style><h1>Denoised micrographs</h1><p>{html.escape(notes)}</p>"
    yield summary(records, links=True)
    for number, record in enumerate(records):
        if record["status"] == "done":
            yield from _section(number, record)
    yield "</html>\n"


def summary(records: Sequence[dict], *, links: bool = False) -> str:
    """The records of `denoise_folder` as HTML: what was left out and why, a line for each of the others."""
    n_done = sum(record["status"] == "done" for record in records)
    lines = [f"<p>{n_done} denoised, {len(records) - n_done} left out.</p><table>"]
    if n_done < len(records):
        lines.append(f"<tr><th {WORDS}>left out<th {WORDS}>why")
    for record in records:
        if record["status"] != "done":
            lines.append(f"<tr><td>{html.escape(record['file'])}<td {WORDS}>{html.escape(record['reason'])}")
    heads = ("file", "G before", "G after", "%RA", "grains", "removed")
    lines.append(f"</table><table><tr>{''.join(f'<th>{head}' for head in heads)}<th {WORDS}>look at")
    for number, record in enumerate(records):
        if record["status"] == "done":
            name, after = html.escape(record["file"]), record.get("after", {})
            accuracy = f"{after['ra_percent']:.1f}" if "ra_percent" in after else "–"
            lines.append(f'<tr><td><a href="#m{number}">{name}</a>' if links else f"<tr><td>{name}")
            lines.append(f"<td>{_g(record.get('before', {}))}<td>{_g(after)}<td>{accuracy}")
            lines.append(f"<td>{after.get('n_grains', '–')}<td>{record['removed_percent']:.1f} %")
            lines.append(f"<td {WORDS}>{', '.join(record['warnings'])}")
    return "".join(lines) + f"</table><p class='small'>{LEGEND}</p>"


def _g(size: dict) -> str:
    return f"{size['astm_g']:.2f} ({size['g_low']:.2f} to {size['g_high']:.2f})" if "astm_g" in size else "–"


def _section(number: int, record: dict) -> Iterator[str]:
    yield f'<h2 id="m{number}">{html.escape(record["file"])}</h2>'
    scale = record["um_per_px"]
    origin = {"file": "from the file", "um_per_px": "given as um_per_px"}.get(record["calibration"], "")
    facts = f"{record['width_px']} × {record['height_px']} px, {record['dtype']}, "
    yield f"<p>{html.escape(facts)}{f'{scale:.4g} µm/px, {origin}' if scale else 'no calibration'}; "
    yield f"removed {record['removed_percent']:.1f} %, mean uncertainty {record['uncertainty_percent']:.1f} %</p>"
    if record["warnings"]:
        words = (f"<p>{html.escape(text)}</p>" for text in record["warnings"].values())
        yield f'<div class="warn">{"".join(words)}</div>'
    names = {k: v for k, v in MEASURED.items() if any(k in record.get(state, {}) for state in STATES)}
    yield f"<table><tr><th>{''.join(f'<th>{name}' for name in names.values())}"
    for state in STATES:
        size = record.get(state, {})
        cells = (size.get(name, "–") for name in names)
        yield f"<tr><td>{state}{''.join(f'<td>{v:.3g}' if isinstance(v, float) else f'<td>{v}' for v in cells)}"
    yield "</table>"
    if record["description"]:
        yield f'<p class="small">{html.escape(record["description"])}</p>'
    picture = base64.b64encode(Path(record["picture"]).read_bytes()).decode()
    alt = html.escape(f"{record['file']}: before, after, removed, uncertainty, boundaries, grain size")
    yield f'<img alt="{alt}" src="data:image/jpeg;base64,{picture}">\n'
