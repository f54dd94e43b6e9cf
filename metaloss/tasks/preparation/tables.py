"""Tables: the rows of a CSV, Parquet or Arrow file by polars, of which none is lost in silence."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metaloss.errors import DataError, did_you_mean, first_line
from metaloss.tasks.preparation.dialect import Dialect
from metaloss.tasks.preparation.later import pl

ARROW = (".arrow", ".feather", ".ipc")
ENDINGS = (".csv", ".tsv", ".txt", ".parquet", *ARROW)
LONGEST = 40  #: characters of a word that errors show
MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF8: "utf-8-sig"}


@dataclass(frozen=True)
class Rows:
    """A table that is read by column when it is asked for.

    Attributes:
        path: of the file.
        frame: its columns; text, or of the types that Parquet and Arrow files say.
        count: of the rows.
        lines: the line on which each row begins, from 1; None: rows have no lines.
    """

    path: Path
    frame: pl.LazyFrame
    count: int
    lines: np.ndarray | range | None

    @property
    def names(self) -> list[str]:
        """The columns, in the file's order."""
        return list(self.kinds)

    @property
    def kinds(self) -> dict[str, pl.DataType]:
        """What the file says that each column holds."""
        return dict(self.frame.collect_schema())

    def require(self, names: Sequence[str]) -> None:
        """Raises DataError unless there are such columns, and they hold words or numbers."""
        kinds = self.kinds
        for name in names:
            if name not in kinds:
                known = ", ".join(kinds)
                apart = [word for d, word in ((";", ";"), ("\t", r"\t"), ("|", "|")) if d in known]
                hint = f" · set tasks.table.delimiter = '{apart[0]}'?" if apart else ""
                near = did_you_mean(name, kinds)
                raise DataError(f"{self.path}: no column '{name}'{near} · it has: {known}{hint}")
            if kinds[name].is_nested() or kinds[name] in (pl.Binary, pl.Object, pl.Duration):
                held = str(kinds[name]).lower()
                raise DataError(f"{self.place(name)} holds {held}, not words or numbers; ignore it")

    def place(self, name: str, row: int | None = None) -> str:
        """A column, or a value of it, in the words of an error."""
        place = f"{self.path}: column '{name}'"
        if row is None:
            return place
        return f"{place}, row {row}" if self.lines is None else f"{place}, line {self.lines[row]}"

    def collect(self, **columns: pl.Expr) -> pl.DataFrame:
        """Columns of every row.

        Raises:
            DataError: the file is damaged.
        """
        asked = [expression.alias(name) for name, expression in columns.items()]
        with _damage(self.path):
            return self.frame.select(asked).collect(engine="streaming")

    def first(self, where: pl.Expr, *columns: pl.Expr) -> tuple[Any, ...] | None:
        """The number of the first row where something holds, and columns of it; None: nowhere."""
        with _damage(self.path):
            numbered = self.frame.with_row_index("row of the table").filter(where)
            found = numbered.select("row of the table", *columns).head(1).collect()
        return next(iter(found.iter_rows()), None)


def read(path: Path, dialect: Dialect) -> Rows:
    """A Parquet or Arrow file by its name's ending, else a CSV file with a header.

    Raises:
        DataError: the file is damaged, a row has more or fewer fields than the header, or a quote
            is not closed; its line is named.
    """
    ending = path.suffix.lower()
    with _damage(path):
        if ending == ".parquet":
            frame = pl.scan_parquet(path, glob=False)
        elif ending in ARROW:
            frame = _scan_arrow(path)
        else:
            return _read_csv(path, dialect)
        count = int(frame.select(pl.len()).collect().item())
    if not count or not frame.collect_schema():
        raise DataError(f"{path}: no rows")
    return Rows(path, frame, count, None)


def quoted(word: Any) -> str:
    """A word in quotes, of a long one the beginning."""
    text = str(word)
    return repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}...")


def _scan_arrow(path: Path) -> pl.LazyFrame:
    """Both of Arrow's formats, of files and of streams."""
    with path.open("rb") as file:
        is_file = file.read(6) == b"ARROW1"
    return pl.scan_ipc(path, glob=False) if is_file else pl.read_ipc_stream(path).lazy()


# --- CSV ---


def _read_csv(path: Path, dialect: Dialect) -> Rows:
    """The rows between the line breaks that are no part of a quoted field.

    polars splits the fields. It fills a short row with nulls and does not count lines, so that the
    lines are looked at once more: as many rows must come out as stand there.
    """
    source = _source(path, dialect.encoding)
    lines = _Lines.of(path, source, dialect)
    if len(lines.starts) < 1:
        raise DataError(f"{path}: no rows")
    names = lines.names
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise DataError(f"{path}: two columns are named '{twice[0]}'")
    count = len(lines.starts) - 1
    if not count:
        raise DataError(f"{path}: no rows")
    frame = pl.scan_csv(
        source,
        has_header=False,
        schema=dict.fromkeys(names, pl.String()),
        separator=dialect.delimiter,
        quote_char=dialect.quote if lines.quoted else None,
        skip_lines=lines.after_header,
        empty_string_is_null=False,
        glob=False,
    )
    # A blank line is a row of polars's, but none of the table's.
    if len(lines.blank):
        numbered = frame.with_row_index("line of the file")
        kept = ~pl.col("line of the file").is_in(lines.blank.tolist())
        frame = numbered.filter(kept).drop("line of the file")
    found = int(frame.select(pl.len()).collect(engine="streaming").item())
    if found != count:
        raise DataError(
            f"{path}: its lines are {count} rows, of which {found} can be read: check its quotes, "
            "or set tasks.table.quote = '' if they stand for themselves"
        )
    return Rows(path, frame, count, lines.starts[1:])


@dataclass(frozen=True)
class _Lines:
    """Where the rows of a CSV file begin.

    Attributes:
        names: the header's.
        starts: the line of each row's beginning, from 1, the header's first.
        after_header: lines up to the first row.
        blank: which of polars's rows, counted after the header, are blank lines.
        quoted: whether a field is in quotes.
    """

    names: list[str]
    starts: np.ndarray | range
    after_header: int
    blank: np.ndarray
    quoted: bool

    @classmethod
    def of(cls, path: Path, source: Path | bytes, dialect: Dialect) -> _Lines:
        """Looks at every line once, and at those with quotes twice.

        Raises:
            DataError: see `read`.
        """
        line, quote = pl.col("lines"), dialect.quote
        scanned = pl.scan_lines(source, name="lines")
        quotes = line.str.count_matches(quote, literal=True) if quote else pl.lit(0)
        with _damage(path):
            each = scanned.select(
                (line.str.strip_chars().str.len_bytes() == 0).alias("blank"),
                quotes.cast(pl.UInt32).alias("quotes"),
                line.str.count_matches(dialect.delimiter, literal=True).alias("fields") + 1,
            ).collect(engine="streaming")
        if len(each) <= 1 and isinstance(source, Path) and b"\r" in source.read_bytes()[:100_000]:
            raise DataError(f"{path}: its lines end in \\r alone: save it with line feeds")
        found, fields = each["quotes"].to_numpy(), each["fields"].to_numpy().copy()
        inside = np.zeros(len(each) + 1, bool)  # of a quoted field, where each line begins
        inside[1:] = np.cumsum(found) % 2
        blank = each["blank"].to_numpy() & ~inside[:-1]
        starts = np.flatnonzero(~inside[:-1] & ~blank)
        if not len(starts):
            return cls([], range(0), 0, starts, False)
        quoted = bool(found.any())
        if quoted:
            with _damage(path):
                _Quotes(path, scanned, np.flatnonzero(found), inside, dialect).count(fields)
        header, after_header = int(starts[0]), int(np.append(starts, len(each))[1])
        with _damage(path):
            text = scanned.slice(header, after_header - header).collect()["lines"]
        names = _names("\n".join(text), dialect)
        wrong = starts[fields[starts] != len(names)]
        if len(wrong):
            first = int(wrong[0])
            raise DataError(f"{path}, line {first + 1}: {fields[first]} fields, not {len(names)}")
        rows = np.cumsum(~inside[after_header:-1]) - 1
        plain = len(starts) == len(each) - header
        lines = range(header + 1, header + 1 + len(starts)) if plain else starts + 1
        return cls(names, lines, after_header, rows[blank[after_header:]], quoted)


class _Quotes:
    """The lines of a CSV file that have quotes, or lie in a quoted field.

    Args:
        path: of the file.
        scanned: all of its lines.
        special: numbers of those with quotes, from 0.
        inside: whether each line, and the end of the file, lies within an odd number of quotes.
        dialect: of the file.
    """

    def __init__(
        self,
        path: Path,
        scanned: pl.LazyFrame,
        special: np.ndarray,
        inside: np.ndarray,
        dialect: Dialect,
    ) -> None:
        self._path, self._scanned, self._special, self._inside = path, scanned, special, inside
        self._quote, self._allowed = dialect.quote, dialect.line_breaks
        q, self._delimiter = _escaped(dialect.quote), _escaped(dialect.delimiter)
        self._quoted = f"{q}(?:[^{q}]|{q}{q})*{q}"
        field = f"(?:{self._quoted}|[^{q}{self._delimiter}]*)"
        self._row = f"^{field}(?:{self._delimiter}{field})*$"
        self._opening = f"^(?:{field}{self._delimiter})*{q}(?:[^{q}]|{q}{q})*$"

    def count(self, fields: np.ndarray) -> None:
        """Counts the fields of the rows that begin on these lines, in place.

        Raises:
            DataError: a quote is not closed, or stands within a field that it does not begin.
        """
        line, inside = pl.col("lines"), self._inside
        found = (
            self._scanned.filter(line.str.contains(self._quote, literal=True))
            .select(line.str.contains(self._row).alias("whole"), self._fields(line))
            .collect(engine="streaming")
        )
        alone = ~inside[self._special] & ~inside[self._special + 1]
        fields[self._special[alone]] = found["fields"].to_numpy()[alone]
        bad = self._special[alone & ~found["whole"].to_numpy()]
        several = self._of_several_lines()
        fields[several["row"].to_numpy()] = several["fields"].to_numpy()
        first = [*bad[:1].tolist(), *several.filter(~pl.col("whole"))["row"].head(1)]
        looks_whole = several.filter(pl.col("fields") > 1, pl.col("rows within") > 0)
        if first:
            begin = min(first)
            with_quote = self._scanned.slice(begin, 1).collect()["lines"]
            is_open = inside[-1] and with_quote.str.contains(self._opening)[0]
            self._refuse(
                begin,
                "a quote opens here that is never closed"
                if is_open
                else "a quote stands within a field that does not begin with one",
            )
        if len(looks_whole) and not self._allowed:
            begin, rows = looks_whole.select("row", "rows within").row(0)
            raise DataError(
                f"{self._path}, line {begin + 1}: the quoted field that opens here holds {rows} "
                "lines that look like rows: close its quote, or set tasks.table.line_breaks = True "
                "if they belong to it"
            )

    def _of_several_lines(self) -> pl.DataFrame:
        """Rows that go on after a line's end: the first line, whether it is whole, its fields."""
        inside, line = self._inside, pl.col("lines")
        members = np.flatnonzero(inside[:-1] | inside[1:])
        kept = pl.Series(members, dtype=pl.UInt32)
        texts = self._scanned.select(line.gather(kept)).collect()["lines"]
        within = inside[members] & inside[members + 1]  # neither first nor last
        begins = np.maximum.accumulate(np.where(inside[members], 0, members))
        table = pl.DataFrame({"row": begins, "lines": texts, "within": within})
        rows = table.group_by("row", maintain_order=True).agg(line.str.join("\n"))
        rows = rows.select("row", line.str.contains(self._row).alias("whole"), self._fields(line))
        inner = table.filter("within").join(rows, on="row")
        alike = inner.filter(line.str.count_matches(self._delimiter) + 1 == pl.col("fields"))
        counts = alike.group_by("row").agg(pl.len().alias("rows within"))
        return rows.join(counts, on="row", how="left", maintain_order="left").fill_null(0)

    def _fields(self, line: pl.Expr) -> pl.Expr:
        outside = line.str.replace_all(self._quoted, "")
        return (outside.str.count_matches(self._delimiter) + 1).alias("fields")

    def _refuse(self, line: int, reason: str) -> None:
        raise DataError(
            f"{self._path}, line {line + 1}: {reason}; write a quote within quotes twice, or set "
            "tasks.table.quote = '' if quotes stand for themselves"
        )


def _names(header: str, dialect: Dialect) -> list[str]:
    """The fields of a header."""
    found = pl.read_csv(
        (header.removeprefix("\ufeff") + "\n").encode(),
        has_header=False,
        infer_schema=False,
        separator=dialect.delimiter,
        quote_char=dialect.quote or None,
        empty_string_is_null=False,
    )
    return [(name or "").strip() for name in found.row(0)]


def _escaped(mark: str) -> str:
    """A character in a regular expression, in brackets too."""
    return rf"\x{{{ord(mark):x}}}"


def _source(path: Path, encoding: str) -> Path | bytes:
    """The file, or what is in it as UTF-8 where it is written otherwise.

    Raises:
        DataError: it is no text of this encoding.
    """
    with path.open("rb") as file:
        start = file.read(4)
    marked = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
    if marked == "utf-16":
        encoding = marked
    if codecs.lookup(encoding).name in ("utf-8", "ascii"):
        return path
    try:
        return path.read_bytes().decode(encoding).encode()
    except UnicodeError as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Within it, what a library cannot read is a DataError."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError, io.UnsupportedOperation) as error:
        reason = first_line(error)
        if "utf8" in reason or "utf-8" in reason:
            reason = (
                f"it is no UTF-8 text{_first_byte(path)}: set tasks.table.encoding, as 'cp1252'"
            )
        raise DataError(f"{path}: cannot be read: {reason}") from None


def _first_byte(path: Path) -> str:
    """Where a file stops being UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f", line {number} has the byte {error.object[error.start]:#x}"
    return ""
