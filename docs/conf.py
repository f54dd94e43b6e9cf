"""The documentation's build: Markdown by MyST, notebooks run by it, docstrings by autodoc.

make docs
"""

from __future__ import annotations

import inspect
import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import metaloss
from metaloss.config.registry import REGISTRIES

project = "metaloss"
author = "the metaloss contributors"
copyright = author
release = metaloss.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "metaloss"
pygments_style = "friendly"
pygments_dark_style = "monokai"
highlight_language = "none"  # indented blocks are commands and what they print

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

default_role = "literal"  # `single backticks` in docstrings are code, as in Markdown
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False


class Components(SphinxDirective):
    """`components KIND`: every registered component of a kind, as its docstring tells it.

    The registry is asked and no list is kept, so that adding a component stays one file.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        kind = self.arguments[0]
        blocks = []
        for name, component in REGISTRIES[kind].items():
            what = "class" if inspect.isclass(component) else "function"
            path = f"{component.__module__}.{component.__qualname__}"
            call = f"@{kind}.{name}" + ("" if REGISTRIES[kind].supplied else "()")
            blocks.append(f"### `{call}`\n\n```{{eval-rst}}\n.. auto{what}:: {path}\n```\n")
        return self.parse_text_to_nodes("\n".join(blocks), allow_section_headings=True)


def link_files(app: Sphinx, page: str, source: list[str]) -> None:
    """Lets links to Markdown outside of docs/ lead to the file itself, as they do on GitHub."""
    source[0] = re.sub(r"\]\((\.\./[^)#]+\.md)\)", r"](path:\1)", source[0])


def setup(app: Sphinx) -> None:
    """Registers what is above."""
    app.add_directive("components", Components)
    app.connect("source-read", link_files)
