"""Image data: files and labels by split to `Data`, in memory or as streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from metaloss.errors import ArgumentError, DataError, did_you_mean, first_line
from metaloss.problem.batches import Batch
from metaloss.tasks.base import CLASSIFICATION, Data, Objective
from metaloss.tasks.preparation import image_files, own_data
from metaloss.tasks.preparation.image_files import (
    LARGEST,
    Decoder,
    ImageFile,
    Interpolation,
    Labelled,
    Seen,
)
from metaloss.tasks.preparation.images import Images, by_channel, mean_and_deviation
from metaloss.tasks.preparation.splits import hold_out, with_validation
from metaloss.tasks.preparation.streams import (
    SAMPLE,
    Augmentation,
    Source,
    Stream,
    transform_names,
    transform_of,
)

GIGABYTE = 1e9

#: A transform of torchvision.transforms.v2 by its name, and its arguments.
Transforms = Sequence[tuple[str, Mapping[str, Any]]]


class ImageSource(Source):
    """Image files, decoded when they are asked for."""

    def __init__(
        self, files: Sequence[ImageFile], decoder: Decoder, shape: tuple[int, ...]
    ) -> None:
        self._files, self._decoder, self.shape = files, decoder, shape
        self.dtype = torch.float32 if decoder.deep else torch.uint8

    def __len__(self) -> int:
        return len(self._files)

    def read(self, number: int) -> Tensor:
        image = self._decoder(self._files[number])
        if tuple(image.shape) != self.shape:
            found = f"{list(image.shape)}, not {list(self.shape)}"
            raise DataError(f"{self._files[number]} has changed: it is {found}")
        return image


class TensorSource(Source):
    """Examples that are in memory, to be augmented by worker processes."""

    def __init__(self, examples: Tensor) -> None:
        self._examples = examples
        self.shape, self.dtype = tuple(examples.shape[1:]), examples.dtype

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, number: int) -> Tensor:
        return self._examples[number]


@dataclass(frozen=True)
class ImageReading:
    """How a task reads its image files.

    Attributes:
        task: its name, for errors.
        decoder: from files to pixels.
        padding, flip: augmentation on the device, see `Images`.
        augment: augmentation by worker processes.
        stream: decode when a batch is drawn; None: if all images together are larger than `memory`.
        memory: gigabytes of pixels that are kept.
        scale: mean and deviation of the pixels, [channels, 1, 1]; None: the training images'.
        class_weights: how often classes are drawn, see `own_data.class_weights`; None: as they are.
    """

    task: str
    decoder: Decoder
    padding: int = 0
    flip: bool = False
    augment: Augmentation | None = None
    stream: bool | None = None
    memory: float = 4.0
    scale: tuple[Tensor, Tensor] | None = None
    class_weights: Literal["balanced"] | Mapping[str, float] | None = None

    def of_classes(
        self,
        splits: Mapping[str, Labelled],
        test_fraction: float,
        valid_fraction: float,
        generator: torch.Generator,
        place: str,
        notes: Sequence[str] = (),
        classes: Sequence[str] | None = None,
    ) -> Data:
        """The data of files with a class each.

        Args:
            splits: "train" and perhaps "valid" and "test".
            test_fraction: of the training files, stratified, where there is no test split.
            valid_fraction, generator: see `with_validation`.
            place: where the files are, for errors.
            notes: what a person should know besides.
            classes: in their order; None: the training's, by their names.

        Raises:
            DataError: there is one class alone, or one that no training file is of.
        """
        counts = own_data.counted(name for part in splits.values() for _, name in part)
        found = ", ".join(f"{split} {len(part):,}" for split, part in splits.items())
        total = sum(map(len, splits.values()))
        if classes is None:
            classes = sorted({name for _, name in splits["train"]})
        number = {name: i for i, name in enumerate(classes)}
        for part in splits.values():
            for file, name in part:
                if name not in number:
                    raise DataError(f"{file}: no training image is of class {name}")
        own_data.require_several(classes, place)
        files = {split: [file for file, _ in part] for split, part in splits.items()}
        labels = {
            split: torch.tensor([number[c] for _, c in part]) for split, part in splits.items()
        }
        if "test" not in splits:
            whole, all_labels = files["train"], labels["train"]
            fixed = torch.Generator().manual_seed(0)  # the same test split under every seed
            rows = dict(
                zip(("train", "test"), hold_out(all_labels, test_fraction, fixed), strict=True)
            )
            files |= {split: [whole[i] for i in part.tolist()] for split, part in rows.items()}
            labels |= {split: all_labels[part] for split, part in rows.items()}
        data = self.data(
            files,
            labels,
            len(classes),
            CLASSIFICATION,
            valid_fraction,
            generator,
            [f"{place}: {total:,} images ({found}), {counts}", *notes],
            classes=tuple(classes),
        )
        own_data.require_classes(data.splits["train"][1], classes, place)
        return data

    def data(
        self,
        files: Mapping[str, Sequence[ImageFile]],
        labels: Mapping[str, Tensor],
        outputs: int,
        objective: Objective,
        valid_fraction: float,
        generator: torch.Generator,
        notes: Sequence[str],
        **more: Any,
    ) -> Data:
        """The data of some files.

        Args:
            files, labels: of the splits; "valid" is drawn from "train" where it is not given.
            outputs, objective: see `Data`.
            valid_fraction, generator: see `with_validation`.
            notes: what a person should know besides.
            more: fields of `Data`.

        Raises:
            DataError: an image cannot be read, or has another size than others.
        """
        every = [file for part in files.values() for file in part]
        seen = image_files.looked(every)
        deep = any(one.mode in LARGEST for one in seen)
        decoder = replace(self.decoder, deep=deep)
        shape = self._shape(every, seen)
        numbers, splits = torch.arange(len(every)), {}
        for split, part in files.items():
            splits[split], numbers = (numbers[: len(part)], labels[split]), numbers[len(part) :]
        splits = with_validation(splits, valid_fraction, generator)
        size = len(every) * torch.Size(shape).numel() * (4 if deep else 1)
        streamed = size > self.memory * GIGABYTE if self.stream is None else self.stream
        source: Source
        if streamed:
            source = ImageSource(every, decoder, shape)
        else:
            source = TensorSource(self._decoded(every, decoder))
        inputs: dict[str, Any] = {
            split: Stream(source, rows, self.augment) for split, (rows, _) in splits.items()
        }
        said = [*notes, *image_files.told(seen)]
        if streamed:
            said.append(
                f"{len(every):,} images are {size / GIGABYTE:.1f} GB: they are decoded as they are "
                "drawn"
            )
        scale = self.scale
        if scale is None:
            normalised = inputs["train"]
            if streamed:
                step = max(1, len(normalised) // SAMPLE)
                normalised = normalised.subset(torch.arange(0, len(normalised), step))
                said[-1] += f", and normalised by {len(normalised):,} of the training's"
            scale = mean_and_deviation(normalised[torch.arange(len(normalised))])
        else:
            mean, deviation = (", ".join(f"{x:.3g}" for x in part.flatten()) for part in scale)
            how = f"{self.decoder.interpolation}, mean {mean}, deviation {deviation}"
            said.append(f"pictures of {shape[1]}x{shape[2]}: {how}")
        if not streamed and self.augment is None:
            inputs = {split: stream[torch.arange(len(stream))] for split, stream in inputs.items()}
        weights = None
        if self.class_weights is not None:
            weights = self._weights(splits, more.get("classes"), objective)
        return Data(
            {split: (inputs[split], y) for split, (_, y) in splits.items()},
            outputs,
            objective,
            Images(*scale, self.padding, self.flip),
            decoder=decoder,
            weights=weights,
            notes=tuple(said),
            read_otherwise=_changed(seen),
            **more,
        )

    def _weights(
        self, splits: Mapping[str, Batch], classes: Sequence[str] | None, objective: Objective
    ) -> dict[str, Tensor]:
        """How often each example is drawn, by split."""
        assert self.class_weights is not None
        if objective is not CLASSIFICATION or classes is None:
            raise ArgumentError("class_weights", self.class_weights, "None but for classification")
        place = f"tasks.{self.task}"
        of_class = own_data.class_weights(self.class_weights, splits["train"][1], classes, place)
        return {split: of_class[y] for split, (_, y) in splits.items()}

    def _shape(self, files: Sequence[ImageFile], seen: Sequence[Seen]) -> tuple[int, ...]:
        """Of all images."""
        channels, size = 1 if self.decoder.grayscale else 3, self.decoder.size
        if size is not None:
            return (channels, size, size)
        for file, one in zip(files, seen, strict=True):
            if one.size != seen[0].size:
                (width, height), (w, h) = one.size, seen[0].size
                raise DataError(
                    f"{file} has {height}x{width} pixels, but {files[0]} {h}x{w}: set "
                    f"tasks.{self.task}.size"
                )
        width, height = seen[0].size
        return (channels, height, width)

    def _decoded(self, files: Sequence[ImageFile], decoder: Decoder) -> Tensor:
        """[n, channels, height, width]."""
        with ThreadPoolExecutor() as pool:  # decoding leaves the interpreter's lock
            return torch.stack(list(pool.map(decoder, files)))


def scale_of(
    mean: Sequence[float] | None, deviation: Sequence[float] | None, grayscale: bool
) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation by channel, [channels, 1, 1], where a task is asked for them.

    Raises:
        ArgumentError: one is without the other, of other channels, or not above 0.
    """
    channels = 1 if grayscale else 3
    if mean is None and deviation is None:
        return None
    if mean is None or deviation is None:
        given, other = ("mean", mean), "deviation"
        if mean is None:
            given, other = ("deviation", deviation), "mean"
        raise ArgumentError(*given, f"{other} beside it")
    for name, values in (("mean", mean), ("deviation", deviation)):
        if len(values) != channels or (name == "deviation" and not min(values) > 0):
            above = " above 0" * (name == "deviation")
            raise ArgumentError(name, values, f"a number{above} for each of {channels} channels")
    return by_channel(tuple(mean)), by_channel(tuple(deviation))


def pictured(
    size: int | None,
    interpolation: Interpolation | None,
    mean: Sequence[float] | None,
    deviation: Sequence[float] | None,
    grayscale: bool,
) -> dict[str, Any]:
    """See `Task.pictured`; the scale of colours is none of grey pictures."""
    asked = {"size": size, "interpolation": interpolation}
    return asked if grayscale else {**asked, "mean": mean, "deviation": deviation}


def augmentation(transforms: Transforms | None) -> Augmentation | None:
    """The transforms that a task is asked for.

    Raises:
        ArgumentError: torchvision has none of this name, or it takes no such arguments.
    """
    if not transforms:
        return None
    asked = []
    for name, arguments in transforms:
        kind = transform_of(name)
        if kind is None:
            near = did_you_mean(name, transform_names())
            asked_for = f"'timm', or a name in torchvision.transforms.v2{near}"
            raise ArgumentError("augment", name, asked_for)
        try:
            kind(**arguments)
        except (TypeError, ValueError, KeyError, AssertionError) as error:
            reason = first_line(error)
            raise ArgumentError("augment", arguments, f"what {name} takes ({reason})") from None
        asked.append((name, dict(arguments)))
    return Augmentation(tuple(asked))


def _changed(seen: Sequence[Seen]) -> str | None:
    """What earlier versions read otherwise."""
    deep = sum(one.mode in LARGEST for one in seen)
    if deep:
        return f"{deep} of its images have more than 8 bits, which were cut off"
    transparent = sum(one.transparent or one.turned for one in seen)
    if transparent:
        return f"{transparent} of its images are transparent or turned, which was not looked at"
    return None
