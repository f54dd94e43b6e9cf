"""Image files: which of a folder are read, and how each becomes pixels in its own depth."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from metaloss.errors import DataError, first_line

if TYPE_CHECKING:
    from PIL import Image

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
#: What Pillow knows by name but does not decode by itself.
NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
#: What systems leave in folders.
LITTER = ("__macosx", "thumbs.db", "desktop.ini")
#: The largest value of what a mode holds; of floating-point pixels 1.
LARGEST = {
    "I;16": 65_535,
    "I;16B": 65_535,
    "I;16L": 65_535,
    "I;16N": 65_535,
    "I": 2**31 - 1,
    "F": 1,
}


class Packed(ABC):
    """An image that is no file of its own, as one in a shard; its name is in errors. Picklable."""

    @abstractmethod
    def read(self) -> bytes:
        """What the file would hold."""

    @abstractmethod
    def __str__(self) -> str: ...


ImageFile = Path | Packed
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Labelled = list[tuple[ImageFile, str]]  # files with their classes


def _opened(file: ImageFile) -> Path | io.BytesIO:
    """As Pillow opens it."""
    return file if isinstance(file, Path) else io.BytesIO(file.read())


@cache
def endings() -> frozenset[str]:
    """Endings of the files that Pillow decodes, in lower case."""
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(
        e for e, kind in known.items() if kind in Image.OPEN and kind not in NOT_DECODED
    )


@dataclass
class Folder:
    """The images of a folder, and what else is there.

    Attributes:
        splits: files and classes of "train" and perhaps "valid" and "test".
        notes: what a person should know of how the folder was read.
    """

    splits: dict[str, Labelled] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def listed(path: Path) -> Folder:
    """What a folder of classes, or of splits of classes, holds.

    Of folders that hold one folder alone, the inner one is meant. Split folders go by the words
    that people use, in any case; hidden files and folders are left out.

    Raises:
        DataError: there are no classes, a class has no image, or splits cannot be told.
    """
    found = Folder()
    top = _descended(path, found)
    folders = _folders(top)
    words: dict[str, list[Path]] = {}
    for folder in folders:
        if (split := SPLIT_WORDS.get(folder.name.lower())) is not None:
            words.setdefault(split, []).append(folder)
    if "train" not in words:
        found.splits["train"] = _labelled(top, found, every=True)
        return found
    for split, named in words.items():
        if len(named) > 1:
            both = " and ".join(f"{folder.name}/" for folder in named)
            raise DataError(f"{top}: {both} are both a {split} split: leave one")
    if "test" not in words:
        raise DataError(f"{top}: there is {words['train'][0].name}/, but no test/")
    beside = [folder.name for folder in folders if folder.name.lower() not in SPLIT_WORDS]
    if beside:
        found.notes.append(f"left out: {', '.join(f'{name}/' for name in beside)} in {top}")
    for split in ("train", "test", "valid"):
        if split in words:
            folder = _descended(words[split][0], found)
            found.splits[split] = _labelled(folder, found, every=split == "train")
    return found


def inside(path: Path) -> tuple[list[Path], str]:
    """The images in a folder and in those within it, in order; and what is left out, in words."""
    files = sorted(_walk(path))
    left = Counter(file.suffix.lower() or "no ending" for file in files if not _is_image(file))
    words = ", ".join(f"{count:,} {ending}" for ending, count in left.most_common())
    return [file for file in files if _is_image(file)], words


def _descended(folder: Path, found: Folder) -> Path:
    """The folder that is meant, where one was unpacked into another."""
    while True:
        inside = _folders(folder)
        images = [p for p in folder.iterdir() if p.is_file() and _is_image(p)] if inside else []
        is_one = len(inside) == 1 and not images and inside[0].name.lower() not in SPLIT_WORDS
        if not is_one or not _folders(inside[0]):
            return folder
        folder = inside[0]
        found.notes.append(f"read in {folder}, the one folder in {folder.parent}")


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(p for p in path.iterdir() if p.is_dir() and not _is_hidden(p))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _labelled(folder: Path, found: Folder, every: bool) -> Labelled:
    """The images of a folder of classes, in order; what is left out is noted.

    Args:
        every: each class must have an image.
    """
    classes = _folders(folder)
    if not classes:
        raise DataError(f"{folder}: no folder of classes: it holds no folders")
    left: Counter[str] = Counter()
    loose = [p for p in folder.iterdir() if p.is_file() and not _is_hidden(p) and _is_image(p)]
    if loose:
        found.notes.append(
            f"left out: {len(loose)} images in {folder} that are in no class's folder"
        )
    files: Labelled = []
    for place in classes:
        inside = sorted(_walk(place))
        images = [path for path in inside if _is_image(path)]
        others = Counter(
            path.suffix.lower() or "no ending" for path in inside if not _is_image(path)
        )
        left += others
        if not images and every:
            held = ", ".join(f"{count} {ending}" for ending, count in others.items()) or "nothing"
            raise DataError(f"{folder}: no folder of classes: {place.name}/ has no image ({held})")
        files.extend((path, place.name) for path in images)
    if left:
        counts = ", ".join(f"{count:,} {ending}" for ending, count in left.most_common())
        found.notes.append(f"left out in {folder}: {counts} (no images that Pillow reads)")
    if not files:
        raise DataError(f"{folder}: no folder of classes: no image is in it")
    return files


def _walk(folder: Path) -> Iterable[Path]:
    """What is in a folder and in those within it, but for what is hidden.

    Links to folders are followed; one to a folder that it stands in is given itself, for its end
    would be that of the longest path.

    Raises:
        DataError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None

    for place, inside, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = Path(os.path.realpath(place))
        shown = [Path(place, name) for name in inside if not _is_hidden(Path(name))]
        around = [p for p in shown if p.is_symlink() and real.is_relative_to(p.resolve())]
        inside[:] = [path.name for path in shown if path not in around]
        yield from around
        yield from (Path(place, name) for name in names if not _is_hidden(Path(name)))


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in LITTER


def _is_image(path: Path) -> bool:
    """Whether it is to be read as one: a link to nothing is too, and nobody waits for a pipe."""
    return path.suffix.lower() in endings() and not (path.exists() and not path.is_file())


# --- pixels ---


@dataclass(frozen=True)
class Decoder:
    """Files as pixels [channels, height, width]: uint8, or float32 in [0, 1] of deeper ones.

    Attributes:
        size: pixels a side: the shorter side is resized to it, and the centre cut out; None: as
            they are.
        grayscale: one channel in place of three.
        background: what is seen through transparent pixels, red, green and blue of 0..255.
        deep: give float32 whatever the depth.
        interpolation: how they are resized.
    """

    size: int | None = None
    grayscale: bool = False
    background: tuple[int, int, int] = (255, 255, 255)
    deep: bool = False
    interpolation: Interpolation = "bilinear"

    def plain(self) -> dict[str, Any]:
        """What a run keeps."""
        return {**asdict(self), "background": list(self.background)}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Decoder:
        """The decoder that `plain` described."""
        return cls(**{**plain, "background": tuple(plain["background"])})

    def __call__(self, file: ImageFile) -> Tensor:
        """One image.

        Raises:
            DataError: it cannot be read.
        """
        from PIL import Image

        try:
            with Image.open(_opened(file)) as image:
                return self.of_image(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{file}: cannot be read: {first_line(error)}") from None

    def of_image(self, image: Image.Image) -> Tensor:
        """An image that Pillow has opened, or made."""
        from PIL import ImageOps

        largest = LARGEST.get(image.mode)
        if image.mode == "I" and image.format in ("PNG", "PPM"):
            largest = LARGEST["I;16"]  # of PNG as older Pillows read 16 bits; PGM is scaled to them
        planes = self._planes(ImageOps.exif_transpose(image), largest)
        pixels = np.stack([self._sized(plane) for plane in planes])
        if self.deep and pixels.dtype == np.uint8:
            pixels = pixels.astype(np.float32) / 255
        return torch.from_numpy(pixels)

    def _planes(self, image: Image.Image, largest: int | None) -> list[Image.Image]:
        """A channel each, of 8 bits or of floating-point numbers."""
        from PIL import Image

        if largest is not None:
            values = np.asarray(image).astype(np.float32) / largest
            if not np.isfinite(values).all():
                raise ValueError("a pixel is no finite number")
            return [Image.fromarray(values)] * (1 if self.grayscale else 3)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            under = Image.new("RGBA", image.size, (*self.background, 255))
            image = Image.alpha_composite(under, image)
        return list(image.convert("L" if self.grayscale else "RGB").split())

    def _sized(self, plane: Image.Image) -> np.ndarray:
        from torchvision.transforms import functional as V

        if self.size is not None:
            how = V.InterpolationMode(self.interpolation)
            resized = V.resize(plane, self.size, how)  # type: ignore[arg-type]
            plane = V.center_crop(resized, self.size)
        return np.array(plane)


@dataclass(frozen=True)
class Seen:
    """What an image's head tells of it."""

    mode: str
    size: tuple[int, int]  #: width, height, as it is shown
    frames: int
    narrowed: bool  #: its channels hold more than the 8 bits that Pillow gives
    transparent: bool
    turned: bool  #: it is shown otherwise than it is stored


def look(file: ImageFile) -> Seen:
    """The head of an image file.

    Raises:
        DataError: it is no image.
    """
    from PIL import ExifTags, Image

    try:
        with Image.open(_opened(file)) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            width, height = image.size
            raw = str(image.tile[0].args) if image.tile else ""
            return Seen(
                image.mode,
                (height, width) if orientation >= 5 else (width, height),
                getattr(image, "n_frames", 1),
                ";16" in raw and image.mode not in LARGEST,
                image.has_transparency_data,
                orientation != 1,
            )
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: cannot be read: {first_line(error)}") from None


def looked(files: Sequence[ImageFile]) -> list[Seen]:
    """The heads of all, several at once."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(look, files))


def told(seen: Sequence[Seen]) -> list[str]:
    """What a person should know of the images' kinds."""
    counts: Mapping[str, int] = {
        "hold several pictures: the first of each is read": sum(s.frames > 1 for s in seen),
        "have 16 bits in each channel, of which Pillow gives 8": sum(s.narrowed for s in seen),
    }
    return [f"{count:,} of {len(seen):,} images {what}" for what, count in counts.items() if count]
