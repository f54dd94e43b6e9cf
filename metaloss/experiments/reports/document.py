"""Documents: headings, paragraphs, tables and pictures, before they take a format."""

from __future__ import annotations

from dataclasses import dataclass, field

from matplotlib.figure import Figure

from metaloss.experiments.reports.tables import Table


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Lines:
    """Lines to be read one by one, each as it stands."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """A figure with its caption; `name` is a file's stem."""

    name: str
    figure: Figure
    title: str
    caption: str


Block = Text | Lines | Table | Picture


@dataclass
class Section:
    """Blocks under a heading."""

    heading: str
    blocks: list[Block] = field(default_factory=list)


@dataclass
class Document:
    """A title, an introduction and sections."""

    title: str
    sections: list[Section]

    def pictures(self) -> list[Picture]:
        """All of them, in order."""
        return [b for section in self.sections for b in section.blocks if isinstance(b, Picture)]
