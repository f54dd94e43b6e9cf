"""Refusals: models whose gradient the passes would get wrong, each with the reason and the mend."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from metaloss.errors import InputError, UnsupportedModelError, first_line
from metaloss.machine import distributed
from metaloss.problem.forward_mode import Watch

Embedding = nn.Embedding | nn.EmbeddingBag


def refuse_untrue_gradients(model: nn.Module, theta: Iterable[nn.Parameter]) -> None:
    """Raises UnsupportedModelError for an embedding that no engine differentiates as it trains."""
    for embedding in _trained(model, theta):
        for argument in ("max_norm", "scale_grad_by_freq"):
            if getattr(embedding, argument):
                raise UnsupportedModelError(
                    f"the model has {embedding}, whose {argument} makes its gradient another than "
                    "its derivative: leave it out, or freeze its weight"
                )


def refuse_tied_padding(model: nn.Module, theta: Iterable[nn.Parameter]) -> None:
    """Raises UnsupportedModelError for a padding row that another layer's gradient moves."""
    held = [p for module in model.modules() for p in module.parameters(recurse=False)]
    for embedding in _trained(model, theta):
        tied = sum(parameter is embedding.weight for parameter in held) > 1
        if embedding.padding_idx is not None and tied:
            raise UnsupportedModelError(
                f"the model has {embedding}, whose weight another layer has too: its padding row "
                "moves, but not by its own gradient, which a difference of outputs does not see"
            )


def _trained(model: nn.Module, theta: Iterable[nn.Parameter]) -> Iterator[Embedding]:
    trained = set(theta)
    for module in model.modules():
        if isinstance(module, Embedding) and module.weight in trained:
            yield module


#: What torch says of the two cases.
_WITHOUT_GRADIENT = "None of the inputs have requires_grad=True"


_WITHIN_GRAD = "When use_reentrant=True, torch.utils.checkpoint is incompatible"


@contextmanager
def refusing_reentrant_checkpoints() -> Iterator[None]:
    """Within it belong a forward pass of the model and the backward pass to its parameters.

    Raises:
        UnsupportedModelError: the model has a reentrant checkpoint.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", _WITHOUT_GRADIENT, UserWarning)
        try:
            yield
        except (UserWarning, RuntimeError) as error:
            if not str(error).startswith((_WITHOUT_GRADIENT, _WITHIN_GRAD)):
                raise
            raise UnsupportedModelError(
                "the model has reentrant activation checkpoints, whose gradients do not pass "
                "through torch.autograd.grad: give its checkpoints use_reentrant=False"
            ) from error


@contextmanager
def refusing_gradient_reads(trained: Iterable[Tensor]) -> Iterator[Watch]:
    """Within it belongs a forward pass of the model. Gives what has watched it.

    Args:
        trained: its parameters; what it does with gradients of its own is its business.

    Raises:
        UnsupportedModelError: the model has read the `.grad` of one of them.
    """
    with Watch(trained) as watch:
        yield watch
    if watch.reads_gradients:
        raise UnsupportedModelError(
            "the model reads a `.grad` in its forward pass, which is the engine's and another one "
            "in each of its passes: keep what the model needs of it in a buffer"
        )


@contextmanager
def refusing_single_backward() -> Iterator[None]:
    """Within it belongs a backward pass that makes a graph or goes through one, and no other code.

    Raises:
        UnsupportedModelError: an operator of the model has no second derivative.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # autograd has no class of its own for it
        raise UnsupportedModelError(
            f"the model cannot be differentiated twice ({first_line(error)}): one base step at a "
            "time, engine='exact' or 'logit_difference' needs it once"
        ) from error


def refuse_float16(dtype: torch.dtype | None) -> None:
    """Raises InputError for the lower precision in which gradients would vanish."""
    if dtype is torch.float16:
        raise InputError(
            "gradients underflow in float16 without a GradScaler, which the meta-gradient does not "
            "pass through: take torch.bfloat16, which needs none"
        )


def refuse_unshareable(model: nn.Module) -> None:
    """Refuses models whose gradients cannot be averaged over processes from outside.

    Raises:
        InputError: the model is wrapped in DataParallel or DistributedDataParallel, or has
            SyncBatchNorm in several processes.
    """
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise InputError(
            f"the model is wrapped in {type(model).__name__}, whose gradients do not pass through "
            "torch.autograd.grad: give the plain module, and start the script with torchrun; "
            "metaloss averages over its processes by itself"
        )
    if distributed.several() and any(isinstance(m, nn.SyncBatchNorm) for m in model.modules()):
        raise InputError(
            "the model has SyncBatchNorm layers, which no forward-mode pass follows: give it with "
            "plain BatchNorm, whose batch statistics are then each process's own"
        )


def refuse_other_kinds(
    model: object, optimizer: object, loss: object, task_loss: object, **functions: object
) -> None:
    """Raises InputError if one of what a problem is made of is something else.

    Args:
        functions: what else is a function, or None.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is an nn.Module, and this is {_kind(model)}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(
            f"the optimizer is a torch.optim object over the model's parameters, and this is "
            f"{_kind(optimizer)}"
        )
    if loss is not None and not isinstance(loss, nn.Module):
        build = "metaloss.REPRESENTATIONS['nn']()"
        if isinstance(loss, str):
            build = f"metaloss.REPRESENTATIONS[{loss!r}]()"
        elif isinstance(loss, type):
            build = f"{loss.__name__}(), built"
        raise InputError(
            f"the learned loss is an nn.Module with parameters, and this is {_kind(loss)}: give "
            f"{build}; a loss without any is `task_loss`, beside loss=None"
        )
    if not callable(task_loss) or isinstance(task_loss, type):
        raise InputError(
            f"task_loss is a function (outputs, labels) -> scalar, and this is {_kind(task_loss)}"
        )
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise InputError(f"{name} is a function, and this is {_kind(function)}")
    if not _takes_two(task_loss):
        raise InputError(f"task_loss takes (outputs, labels), and {_kind(task_loss)} does not")
    if isinstance(loss, nn.Module) and not _takes_two(loss.forward):
        raise InputError(
            f"the learned loss takes (prediction, target), and {type(loss).__name__} does not"
        )


def _takes_two(function: Callable[..., object]) -> bool:
    """Whether it can be called with two arguments, as far as that can be seen."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # it is none of Python's
        return True
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    return True


def refuse_other_devices(loss: nn.Module | None, theta: Tensor) -> None:
    """Raises InputError if θ has no numbers, or φ is on another device."""
    if theta.is_meta:
        raise InputError("the model is on the device meta, where there are no numbers")
    for parameter in () if loss is None else loss.parameters():
        if parameter.device != theta.device:
            raise InputError(
                f"the learned loss is on {parameter.device} and the model on {theta.device}: move "
                "the loss there before the learner is made"
            )


def refuse_no_graph(outputs: Tensor) -> None:
    """Raises InputError for outputs that nothing can be learned through."""
    if not outputs.is_floating_point():
        raise InputError(
            f"the model's outputs are {outputs.dtype}, which have no gradient: give logits, or "
            "values"
        )
    if not outputs.requires_grad:
        raise InputError(
            "the model's outputs do not depend on a trained parameter, as after .detach() or under "
            "torch.no_grad() in its forward pass: there is no gradient"
        )


def refuse_no_number(task_loss: object, dimensions: int = 0) -> None:
    """Raises InputError if a task loss is no number with a gradient.

    Args:
        dimensions: of a stack of problems 1.
    """
    if not torch.is_tensor(task_loss) or task_loss.dim() != dimensions:
        found = _kind(task_loss) + (
            f" {list(task_loss.shape)}" if torch.is_tensor(task_loss) else ""
        )
        raise InputError(f"task_loss gives one number, a tensor, and this one gives {found}")
    if not task_loss.requires_grad:
        raise InputError(
            "the task loss does not depend on the model's parameters, as after .detach(), .item() "
            "or argmax: there is no gradient"
        )


def _kind(thing: object) -> str:
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    if isinstance(thing, str):
        return f"the text {thing!r}"
    name = getattr(thing, "__name__", "")
    return f"the function {name}" if name and callable(thing) else f"a {type(thing).__name__}"


def refuse_without_grad() -> None:
    """Raises InputError where torch takes no gradients."""
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        mode = "inference_mode" if torch.is_inference_mode_enabled() else "no_grad"
        raise InputError(
            f"a step is made under torch.{mode}(), where there are no gradients: make it outside"
        )


def refuse_unbuilt(model: nn.Module) -> None:
    """Raises InputError if a parameter has no shape yet, or is one of inference alone."""
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise InputError(
                f"the model's parameter '{name}' has no shape yet, as a lazily built layer's "
                "before its first batch: call the model once, and build the optimizer after that"
            )
        if parameter.is_inference():
            raise InputError(
                f"the model's parameter '{name}' was made under torch.inference_mode(), and cannot "
                "be trained: build the model outside"
            )


def refuse_scripted(model: nn.Module) -> None:
    """Raises UnsupportedModelError for compiled TorchScript, in which nothing can be exchanged.

    Parts of it that are frozen, and change no buffers, are constants.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            free = any(parameter.requires_grad for parameter in module.parameters())
            if free or (module.training and any(True for _ in module.buffers())):
                raise UnsupportedModelError(
                    f"the model's part '{name}' is TorchScript, in which no other parameter can be "
                    "put in one's place: give the module that it was made of, or freeze it, in "
                    "eval mode"
                )


def refuse_shared_memory(names: Sequence[str], theta: Sequence[Tensor]) -> None:
    """Raises UnsupportedModelError for two trained parameters that share numbers in memory.

    The optimizer's step of either one moves both.
    """
    held = [
        (name, part)
        for name, parameter in zip(names, theta, strict=True)
        if (part := distributed.local(parameter)).numel() and part.data_ptr()
    ]
    by_address = sorted(held, key=lambda each: each[1].data_ptr())
    for k, (name, tensor) in enumerate(by_address):
        end = tensor.data_ptr() + _extent(tensor)
        for other_name, other in by_address[k + 1 :]:
            if other.data_ptr() >= end:
                break
            # Where one has every second number of a matrix, another one may have the rest.
            if torch.isin(_addresses(tensor), _addresses(other)).any():
                first, second = sorted((name, other_name), key=[*names].index)
                raise UnsupportedModelError(
                    f"the model's trained parameters '{first}' and '{second}' are in the same "
                    "memory, so that a step of one moves the other: make them one parameter"
                )


def _extent(tensor: Tensor) -> int:
    """Bytes from a tensor's first number to the end of its last one."""
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _addresses(tensor: Tensor) -> Tensor:
    """Those of its numbers in memory, [numel]."""
    offsets = torch.zeros((), dtype=torch.int64, device="cpu")
    for n, step in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = offsets[..., None] + step * torch.arange(n, device="cpu")
    return tensor.data_ptr() + tensor.element_size() * offsets.flatten()


def refuse_aliases(names: Sequence[str], past: Sequence[Tensor | None]) -> None:
    """Refuses parameters that the model reads otherwise than through what can be exchanged.

    Args:
        names: of the trained parameters.
        past: of each, whether a pass with others in their place still depends on it: a gradient.

    Raises:
        UnsupportedModelError: there is one.
    """
    read = [name for name, gradient in zip(names, past, strict=True) if gradient is not None]
    if read:
        raise UnsupportedModelError(
            f"the model reads its parameter '{read[0]}' past its modules, as through a tuple or an "
            "object that is found nowhere in it, so no other can be put in its place: read it as "
            "an attribute of its module"
        )


def refuse_reading_past() -> None:
    """Raises UnsupportedModelError for a model that has the numbers of θ from elsewhere."""
    raise UnsupportedModelError(
        "the model reads the numbers of a trained parameter past its modules, as through .data, a "
        "view or a NumPy array that it keeps, where no other can be put in its place: read it as "
        "an attribute of its module, and detach it there"
    )


def refuse_looking_at_shards(shards: object) -> None:
    """Raises UnsupportedModelError if a loss that looks at θ would see a part of it."""
    if shards is not None:
        raise UnsupportedModelError(
            "the learned loss looks at θ itself, and of a model of fully_shard each process has a "
            "part: leave the model whole, or the regulariser out"
        )


def refuse_touched(names: Sequence[str], theta: Sequence[Tensor], used: Sequence[Tensor]) -> None:
    """Refuses a forward pass that does more with trained parameters than to read them.

    Args:
        names, theta: of the trained parameters.
        used: what the pass had in their places, which shared their memory and had no gradients.

    Raises:
        InputError: it has registered a hook on one.
        UnsupportedModelError: it has frozen one, put other numbers in it or left a gradient in it.
    """
    refuse_hooks(used)
    refuse_frozen(names, used)
    for name, parameter, tensor in zip(names, theta, used, strict=True):
        if tensor.data_ptr() != parameter.data_ptr():
            refuse_changed(name)
        refuse_left_gradient(name, tensor, "forward")


def refuse_left_gradient(name: str, used: Tensor, where: str) -> None:
    """Raises UnsupportedModelError for a gradient that a pass left in a parameter.

    Args:
        name: of the trained parameter.
        used: what the pass had in its place.
        where: the pass, as "forward".
    """
    if used.grad is not None:
        raise UnsupportedModelError(
            f"the model leaves a gradient in its trained parameter '{name}' in its {where} pass, "
            "as by .backward(), and the step's own takes its place: let it take its gradients by "
            "torch.autograd.grad"
        )


def refuse_moved(named: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
    """Raises UnsupportedModelError for a forward pass that puts one parameter in another's place.

    Args:
        named: what the pass had in the places of the trained parameters, by their names before it.
        now: all parameters afterwards.
    """
    used = set(map(id, named.values()))
    for name, tensor in named.items():
        if now.get(name, tensor) is not tensor and id(now[name]) in used:
            raise UnsupportedModelError(
                f"the model has another of its trained parameters in the place of '{name}' after "
                "its forward pass, as where two layers take turns under one name: choose between "
                "them in the pass, and leave each in its place"
            )


def refuse_failing_in_exchange(error: Exception) -> None:
    """Raises UnsupportedModelError for a model that its own parameters alone can be in.

    Args:
        error: of a pass with others in their places, where one with them has none.
    """
    raise UnsupportedModelError(
        "the model fails where another tensor with other numbers is in a parameter's place "
        f"({type(error).__name__}: {first_line(error)}): it looks at which tensors it has, as by "
        "a dict of parameters, or asserts what numbers they have"
    ) from error


def refuse_written_inputs(given: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Raises UnsupportedModelError for a forward pass that has written into its inputs.

    They are then as they were.

    Args:
        given: dense tensors of the inputs, and a copy of each from before.
    """
    written = False
    for tensor, numbers in given:
        if not torch.equal(tensor.nan_to_num(), numbers.nan_to_num()):
            tensor.data.copy_(numbers)
            written = True
    if written:
        raise UnsupportedModelError(
            "the model writes into its inputs in its forward pass, as by x.mul_(), and its next "
            "pass over the batch would find them changed: let it write into a copy"
        )


def refuse_frozen(names: Sequence[str], used: Sequence[Tensor]) -> None:
    """Raises UnsupportedModelError if a forward pass has frozen one of its trained parameters.

    Args:
        names: of the trained parameters.
        used: what the pass had in their places.
    """
    for name, tensor in zip(names, used, strict=True):
        if not tensor.requires_grad:
            raise UnsupportedModelError(
                f"the model freezes its trained parameter '{name}' in its forward pass, by which "
                "it is trained in one step and not in another: do so between steps, or detach it"
            )


def refuse_cached(used: bool) -> None:
    """Raises UnsupportedModelError for what is computed of θ once, and used again in later passes.

    Args:
        used: whether a pass has left what a functools.cache had of a trained parameter before it.
    """
    if used:
        raise UnsupportedModelError(
            "the model keeps what it has computed of its trained parameters in a functools.cache, "
            "so that later steps go by parameters of an earlier one: compute it in each pass"
        )


@contextmanager
def refusing_kept_graphs() -> Iterator[None]:
    """Within it belongs a backward pass through the model.

    Raises:
        InputError: it goes through a graph that another one has gone through.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("Trying to backward through the graph a second time"):
            raise
        raise InputError(
            "the model keeps a tensor with its graph from one pass to the next, where a plain loop "
            "fails too (torch: 'Trying to backward through the graph a second time'): let it keep "
            "it after .detach(), or compute it in each pass"
        ) from error


def refuse_changed(name: str) -> None:
    """Raises UnsupportedModelError for a trained parameter that a forward pass changes."""
    raise UnsupportedModelError(
        f"the model changes its trained parameter '{name}' in its forward pass, which "
        "no gradient knows of: change it after the step, or as a parametrization"
    )


def warn_of_other_outputs() -> None:
    """Warns of a model of which no pass can be made again."""
    warnings.warn(
        "two passes of the model over one batch, from the same state, generators and parameters, "
        "give other outputs: it draws random numbers or keeps something where that cannot be found "
        "(an iterator, the system's random numbers, the clock, a file), writes into its inputs, or "
        "looks at which tensors it has (a cache by id()); so the meta level's own passes move it, "
        "and θ is not that of plain training",
        stacklevel=4,
    )


def warn_of_curvature() -> None:
    """Warns of a model whose derivatives through several base steps nothing certifies."""
    warnings.warn(
        "the model has hooks on activations, or a torch.autograd.Function of its own: one base "
        "step is certified, but whether autograd has its second derivatives, which several steps "
        "need, is asked in float64 alone: make some meta-steps of it in float64, or take "
        "inner_steps = 1",
        stacklevel=4,
    )


def refuse_hooks(parameters: Iterable[Tensor]) -> None:
    """Raises InputError if a parameter has hooks of its own.

    torch.autograd.grad runs tensor hooks in the base pass and in that of the task loss alike, and
    hooks after accumulation in none: neither is what a plain loop does, or what is differentiated.
    """
    for parameter in parameters:
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise InputError(
                f"a parameter of shape {tuple(parameter.shape)} has a gradient hook, and what it "
                "does in a step cannot be followed: remove it, and give what it changes as "
                "`gradient_transform`"
            )
