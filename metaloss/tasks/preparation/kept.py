"""What a run keeps of its data: how raw inputs are prepared, without the examples themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from metaloss.errors import DataError
from metaloss.tasks.base import OBJECTIVES, SPLITS, Data
from metaloss.tasks.preparation.encoding import Encoding
from metaloss.tasks.preparation.image_files import Decoder
from metaloss.tasks.preparation.images import Images
from metaloss.tasks.preparation.scaling import Scaling

#: As tensors and plain data, which a checkpoint holds.
Kept = Mapping[str, Any]
#: Of `Data`, which have `plain` and `of`.
PARTS = ("images", "inputs", "encoding", "decoder", "targets")
NAMES = ("classes", "target_names")  #: of `Data`, words or none
CLOSE: dict[str, Any] = {
    "rtol": 1e-4,
    "atol": 1e-6,
}  #: what other numbers of threads may do to means


def of(data: Data) -> Kept:
    """What to keep of a run's data."""
    objectives = [name for name, known in OBJECTIVES.items() if known is data.objective]
    words = {name: getattr(data, name) for name in NAMES}
    parts = {part: getattr(data, part) for part in PARTS}
    return {
        "sizes": {split: len(labels) for split, (_, labels) in data.splits.items()},
        "input_shape": list(data.input_shape),
        "bytes": data.splits["train"][0].dtype == torch.uint8,
        "outputs": data.outputs,
        "objective": objectives[0] if objectives else None,
        **{name: None if given is None else list(given) for name, given in words.items()},
        **{name: None if part is None else part.plain() for name, part in parts.items()},
    }


def in_json(kept: Kept) -> dict[str, Any]:
    """What was kept, its tensors as lists: `without_examples` takes it so too.

    What an earlier version did not keep is None.
    """
    return {
        **dict.fromkeys((*NAMES, *PARTS)),
        **_in_lists(kept),
    }


def _in_lists(kept: Kept) -> dict[str, Any]:
    return {
        name: {key: v.tolist() if torch.is_tensor(v) else v for key, v in value.items()}
        if isinstance(value, Mapping)
        else value
        for name, value in kept.items()
    }


def is_enough(kept: Kept | None) -> bool:
    """Whether `without_examples` can be made: the run is of no earlier version, nor of a plugin."""
    return kept is not None and kept["objective"] is not None


def without_examples(kept: Kept) -> Data:
    """The same preparation of inputs, and of every split no example."""
    stored = torch.empty(0, *kept["input_shape"], dtype=torch.uint8 if kept["bytes"] else None)
    labels = torch.empty(0, dtype=torch.int64)
    kinds: dict[str, Any] = {
        "images": Images,
        "inputs": Scaling if "unit" in (kept["inputs"] or ()) else Images,
        "encoding": Encoding,
        "decoder": Decoder,
        "targets": Scaling,
    }
    parts: dict[str, Any] = {name: tuple(kept[name]) for name in NAMES if kept.get(name)}
    parts |= {part: kinds[part].of(kept[part]) for part in PARTS if kept.get(part)}
    splits = dict.fromkeys(SPLITS, (stored, labels))
    return Data(splits, kept["outputs"], OBJECTIVES[kept["objective"]], **parts)


def prepared_so(data: Data, kept: Kept | None) -> Data:
    """The data, of which raw inputs are prepared exactly as they were when this was kept."""
    if kept is None or not is_enough(kept):
        return data
    then = without_examples(kept).to(data.splits["train"][1].device)
    return replace(data, **{part: getattr(then, part) for part in PARTS if part in kept})


def require_same(data: Data, kept: Kept | None) -> None:
    """Holds data against what a run kept of them.

    Args:
        kept: None of a run of an earlier version.

    Raises:
        DataError: they have changed, or were read otherwise then.
    """
    if kept is None:
        if data.read_otherwise is not None:
            raise DataError(
                f"the run is of an earlier version, and {data.read_otherwise}: train it again"
            )
        return
    now = of(data)
    for what, name in (("splits", "sizes"), ("classes", "classes"), ("inputs", "input_shape")):
        if now[name] != kept[name]:
            raise DataError(
                f"the run's data have changed: the {what} were {kept[name]}, and are {now[name]}"
            )
    parts = of(without_examples(kept)) if is_enough(kept) else kept
    for part in ("images", "inputs", "targets"):
        then = parts[part] or {}
        for name, value in (now[part] or {}).items():
            same = value == then.get(name)
            if torch.is_tensor(value) and torch.is_tensor(then.get(name)):
                same = value.shape == then[name].shape and value.allclose(then[name], **CLOSE)
            if not same:
                raise DataError(f"the run's data have changed: another {name} of the {part}")
