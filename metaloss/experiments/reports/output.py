"""Output: a document as a file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path, PurePath

from metaloss.errors import InputError, RunFolderError
from metaloss.experiments.reports import formats, page
from metaloss.experiments.reports.document import Document, Picture
from metaloss.machine.files import write_atomically

DPI = 150


def save(document: Document, output: Path) -> None:
    """Writes a document in the format of the file's ending: .html, .md, .tex or .png.

    An HTML page holds its pictures. Those of Markdown and LaTeX are written beside the file, into
    the folder `NAME_figures`. A PNG is the pictures alone, one below the other.

    Raises:
        RunFolderError: something cannot be written.
    """
    if output.suffix == ".png":
        content = _sheet(document.pictures())
        write_atomically(output, lambda path: path.write_bytes(content))
        return
    if output.suffix == ".md":
        text = formats.markdown(document, _draw(document.pictures(), output, ".png"))
    elif output.suffix == ".tex":
        text = formats.latex(document, _draw(document.pictures(), output, ".pdf"))
    else:
        text = page.html(document)
    save_text(text, output)


def save_text(text: str, output: Path) -> None:
    """Writes a text file, whole or not at all.

    Raises:
        RunFolderError: it cannot be written.
    """
    write_atomically(output, lambda path: path.write_text(text, encoding="utf-8"))


def _draw(pictures: Sequence[Picture], output: Path, ending: str) -> dict[str, PurePath]:
    """The pictures as files beside the output; their paths from there, by name."""
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


def _sheet(pictures: Sequence[Picture]) -> bytes:
    """The pictures one below the other, as a PNG.

    Raises:
        InputError: there is none.
    """
    from PIL import Image

    if not pictures:
        raise InputError("there is no picture: neither run has numbers or a loss to draw")
    images = []
    for picture in pictures:
        drawn = io.BytesIO()
        picture.figure.savefig(drawn, format="png", dpi=DPI)
        images.append(Image.open(drawn))
    size = max(image.width for image in images), sum(image.height for image in images)
    sheet = Image.new("RGB", size, "white")
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    content = io.BytesIO()
    sheet.save(content, format="png")
    return content.getvalue()
