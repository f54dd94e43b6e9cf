"""The data of several seeds in one tensor, of which a batch for each is drawn at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from metaloss.batches import Batch
from metaloss.errors import InputError
from metaloss.tasks.base import Data


class StackedData:
    """Each seed's batches are those that it draws alone, but a device gathers all by one call.

    Args:
        members: of one task; their splits become views.

    Raises:
        InputError: their splits are of other sizes.
    """

    def __init__(self, members: Sequence[Data]) -> None:
        self._members = members
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}
        for split in members[0].splits:
            sizes = [len(member.splits[split][1]) for member in members]
            if len(set(sizes)) > 1:
                raise InputError(
                    f"the seeds have {split} splits of other sizes ({', '.join(map(str, sizes))}): "
                    "train them one at a time"
                )
            inputs, labels = (
                torch.cat(parts)
                for parts in zip(*(member.splits[split] for member in members), strict=True)
            )
            self._splits[split] = inputs, labels
            views = zip(inputs.split(sizes[0]), labels.split(sizes[0]), strict=True)
            for member, view in zip(members, views, strict=True):
                member.splits[split] = view
        images = [member.images for member in members if member.images is not None]
        self._images = images and replace(
            images[0],
            mean=torch.stack([each.mean for each in images])[:, None],
            deviation=torch.stack([each.deviation for each in images])[:, None],
        )

    def draw(self, split: str, batch_size: int, generators: Sequence[torch.Generator]) -> Batch:
        """Inputs [S, batch, ...] and labels [S, batch, ...], see `Data.draw`.

        Args:
            generators: of each seed.
        """
        inputs, labels = self._splits[split]
        examples = len(labels) // len(self._members)
        chosen = [
            member.choose(split, batch_size, generator)
            for member, generator in zip(self._members, generators, strict=True)
        ]
        index = torch.cat([index + i * examples for i, (index, _) in enumerate(chosen)])
        index = index.to(inputs.device, non_blocking=True)
        inputs, labels = inputs[index], labels[index]
        windows = [window for _, window in chosen if window is not None]
        if self._images and windows:
            inputs = self._images.cut(inputs, torch.cat(windows))
        seeds = (len(self._members), -1)
        inputs, labels = inputs.unflatten(0, seeds), labels.unflatten(0, seeds)
        return (self._images.prepare(inputs) if self._images else inputs), labels
