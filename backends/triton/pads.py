"""What lies in the padding of a block, as far as it is known: it saves the masks before dots and reductions."""

from __future__ import annotations

from flashlight.backends.triton.state import Number, State, Value
from flashlight.expr import OPS
from flashlight.tile import Apply, CastOp, Const, Expr, Let, LoadOp, MapOp, Ref


def pads_of(state: State, s: Let) -> tuple[tuple[str, Number], ...]:
    """For each padded point dimension of a definition: the one value all its padding has, where that is known."""
    out = []
    for d in s.dims:
        if not state.axis(d).padded:
            continue
        match s.op:
            case LoadOp(_, _, _, other):
                out.append((d, float(other)))
            case MapOp(e):
                value = _evaluated(state, e, d)
                if value is not None:
                    out.append((d, value))
            case CastOp(name):
                out += [p for p in state.value(name).pads if p[0] == d]
    return tuple(out)


def _evaluated(state: State, e: Expr, dim: str) -> Number | None:
    """The value of a body in the padding along ``dim``, if all it reads is known there."""
    match e:
        case Const(value):
            return value
        case Ref(name):
            v: Value = state.value(name)
            return dict(v.pads).get(dim)
        case Apply(op, args):
            values = [_evaluated(state, a, dim) for a in args]
            if any(v is None for v in values):
                return None
            try:
                out = OPS[op].evaluate(*values)
            except (ArithmeticError, ValueError, TypeError):
                return None
            return None if out != out else out
    return None
