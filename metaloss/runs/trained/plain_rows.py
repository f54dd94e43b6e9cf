"""Rows of a table as the numbers that its model takes, by NumPy alone.

The same as metaloss does for files and data frames. Exports and READMEs carry this file along, to
where there is no metaloss.
"""

import math
import re
from datetime import date, datetime, timedelta, timezone

import numpy as np

DATE = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?"
    r"(?:\s?(Z|UTC|[+-]\d{2}:?\d{2}))?)?"
)
NO_NUMBER = (
    "", "null", "none", "nil", "na", "n/a", "n.a.", "n.a", "nan", "-nan", "<na>", "#n/a", "#na",
    "missing", "unknown", "not available", "-", "--", "---", ".", "..", "?", "nat",
)  # fmt: skip


def encode(rows, encoding):
    """Rows, each a dict by column, as numbers [n, inputs]: what the model takes.

    Args:
        rows: values are words as in a file, numbers, booleans or dates; None is a missing one.
        encoding: as model.json has it.
    """
    dialect, found = encoding["dialect"], []
    for i, row in enumerate(rows):
        numbers = []
        for name, column in encoding["columns"].items():
            try:
                numbers += KINDS[column["kind"]](row[name], column, dialect)
            except KeyError:
                raise ValueError(f"row {i} has no column {name!r}") from None
            except ValueError as error:
                raise ValueError(f"row {i}, {name}: {error}") from None
        found.append(numbers)
    return np.array(found, dtype=np.float64)


def word_of(value, dialect):
    """What stands there as text; None where it is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    text = str(value).strip()
    return None if isinstance(value, str) and text in dialect["missing"] else text


def is_number(word):
    """Whether a word says a number."""
    try:  # Python reads more than files have: 1_000, and digits of other scripts
        return word.isascii() and "_" not in word and not math.isnan(float(word))
    except ValueError:
        return False


def number(value, column, dialect):
    """A number; the mean of the training's where it is missing."""
    if not isinstance(value, str):
        missing = value is None or math.isnan(value)
        return [column["mean"] if missing else float(value)]
    text = value.strip()
    if any(is_number(word) for word in dialect["missing"]) and text in dialect["missing"]:
        return [column["mean"]]
    if dialect["percent"]:
        text = text.removesuffix("%").rstrip()
    if dialect["thousands"]:
        text = text.replace(dialect["thousands"], "")
    if dialect["decimal"] == ",":
        text = text.replace(",", ".", 1) if "." not in text else "no number"
    if not is_number(text):
        if value.strip() in dialect["missing"] or value.strip().lower() in NO_NUMBER:
            return [column["mean"]]
        raise ValueError(f"{value!r} is no number")
    if math.isinf(float(text)):
        raise ValueError(f"{value!r} is no finite number")
    return [float(text)]


def order(value, column, dialect):
    """The place of a word in its order."""
    word = word_of(value, dialect)
    if word is None:
        return [column["mean"]]
    if word not in column["words"]:
        raise ValueError(f"{word!r} is no word of its order, {', '.join(column['words'])}")
    return [float(column["words"].index(word))]


def days(value, column, dialect):
    """Days since 1970, and the places in the year, the week and the day."""
    since = moment(value, dialect)
    periods = [365.2425, 7.0, 1.0][: 3 if column["clock"] else 2]
    if since is None:
        return [column["mean"], *[0.0] * (2 * len(periods))]
    angles = [2 * math.pi * (since / period % 1) for period in periods]
    return [since, *(wave(angle) for angle in angles for wave in (math.sin, math.cos))]


def moment(value, dialect):
    """Days since 1970; None where there is none."""
    if not isinstance(value, (date, datetime)):
        text = word_of(value, dialect)
        if text is None or text.lower() in ("null", "none", "nat"):
            return None
        match = DATE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no date")
        day, hours, minutes, seconds, zone = match.groups()
        value = datetime.fromisoformat(day)
        value += timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
        value += timedelta(seconds=float(seconds or 0))
        if zone and zone not in ("Z", "UTC"):
            away = timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:]))
            value += away if zone[0] == "-" else -away
    if not isinstance(value, datetime):
        return float((value - date(1970, 1, 1)).days)
    if value.tzinfo is not None:
        value = value.astimezone(timezone.utc).replace(tzinfo=None)
    return (value - datetime(1970, 1, 1)) / timedelta(days=1)


def category(value, column, dialect):
    """A 1 at its word, or at that of the rare ones; else 0 everywhere."""
    words, word = column["words"], word_of(value, dialect)
    word = "" if word is None else word
    if word not in words and not (isinstance(value, str) and column["held"] == "text"):
        boolean = isinstance(value, bool) or column["held"] == "boolean"
        known = {key(w, boolean): w for w in reversed(words)}
        known.pop(None, None)
        word = known.get(key(word, boolean), word)
    found = [0.0] * (len(words) + column["rare"])
    if word in words:
        found[words.index(word)] = 1.0
    elif column["rare"]:
        found[-1] = 1.0
    return found


def key(word, boolean):
    """What is the same in words of the same boolean, or number."""
    if boolean:
        return word.lower()
    return float(word) if is_number(word) else None


KINDS = {"number": number, "order": order, "date": days, "category": category}
