"""A program of level 1, evaluated as it reads, statement by statement: the oracle of the lifter's tests."""

from __future__ import annotations

import math

import torch

from flashlight.expr import Apply, Const, Index, Load, Size

BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "fmod": torch.fmod,
    "pow": torch.pow,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "eq": torch.eq,
    "ne": torch.ne,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "mod": torch.remainder,
    "xor": torch.bitwise_xor,
    "bitand": torch.bitwise_and,
    "lshift": torch.bitwise_left_shift,
    "rshift": torch.bitwise_right_shift,
    "floordiv": lambda a, b: torch.div(a, b, rounding_mode="floor"),
}
UNARY = {
    "neg": torch.neg,
    "abs": torch.abs,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": torch.log,
    "log2": torch.log2,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "atan": torch.atan,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "trunc": torch.trunc,
    "sign": torch.sign,
    "not": torch.logical_not,
    "isnan": torch.isnan,
    "real": lambda a: a.double(),
    "int": lambda a: a.trunc().long() if a.is_floating_point() else a.long(),
    "bool": lambda a: a != 0,
}


def run_program(program, inputs, sizes):
    """``inputs``: name -> tensor; ``sizes``: name -> int.  Everything in float64.  Returns name -> tensor."""
    env = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
    for s in program.statements:
        env[s.name] = _statement(s, env, sizes)
    return env


def _statement(s, env, sizes):
    axes = [*s.axes, *s.reduced]
    shape = [int(_eval(a.extent, {}, env, sizes)) for a in axes]
    at = {
        a.name: torch.arange(n).view([-1 if k == d else 1 for k in range(len(axes))])
        for d, (a, n) in enumerate(zip(axes, shape, strict=True))
    }
    value = _eval(s.body, at, env, sizes).expand(shape) if shape else _eval(s.body, at, env, sizes)
    dims = tuple(range(len(s.axes), len(axes)))
    match s.monoid:
        case None:
            return value.clone()
        case "sum":
            return value.sum(dims)
        case "max":
            return value.amax(dims)
        case "min":
            return value.amin(dims)
        case "prod":
            for d in reversed(dims):
                value = value.prod(d)
            return value


def _eval(e, at, env, sizes):
    match e:
        case Const(v):
            return torch.tensor(
                v, dtype=torch.bool if isinstance(v, bool) else torch.long if isinstance(v, int) else torch.double
            )
        case Index(axis):
            return at[axis]
        case Size(name):
            return torch.tensor(sizes[name])
        case Load(tensor, index):
            idx = [_eval(i, at, env, sizes) for i in index]
            t = env[tensor]
            for i, n in zip(idx, t.shape, strict=True):
                assert 0 <= int(i.min()) <= int(i.max()) < n, f"{e} reads outside of {tuple(t.shape)}"
            return t[tuple(idx)] if idx else t
        case Apply("select", (c, a, b)):
            x, y = _eval(a, at, env, sizes), _eval(b, at, env, sizes)
            return torch.where(_eval(c, at, env, sizes), x, y)
        case Apply(op, (a,)):
            return UNARY[op](_eval(a, at, env, sizes))
        case Apply(op, (a, b)):
            return BINARY[op](_eval(a, at, env, sizes), _eval(b, at, env, sizes))
    raise AssertionError(f"{e}: {math.nan}")
