"""Makes the tables of the documents again, each by its command, from the files of its runs.

    python -m benchmarks.tables            # writes them into README.md and docs/

Such a table stands between a comment that has its command and `<!-- end -->`. Of a report that
has several tables, the command's own comment has the title of the one that is meant:

    <!-- python tools/report.py docs/results/recipe_pairs # Runs by task and method -->
"""

from __future__ import annotations

import importlib
import io
import os
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPENING = re.compile(r"^<!-- python ", re.MULTILINE)
BLOCK = re.compile(
    r"^(<!-- python ([^#\n]+?)(?: # ([^\n]+?))? -->\n)(?:(?!\n<!-- python ).)*?(<!-- end -->)",
    re.DOTALL | re.MULTILINE,
)


def pages() -> list[Path]:
    """The documents that have such tables."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    return sorted(page for page in found if OPENING.search(page.read_text(encoding="utf-8")))


def remade(text: str, printed: Callable[[str], str]) -> str:
    """A page with its tables made again.

    Args:
        text: the page.
        printed: what a command prints, without the word `python`.

    Raises:
        ValueError: a table has no end before the next one begins, so that text would be lost.
    """
    if len(BLOCK.findall(text)) != len(OPENING.findall(text)):
        raise ValueError("a table has no <!-- end --> before the next one begins")

    def block(match: re.Match[str]) -> str:
        opening, command, title, closing = match.groups()
        return f"{opening}\n{_table(printed(command), title)}\n\n{closing}"

    return BLOCK.sub(block, text)


def printed(command: str) -> str:
    """What a tool of this repository prints, run in this process."""
    first, *words = shlex.split(command)
    name = words.pop(0) if first == "-m" else first.removesuffix(".py").replace("/", ".")
    with redirect_stdout(io.StringIO()) as output:
        code = importlib.import_module(name).main(words)
    if code:
        raise ValueError(f"exit code {code}: python {command}")
    return output.getvalue()


def _table(text: str, title: str | None) -> str:
    """What stands under a title of the text; all of it, where no title is asked for."""
    if title is None:
        return text.strip()
    _, found, rest = text.partition(f"### {title}\n")
    if not found:
        raise ValueError(f"nothing is printed under the title {title!r}")
    return re.split(r"\n##+ ", rest)[0].strip()


def main() -> int:
    """Writes the pages; says which were other before."""
    os.chdir(ROOT)
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := remade(text, printed)) != text:
            page.write_text(new, encoding="utf-8")
            print(f"{page.relative_to(ROOT)} had other tables")
    return 0


if __name__ == "__main__":
    sys.exit(main())
