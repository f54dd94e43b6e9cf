"""Precision: the kinds of arithmetic of a run, and what the lower one does to the meta-gradient."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any, Literal

import numpy as np
import torch

from metaloss.engines.exact import Exact
from metaloss.errors import ConfigError
from metaloss.problem import snapshot
from metaloss.problem.batches import StepBatch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem

#: "float32" is IEEE single precision throughout; "tf32", on a GPU, has TF32 in convolutions and
#: matrix products; "bf16" the backbone's passes under autocast in bfloat16, and losses, cotangents
#: and φ in float32.
Precision = Literal["float32", "tf32", "bf16"]


@contextmanager
def process_left_as_it_was() -> Iterator[None]:
    """Within it torch's settings may be changed, which are the whole process's; also a decorator.

    Its random generators, and NumPy's and Python's, stand afterwards where they stood before.
    They are read and written in torch's new style alone: torch refuses a process that mixes it with
    the old one, in `torch.export` and elsewhere.
    """
    before, threads = _float32(), torch.get_num_threads()
    generators = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_rng_state(generators[0])
        np.random.set_state(generators[1])
        random.setstate(generators[2])
        torch.cuda.set_rng_state_all(on_gpus)
        _set_float32(*before)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@contextmanager
def in_old_style_too() -> Iterator[None]:
    """Within it the settings can be read in torch's old style, as `torch.export` does.

    On a GPU they may be others than before: it is for what is computed on a CPU.
    """
    with process_left_as_it_was():
        # What is read must agree with the old settings, which cannot be read by themselves.
        for products, cudnn in product(("ieee", "tf32"), ("tf32", "ieee")):
            if _is_read_in_old_style():
                break
            _set_float32(products, cudnn, cudnn)
        yield


def set_float32(precision: str) -> None:
    """Lets a GPU use TF32 in float32 arithmetic, or not; within `process_left_as_it_was`."""
    name = "ieee" if precision == "float32" else "tf32"
    _set_float32(name, name, name)


def _is_read_in_old_style() -> bool:
    try:
        _ = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:
        return False
    return True


def _float32() -> tuple[str, str, str]:
    """How float32 is computed on a GPU, in matrix products, convolutions and recurrent layers."""
    backends: Any = torch.backends
    cudnn = backends.cudnn
    return (
        backends.cuda.matmul.fp32_precision,
        cudnn.conv.fp32_precision,
        cudnn.rnn.fp32_precision,
    )


def _set_float32(products: str, convolutions: str, recurrent: str) -> None:
    backends: Any = torch.backends
    backends.cuda.matmul.fp32_precision = products
    backends.cudnn.conv.fp32_precision = convolutions
    backends.cudnn.rnn.fp32_precision = recurrent


def cosine(problem: Problem, train: StepBatch, objective: StepBatch) -> float:
    """Between ∇_φ L_T of a step as the problem makes it and in float32; nothing of them remains.

    Raises:
        ConfigError: one of them is zero, or not finite.
    """
    own, gradients = problem.autocast, []
    for autocast in (own, None):
        problem.autocast = autocast
        with snapshot.on_trial(problem, train):
            found = Exact().hypergradient(
                problem, MetaParameters(problem), [train], lambda: objective
            )
        given = [g.flatten().double() for g in found.phi if g is not None]
        gradients.append(torch.cat(given) if given else torch.zeros(1))
    problem.autocast = own
    norms = [float(gradient.norm()) for gradient in gradients]
    if not all(0 < norm < float("inf") for norm in norms):
        raise ConfigError(
            f"in lower precision the first meta-gradient has the norm {norms[0]:g}, in float32 "
            f"{norms[1]:g}: take Runner.precision = 'float32'"
        )
    return float(gradients[0] @ gradients[1]) / (norms[0] * norms[1])
