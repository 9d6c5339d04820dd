"""Turn a mismatch between ranks into an error on every rank, instead of a hang: ``SBNREF_DEBUG=1``.

Before each call of the layer, each rank of its group publishes the call's parameters, and whether it is going to raise
an error, in the store of the process group. Then the ranks compare. With the flag every rank has to make every call, in
eval mode as well. Calls in a graph of :func:`torch.compile` and backward passes are not checked.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..collectives import name_of, resolve, transforming
from ..impls import choose_impl
from ..validation import check_call
from .report import in_words, ranks_in_words

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

F = TypeVar("F", bound=Callable[..., Any])

_modules: list[nn.Module] = []  # the modules whose forward is running, the outermost first
_calls: Counter[tuple[int, ...]] = Counter()  # by the ranks of the group


def _timeout() -> float:
    """Return the seconds to wait for the other ranks."""
    text = os.environ.get("SBNREF_DEBUG_TIMEOUT", "300")
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected SBNREF_DEBUG_TIMEOUT to be a number of seconds, got {text!r}") from None


class MismatchError(RuntimeError):
    """The ranks of a group do not make the same call. It is raised on each rank, with the same message."""


def agree_first(layer: F) -> F:
    """Check before every call of :func:`sbnref.functional.sync_batch_norm` that the ranks agree."""
    nn.modules.module.register_module_forward_pre_hook(_enter)
    nn.modules.module.register_module_forward_hook(_leave, always_call=True)
    signature = inspect.signature(layer)

    @functools.wraps(layer)
    def agreed(*args: Any, **options: Any) -> Tensor:
        if not torch.compiler.is_compiling():
            given = signature.bind(*args, **options)
            given.apply_defaults()
            _agree(given.arguments)
        return layer(*args, **options)

    return agreed  # type: ignore[return-value]


def _enter(module: nn.Module, args: Any) -> None:
    _modules.append(module)


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    while _modules and _modules.pop() is not module:
        pass


def _agree(given: dict[str, Any]) -> None:
    """Raise on every rank unless all make the same call and none is going to raise."""
    try:
        group = resolve(given["group"])
    except (TypeError, ValueError):
        return  # the call itself raises, and there is no group to agree with
    if group is None:
        return
    x = given["input"]
    mine: dict[str, Any] = {
        "layer": _layer_name(),
        "channels": x.shape[1] if isinstance(x, Tensor) and x.dim() > 1 else None,
        "dtype": str(getattr(x, "dtype", type(x).__name__)),
        "stats_mode": given["stats_mode"],
        "eps": given["eps"],
        "momentum": given["momentum"],
        "training": bool(given["training"]),
        "group": name_of(group),  # the collectives of two groups never match, even if the ranks are the same
        "transform": transforming(),  # its derivatives issue more collectives than a plain call
        # whether this rank will issue the backward pass's collective
        "gradients": torch.is_grad_enabled()
        and any(isinstance(t, Tensor) and t.requires_grad for t in (x, given["weight"], given["bias"])),
    }
    error = _coming_error(given)
    all_bring = _exchange(group, {**mine, "error": None if error is None else str(error)})
    if all(brought["error"] for brought in all_bring.values()):
        return  # the call itself raises, on every rank
    if any(brought != all_bring[min(all_bring)] for brought in all_bring.values()):
        mismatch = MismatchError(_message(group, all_bring))
        if dist.get_rank() != _odd_rank(all_bring):
            _print_without_traceback(mismatch)
        raise mismatch from error


def _odd_rank(all_bring: dict[int, dict[str, Any]]) -> int:
    """Return the first rank that is going to raise, else the first that differs: its traceback is the most useful."""
    everyone = list(all_bring.values())
    return min(all_bring, key=lambda rank: (not all_bring[rank]["error"], everyone.count(all_bring[rank]), rank))


def _print_without_traceback(error: MismatchError) -> None:
    """Print only the message if the error ends the program; another rank prints the traceback."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        if value is error:
            value, traceback = value.with_traceback(None), None
            value.__cause__ = None
        previous(kind, value, traceback)

    sys.excepthook = hook


def _layer_name() -> str:
    """Return the name of the running layer in the outermost module that has it.

    After an interrupt, a module that does not run any more may be the outermost.
    """
    for outer in _modules:
        for name, module in outer.named_modules():
            if module is _modules[-1]:
                return name or type(module).__name__
    return "sync_batch_norm"


def _coming_error(given: dict[str, Any]) -> Exception | None:
    """Return the error that the call is going to raise before it communicates."""
    try:
        check_call(**{name: given[name] for name in inspect.signature(check_call).parameters})
        choose_impl(given["impl"], given["input"].device)
    except (TypeError, ValueError, RuntimeError) as error:
        return error
    return None


def _exchange(group: ProcessGroup, mine: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the parameters of every rank's call, by rank."""
    ranks = tuple(dist.get_process_group_ranks(group))
    _calls[ranks] += 1
    call = _calls[ranks]
    store = dist.PrefixStore(f"sbnref/{','.join(map(str, ranks))}", dist.distributed_c10d._get_default_store())
    keys = {rank: f"{call}/{rank}" for rank in ranks}
    own = keys[dist.get_rank()]
    store.set(own, json.dumps(mine, default=float))  # of NumPy numbers
    timeout = _timeout()
    try:
        store.wait(list(keys.values()), timedelta(seconds=timeout))
    except RuntimeError:  # a FileStore raises it, a TCPStore its subclass DistStoreError
        store.set(own, json.dumps({**mine, "gone": True}, default=float))
        missing = [rank for rank, key in keys.items() if not store.check([key])]
        if not missing:
            raise
        raise MismatchError(
            f"SBNREF_DEBUG: {ranks_in_words(missing)} did not make call {call} of this group within {timeout:g} s "
            f"(SBNREF_DEBUG_TIMEOUT); rank {dist.get_rank()} called {_bring(mine)}. With SBNREF_DEBUG=1 every rank has "
            "to make every call, in eval mode as well."
        ) from None
    brought = {rank: json.loads(store.get(key)) for rank, key in keys.items()}
    if gone := [rank for rank, what in brought.items() if what.get("gone")]:
        late, left = f"rank {dist.get_rank()}", ranks_in_words(gone)
        raise MismatchError(
            f"SBNREF_DEBUG: {left} gave up waiting for {late} in call {call} of this group; {late} calls "
            f"{_bring(mine)}, {left} called {_bring(brought[gone[0]])}"
        )
    if call > 2:
        store.delete_key(f"{call - 2}/{dist.get_rank()}")  # every rank is past it
    return brought


def _message(group: ProcessGroup, all_bring: dict[int, dict[str, Any]]) -> str:
    """Return the call of each rank in words, with one line for all ranks that make the same call."""
    first = all_bring[min(all_bring)]
    rejecting = [rank for rank, brought in all_bring.items() if brought["error"]]
    differing = [k for k in first if k != "error" and any(b[k] != first[k] for b in all_bring.values())]
    reasons = [f"{ranks_in_words(rejecting)} reject{'s' * (len(rejecting) == 1)} the input"] if rejecting else []
    reasons += [f"the ranks differ in {in_words(differing)}"] if differing else []
    lines: dict[str, list[int]] = {}
    for rank, brought in all_bring.items():
        of_group = f", group {brought['group']!r}" if "group" in differing else ""
        lines.setdefault(_bring(brought) + of_group, []).append(rank)
    call = _calls[tuple(dist.get_process_group_ranks(group))]
    header = f"SBNREF_DEBUG: in call {call} of this group {' and '.join(reasons)}"
    return "\n".join([header, *(f"  {ranks_in_words(ranks)}: {line}" for line, ranks in lines.items())])


def _bring(brought: dict[str, Any]) -> str:
    if brought["error"]:
        return f"layer {brought['layer']!r}, which rejects the input: {brought['error']}"
    mode = "training" if brought["training"] else "eval mode"
    return (
        f"layer {brought['layer']!r}, {brought['channels']} channels, {brought['dtype']}, "
        f"stats_mode={brought['stats_mode']!r}, eps={brought['eps']}, momentum={brought['momentum']}, {mode}, "
        f"{'with' if brought['gradients'] else 'without'} gradients"
    )
