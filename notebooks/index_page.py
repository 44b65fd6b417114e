"""The page that opens on a run: what was made, from which micrographs, in how many minutes, on which machine.

Pure text from plain data: no files are read here and none are written. Everything that comes from a file is
escaped, and the page asks nothing of the network.
"""

import math
from html import escape
from urllib.parse import quote

CSS = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --accent: #0b6e99; --bad: #b3261e; --paper: #fff; }
* { box-sizing: border-box }
body { margin: 0; background: #f5f6f8; color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", sans-serif }
main { max-width: 72rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .6rem } p { margin: .3rem 0 } a { color: var(--accent) }
.soft { color: var(--soft) } .bad { color: var(--bad); font-weight: 600 }
.source {
  display: inline-block; padding: .15rem .7rem; border-radius: 1rem; background: #e3f0f5; font-size: .92rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .5rem .9rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top }
tr:last-child > td { border-bottom: 0 } thead th { font-size: .88rem; color: var(--soft); font-weight: 600 }
td.number, th.number { text-align: right; white-space: nowrap }
figure { margin: 0 0 1.2rem; padding: 1rem }
figure, .scroll { background: var(--paper); border: 1px solid var(--line); border-radius: .5rem }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto }
figcaption { margin-top: .6rem; color: var(--soft); font-size: .92rem }
pre { padding: 1rem; background: #fdf1f0; border-left: 4px solid var(--bad); white-space: pre-wrap }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.4rem; margin: 0 }
dt { color: var(--soft) }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
"""


def render(facts: dict, notebooks: list[dict]) -> str:
    """`facts`: preset, commit, machine, ...; a notebook: name, title, status, result, minutes, ..."""
    failed = [nb for nb in notebooks if nb["status"] == "failed"]
    done = sum(nb["status"] == "done" for nb in notebooks)
    minutes = sum(nb.get("minutes", 0) for nb in notebooks)
    preset = escape(str(facts.get("preset", "")))
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>mdn: the {preset} run</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>",
            f"<h1>Micrograph denoising: the {preset} run</h1>",
            f'<p class="soft">{done} of {len(notebooks)} notebooks done, {minutes:.1f} minutes in all.</p>',
            f'<p><span class="source">{micrographs(notebooks)}</span></p>',
            *(failure(nb) for nb in failed),
            *headline_table(notebooks),
            "<h2>Notebooks</h2>",
            notebook_table(notebooks),
            "<h2>Figures</h2>",
            *(section for nb in notebooks for section in figures(nb)),
            "<h2>Numbers</h2>",
            *(section for nb in notebooks for section in numbers(nb)),
            "<h2>How it was made</h2>",
            definitions(facts),
            "</main>\n</body>\n</html>\n",
        ]
    )


def micrographs(notebooks: list[dict]) -> str:
    used = {str(nb["result"]["micrographs"]) for nb in notebooks if "micrographs" in nb["result"]}
    if used == {"real"}:
        return "Made from real optical micrographs"
    if used == {"stand-ins"}:
        return "Made from procedural stand-ins, not from real micrographs"
    if used:
        return escape("Made from different micrographs, notebook by notebook: " + ", ".join(sorted(used)))
    return "No notebook has said yet which micrographs it used"


def failure(nb: dict) -> str:
    return f'<p class="bad">{escape(nb["title"])} failed</p>\n<pre>{escape(nb.get("error", ""))}</pre>'


def headline_table(notebooks: list[dict]) -> list[str]:
    for nb in notebooks:
        content = nb["result"].get("table")
        if nb["name"] == "04_evaluation" and content:
            return ["<h2>The denoisers side by side</h2>", table(content["columns"], content["rows"])]
    return []


def notebook_table(notebooks: list[dict]) -> str:
    rows = []
    for nb in notebooks:
        files = quote(nb["name"])
        links = (
            f'<a href="{files}.html">read</a> · <a href="{files}.ipynb">notebook</a>'
            if nb["status"] != "not run"
            else ""
        )
        state = (
            f'<span class="bad">{nb["status"]}</span>' if nb["status"] == "failed" else escape(nb["status"])
        )
        minutes = f"{nb['minutes']:.1f}" if "minutes" in nb else ""
        memory = f"{nb['peak_gib']:.1f}" if "peak_gib" in nb else ""
        rows.append(
            f'<tr><td>{escape(nb["title"])}<br><span class="soft">{escape(nb["name"])}</span></td>'
            f'<td>{state}</td><td class="number">{minutes}</td><td class="number">{memory}</td>'
            f"<td>{links}</td></tr>"
        )
    head = (
        '<th>Notebook</th><th>State</th><th class="number">Minutes</th>'
        '<th class="number">Peak memory, GiB</th><th>Open</th>'
    )
    return framed(head, "".join(rows))


def figures(nb: dict) -> list[str]:
    if not nb.get("figures"):
        return []
    captions, used = nb["result"].get("captions", {}), nb["result"].get("micrographs")
    shown = []
    for name in nb["figures"]:
        caption = captions.get(name) or name.removesuffix(".png").replace("_", " ")
        if used == "stand-ins" and "stand-in" not in caption:
            caption += " (procedural stand-ins)"
        address = f"figures/{quote(name)}"
        shown.append(
            f'<figure><a href="{address}"><img src="{address}" alt="{escape(caption)}" loading="lazy"></a>'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return [f"<h3>{escape(nb['title'])}</h3>", *shown]


def numbers(nb: dict) -> list[str]:
    result = nb["result"]
    parts = [definitions(result["headline"])] if result.get("headline") else []
    if result.get("table") and nb["name"] != "04_evaluation":
        parts.append(table(result["table"]["columns"], result["table"]["rows"]))
    return [f"<h3>{escape(nb['title'])}</h3>", *parts] if parts else []


def definitions(pairs: dict) -> str:
    return (
        "<dl>"
        + "".join(f"<dt>{text(k.replace('_', ' '))}</dt><dd>{text(v)}</dd>" for k, v in pairs.items())
        + "</dl>"
    )


def table(columns: list, rows: list[list]) -> str:
    """Numbers of one column share their decimals, so that they can be compared by eye."""
    head, body = [], [[] for _ in rows]
    for i, column in enumerate(columns):
        values = [row[i] for row in rows]
        floats = [abs(v) for v in values if isinstance(v, float) and math.isfinite(v)]
        decimals = None if not floats or max(floats) < 0.01 else 2 if max(floats) >= 1 else 3
        mark = ' class="number"' if any(map(is_number, values)) else ""
        head.append(f"<th{mark}>{text(column)}</th>")
        for cells, value in zip(body, values, strict=True):
            cells.append(f"<td{mark}>{text(value, decimals)}</td>")
    return framed("".join(head), "".join(f"<tr>{''.join(cells)}</tr>" for cells in body))


def framed(head: str, body: str) -> str:
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def text(value, decimals: int | None = None) -> str:
    """A value as a reader wants it: four figures or so many decimals, a dash for what is no number."""
    if isinstance(value, float):
        shown = f"{value:.4g}" if decimals is None else f"{value:.{decimals}f}"
        return shown if math.isfinite(value) else "–"
    if is_number(value):
        return f"{value:,}"
    return "–" if value is None else escape(str(value))
