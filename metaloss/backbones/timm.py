"""Any model of timm, by name, drawn anew or from pretrained weights."""

from __future__ import annotations

import pickle
import re
import urllib.error
import urllib.request
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metaloss.backbones.base import BACKBONES, PICTURES, require_image, without_weights
from metaloss.errors import ArgumentError, ConfigError, did_you_mean, first_line

#: What timm takes for the weights, and this recipe by parameters of its own.
OF_WEIGHTS = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")
REACHED_WITHIN = 5.0  #: seconds; a hub's client would try for a minute


@BACKBONES.register("timm")
def timm(
    input_shape: tuple[int, ...],
    outputs: int,
    name: str,
    arguments: dict[str, Any] | None = None,
    pretrained: bool = False,
    weights: str | None = None,
    fresh: Sequence[str] = (),
) -> nn.Module:
    """`timm.create_model(name)`, sized for the task: drawn anew, or from pretrained weights.

    `in_chans` and `num_classes` come from the task. Many models are made for larger images than the
    task's: attention often needs its image size among the arguments, and a convolutional net may
    shrink small images to nothing. Pretrained weights are read once; a head of another number of
    classes than the task's is drawn anew, and so is it alone where a run draws θ anew.

    Args:
        name: a timm model, such as "resnet18" or "resnet18.a1_in1k"; see `timm.list_models()`.
        arguments: further arguments of `timm.create_model`, such as {"img_size": 32}.
        pretrained: start from timm's own weights, of the hub's cache or the hub.
        weights: start from those in a file, .safetensors or .pth, in place of timm's own.
        fresh: patterns of names of parameters that are drawn anew nevertheless, such as "fc.*".
    """
    import timm as library  # 2 s, and only for who uses it

    arguments = dict(arguments or {})
    for argument in OF_WEIGHTS:
        if argument in arguments:
            asked = "backbones.timm.pretrained = True or backbones.timm.weights = FILE for weights"
            raise ArgumentError("arguments", arguments, asked)
    if not library.is_model(name):
        near = did_you_mean(name, library.list_models())
        raise ArgumentError("name", name, f"a model of timm {library.__version__}{near}")
    require_image(input_shape, f"timm(name='{name}')", smallest=1)
    arguments["in_chans"] = input_shape[0]
    from_weights = pretrained or weights is not None
    if fresh and not from_weights:
        raise ArgumentError("fresh", fresh, "pretrained or weights beside it; all is drawn anew")
    found = None
    if from_weights and not without_weights():
        found = _pretrained(name, arguments, weights)
    model = _created(name, arguments, num_classes=outputs)
    if found is not None:
        _load(model, found, fresh, name)
    _try(model, input_shape, outputs, name)
    return model


def _created(name: str, arguments: Mapping[str, Any], **more: Any) -> nn.Module:
    import timm as library

    try:
        model: nn.Module = library.create_model(name, **arguments, **more)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:  # each model has its own
        raise ArgumentError("arguments", arguments, f"what {name} takes ({error})") from error
    return model


def _try(model: nn.Module, input_shape: tuple[int, ...], outputs: int, name: str) -> None:
    """Raises ConfigError unless the model maps such inputs to so many outputs."""
    try:
        with torch.no_grad():
            found = model.eval()(torch.zeros(1, *input_shape))
    except (RuntimeError, ValueError, AssertionError, IndexError, AttributeError) as error:
        reason = first_line(error)
        raise ConfigError(
            f"backbones.timm: '{name}' cannot take inputs of shape {list(input_shape)} ({reason}): "
            f"backbones.timm.arguments may help, such as {{'img_size': {input_shape[-1]}}}"
        ) from error
    finally:
        model.train()
    if not isinstance(found, Tensor) or found.shape != (1, outputs):
        raise ConfigError(f"backbones.timm: '{name}' does not give [batch, {outputs}] outputs")


# --- pretrained weights ---


@dataclass(frozen=True)
class Pretrained:
    """Weights as the model takes them, but for its head.

    Attributes:
        state: parameters and buffers by name, on the CPU.
        source: where they are from, in words.
        classes: of their head; 0: they have none.
        head: names of its layers.
    """

    state: dict[str, Tensor]
    source: str
    classes: int
    head: tuple[str, ...]


#: The latest that was read: a run that draws its model anew again and again reads them once.
_read: dict[Hashable, Pretrained] = {}


def _pretrained(name: str, arguments: Mapping[str, Any], weights: str | None) -> Pretrained:
    """The weights of a file, or timm's own.

    Raises:
        ConfigError: they are not there, or are of another model.
    """
    file = None if weights is None else Path(weights).expanduser()
    if file is not None and not file.is_file():
        raise ArgumentError("weights", weights, f"a .safetensors or .pth file; there is no {file}")
    changed = None if file is None else (file.resolve(), file.stat().st_mtime_ns)
    key = (name, repr(sorted(arguments.items())), changed, torch.get_default_dtype())
    if key not in _read:
        _read.clear()
        # The run's own draws are the same whether weights were read before or are read now.
        with torch.random.fork_rng(devices=()):
            _read[key] = _of_file(name, arguments, file) if file else _of_hub(name, arguments)
    return _read[key]


def _of_file(name: str, arguments: Mapping[str, Any], file: Path) -> Pretrained:
    import timm as library
    from safetensors import SafetensorError

    try:
        state = library.models.load_state_dict(str(file))
    except (
        *(OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError),
        *(SafetensorError, pickle.UnpicklingError),
    ) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"backbones.timm: cannot read {file}: {reason}") from None
    config = library.get_pretrained_cfg(name)
    head = _head(config)
    found = [state[f"{layer}.weight"] for layer in head if f"{layer}.weight" in state]
    classes = len(found[0]) if found else 0
    overlay = {"state_dict": state, "num_classes": classes, "label_offset": 0}
    return _fitted(name, arguments, overlay, str(file), classes, head)


def _of_hub(name: str, arguments: Mapping[str, Any]) -> Pretrained:
    import huggingface_hub as hub
    import timm as library

    config = library.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        known = ", ".join(library.list_pretrained(f"{name.partition('.')[0]}*")[:8]) or "none alike"
        raise ArgumentError(
            "pretrained", True, f"False; timm has no weights of {name}, but {known}"
        )
    overlay: dict[str, Any] = {}
    source = f"timm's {config.architecture or name}"
    source += f".{config.tag}" if getattr(config, "tag", None) else ""
    if config.hf_hub_id:
        names = [config.hf_hub_filename] if config.hf_hub_filename else NAMES_ON_THE_HUB
        held = (hub.try_to_load_from_cache(config.hf_hub_id, file) for file in names)
        cached = next((path for path in held if isinstance(path, str)), None)
        if cached is not None:
            overlay = {"file": cached}  # by which timm asks nobody
        else:
            _require_reached(hub.constants.ENDPOINT, name, hub.constants.HF_HUB_CACHE)
    elif isinstance(config.url, str):
        checkpoints = Path(torch.hub.get_dir(), "checkpoints")
        if not (checkpoints / config.url.rpartition("/")[2]).is_file():
            _require_reached(config.url, name, str(checkpoints))
    return _fitted(name, arguments, overlay, source, config.num_classes, _head(config))


#: Of a model's weights, in the order in which timm asks for them.
NAMES_ON_THE_HUB = ("model.safetensors", "pytorch_model.bin")


def _require_reached(address: str, name: str, cache: str) -> None:
    """Raises ConfigError at once where there is no network, in place of a minute of retries."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address, method="HEAD"), timeout=REACHED_WITHIN
        ):
            pass
    except urllib.error.HTTPError:
        pass  # it answered
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"backbones.timm.pretrained: the weights of {name} are not in {cache}, and cannot be "
            f"fetched ({first_line(error)}): set backbones.timm.weights to a file"
        ) from None


def _fitted(
    name: str,
    arguments: Mapping[str, Any],
    overlay: dict[str, Any],
    source: str,
    classes: int,
    head: tuple[str, ...],
) -> Pretrained:
    """The weights in a model whose head is theirs, so that timm demands every single one."""
    import timm as library

    try:
        model = library.create_model(
            name, **arguments, num_classes=classes, pretrained=True, pretrained_cfg_overlay=overlay
        )
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"backbones.timm: {source} does not fit {name}: {_in_one_line(error)}"
        ) from None
    return Pretrained(model.state_dict(), source, classes, head)


def _head(config: Any) -> tuple[str, ...]:
    """Names of the layers that give classes."""
    found = getattr(config, "classifier", None) or ()
    return (found,) if isinstance(found, str) else tuple(found)


def _load(model: nn.Module, pretrained: Pretrained, fresh: Sequence[str], name: str) -> None:
    """Gives a model the weights, but for a head that has other classes, and what is to be fresh."""
    state, own = pretrained.state, model.state_dict()
    for pattern in fresh:
        if not any(fnmatchcase(key, pattern) for key in own):
            near = did_you_mean(pattern, own)
            raise ArgumentError("fresh", fresh, f"patterns of {name}'s parameters{near}")
    asked = {key for key in own if any(fnmatchcase(key, pattern) for pattern in fresh)}
    other = {
        key
        for key, value in own.items()
        if (key not in state or state[key].shape != value.shape)
        and any(key.startswith(f"{layer}.") for layer in pretrained.head)
    }
    kept = {key: value for key, value in state.items() if key not in asked | other and key in own}
    try:
        model.load_state_dict({**{key: own[key] for key in asked | other}, **kept})
    except RuntimeError as error:
        raise ConfigError(
            f"backbones.timm: {pretrained.source} does not fit {name}: {_in_one_line(error)}"
        ) from None
    said = f"{name} starts from {pretrained.source}: {len(kept)} of {len(own)} tensors"
    if other:
        had = f"of {pretrained.classes:,} classes" if pretrained.classes else "not there"
        said += f", with a fresh head (theirs is {had})"
    elif not asked:
        said += f", their head of {pretrained.classes:,} classes among them"
    if asked:
        said += f"; fresh: {_listed(sorted(asked))}"
    model.notes = (said,)  # type: ignore[assignment]


SHAPES = re.compile(r"size mismatch for (.*?): .*?(\[.*?\]).*?(\[.*?\]).*")


def _in_one_line(error: BaseException) -> str:
    """All that does not fit; of many keys a few and their number."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) < 2:
        return first_line(error)
    said, mismatches = [], []
    for line in lines[1:]:
        words, _, keys = line.partition(": ")
        if words.startswith("size mismatch for "):
            mismatches.append(SHAPES.sub(r"\1: \2, the model's \3", line))
        else:
            said.append(f"{words}: {_listed(keys.rstrip('. ').split(', '))}")
    if mismatches:
        said.append(f"other shapes: {_listed(mismatches)}")
    return " · ".join(said)


def _listed(words: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(words) - shown} more" if len(words) > shown else ""
    return ", ".join(words[:shown]) + more


@PICTURES.of("timm")
def pictures(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    weights: str | None = None,
    fresh: Sequence[str] = (),
) -> dict[str, Any]:
    """The size and scale of the pictures that a pretrained model was trained on."""
    if not pretrained and weights is None:
        return {}
    import timm as library

    if not library.is_model(name) or (config := library.get_pretrained_cfg(name)) is None:
        return {}
    found = library.data.resolve_data_config(pretrained_cfg=config.to_dict())
    size = (arguments or {}).get("img_size", found["input_size"][-1])
    return {
        "size": size if isinstance(size, int) else size[-1],
        "mean": tuple(found["mean"]),
        "deviation": tuple(found["std"]),
        "interpolation": found["interpolation"],
    }
