"""A first gin file for one's own data, by a look at what a path holds."""

from __future__ import annotations

import collections
from pathlib import Path

from metaloss.errors import DataError, InputError
from metaloss.tasks.arrays import opened
from metaloss.tasks.preparation import columns, tables
from metaloss.tasks.preparation.dialect import MISSING, Dialect
from metaloss.tasks.preparation.encoding import Category, Column, Date
from metaloss.tasks.preparation.image_files import Decoder, listed
from metaloss.tasks.preparation.later import pl

DELIMITERS = (",", ";", "\t", "|")
CLASSES = 20  #: different whole numbers up to which a column of a table is taken for classes
LOOKED_AT = 20  #: pictures of a folder

TEXT = """\
# {what}: written by `metaloss init`, to be changed. `metaloss list` shows all other settings.
#   metaloss data --gin_file={file}      # what is read, and what looks wrong with it
#   metaloss train --gin_file={file}
# Without a learned loss, to compare the two:
#   metaloss train --gin_file={file} --gin_file=methods/baseline.gin

include 'methods/adalfl.gin'  # the loss is learned before the training, and goes on learning

Runner.task = @tasks.{task}()
tasks.{task}.path = {path!r}  # or relative to --data_dir
{data}
tasks.{task}.batch_size = 128
tasks.{task}.valid_fraction = 0.1  # of what is not tested on; the learned loss is trained on it

{model}
Runner.steps = {steps}  # batches; or Runner.steps = None and Runner.epochs = 20
Runner.base_optimizer = @base_optimizers.sgd
base_optimizers.sgd.lr = {lr}  # tune this first, with methods/baseline.gin: docs/should_i.md
base_optimizers.sgd.momentum = 0.9
base_optimizers.sgd.weight_decay = 5e-4
"""

NETWORK = """\
Runner.backbone = @backbones.mlp
backbones.mlp.hidden = (100, 100)"""

PICTURES = """\
Runner.backbone = @backbones.resnet18  # made for small pictures
# Or a model of timm that is fine-tuned (docs/fine_tuning.md):
#   Runner.backbone = @backbones.timm
#   backbones.timm.name = 'resnet18'
#   backbones.timm.pretrained = True"""


def gin_file(data: Path, file: str, target: str | None = None) -> str:
    """The text of a gin file that trains on the data, each guess with a comment.

    Args:
        data: a table, a folder of pictures, an .npz file or a folder of .npy files.
        file: what the gin file will be called.
        target: the column of a table that is to be predicted; None: the last.

    Raises:
        InputError: the data are not there, or of no kind that is known by its looks.
    """
    if not data.exists():
        raise DataError(f"no file or folder {data}")
    if target is not None and not _is_table(data):
        raise InputError(f"--target={target}: {data} is no table, so it has no columns")
    path = data.resolve()
    if _is_table(path):
        task, parts = "table", _of_table(path, target)
    elif path.suffix == ".npz" or (path / "x_train.npy").is_file():
        task, parts = "arrays", _of_arrays(path)
    elif path.is_dir():
        task, parts = "image_folder", _of_pictures(path)
    else:
        raise DataError(
            f"{data} is none of: a table ({', '.join(tables.ENDINGS)}), an .npz file, a folder of "
            "pictures in a folder a class, a folder with x_train.npy"
        )
    return TEXT.format(what=path.name, file=file, task=task, path=str(path), **parts)


def _is_table(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in tables.ENDINGS


def _of_table(path: Path, target: str | None) -> dict[str, str]:
    dialect = Dialect(MISSING, _delimiter(path))
    rows = tables.read(path, dialect)
    target = rows.names[-1] if target is None else target
    rows.require([target])
    held, frame = columns.typed(rows, rows.names, {}, dialect)
    if isinstance(held[target], Date):
        raise DataError(f"{rows.place(target)} holds dates: give another --target=COLUMN")
    values = frame[target].drop_nulls()
    whole = isinstance(held[target], Category) or bool((values % 1 == 0).all())
    few = isinstance(held[target], Category) or values.n_unique() <= CLASSES
    kind = "classification" if whole and few else "regression"
    others = [name for name in rows.names if name != target]
    names = [name for name in others if _names_rows(name, held[name], frame[name])]
    lines = [
        f"tasks.table.target = {target!r}  # to be predicted; else: {', '.join(others)}",
        f"tasks.table.kind = {kind!r}  # {values.n_unique()} different values; or "
        + ("'regression'" if kind == "classification" else "'classification'"),
        f"tasks.table.ignore = {tuple(names)!r}  # columns that say nothing, as a row's name",
    ]
    if dialect.delimiter != ",":
        lines.append(f"tasks.table.delimiter = {dialect.delimiter!r}")
    # In regression a larger rate lets losses diverge: docs/earlier_results.md.
    lr = "0.01" if kind == "classification" else "0.001"
    return {"data": "\n".join(lines), "model": NETWORK, "steps": "1000", "lr": lr}


def _delimiter(path: Path) -> str:
    """What stands most often in the first line of a text."""
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        return ","
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        counts = collections.Counter(file.readline())
    return max(DELIMITERS, key=lambda mark: counts[mark])


def _names_rows(name: str, column: Column, values: pl.Series) -> bool:
    """Whether a column seems to say which row it is, and nothing else."""
    distinct = values.n_unique() == len(values)
    return distinct and (isinstance(column, Category) or name.lower() in ("", "id", "index"))


def _of_arrays(path: Path) -> dict[str, str]:
    with opened(path) as archive:
        found = {k: archive[k] for k in ("x_train", "y_train") if k in archive.files}
        if len(found) < 2:
            known = ", ".join(archive.files) or "none"
            raise DataError(
                f"{path}: name its arrays x_train, y_train, x_test, y_test; it has {known}"
            )
    x, y = found["x_train"], found["y_train"]
    kind = "regression" if y.dtype.kind == "f" else "classification"
    lines = [f"tasks.arrays.kind = {kind!r}  # y_train is of {y.dtype}"]
    if x.ndim < 3:
        lr = "0.01" if kind == "classification" else "0.001"
        return {"data": "\n".join(lines), "model": NETWORK, "steps": "1000", "lr": lr}
    lines += [
        "tasks.arrays.padding = 4  # pictures are shifted, and mirrored:",
        "tasks.arrays.flip = True",
    ]
    return {"data": "\n".join(lines), "model": PICTURES, "steps": "10000", "lr": "0.01"}


def _of_pictures(path: Path) -> dict[str, str]:
    files = [file for split in listed(path).splits.values() for file, _ in split]
    looked = [Decoder()(file) for file in files[:: max(1, len(files) // LOOKED_AT)]]
    sides = sorted(min(pixels.shape[-2:]) for pixels in looked)
    side = sides[len(sides) // 2]
    size = 32 if side < 48 else 64
    grey = all(bool((pixels == pixels[:1]).all()) for pixels in looked)
    lines = [
        f"tasks.image_folder.size = {size}  # pixels a side, of about {side} that there are; "
        "twice as many take four times as long",
        f"tasks.image_folder.grayscale = {grey}",
        f"tasks.image_folder.padding = {size // 8}  # training pictures are shifted, and mirrored:",
        "tasks.image_folder.flip = True  # where left and right are alike",
    ]
    return {"data": "\n".join(lines), "model": PICTURES, "steps": "10000", "lr": "0.01"}
