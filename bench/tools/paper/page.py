"""A page with the clips side by side."""

from __future__ import annotations

from html import escape
from pathlib import Path
from urllib.parse import quote

from bench.tools.paper.summary import FLOOR, ORDER

from .outcome import Edit, Outcome

SHOWN = {"warp": "warp error {:.2f}", "prompt": "CLIP {:.3f}", "sampling": "{:.0f} s"}
STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }
table { border-collapse: collapse; font-size: 13px }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
thead { border-block: 2px solid } tbody { border-bottom: 2px solid }
div.table { overflow-x: auto }
section { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem }
figure { margin: 0 } video { width: 100%; background: #ddd }
figcaption b { display: block } figcaption { font-size: 13px } p.error { color: #a00 }
button { font: inherit }
"""
SCRIPT = """
document.querySelector("button").onclick = () => {
  for (const video of document.querySelectorAll("video")) { video.currentTime = 0; video.play() }
}
"""


def write_page(folder: Path, outcome: Outcome, about: str) -> None:
    """index.html in a folder, beside what it shows; it loads nothing else."""
    head, *rows = [[escape(cell) for cell in row] for row in outcome.rows()] or [[]]
    lines = [f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in rows]
    text = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>TokenFlow: the table</title>',
        f"<style>{STYLE}</style>",
        f"<h1>TokenFlow beside other ways</h1><p>{escape(about)}</p>",
        f'<div class="table"><table><thead><tr><th>{"</th><th>".join(head)}</th></tr></thead>',
        f"<tbody>{''.join(lines)}</tbody></table></div>",
        '<p>Warp error: x1e-3, lower is steadier. <a href="table.png">Figure</a>, '
        '<a href="table.csv">table</a> and <a href="edits.csv">single edits</a>.</p>',
        "<p><button>All from the start</button></p>",
        *_edits(outcome),
        f"<script>{SCRIPT}</script></html>",
    ]
    (folder / "index.html").write_text("\n".join(text) + "\n", encoding="utf-8")


def _edits(outcome: Outcome) -> list[str]:
    """A heading and a row of clips for each edit."""
    floors = {edit.group: edit for edit in outcome.edits if edit.row == FLOOR}
    asked = dict.fromkeys((e.group, e.prompt) for e in outcome.edits if e.row != FLOOR)
    text = []
    for group, prompt in asked:
        floor = floors[group]
        text.append(f"<h2>{escape(floor.clip)}: {escape(prompt)}</h2><section>")
        text.append(_clip(floor, "source.mp4", f"source: {floor.source}", {}))
        made = {e.row: e for e in outcome.edits if (e.group, e.prompt) == (group, prompt)}
        text += [_clip(made[row], "edit.mp4", row, SHOWN) for row in ORDER if row in made]
        text.append("</section>")
    return text


def _clip(edit: Edit, file: str, title: str, shown: dict[str, str]) -> str:
    figures = [
        form.format(value)
        for name, form in shown.items()
        if (value := edit.figures.get(name)) is not None
    ]
    path = quote(f"edits/{edit.name}/{file}")
    video = f'<video src="{path}" autoplay muted loop playsinline controls></video>'
    if edit.state != "done":
        video = f'<p class="error">{escape(edit.error.splitlines()[0] if edit.error else "")}</p>'
    told = escape(", ".join(figures))
    return f"<figure>{video}<figcaption><b>{escape(title)}</b>{told}</figcaption></figure>"
