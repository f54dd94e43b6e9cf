"""The report of a distillation: how close each formula is, and the formulas in four languages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metaloss.analysis.formulas import Closeness, Formula
from metaloss.errors import RunFolderError
from metaloss.experiments.reports import formats, output
from metaloss.experiments.reports.document import Document, Lines, Section, Text
from metaloss.experiments.reports.tables import DASH, Cell, Table
from metaloss.machine.files import write_json
from metaloss.representations.parts import expressions

HEAD = ("terms", "panel", "R²", "max error", "R² of slope", "max error of slope", "mean slope")
CAPTION = (
    "R²: share of the variance of the learned loss's values that the formula explains, a constant "
    "aside; of slope: share of its squared slopes. Errors are the largest differences, in the "
    "loss's own unit; mean slope is that of its absolute slope. A negative R² is worse than no "
    "formula."
)
SHARED = (
    'The term "f" alone, a slope that y = 1 and y = 0 share, acts on no θ under softmax and is not '
    "counted."
)


def document(formulas: Sequence[Formula], loss: str, classes: int | None) -> Document:
    """The report.

    Args:
        formulas: of a learned loss, by size.
        loss: what it is, in a line.
        classes: C; None for regression.
    """
    rows = [
        (Cell(str(formula.size) if i == 0 else "", "name"), Cell(near.panel), *_cells(near))
        for formula in formulas
        for i, near in enumerate(formula.closeness)
    ]
    domain = "probabilities f in [0, 1]" if classes else "errors e = f - y in [-1, 1]"
    table = Table(f"On {domain}", CAPTION, HEAD, rows, names=1)
    sections = [Section("How close", [Text(f"{loss}. {SHARED if classes else ''}".strip()), table])]
    sections += [Section(_heading(formula), [Lines(_written(formula))]) for formula in formulas]
    return Document("A learned loss in short", sections)


def data(formulas: Sequence[Formula]) -> list[dict[str, Any]]:
    """The formulas as plain data."""
    return [
        {
            **asdict(formula),
            "text": expressions.as_text(formula.terms, formula.coefficients),
            "latex": expressions.as_latex(formula.terms, formula.coefficients),
            "python": expressions.as_python(formula.terms, formula.coefficients),
        }
        for formula in formulas
    ]


def save(report: Document, formulas: Sequence[Formula], folder: Path) -> None:
    """Writes distill.md and distill.json into a folder, which is made if need be.

    Raises:
        RunFolderError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be written to: {error}") from error
    output.save_text(formats.markdown(report, {}), folder / "distill.md")
    write_json(folder / "distill.json", {"formulas": data(formulas)})


def _heading(formula: Formula) -> str:
    return f"{formula.size} term{'s' * (formula.size > 1)}"


def _written(formula: Formula) -> tuple[str, ...]:
    terms, coefficients = formula.terms, formula.coefficients
    return (
        f"M(f, y) = `{expressions.as_text(terms, coefficients)}`",
        f"LaTeX: `{expressions.as_latex(terms, coefficients)}`",
        f"Python: `{expressions.as_python(terms, coefficients)}`",
        f"gin: `representations.terms.terms = {terms!r}` and "
        f"`representations.terms.coefficients = {coefficients!r}`",
    )


def _cells(near: Closeness) -> tuple[Cell, ...]:
    numbers = (near.r2, near.error, near.slope_r2, near.slope_error, near.scale)
    return tuple(Cell(DASH if number is None else f"{number:.4g}") for number in numbers)
