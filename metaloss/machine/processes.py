"""The processes of one command line, as torchrun starts them: how they begin and end together."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from metaloss.errors import InputError, LostProcessError, exit_code, first_line
from metaloss.machine import distributed

#: Seconds that a process waits for another one by default. It bounds what the first does alone
#: (evaluations, figures, checkpoints); that a process has died is seen at once.
PATIENCE = 600.0


@contextmanager
def joined(patience: float = PATIENCE) -> Iterator[None]:
    """Within it, the processes that a launcher started side by side share one run.

    The launcher tells each its place in the environment (RANK, WORLD_SIZE, MASTER_ADDR,
    MASTER_PORT), as torchrun does. The first process alone prints. Of an error that is meant for a
    person the first process that has it is the only one to raise it: the others, which have it too
    or lose the one that had it, exit in silence. Alone, or in a process group that is there
    already, this does nothing.

    Args:
        patience: seconds until a process that does not answer is given up.

    Raises:
        InputError: the patience is not positive.
        LostProcessError: the processes do not find each other.
    """
    if not patience > 0:
        raise InputError(f"--patience {patience:g}: more than 0 seconds")
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    store = _join(timedelta(seconds=patience))
    try:
        with _silence_of_others():
            yield
    except (InputError, LostProcessError) as error:
        if _is_told(error, store):
            sys.exit(exit_code(error))
        if isinstance(error, LostProcessError):
            raise LostProcessError(f"{error}: --resume goes on from the last checkpoint") from error
        raise
    dist.destroy_process_group()


def own_device(name: str) -> str:
    """What `--device` names for this process: of several, each on a machine has its own GPU.

    Raises:
        InputError: there are fewer GPUs than processes, a GPU is named, or the launcher says
            nothing of the machine.
    """
    if not distributed.several() or name == "cpu":
        return name
    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    if name not in ("auto", "cuda"):
        raise InputError(
            f"--device {name}: each of several processes takes a GPU of its own; give auto, cuda "
            "or cpu"
        )
    if not {"LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= os.environ.keys():
        raise InputError(
            "LOCAL_RANK and LOCAL_WORLD_SIZE do not say which GPU is this process's: start it with "
            "torchrun, or give --device=cpu"
        )
    place, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if here > torch.cuda.device_count():
        raise InputError(
            f"{here} processes for {torch.cuda.device_count()} GPUs on this machine: start one for "
            "each GPU, or give --device=cpu"
        )
    torch.cuda.set_device(place)
    return f"cuda:{place}"


def set_threads(count: int | None) -> None:
    """Gives torch so many CPU threads; None leaves it as it is.

    Raises:
        InputError: fewer than one.
    """
    if count is None:
        return
    if count < 1:
        raise InputError(f"--threads {count}: at least 1")
    torch.set_num_threads(count)


def find_device(name: str) -> torch.device:
    """The device by its name; "auto" is a GPU if there is one.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"--device {name!r}: give auto, cpu, cuda, or cuda:1 for the second GPU")
    device = torch.device(name)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: {first_line(error)}") from error
    return device


def _join(patience: timedelta) -> dist.Store:
    """Makes the default process group; nccl for tensors on a GPU, gloo for those on a CPU."""
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=patience))
        # torchrun's --max_restarts leaves what the earlier processes wrote where it was.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt {attempt}", store)
        store.set_timeout(patience)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=patience,
        )
    except (RuntimeError, ValueError) as error:
        reason = distributed.reason_of(error)
        raise LostProcessError(f"the processes do not find each other: {reason}") from error
    return store


def _is_told(error: Exception, store: dist.Store) -> bool:
    """Whether another process was there before, to tell what ended them all."""
    try:
        return store.add("errors", 1) > 1
    except RuntimeError:  # some launchers leave the store to the first process, and it has ended
        return isinstance(error, InputError)


@contextmanager
def _silence_of_others() -> Iterator[None]:
    """Within it, only the first process prints; what ends another one is told after it."""
    if distributed.rank() == 0:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
