"""Who is compared: flashlight, eager, torch.compile, SDPA with each backend pinned, compiled FlexAttention, routes by
hand through the last two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.options import backend_of
from benchmarks.workloads import SDPA_KERNELS, Args, Flex, Route, Shape, Workload

NAMES = ("flashlight", "eager", "compile", "sdpa", "flex", "hand")
Call = Callable[[], Any]


@dataclass(frozen=True)
class Candidate:
    """One line of a cell.  ``prepare`` may fail or be slow; what it returns is what the clock sees.

    ``stage``: "forward", "mask" for the mask objects that FlexAttention needs beforehand, or "copy" for the copy that
    programs bound by memory are compared with (the last two have no values to check).  ``code``: what the machine code
    is like (machine.py), where that is asked for.
    """

    peer: str
    backend: str
    prepare: Callable[[], Call]
    stage: str = "forward"
    code: Callable[[], dict[str, Any]] | None = None


def candidates(
    workload: Workload, shape: Shape, args: Args, names: tuple[str, ...], backends: tuple[str, ...] = ()
) -> Iterator[Candidate]:
    """Every peer that has a form of the program, on the cell's tensors; ``backends`` are flashlight's, () for the
    device's.  Where there are several, their machine code is compared too.

    Programs bound by memory are compared with a copy whichever peers are asked for."""
    function, device = workload.function(shape), args[0].device
    for ours in backends or (backend_of(device),) if "flashlight" in names else ():
        fast = cache(partial(_optimized, function, ours))
        code = partial(_code, fast, args, ours) if len(backends) > 1 else None
        yield Candidate("flashlight", ours, partial(_bound, fast, args), code=code)
    if "eager" in names:
        yield Candidate("eager", "eager", lambda: partial(function, *args))
    if "compile" in names:
        yield Candidate("compile", "inductor", lambda: partial(torch.compile(function, dynamic=False), *args))
    if "sdpa" in names and workload.sdpa is not None:
        kernels = ["flash", "cudnn", "efficient", "math"] if device.type == "cuda" else ["flash", "math"]
        if len(backends) > 1:  # beside backends of ours: the one by hand for the same instructions, where it has a form
            kernels = [] if "attn_mask" in workload.sdpa(args) else kernels[:1]
        for name in kernels:
            yield Candidate("sdpa", name, partial(_pinned_sdpa, workload, shape, args, name))
    if "flex" in names and workload.flex is not None:
        flex = workload.flex(args)
        if flex.mask is not None:
            yield Candidate("flex", "inductor", partial(_mask_maker, flex, args), "mask")
        yield Candidate("flex", "inductor", partial(_flex, flex, flex.score, shape, args))
        if flex.approximate is not None and device.type == "cuda":
            yield Candidate("flex", "inductor, approximate tanh", partial(_approximate_flex, flex, shape, args))
    for route in workload.hand if "hand" in names else ():
        pinned = route.kernels if device.type == "cuda" else ()
        for kernel in pinned or (None,):
            name = f"{route.name}, {kernel}" if kernel else route.name
            yield Candidate("hand", name, partial(_by_hand, route, kernel, args))
    if workload.elements is not None:
        yield Candidate("copy", "device to device", partial(_copy, args), "copy")


def _optimized(function: Callable[..., Tensor], backend: str) -> Callable[..., Tensor]:
    import flashlight

    return flashlight.optimize(function, backend=backend, strict=True)  # type: ignore[no-any-return]


def _bound(fast: Callable[[], Callable[..., Tensor]], args: Args) -> Call:
    return partial(fast(), *args)


def _code(fast: Callable[[], Any], args: Args, backend: str) -> dict[str, Any]:
    from benchmarks.machine import described

    return described(fast().explain(*args).kernels[backend])


def _pinned_sdpa(workload: Workload, shape: Shape, args: Args, name: str) -> Call:
    from torch.nn.attention import sdpa_kernel

    assert workload.sdpa is not None
    options = workload.sdpa(args)
    if shape.kv_heads != shape.heads:
        options["enable_gqa"] = True
    q, k, v = args[:3]

    def call() -> Tensor:
        with sdpa_kernel(SDPA_KERNELS[name]):
            return F.scaled_dot_product_attention(q, k, v, **options)

    return call


def _mask_maker(flex: Flex, args: Args) -> Call:
    from torch.nn.attention.flex_attention import create_block_mask

    make = torch.compile(create_block_mask, dynamic=False)
    assert flex.mask is not None
    rule, (q, k) = flex.mask, args[:2]
    over = q.shape[0] if flex.batched else None, q.shape[1] if flex.headed else None
    return lambda: make(rule, *over, q.shape[2], k.shape[2], device=str(q.device))


def _flex(flex: Flex, score: Callable[..., Tensor] | None, shape: Shape, args: Args) -> Call:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)
    mask = _mask_maker(flex, args)() if flex.mask is not None else None
    q, k, v = args[:3]
    grouped = shape.kv_heads != shape.heads
    return lambda: compiled(q, k, v, score_mod=score, block_mask=mask, enable_gqa=grouped)


def _approximate_flex(flex: Flex, shape: Shape, args: Args) -> Call:
    _register_approximate_tanh()
    return _flex(flex, flex.approximate, shape, args)


def _by_hand(route: Route, kernel: str | None, args: Args) -> Call:
    options = route.before(args) if route.before else {}
    if kernel:
        options["kernel"] = kernel
    return partial(torch.compile(partial(route.function, **options), dynamic=False), *args)


def _copy(args: Args) -> Call:
    """Of as many bytes as the keys and values have together."""
    source = torch.cat([x.flatten() for x in args[1:3]])
    return partial(torch.empty_like(source).copy_, source)


@cache
def _register_approximate_tanh() -> None:
    """The hardware's tanh as an operator, the way FlexAttention's users work round the cost of the exact one."""
    from torch._inductor.lowering import make_pointwise, register_lowering
    from torch._inductor.virtualized import ops

    @torch.library.custom_op("flashlight_benchmarks::tanh_approximate", mutates_args=())
    def tanh_approximate(x: Tensor) -> Tensor:
        return torch.tanh(x)

    @tanh_approximate.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.tanh(x)

    @register_lowering(torch.ops.flashlight_benchmarks.tanh_approximate)
    def lower(x: Any) -> Any:
        return make_pointwise(partial(ops.inline_asm_elementwise, asm="tanh.approx.f32 $0, $1;"))(x)
