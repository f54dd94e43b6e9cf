"""What a person has to predict for, as raw inputs of a model: a batch at a time, in order."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metaloss.errors import DataError, did_you_mean
from metaloss.tasks.arrays import CHANNELS, opened
from metaloss.tasks.base import Data
from metaloss.tasks.preparation import given_rows, image_files, own_data
from metaloss.tasks.preparation.encoding import Encoding
from metaloss.tasks.preparation.image_files import Decoder
from metaloss.tasks.preparation.images import Images
from metaloss.tasks.preparation.tables import ARROW, Rows

if TYPE_CHECKING:
    from PIL import Image

TABLES = (".csv", ".tsv", ".parquet", *ARROW)


@dataclass(frozen=True)
class Inputs:
    """Some of them.

    Attributes:
        raw: as the task's files hold them, [n, *input_shape].
        files: that they are from, a file each; None: they are from none, or all from one.
    """

    raw: Tensor
    files: tuple[str, ...] | None = None


def batches(what: Any, about: Data, size: int, key: str | None = None) -> Iterator[Inputs]:
    """The inputs in what was given, so many at a time; what is to come is not read yet.

    Args:
        what: for a model of pictures: files, or a folder of them; images of Pillow; arrays of bytes
            of any size. Of a table: a CSV, Parquet or Arrow file, dicts by column, a data frame. Of
            arrays, and of pictures too: an .npz or .npy file, an array of one input or of many.
            Several are in a list, or come from an iterator.
        about: the model's own data.
        size: of a batch.
        key: of the array in an .npz file; None: "x", the only one, or "x_test".

    Raises:
        DataError: a file is not there or damaged, or holds what the model cannot take.
    """
    if isinstance(what, str):
        what = Path(what).expanduser()
    if isinstance(what, Path) and not what.exists():
        raise DataError(f"no file {what}")
    if about.encoding is not None:
        yield from _of_table(what, about.encoding, size)
    elif isinstance(what, Path):
        yield from _of_path(what, about, size, key)
    elif isinstance(what, (np.ndarray, Tensor)):
        yield from _of_array(_array(what), about, size, "the array")
    elif decoder_of(about) is None and isinstance(what, Iterable):
        yield from _of_array(np.asarray(list(map(_array, what))), about, size, "the array")
    else:
        several = isinstance(what, Iterable) and not _is_image(what)
        yield from _of_pictures(what if several else [what], about, size)


def takes_bytes(about: Data) -> bool:
    """Whether a model's raw inputs are the bytes of images, and no other numbers."""
    stored = about.splits["train"][0].dtype
    return stored == torch.uint8 or isinstance(about.inputs, Images)


def decoder_of(about: Data) -> Decoder | None:
    """How image files become a model's raw inputs; None: its inputs are none."""
    shape = about.input_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        return None
    if about.decoder is None and takes_bytes(about):
        return Decoder(grayscale=shape[0] == 1)
    return about.decoder


# --- tables ---


def _of_table(what: Any, encoding: Encoding, size: int) -> Iterator[Inputs]:
    names = tuple(encoding.columns)
    if isinstance(what, Path):
        if what.suffix == ".npz" or not what.is_file():
            raise DataError(
                f"{what}: the run's rows are a table's: give a CSV, Parquet or Arrow file"
            )
        yield from _of_rows(encoding.rows(what), encoding, size)
    elif isinstance(what, Mapping):
        rows = encoding.checked(given_rows.of_dicts([what], names))
        yield from _of_rows(rows, encoding, size)
    elif isinstance(what, (list, tuple, Iterator)):
        coming = iter(what)
        while some := list(islice(coming, size)):
            rows = encoding.checked(given_rows.of_dicts(some, names))
            yield from _of_rows(rows, encoding, size)
    else:
        yield from _of_rows(encoding.checked(given_rows.of_frame(what)), encoding, size)


def _of_rows(rows: Rows, encoding: Encoding, size: int) -> Iterator[Inputs]:
    for line in encoding.unknown(rows):
        warnings.warn(line, stacklevel=2)
    frame = encoding.frame(rows)
    for start in range(0, frame.height, size):
        yield Inputs(torch.from_numpy(encoding.encode(frame[start : start + size])))


# --- files and arrays ---


def _of_path(path: Path, about: Data, size: int, key: str | None) -> Iterator[Inputs]:
    if path.suffix in TABLES:
        raise DataError(f"{path}: the run's inputs are arrays: give an .npz file")
    if path.is_dir():
        files, left = image_files.inside(path)
        if left:
            warnings.warn(f"left out in {path}: {left}", stacklevel=2)
        if not files:
            raise DataError(f"{path}: no picture is in this folder")
        yield from _of_pictures(files, about, size)
    elif path.suffix == ".npy":
        with opened(path.parent) as folder:
            raw = np.array(folder[path.stem])
        yield from _of_array(raw, about, size, str(path))
    elif path.suffix != ".npz" and path.suffix.lower() in image_files.endings():
        yield from _of_pictures([path], about, size)
    else:
        with opened(path) as archive:
            key = _key(archive.files, key, path)
            raw = archive[key]
        yield from _of_array(raw, about, size, f"{path}: {key}")


def _of_array(x: np.ndarray, about: Data, size: int, place: str) -> Iterator[Inputs]:
    """One input, many, or images of another size."""
    layouts, decoder = _layouts(about.input_shape), decoder_of(about)
    if x.shape in layouts:
        x = x[None]
    is_raw = x.shape[1:] in layouts and not (
        decoder is not None and decoder.deep and x.dtype == np.uint8
    )
    if decoder is not None and not is_raw and x.dtype == np.uint8 and x.ndim in (2, 3, 4):
        one = x.ndim == 2 or (x.ndim == 3 and (x.shape[0] in CHANNELS or x.shape[2] in CHANNELS))
        yield from _of_pictures([x] if one else x, about, size)
    else:
        for part in torch.split(_shaped(x, about.input_shape, place), size):
            yield Inputs(part)


def _array(what: Any) -> np.ndarray:
    return what.detach().cpu().numpy() if isinstance(what, Tensor) else np.asarray(what)


def _layouts(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes of one input."""
    if len(shape) != 3:
        return [shape]
    channels, height, width = shape
    return [shape, (height, width, channels)] + [(height, width)] * (channels == 1)


def _shaped(raw: np.ndarray, shape: tuple[int, ...], place: str) -> Tensor:
    """An array as the task stores its raw inputs."""
    layouts = _layouts(shape)
    if not raw.size or raw.shape[1:] not in layouts:
        known = " or ".join(str(["n", *layout]).replace("'", "") for layout in layouts)
        raise DataError(f"{place} is {raw.dtype} {list(raw.shape)}, but the model takes {known}")
    if raw.dtype.kind not in "buif":
        raise DataError(f"{place} is {raw.dtype}: give numbers")
    if raw.dtype != np.uint8:
        own_data.require_finite(raw, place)
    if raw.shape[1:] != shape:
        raw = raw[:, None] if raw.ndim == 3 else raw.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.require(raw, requirements=("C", "W")))


def _key(present: list[str], asked: str | None, path: Path) -> str:
    """Which array to read."""
    if asked is None:
        usual = [key for key in ("x", *present[: len(present) == 1], "x_test") if key in present]
        if usual:
            return usual[0]
        asked = "x"
    if asked not in present:
        near, known = did_you_mean(asked, present), ", ".join(present)
        raise DataError(f"{path}: no array {asked}{near} · it holds: {known or 'none'}; see --key")
    return asked


# --- pictures ---


def _of_pictures(items: Iterable[Any], about: Data, size: int) -> Iterator[Inputs]:
    decoder, shape = decoder_of(about), about.input_shape
    if decoder is None:
        raise DataError(
            f"the run's inputs are numbers of shape {list(shape)}, and no bytes of pictures: give "
            "an array, or an .npz file"
        )
    resized, coming = 0, iter(items)
    while some := list(islice(coming, size)):
        opened_ = [_picture(item) for item in some]
        with ThreadPoolExecutor() as pool:  # decoding leaves the interpreter's lock
            found = list(pool.map(lambda item: _decoded(item, decoder, shape), opened_))
        if not resized and (resized := sum(other for _, other in found)):
            (height, width), channels = shape[1:], shape[0]
            warnings.warn(
                f"pictures of other sizes than {height}x{width} are resized and their centre cut "
                f"out; the training's {'grey ' * (channels == 1)}pictures all had that size",
                stacklevel=2,
            )
        files = [str(item) for item in opened_ if isinstance(item, Path)]
        named = len(files) == len(opened_)
        yield Inputs(torch.stack([p for p, _ in found]), tuple(files) if named else None)


def _is_image(what: Any) -> bool:
    from PIL import Image

    return isinstance(what, Image.Image)


def _picture(item: Any) -> Path | Image.Image:
    """A file, or an image of Pillow; bytes become one."""
    from PIL import Image

    if isinstance(item, (str, Path)):
        return Path(item).expanduser()
    if isinstance(item, Image.Image):
        return item
    if not isinstance(item, (np.ndarray, Tensor)):
        kind = type(item).__name__
        raise DataError(f"{kind} is no picture: give a file, an image of Pillow, or an array")
    x = _array(item)
    if x.ndim == 3 and x.shape[0] in CHANNELS and x.shape[2] not in CHANNELS:
        x = x.transpose(1, 2, 0)
    if x.dtype != np.uint8 or x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[2] not in CHANNELS):
        raise DataError(
            f"an array {x.dtype} {list(x.shape)} is no picture: give bytes (uint8) [height, width] "
            "or [height, width, channels]"
        )
    return Image.fromarray(np.ascontiguousarray(x[..., 0] if x.shape[2:] == (1,) else x))


def _decoded(
    item: Path | Image.Image, decoder: Decoder, shape: tuple[int, ...]
) -> tuple[Tensor, bool]:
    """A picture as a raw input, and whether it had to be made another size than training did."""
    pixels = decoder(item) if isinstance(item, Path) else decoder.of_image(item)
    other = tuple(pixels.shape) != shape
    if other:
        height, width = shape[1:]
        if height != width:
            name = item if isinstance(item, Path) else "a picture"
            raise DataError(
                f"{name} has {pixels.shape[1]}x{pixels.shape[2]} pixels, but the model takes "
                f"{height}x{width}: cut it out first"
            )
        decoder = replace(decoder, size=height)
        pixels = decoder(item) if isinstance(item, Path) else decoder.of_image(item)
    if not decoder.deep and pixels.dtype != torch.uint8:  # 16 bits, of a model of 8
        pixels = (255 * pixels).round().to(torch.uint8)
    return pixels, other
