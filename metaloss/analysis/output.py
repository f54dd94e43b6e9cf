"""Output: a document as a file, or as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath

from metaloss.analysis import formats, page
from metaloss.analysis.document import Document, Picture
from metaloss.checkpoint import write_atomically
from metaloss.errors import InputError, RunFolderError

#: Formats, and how their files end. No file of a run folder ends so: none can be overwritten.
ENDINGS = {"md": ".md", "latex": ".tex", "csv": ".csv", "html": ".html"}
DPI = 150


def format_of(asked: str | None, output: Path | None) -> str:
    """The format: as asked for, else by the file's ending, else Markdown.

    Raises:
        InputError: the file's ending is another format's, or none.
    """
    by_ending = {ending: form for form, ending in ENDINGS.items()}
    if output is None:
        return asked or "md"
    form = asked or by_ending.get(output.suffix)
    if form is None or ENDINGS[form] != output.suffix:
        known = ENDINGS[asked] if asked else ", ".join(by_ending)
        raise InputError(f"--output {output}: let its name end in {known}")
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}")
    return form


def text_of(document: Document, form: str, output: Path | None) -> str:
    """The document in a format.

    Pictures are inside an HTML page; those of Markdown and LaTeX are written into `NAME_figures/`
    beside the output, if there is one.

    Raises:
        RunFolderError: a picture cannot be written.
    """
    if form == "html":
        return page.html(document)
    ending = {"md": ".png", "latex": ".pdf"}[form]
    files = _draw(document.pictures(), output, ending) if output is not None else {}
    write = {"md": formats.markdown, "latex": formats.latex}[form]
    return write(document, files)


def save(text: str, output: Path) -> None:
    """Writes a text file, whole or not at all.

    Raises:
        RunFolderError: it cannot be written.
    """
    write_atomically(output, lambda path: path.write_text(text, encoding="utf-8"))


def _draw(pictures: Sequence[Picture], output: Path, ending: str) -> dict[str, PurePath]:
    """The pictures as files; their paths from the output's folder, by name."""
    folder = output.with_name(f"{output.stem}_figures")
    metadata = {"CreationDate": None} if ending == ".pdf" else None
    try:
        if pictures:
            folder.mkdir(exist_ok=True)
        for picture in pictures:
            picture.figure.savefig(folder / (picture.name + ending), dpi=DPI, metadata=metadata)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be written to: {error}") from error
    return {p.name: PurePath(folder.name, p.name + ending) for p in pictures}
