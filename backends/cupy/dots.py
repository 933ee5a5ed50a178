"""Dots: on tensor cores by the functions of dots.cuh, or as multiply-adds over arrays in shared memory."""

from __future__ import annotations

from flashlight.backends.cupy.body import constant
from flashlight.backends.cupy.dtypes import WIDE
from flashlight.backends.cupy.exchange import (
    SYNC,
    array,
    cleared,
    packed,
    pitches,
    placed,
    staged,
    write,
)
from flashlight.backends.cupy.operands import Dot, Tile
from flashlight.backends.cupy.place import ceil, columns, rows
from flashlight.backends.cupy.state import State, Value
from flashlight.backends.queries import kind_of
from flashlight.tile import DotOp, Let

AT_ONCE = 16  # products that one sum takes, of longer ones: a long sum would err more


def dot(state: State, s: Let, op: DotOp, v: Value) -> None:
    """Print a dot; ``v`` is declared already, and lies as the plan says."""
    d = state.plan.dots[id(s)]
    if d.kind == "plain":
        _plain(state, s, op, v)
    else:
        _on_tensor_cores(state, s, op, d, v)


def _on_tensor_cores(state: State, s: Let, op: DotOp, d: Dot, v: Value) -> None:
    page, blocks = state.page, {a: x.block for a, x in state.axes.items()}
    acc = None if op.acc is None else placed(state, op.acc, v.place)
    of_rows = rows(blocks[d.m], state.plan.warps)
    if d.left_shared:
        dtype = state.tiles[d.left][1].dtype
    else:
        left = placed(state, d.left, {d.m: of_rows, d.contract: columns(blocks[d.contract], d.step)})
        left = cleared(state, ordered(state, left, (d.m, d.contract)), d.contract)
        dtype = left.dtype
    tile, shape = right_operand(state, d)
    apart = d.kind != "mma" and acc is not None  # float32: a block's own sum first, one long sum would err more
    fill(state, v, None if apart and d.left_shared else acc)
    turned = "true" if shape.outer == d.n else "false"
    unit = WIDE[dtype] if d.kind == "mma" else "6" if d.kind == "bf16x6" else "1"
    if d.left_shared:
        text, own = state.tiles[d.left]
        strip = f"{state.lane(d.m, of_rows)}(0) - lane / 4"
        far = 2 * of_rows.length // of_rows.local
        page.line(f"dot<{unit}, {turned}, {own.shape[1]}, {far}>({v.text}, {text}, {strip}, {tile});")
        if apart and acc is not None:
            add(state, v, acc)
    else:
        page.line(f"{'dot_apart' if apart else 'dot'}<{unit}, {turned}>({v.text}, {left.text}, {tile});")


def right_operand(state: State, d: Dot) -> tuple[str, Tile]:
    """The tile of a dot's right operand: copied there, or put there now from registers."""
    if d.right in state.tiles:
        return state.tiles[d.right]
    x = state.value(d.right)
    outer, inner = x.dims
    shape = tuple(ceil(state.axes[a].block, 16) * 16 for a in (outer, inner))  # read 16 at a time
    tile = Tile("", outer, inner, (shape[0], shape[1]), x.dtype)
    return staged(state, x, tile, f"{x.text}_tile"), tile


def ordered(state: State, v: Value, dims: tuple[str, ...]) -> Value:
    """The value with its dimensions in another order."""
    if v.dims == dims:
        return v
    to = state.new(state.names.fresh(v.text), dims, v.dtype, v.place, v.zeros)
    state.page.line(to.declared)
    if to.pairs:
        return packed(state, to, lambda at: state.read(v, at).text)
    at = state.at(v)
    state.page.loops(state.loops(v), [f"{state.read(to, at).text} = {state.read(v, at).text};"])
    return to


def fill(state: State, v: Value, acc: Value | None) -> None:
    at = state.at(v)
    zero = constant(0.0 if kind_of(v.dtype) == "real" else 0, v.dtype)
    state.page.loops(state.loops(v), [f"{state.read(v, at).text} = {state.read(acc, at).text if acc else zero};"])


def add(state: State, v: Value, acc: Value) -> None:
    at = state.at(v)
    state.page.loops(state.loops(v), [f"{state.read(v, at).text} += {state.read(acc, at).text};"])


def _plain(state: State, s: Let, op: DotOp, v: Value) -> None:
    """Both operands as arrays in shared memory; every thread sums the products of its own elements."""
    page, c = state.page, op.contract
    left, right = state.value(op.left), state.value(op.right)
    if c not in left.dims or c not in right.dims or set(s.dims) != {*left.dims, *right.dims} - {c}:
        raise state.error(f"{s} does not contract {left.dims} with {right.dims}")
    acc = None if op.acc is None else placed(state, op.acc, v.place)
    page.line(SYNC)
    end, arrays = 0, []
    for x in (left, right):
        arrays.append((x, array(s.dtype, end)))
        end = write(state, x, pitches(state, x.dims), s.dtype, end)
    page.line(SYNC)
    fill(state, v, None)
    at, k = state.at(v), state.axes[c].index
    texts = []
    for x, where in arrays:
        pitch, terms = pitches(state, x.dims), []
        for a in x.dims:
            inside = k
            if a != c:
                inside = state.inside(a, at)
                if state.padded(a, v.place[a]):
                    inside = f"lesser({inside}, {state.axes[a].block - 1})"
            terms.append(inside if pitch[a] == 1 else f"{inside} * {pitch[a]}")
        texts.append(f"{where}[{' + '.join(terms)}]")
    length, product = state.axes[c].block, f"{texts[0]} * {texts[1]}"
    if length <= AT_ONCE:
        with page.block(f"for (int {k} = 0; {k} < {length}; ++{k})"):
            page.loops(state.loops(v), [f"{state.read(v, at).text} += {product};"])
    else:
        part = state.new(state.names.fresh(f"{v.text}_part"), v.dims, v.dtype, v.place, v.zeros)
        with page.block(f"for (int {k}0 = 0; {k}0 < {length}; {k}0 += {AT_ONCE})"):
            page.line(part.declared)
            fill(state, part, None)
            with page.block(f"for (int {k} = {k}0; {k} < lesser({k}0 + {AT_ONCE}, {length}); ++{k})"):
                page.loops(state.loops(v), [f"{state.read(part, at).text} += {product};"])
            add(state, v, part)
    if acc is not None:
        add(state, v, acc)
