"""The page: a document as one HTML file that needs nothing else, no network and no script.

What stands in it is in `page.html.j2`.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure

from metaloss.experiments.reports.document import Document, Lines, Picture, Text

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


def html(document: Document) -> str:
    """The document as a page; pictures are drawn into it as SVG."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name, kind in {"text": Text, "lines": Lines, "picture": Picture}.items():
        environment.tests[name] = lambda block, kind=kind: isinstance(block, kind)
    environment.filters["svg"] = svg
    return environment.get_template("page.html.j2").render(document=document)


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
