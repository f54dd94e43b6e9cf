"""The page: a document as one HTML file that needs nothing else, no network and no script."""

from __future__ import annotations

import io
import re
from html import escape
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from metaloss.experiments.reports.document import Block, Document, Lines, Picture, Text
from metaloss.experiments.reports.tables import Cell, Table

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
#: A browser refuses anything that would come from elsewhere.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #1a1a1a;
  max-width: 76rem; margin: 2.5rem auto; padding: 0 1.5rem; background: #fff; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .8rem; padding-bottom: .25rem;
  border-bottom: 1px solid #ccc; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .9rem; margin: 0 0 1.5rem; }
a { color: #0b5cad; text-decoration: none; }
a:hover { text-decoration: underline; }
figure { margin: 1.6rem 0 2.2rem; }
figcaption { margin: 0 0 .6rem; max-width: 62rem; }
figure.picture figcaption { margin: .4rem 0 0; }
figure svg { max-width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; border-top: 2px solid #222; border-bottom: 2px solid #222;
  font-variant-numeric: tabular-nums; }
thead th { border-bottom: 1px solid #222; font-weight: 600; text-align: center; }
th, td { padding: .22rem .7rem; white-space: nowrap; text-align: center; }
.name { text-align: left; }
tr.begins td { border-top: 1px solid #ddd; }
tbody tr:first-child td { border-top: 0; }
td.paper, td.label-paper { color: #6b6b6b; font-style: italic; }
td.missing { color: #b0b0b0; }
td.best { font-weight: 700; }
ul { margin: .5rem 0; padding-left: 1.2rem; }
ul.notes, ul.lines { list-style: none; padding-left: 0; font-size: .87rem; color: #444; }
ul.lines li { font-family: ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
@media print { body { max-width: none; } figure { break-inside: avoid; } }
"""


def html(document: Document) -> str:
    """The document as a page; pictures are drawn into it as SVG."""
    sections, links = [], []
    for i, section in enumerate(document.sections):
        heading = escape(section.heading)
        links.append(f'<a href="#s{i}">{heading}</a>')
        blocks = "\n".join(map(_block, section.blocks))
        sections.append(f'<section id="s{i}">\n<h2>{heading}</h2>\n{blocks}\n</section>')
    title = escape(document.title)
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            f"<h1>{title}</h1>\n<nav>{' '.join(links)}</nav>",
            *sections,
            "</body>\n</html>\n",
        ]
    )


def svg(figure: Figure, name: str) -> str:
    """A figure as an element of a page: its ids are its own, its text stays text.

    Args:
        figure: what to draw.
        name: told apart by it from other figures of the page.
    """
    drawn = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(drawn, format="svg", metadata=metadata)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(drawn.getvalue())
    for metadata_element in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata_element)
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    for element in root.iter():
        if element.get("id") is not None and element.get("id") not in used:
            del element.attrib["id"]
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Lines):
        return _list(block.lines, "lines")
    if isinstance(block, Picture):
        caption = f"<b>{escape(block.title)}.</b> {escape(block.caption)}"
        drawn = svg(block.figure, block.name)
        return f'<figure class="picture">\n{drawn}\n<figcaption>{caption}</figcaption>\n</figure>'
    return _table(block)


def _table(table: Table) -> str:
    head = "".join(
        f"<th{_class('name' if i < table.names else '')}>{escape(title)}</th>"
        for i, title in enumerate(table.head)
    )
    rows = []
    for row in table.rows:
        cells = "".join(map(_cell, row))
        rows.append(f"<tr{_class('begins' if row[0].text else '')}>{cells}</tr>")
    return "\n".join(
        [
            f"<figure>\n<figcaption><b>{escape(table.title)}.</b> {escape(table.caption)}",
            f'</figcaption>\n<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>',
            *rows,
            "</tbody>\n</table></div>",
            _list(table.notes, "notes") if table.notes else "",
            "</figure>",
        ]
    )


def _cell(cell: Cell) -> str:
    kinds = "" if cell.role == "ours" else cell.role
    if cell.role == "name" and cell.text.startswith("paper"):
        kinds += " label-paper"
    return f"<td{_class(kinds)}>{escape(cell.text)}</td>"


def _list(lines: tuple[str, ...] | list[str], kind: str) -> str:
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{kind}">\n{items}\n</ul>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
