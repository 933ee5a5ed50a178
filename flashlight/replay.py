"""A call like one before: the same launches, with other addresses.

What a call's kernels are, their grids, sizes and strides follow from the shapes and strides of its tensors.  A second
call with the same ones is told what that comes to (:func:`replay_of`); those that follow allocate, look at addresses
and launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from flashlight.backend import Repeatable
from flashlight.variant import Variant, like

APART = 256  # bytes: where arrays begin that only kernels of the call see
ALIGNED = 16  # bytes: what kernels were told of addresses
TRIES = 3  # calls that are looked at: of the first ones some may have other addresses, or a tiling to be timed

Issue = Callable[[Sequence[int]], None]


@dataclass(frozen=True)
class Held:
    """A tensor that the program holds; it is no other one as long as its shape and strides are these."""

    tensor: torch.Tensor
    shape: torch.Size
    stride: tuple[int, ...]

    @property
    def same(self) -> bool:
        return self.tensor.shape == self.shape and self.tensor.stride() == self.stride


@dataclass(frozen=True)
class Replay:
    """``given``: the positions of the arguments that are read.  ``made``: what the results are made like.  ``own``: the
    bytes that the launches exchange, ``offsets``: where each array lies in them.  ``launches``: which addresses each
    takes, of the arguments', the held tensors', the results' and those arrays', and what issues it."""

    given: tuple[int, ...]
    held: tuple[Held, ...]
    made: tuple[torch.Tensor, ...]
    own: torch.Tensor | None
    offsets: tuple[int, ...]
    launches: tuple[tuple[Callable[[Sequence[int]], Any], Issue], ...]
    result: Callable[[Sequence[Any], Sequence[torch.Tensor]], Any]

    def __call__(self, flat: Sequence[Any]) -> tuple[Any] | None:
        """The result, as one of a tuple; None: this call is not like the others, nothing was done."""
        addresses = [flat[k].data_ptr() for k in self.given]
        for x in self.held:
            if not x.same:
                return None
            addresses.append(x.tensor.data_ptr())
        low = 0
        for a in addresses:
            low |= a
        if low % ALIGNED:
            return None
        outs = [torch.empty_like(x) for x in self.made]
        addresses += [x.data_ptr() for x in outs]
        if self.own is not None:
            own = torch.empty_like(self.own)  # lives until all is issued; the allocator knows the stream
            base = own.data_ptr()
            addresses += [base + x for x in self.offsets]
        for of, issue in self.launches:
            issue(of(addresses))
        return (self.result(flat, outs),)


@dataclass
class Recognised:
    """A call that is known: its variant and sizes, and from the second time on how it is repeated.  ``differentiable``:
    which results require gradients where an argument does, once that was asked."""

    variant: Variant
    sizes: tuple[int, ...]
    replay: Replay | None = None
    calls: int = 0
    differentiable: tuple[bool, ...] | None = None

    def run(self, flat: Sequence[Any]) -> Any:
        if self.replay is not None and (out := self.replay(flat)) is not None:
            return out[0]
        result = self.variant.run(flat, self.sizes)
        if self.replay is None and 1 <= self.calls <= TRIES:
            self.replay = replay_of(self.variant, flat, self.sizes, result)
        self.calls += 1
        return result


def replay_of(v: Variant, flat: Sequence[Any], sizes: Sequence[int], result: Any) -> Replay | None:
    """What a call did that has just been run and gave ``result``, for the next ones with the same shapes and strides;
    None: it is not only launches, or they do not repeat (yet: some tilings are still to be timed)."""
    launches = v.launches(sizes)
    if not launches or not all(isinstance(launch.run, Repeatable) for launch, _ in launches):
        return None
    read = {name for launch, _ in launches for name in launch.inputs}
    if any(x.parts for name, x in v.lifted.inputs if name in read):  # a conjugate has the address of what it is of
        return None
    given = {name: x.position for name, x in v.lifted.inputs if name in read and x.position is not None}
    held = {name: x.value for name, x in v.lifted.inputs if name in read and x.value is not None}
    tensors: dict[str, torch.Tensor] = {**{name: flat[k] for name, k in given.items()}, **held}
    likes = {name: x for launch, own in launches for name, x in launch.prepared(own)[1]}
    results = dict(zip(v.lifted.outputs, tree_leaves(result), strict=True))
    shown = [n for n in likes if n in results]
    offsets, end = {}, 0
    for name, x in likes.items():
        tensors[name] = results[name] if name in results else torch.empty_like(x)
        if name not in results:
            offsets[name] = end
            end += -(-tensors[name].nbytes // APART) * APART
    numbers = {n: k for k, n in enumerate([*given, *held, *shown, *offsets])}
    issued = []
    for launch, own in launches:
        ins, outs = launch.inputs, [name for name, _, _ in launch.outputs]
        if any(tensors[n].data_ptr() % ALIGNED for n in (*ins, *outs)):
            return None
        run: Any = launch.run
        issue = run.bound([tensors[n] for n in ins], [tensors[n] for n in outs], launch.prepared(own)[0])
        if issue is None:
            return None
        places = [numbers[n] for n in (*ins, *outs)]
        issued.append((itemgetter(*places) if len(places) > 1 else _one(places[0]), issue))
    return Replay(
        tuple(given.values()),
        tuple(Held(x, x.shape, x.stride()) for x in held.values()),
        tuple(likes[n] for n in shown),
        like(torch.uint8, (end,), v.device) if end else None,
        tuple(offsets.values()),
        tuple(issued),
        _result(v, sizes, shown),
    )


def _one(place: int) -> Callable[[Sequence[int]], tuple[int]]:
    return lambda addresses: (addresses[place],)


def _result(
    v: Variant, sizes: Sequence[int], shown: Sequence[str]
) -> Callable[[Sequence[Any], Sequence[torch.Tensor]], Any]:
    """From a call's arguments and the tensors that were made to what it returns."""
    if v.single in shown:
        return lambda flat, outs: outs[0]

    def result(flat: Sequence[Any], outs: Sequence[torch.Tensor]) -> Any:
        given = {name: x.of(flat) for name, x in v.lifted.inputs}
        return v.result(given | dict(zip(shown, outs, strict=True)), sizes)

    return result
