"""Several processes that train as one, begun by torchrun: each takes its share, and they add what they got.

Without torchrun there is one rank, which has all of it.
"""

import contextlib
import io
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, cuda

from minprefix.checks import explain

LOST = (RuntimeError, "this process lost the others", "see what ended them, then resume or start again")


@contextlib.contextmanager
def join() -> Iterator[None]:
    """Meets the processes that torchrun started. Rank 0 alone is heard; what ends them is said once, by the
    rank that met it first.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    store, rank, world = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    out, errors = (io.StringIO(), io.StringIO()) if rank else (sys.stdout, sys.stderr)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            yield
        dist.destroy_process_group()
    except BaseException as error:
        if store.add("ended", 1) > 1:  # another rank has said why
            raise SystemExit(getattr(error, "code", 2)) from None
        raise


@contextlib.contextmanager
def stop_together() -> Iterator[Callable[[], bool]]:
    """Yields what tells after each step whether Ctrl-C or a kill came to any rank in it: all finish the step
    at hand, and none waits for another's next one.
    """
    came: list = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    old = [signal.signal(number, lambda *what: came.append(what)) for number in numbers]

    def must_stop() -> bool:
        add([count := torch.tensor(len(came))])
        return bool(count)

    try:
        yield must_stop
    finally:
        for number, handler in zip(numbers, old):
            signal.signal(number, handler)


def is_first() -> bool:
    """Whether this process writes the files: rank 0, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def own_device(device: str) -> str:
    """For "cuda", the GPU with this process' number on its machine."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and dist.is_initialized() else device


def share(items: list) -> list:
    """This rank's items: every N-th, so that it gets short and long ones of a sorted list."""
    return items[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else items


def gather(mine: list) -> list:
    """From what each rank made of its share, what all of them made of the whole, in its order."""
    parts = [mine]
    if dist.is_initialized():
        parts *= dist.get_world_size()
        with explain(*LOST):
            dist.all_gather_object(parts, mine)
    return [item for row in itertools.zip_longest(*parts) for item in row if item is not None]


def add(tensors: list[Tensor]) -> None:
    """Each becomes its sum over all ranks, with the same bits on all of them; sent as one."""
    if dist.is_initialized():
        summed = torch.cat([tensor.flatten() for tensor in tensors])  # of any layout
        with explain(*LOST):
            dist.all_reduce(summed)
        for tensor, part in zip(tensors, summed.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(part.view_as(tensor))
