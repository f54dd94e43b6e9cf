"""The documentation's build: Markdown by MyST, notebooks run by it, docstrings by autodoc.

make docs
"""

from __future__ import annotations

import inspect
import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator

import metaloss
from metaloss.config.registry import REGISTRIES

project = "metaloss"
author = "the metaloss contributors"
copyright = author
release = metaloss.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
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
html_math_renderer = "mathml"  # browsers draw it themselves: no script, no font, no network
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


def inline_mathml(translator: HTML5Translator, node: nodes.math) -> None:
    """Writes a formula within a line as MathML."""
    translator.body.append(convert(node.astext(), display="inline"))
    raise nodes.SkipNode


def block_mathml(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Writes a formula of its own as MathML."""
    formula = convert(node.astext().strip(), display="block")
    translator.body.append(f'<div class="math notranslate nohighlight">{formula}</div>')
    raise nodes.SkipNode


def link_files(app: Sphinx, page: str, source: list[str]) -> None:
    """Lets links to Markdown outside of docs/ lead to the file itself, as they do on GitHub."""
    source[0] = re.sub(r"\]\((\.\./[^)#]+\.md)\)", r"](path:\1)", source[0])


def setup(app: Sphinx) -> None:
    """Registers what is above."""
    app.add_directive("components", Components)
    app.add_html_math_renderer("mathml", (inline_mathml, None), (block_mathml, None))
    app.connect("source-read", link_files)
