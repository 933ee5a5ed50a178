"""Spelling scalar expressions: one table per language from operator to template.

A template is a format string over the arguments' texts, or a function of them.  Templates that are infix carry their
own parentheses, so arguments may be put anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from flashlight.errors import InternalError
from flashlight.tile import Apply, Const, Expr

Template = str | Callable[..., str]

PYTHON: Mapping[str, Template] = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "neg": "(-{0})",
    "abs": "abs({0})",
    "maximum": "max({0}, {1})",
    "minimum": "min({0}, {1})",
    "floordiv": "({0} // {1})",
    "mod": "({0} % {1})",
    "xor": "({0} ^ {1})",
    "bitand": "({0} & {1})",
    "lshift": "({0} << {1})",
    "rshift": "({0} >> {1})",
    "pow": "({0} ** {1})",
    "sign": "(({0} > 0) - ({0} < 0))",
    "floor": "{0}",
    "ceil": "{0}",
    "round": "{0}",
    "trunc": "{0}",
    "lt": "({0} < {1})",
    "le": "({0} <= {1})",
    "gt": "({0} > {1})",
    "ge": "({0} >= {1})",
    "eq": "({0} == {1})",
    "ne": "({0} != {1})",
    "and": "({0} and {1})",
    "or": "({0} or {1})",
    "not": "(not {0})",
    "select": "({1} if {0} else {2})",
    "int": "int({0})",
    "bool": "bool({0})",
}
"""Integer arithmetic on Python numbers: bounds, extents and offsets (``//`` and ``%`` round as our operators do)."""

TORCH: Mapping[str, Template] = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "neg": "(-{0})",
    "abs": "torch.abs({0})",
    "maximum": "torch.maximum({0}, {1})",
    "minimum": "torch.minimum({0}, {1})",
    "floordiv": "({0} // {1})",
    "mod": "torch.remainder({0}, {1})",
    "xor": "({0} ^ {1})",
    "bitand": "({0} & {1})",
    "lshift": "({0} << {1})",
    "rshift": "({0} >> {1})",
    "fmod": "torch.fmod({0}, {1})",
    "pow": "torch.pow({0}, {1})",
    "exp": "torch.exp({0})",
    "exp2": "torch.exp2({0})",
    "expm1": "torch.expm1({0})",
    "log": "torch.log({0})",
    "log2": "torch.log2({0})",
    "log1p": "torch.log1p({0})",
    "sqrt": "torch.sqrt({0})",
    "rsqrt": "torch.rsqrt({0})",
    "tanh": "torch.tanh({0})",
    "sigmoid": "torch.sigmoid({0})",
    "sin": "torch.sin({0})",
    "cos": "torch.cos({0})",
    "erf": "torch.erf({0})",
    "atan": "torch.atan({0})",
    "floor": "torch.floor({0})",
    "ceil": "torch.ceil({0})",
    "round": "torch.round({0})",
    "trunc": "torch.trunc({0})",
    "sign": "torch.sign({0})",
    "lt": "({0} < {1})",
    "le": "({0} <= {1})",
    "gt": "({0} > {1})",
    "ge": "({0} >= {1})",
    "eq": "({0} == {1})",
    "ne": "({0} != {1})",
    "and": "({0} & {1})",
    "or": "({0} | {1})",
    "not": "(~{0})",
    "isnan": "torch.isnan({0})",
    "select": "torch.where({0}, {1}, {2})",
    "real": "{0}",
    "int": "{0}",
    "bool": "({0} != 0)",
}
"""Tensors; ``real`` and ``int`` are conversions, which the emitter appends (they need a dtype)."""

TRITON: Mapping[str, Template] = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "neg": "(-{0})",
    "abs": "tl.abs({0})",
    "maximum": "_max({0}, {1})",
    "minimum": "_min({0}, {1})",
    "floordiv": "_floordiv({0}, {1})",
    "floordiv_real": "_floordiv_real({0}, {1})",
    "mod": "_mod({0}, {1})",
    "xor": "({0} ^ {1})",
    "bitand": "({0} & {1})",
    "lshift": "({0} << {1})",
    "rshift": "({0} >> {1})",
    "mod_real": "_mod_real({0}, {1})",
    "fmod": "libdevice.fmod({0}, {1})",
    "pow": "libdevice.pow({0}, {1})",
    "exp": "tl.exp({0})",
    "exp2": "tl.exp2({0})",
    "expm1": "libdevice.expm1({0})",
    "log": "tl.log({0})",
    "log2": "tl.log2({0})",
    "log1p": "libdevice.log1p({0})",
    "sqrt": "tl.sqrt({0})",
    "rsqrt": "tl.rsqrt({0})",
    "tanh": "libdevice.tanh({0})",
    "sigmoid": "tl.sigmoid({0})",
    "sin": "tl.sin({0})",
    "cos": "tl.cos({0})",
    "erf": "tl.erf({0})",
    "atan": "libdevice.atan({0})",
    "floor": "tl.floor({0})",
    "ceil": "tl.ceil({0})",
    "round": "libdevice.rint({0})",
    "trunc": "libdevice.trunc({0})",
    "sign": "(({0} > 0).to({0}.dtype) - ({0} < 0).to({0}.dtype))",
    "lt": "({0} < {1})",
    "le": "({0} <= {1})",
    "gt": "({0} > {1})",
    "ge": "({0} >= {1})",
    "eq": "({0} == {1})",
    "ne": "({0} != {1})",
    "and": "({0} & {1})",
    "or": "({0} | {1})",
    "not": "({0} == 0)",
    "isnan": "({0} != {0})",
    "select": "tl.where({0}, {1}, {2})",
    "real": "{0}",
    "int": "{0}",
    "bool": "({0} != 0)",
}
"""Triton blocks; ``real`` and ``int`` are conversions, which the emitter appends.  Triton's ``//`` and ``%`` truncate
and take no reals, its maximum drops NaN: names that start with an underscore are functions the emitted text defines."""

CUDA: Mapping[str, Template] = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "neg": "(-{0})",
    "abs": "magnitude({0})",
    "maximum": "larger({0}, {1})",
    "minimum": "lesser({0}, {1})",
    "floordiv": "floor_div({0}, {1})",
    "mod": "floor_mod({0}, {1})",
    "xor": "({0} ^ {1})",
    "bitand": "({0} & {1})",
    "lshift": "({0} << {1})",
    "rshift": "({0} >> {1})",
    "fmod": "remainder_of({0}, {1})",
    "pow": "raised({0}, {1})",
    "exp": "exp({0})",
    "exp2": "power_of_two({0})",
    "expm1": "expm1({0})",
    "log": "log({0})",
    "log2": "log2({0})",
    "log1p": "log1p({0})",
    "sqrt": "sqrt({0})",
    "rsqrt": "rsqrt({0})",
    "tanh": "tanh({0})",
    "sigmoid": "(1 / (1 + exp(-{0})))",
    "sin": "sin({0})",
    "cos": "cos({0})",
    "erf": "erf({0})",
    "atan": "atan({0})",
    "floor": "floor({0})",
    "ceil": "ceil({0})",
    "round": "rint({0})",
    "trunc": "trunc({0})",
    "sign": "sign({0})",
    "lt": "({0} < {1})",
    "le": "({0} <= {1})",
    "gt": "({0} > {1})",
    "ge": "({0} >= {1})",
    "eq": "({0} == {1})",
    "ne": "({0} != {1})",
    "and": "({0} && {1})",
    "or": "({0} || {1})",
    "not": "(!{0})",
    "isnan": "({0} != {0})",
    "select": "pick({0}, {1}, {2})",
    "real": "{0}",
    "int": "{0}",
    "bool": "({0} != 0)",
}
"""CUDA C++ scalars; ``real`` and ``int`` are conversions, which the emitter appends.  ``/`` and ``%`` truncate and a
maximum drops NaN there: what is no C++ function is one of the cupy backend's headers (numbers.cuh)."""

TORCH_INPLACE: Mapping[str, str] = {
    op: f"{{0}}.{method}_({', '.join(f'{{{k}}}' for k in range(1, arity))})"
    for op, method, arity in [
        *((o, o, 2) for o in ("add", "sub", "mul", "div", "fmod", "pow")),
        ("floordiv", "floor_divide", 2),
        ("mod", "remainder", 2),
        *((o, o, 1) for o in ("neg", "abs", "exp", "exp2", "expm1", "log", "log2", "log1p", "sqrt", "rsqrt", "tanh")),
        *((o, o, 1) for o in ("sigmoid", "sin", "cos", "erf", "atan", "floor", "ceil", "round", "trunc", "sign")),
    ]
}
"""The same operators writing their result over their first argument."""

TORCH_OUT: Mapping[str, str] = {
    op: f"torch.{method}({{0}}, {{1}}, out={{target}})"
    for op, method in [
        *((o, o) for o in ("add", "sub", "mul", "div", "maximum", "minimum", "fmod", "pow")),
        ("floordiv", "floor_divide"),
        ("mod", "remainder"),
    ]
}
"""Binary operators writing their result over either argument, ``target``."""


def number(value: float) -> str:
    """A Python literal; ``inf`` and ``nan`` are names the emitted text imports."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "(-inf)"
    return repr(value) if value >= 0 else f"({value!r})"


def fill(table: Mapping[str, Template], op: str, *args: str) -> str:
    """One operator of ``table`` over the texts of its arguments.  Raises InternalError: the table lacks it."""
    template = table.get(op)
    if template is None:
        raise InternalError(f"no spelling of the operator {op!r} here")
    return template.format(*args) if isinstance(template, str) else template(*args)


def spell(expr: Expr, table: Mapping[str, Template], leaf: Callable[[Expr], str]) -> str:
    """The text of an expression: operators by ``table``, constants by :func:`number` unless ``leaf`` is asked.

    ``leaf`` spells every node that is neither an operator nor a constant (Index, Size, Ref).
    """
    match expr:
        case Const(value):
            return number(value)
        case Apply(op, args):
            return fill(table, op, *(spell(a, table, leaf) for a in args))
    return leaf(expr)


def bare(text: str) -> str:
    """The text without one pair of enclosing parentheses, where they enclose all of it."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for k, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0 and k < len(text) - 1:
            return text
    return text[1:-1]
