"""One's own images in WebDataset shards."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from metaloss.config.arguments import NonNegativeInt, PositiveFloat, PositiveInt, Share
from metaloss.errors import DataError, first_line
from metaloss.tasks.base import TASKS, Data, Task
from metaloss.tasks.preparation import own_data
from metaloss.tasks.preparation.image_data import (
    ImageReading,
    Transforms,
    augmentation,
    pictured,
    scale_of,
)
from metaloss.tasks.preparation.image_files import (
    SPLIT_WORDS,
    Decoder,
    ImageFile,
    Interpolation,
    Labelled,
    Packed,
    endings,
)

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Member(Packed):
    """A file in a shard, which is read from where it begins."""

    shard: Path
    name: str
    start: int
    size: int

    def read(self) -> bytes:
        with self.shard.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"


@TASKS.register("webdataset")
class WebDataset(Task):
    """Images in WebDataset shards: tar files in which members of one name are an example.

    A shard says where each of its members begins, so that one is read without those before it:
    examples are drawn by number as from any files, over all shards alike, and a run is the same one
    with any number of workers, and when it is resumed. That needs shards on a disk that are not
    compressed.

    Args:
        path: of a shard or a folder of them, inside `data_dir` unless it is absolute. Words in the
            names of shards or their folders (train, val, test, as people use them) are splits.
        label: the ending of the member that holds the class, as text.
        field: where that is a JSON object, what in it is the class; "": the whole text.
        size, grayscale, background, padding, flip, augment, stream, memory: see `image_folder`.
        interpolation, mean, deviation, class_weights: see `image_folder`.
        test_fraction: share of the images for the test split where no shard is of one.
    """

    def __init__(
        self,
        path: str,
        label: str = "cls",
        field: str = "",
        size: PositiveInt | None = None,
        grayscale: bool = False,
        background: tuple[int, int, int] = (255, 255, 255),
        padding: NonNegativeInt = 0,
        flip: bool = False,
        augment: Transforms | None = None,
        stream: bool | None = None,
        memory: PositiveFloat = 4.0,
        interpolation: Interpolation | None = None,
        mean: Sequence[float] | None = None,
        deviation: Sequence[float] | None = None,
        class_weights: Literal["balanced"] | Mapping[str, float] | None = None,
        test_fraction: Share = 0.2,
        batch_size: PositiveInt = 128,
        valid_fraction: Share = 0.1,
    ) -> None:
        super().__init__(batch_size, valid_fraction)
        self.path, self.label, self.field = path, label.removeprefix(".").lower(), field
        self.test_fraction = test_fraction
        decoder = Decoder(
            size, grayscale, own_data.color(background), interpolation=interpolation or "bilinear"
        )
        self.reading = ImageReading(
            "webdataset", decoder, padding, flip, augmentation(augment), stream, memory,
            scale_of(mean, deviation, grayscale), class_weights,
        )  # fmt: skip
        self.pictured = pictured(size, interpolation, mean, deviation, grayscale)

    def load(self, data_dir: Path, generator: torch.Generator) -> Data:
        path = own_data.find(data_dir, self.path, "webdataset")
        splits: dict[str, Labelled] = {}
        left: Counter[str] = Counter()
        for split, shard in _by_split(path):
            splits.setdefault(split, []).extend(self._examples(shard, left))
        notes = []
        if left:
            counts = ", ".join(f"{n:,} .{ending}" for ending, n in left.most_common())
            notes.append(f"left out in {path}: {counts} (neither images nor labels)")
        return self.reading.of_classes(
            splits,
            self.test_fraction,
            self.valid_fraction,
            generator,
            str(path),
            notes,
            own_data.in_order(name for _, name in splits["train"]),
        )

    def _examples(self, shard: Path, left: Counter[str]) -> Iterator[tuple[ImageFile, str]]:
        """The images of a shard with their classes; what else is there is counted."""
        images: dict[str, Member] = {}
        labels: dict[str, Member] = {}
        for key, ending, member in _members(shard):
            kind = labels if ending == self.label else images
            if kind is images and f".{ending.rpartition('.')[2]}" not in endings():
                left[ending] += 1
                continue
            if key in kind:
                raise DataError(f"{member}: the example has {kind[key].name} already")
            kind[key] = member
        for key, image in images.items():
            if key not in labels:
                raise DataError(f"{image}: no {key}.{self.label} is in the shard")
            yield image, self._class(labels.pop(key))
        for member in labels.values():
            raise DataError(f"{member}: no image is of this name")

    def _class(self, member: Member) -> str:
        """The class that a member names."""
        try:
            text = member.read().decode().strip()
            if self.field:
                held = json.loads(text)
                if not isinstance(held, dict) or self.field not in held:
                    known = ", ".join(held) if isinstance(held, dict) else "no object"
                    raise DataError(f"{member}: no field '{self.field}' · it has: {known}")
                text = str(held[self.field])
        except (UnicodeError, ValueError) as error:
            raise DataError(f"{member}: cannot be read: {first_line(error)}") from None
        if not text:
            raise DataError(f"{member}: nothing stands there")
        return text


def _by_split(path: Path) -> list[tuple[str, Path]]:
    """The shards, each with the split that it is of."""
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [file for file in inside if file.is_file() and not file.name.startswith(".")]
    for file in files:
        if file.name.lower().endswith(COMPRESSED):
            raise DataError(f"{file}: a compressed shard cannot be drawn from: unpack it to .tar")
    shards = [file for file in files if file.suffix.lower() == ".tar"]
    if not shards:
        raise DataError(f"{path}: no shard is there (a file whose name ends in .tar)")
    told = {shard: _split_of(shard, path) for shard in shards}
    if not any(told.values()):
        return [("train", shard) for shard in shards]
    for shard, split in told.items():
        if split is None:
            raise DataError(f"{shard}: its name says no split, as those of others do")
    if "train" not in told.values():
        raise DataError(f"{path}: no shard is of the train split")
    return [(str(split), shard) for shard, split in told.items()]


def _split_of(shard: Path, path: Path) -> str | None:
    """The split that a shard's name, or that of its folder, says; None: neither does."""
    for name in (shard.name, *(p.name for p in shard.parents if path in p.parents)):
        words = [SPLIT_WORDS[w] for w in re.split("[^a-z]+", name.lower()) if w in SPLIT_WORDS]
        if len(set(words)) > 1:
            raise DataError(f"{shard}: its name says {words[0]} and {words[1]}")
        if words:
            return words[0]
    return None


def _members(shard: Path) -> Iterator[tuple[str, str, Member]]:
    """The files in a shard: the example's name, the ending in lower case, and where it is."""
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in tar:
                folder, _, name = info.name.rpartition("/")
                key, _, ending = name.partition(".")
                if info.isfile() and key:
                    member = Member(shard, info.name, info.offset_data, info.size)
                    yield f"{folder}/{key}".lstrip("/"), ending.lower(), member
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{shard}: cannot be read: {first_line(error)}") from None
