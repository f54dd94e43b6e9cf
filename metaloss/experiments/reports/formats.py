"""Formats: a document as Markdown or LaTeX. HTML has its own file, `page.py`.

No templates here: most of it is the width of columns and the marking and escaping of words, which
is computed, and blank lines have a meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePath

from metaloss.experiments.reports.document import Block, Document, Lines, Picture, Text
from metaloss.experiments.reports.tables import Cell, Table

#: What LaTeX takes for commands, and letters that its fonts lack.
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#",
        "_": r"\_\allowbreak{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$",
        "×": r"$\times$", "–": "--", "²": r"$^2$", "³": r"$^3$", "·": r"$\cdot$",
        "/": r"/\allowbreak{}",
        "β": r"$\beta$", "γ": r"$\gamma$", "η": r"$\eta$", "θ": r"$\theta$", "φ": r"$\phi$",
        "'": r"\textquotesingle{}", "|": r"\textbar{}",
    }
)  # fmt: skip

#: Opens a box that is shrunk to the line where it is wider.
FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def markdown(document: Document, files: Mapping[str, PurePath]) -> str:
    """The document as Markdown.

    Args:
        document: what to write.
        files: where each picture lies, by name; pictures without a file are left out.
    """
    return _written(document, _markdown_heading, lambda block: _markdown(block, files))


def latex(document: Document, files: Mapping[str, PurePath]) -> str:
    r"""The document as LaTeX, to `\input` or to copy from; packages booktabs, graphicx, textcomp.

    Args:
        document: what to write.
        files: where each picture lies, by name; pictures without a file are left out.
    """
    head = "% \\usepackage{booktabs,graphicx,textcomp}\n\n"
    return head + _written(document, _latex_heading, lambda block: _latex(block, files))


def _written(
    document: Document, heading: Callable[[str, int], str], block_text: Callable[[Block], str]
) -> str:
    parts = [heading(document.title, 0)]
    for section in document.sections:
        texts = [text for block in section.blocks if (text := block_text(block))]
        parts += [heading(section.heading, 1), *texts] if texts else []
    return "\n\n".join(parts) + "\n"


def _markdown_heading(text: str, level: int) -> str:
    return f"{'#' * (level + 1)} {text}"


def _markdown(block: Block, files: Mapping[str, PurePath]) -> str:
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Lines):
        return "\n".join(f"* {line}" for line in block.lines)
    if isinstance(block, Picture):
        path = files.get(block.name)
        return f"![{block.title}]({path})\n\n*{block.title}. {block.caption}*" if path else ""
    rows = [list(block.head), *([_markdown_cell(cell) for cell in row] for row in block.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    padded = ([text.ljust(n) for text, n in zip(row, widths, strict=True)] for row in rows)
    lines = [f"| {' | '.join(row)} |" for row in padded]
    notes = [f"* {note}" for note in block.notes]
    parts = [f"### {block.title}", block.caption, "\n".join(lines), "\n".join(notes)]
    return "\n\n".join(part for part in parts if part)


def _markdown_cell(cell: Cell) -> str:
    text = cell.text.replace("|", "\\|")
    marks = {"best": "**", "paper": "*"}.get(cell.role, "") if text else ""
    return f"{marks}{text}{marks}"


def _latex_heading(text: str, level: int) -> str:
    return rf"\{'sub' * level}section*{{{text.translate(LATEX)}}}"


def _latex(block: Block, files: Mapping[str, PurePath]) -> str:
    if isinstance(block, Text):
        return block.text.translate(LATEX)
    if isinstance(block, Lines):
        items = [rf"  \item {line.translate(LATEX)}" for line in block.lines]
        return "\n".join([r"\begin{itemize}", *items, r"\end{itemize}"])
    if isinstance(block, Picture):
        path = files.get(block.name)
        included = rf"\includegraphics[width=\linewidth]{{{path}}}"
        return _float("figure", block.title, block.caption, included) if path else ""
    return _latex_table(block)


def _latex_table(table: Table) -> str:
    columns = "l" * table.names + "c" * (len(table.head) - table.names)
    lines = [FITTED, rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [_latex_row([title.translate(LATEX) for title in table.head]), r"\midrule"]
    for i, row in enumerate(table.rows):
        if i and row[0].text:
            lines.append(r"\addlinespace")
        lines.append(_latex_row([_latex_cell(cell) for cell in row]))
    lines += [r"\bottomrule", r"\end{tabular}}"]
    lines += [rf"\par\footnotesize\raggedright {note.translate(LATEX)}" for note in table.notes]
    return _float("table", table.title, table.caption, "\n".join(lines))


def _latex_row(texts: list[str]) -> str:
    return " & ".join(texts) + r" \\"


def _latex_cell(cell: Cell) -> str:
    text = cell.text.translate(LATEX)
    command = {"best": r"\textbf", "paper": r"\textit"}.get(cell.role) if text else None
    return f"{command}{{{text}}}" if command else text


def _float(kind: str, title: str, caption: str, content: str) -> str:
    heading = rf"\caption{{\textbf{{{title.translate(LATEX)}.}} {caption.translate(LATEX)}}}"
    begin, end = rf"\begin{{{kind}}}[htbp]\centering", rf"\end{{{kind}}}"
    return "\n".join([begin, heading, content, end])
