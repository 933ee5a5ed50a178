"""Integer index arithmetic in a normal form: polynomials over indices and sizes, and division with ranges known.

Views compose into index maps such as ``(h*64 + d) // 64``; they only come back to ``h`` if it is known that
``0 <= d < 64``.  That is proved here by polynomial identity, so it works for symbolic lengths as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import gcd

from flashlight.expr import Apply, Const, Expr, Index, Size, apply, axes, kind, rewrite, walk

Monomial = tuple[Expr, ...]  # atoms with repetition, in a canonical order; () is the constant
Polynomial = dict[Monomial, int]
Extents = Callable[[str], "Expr | None"]
"""The extent of an axis, None where it is not known."""

ZERO, ONE = Const(0), Const(1)


def polynomial(e: Expr) -> Polynomial:
    """The normal form of an integer expression; whatever is not +, -, * is an atom."""
    match e:
        case Const(value):
            return {(): int(value)} if value else {}
        case Apply("add" | "sub" as op, (a, b)):
            return _plus(polynomial(a), polynomial(b), 1 if op == "add" else -1)
        case Apply("neg", (a,)):
            return _plus({}, polynomial(a), -1)
        case Apply("mul", (a, b)):
            return _times(polynomial(a), polynomial(b))
    return {(e,): 1}


def expression(p: Polynomial) -> Expr:
    """The expression of a polynomial: one text for one polynomial."""
    out: Expr | None = None
    for m in sorted(p, key=lambda m: (not m, [str(a) for a in m])):
        term: Expr = Const(abs(p[m]))
        for a in m:
            term = apply("mul", a, term) if isinstance(term, Const) else apply("mul", term, a)
        if out is None:
            out = term if p[m] > 0 else apply("neg", term)
        else:
            out = apply("add" if p[m] > 0 else "sub", out, term)
    return ZERO if out is None else out


def normal(e: Expr) -> Expr:
    return expression(polynomial(e)) if kind(e) == "int" else e


def add(*parts: Expr) -> Expr:
    total: Polynomial = {}
    for e in parts:
        total = _plus(total, polynomial(e), 1)
    return expression(total)


def sub(a: Expr, b: Expr) -> Expr:
    return expression(_plus(polynomial(a), polynomial(b), -1))


def mul(*parts: Expr) -> Expr:
    total: Polynomial = {(): 1}
    for e in parts:
        total = _times(total, polynomial(e))
    return expression(total)


def equal(a: Expr, b: Expr) -> bool:
    """Whether two integer expressions are the same polynomial (unequal ones may still agree on all that occurs)."""
    return a is b or not _plus(polynomial(a), polynomial(b), -1)


def divmod_(e: Expr, divisor: Expr, extents: Extents) -> tuple[Expr, Expr]:
    """``e // divisor`` and ``e % divisor`` for a positive divisor, simplified where ranges allow."""
    if divisor is ONE:
        return normal(e), ZERO
    p, d = polynomial(e), polynomial(divisor)
    quotient: Polynomial = {}
    rest = dict(p)
    if len(d) == 1:
        ((atoms, size),) = d.items()
        for m, c in p.items():
            left = _without(m, atoms)
            if left is not None and c % size == 0:
                quotient[left] = quotient.get(left, 0) + c // size
                del rest[m]
    if _within(rest, d, extents):
        return expression(quotient), expression(rest)
    if not rest:
        return expression(quotient), ZERO
    if len(d) == 1 and (parted := _parted(rest, d, extents)) is not None:
        return expression(_plus(quotient, parted[0], 1)), expression(parted[1])
    common, inner, by = _reduced(rest, d)
    low = apply("floordiv", expression(inner), expression(by))
    whole = expression(_plus(quotient, polynomial(low), 1))
    if common > 1:  # (4*a) % 8 is 4 * (a % 2)
        return whole, mul(Const(common), apply("mod", expression(inner), expression(by)))
    return whole, apply("mod", expression(inner), expression(by))


def _parted(p: Polynomial, d: Polynomial, extents: Extents) -> tuple[Polynomial, Polynomial] | None:
    """Quotient and remainder where some terms are multiples of a factor of the divisor and the others less than it:
    for ``0 <= d < 16``, ``(16*h + d) // 64`` is ``h // 4``, and the remainder is ``16*(h % 4) + d``."""
    ((atoms, size),) = d.items()
    for factor in sorted({gcd(c, size) for c in p.values()} - {1}, reverse=True):
        low = {m: c for m, c in p.items() if c % factor}
        if low and _within(low, {(): factor}, extents):
            high = expression({m: c // factor for m, c in p.items() if m not in low})
            whole, rest = divmod_(high, expression({atoms: size // factor}), extents)
            return polynomial(whole), _plus(_times(polynomial(rest), {(): factor}), low, 1)
    return None


def simplify(e: Expr, extents: Extents) -> Expr:
    """Divisions and remainders by lengths worked out, wherever they stand, as far as ranges allow."""

    def rule(n: Expr) -> Expr | None:
        match n:
            case Apply("floordiv" | "mod" as op, (a, divisor)) if kind(n) == "int" and _positive(divisor):
                whole, rest = divmod_(rewrite(a, rule), divisor, extents)
                return whole if op == "floordiv" else rest
            case Apply("add" | "sub" | "mul", args) if kind(n) == "int":
                return normal(apply(n.op, *(rewrite(a, rule) for a in args)))
        return None

    return rewrite(e, rule)


def compare(op: str, a: Expr, b: Expr) -> Expr:
    """A comparison of integers in a normal form: ``i - j < 256`` and ``j > i - 256`` are both ``i <= 255 + j``."""
    p = _plus(polynomial(a), polynomial(b), -1)
    if op in ("ge", "gt"):
        p = _plus({}, p, -1)
    if op in ("lt", "gt"):
        p = _plus(p, {(): 1}, 1)
    constant = p.pop((), 0)
    common = gcd(*p.values()) if p else 1
    p = {m: c // common for m, c in p.items()}
    if op in ("eq", "ne"):
        if constant % common:
            return Const(op == "ne")
        constant //= common
        if p and p[min(p, key=str)] < 0:
            p, constant = _plus({}, p, -1), -constant
    else:
        constant = -((-constant) // common)  # q + c/g <= 0 for an integer q is q + ceil(c/g) <= 0
    if not p:
        truth = {"eq": constant == 0, "ne": constant != 0}.get(op, constant <= 0)
        return Const(truth)
    left = {m: c for m, c in p.items() if c > 0}
    right = {m: -c for m, c in p.items() if c < 0}
    if op not in ("eq", "ne"):
        op = "le"
        if constant == 1:
            op, constant = "lt", 0
    side = left if constant > 0 else right
    if constant:
        side[()] = abs(constant)
    return apply(op, expression(left), expression(right))


def flatten(index: Sequence[Expr], shape: Sequence[Expr]) -> Expr:
    """The row-major position of ``index`` in ``shape``."""
    out: Expr = ZERO
    for i, n in zip(index, shape, strict=True):
        out = add(mul(out, n), i)
    return out


def unflatten(position: Expr, shape: Sequence[Expr], extents: Extents) -> tuple[Expr, ...]:
    """The index in ``shape`` of a row-major position; the first coordinate needs no remainder."""
    out: list[Expr] = []
    for n in reversed(shape[1:]):
        position, i = divmod_(position, n, extents)
        out.append(i)
    return (position, *reversed(out)) if shape else ()


def clamp(e: Expr, extent: Expr) -> Expr:
    """The nearest index inside ``[0, extent)``: where a value is selected away, its load must still be legal."""
    return apply("maximum", apply("minimum", e, sub(extent, ONE)), ZERO)


def coarse(index: Iterable[Expr]) -> set[str]:
    """The axes along which an element is read for a block of points."""
    return {a for i in index for n in walk(i) if isinstance(n, Apply) and n.op == "floordiv" for a in axes(n)}


def nonnegative(p: Polynomial, extents: Extents) -> bool:
    """Whether a polynomial is provably >= 0, indices lying in their ranges and sizes being at least 1."""
    lowest = _lowest(p, extents)
    if lowest is None:
        return False
    shifted: Polynomial = {}
    for m, c in lowest.items():  # every size n is n' + 1 with n' >= 0
        term: Polynomial = {(): c}
        for a in m:
            term = _times(term, {(a,): 1, (): 1} if isinstance(a, Size) else {(a,): 1})
        shifted = _plus(shifted, term, 1)
    return all(c >= 0 for c in shifted.values())


def _within(p: Polynomial, d: Polynomial, extents: Extents) -> bool:
    """Is ``0 <= p < d``?"""
    return nonnegative(p, extents) and nonnegative(_plus(_plus(d, p, -1), {(): 1}, -1), extents)


def _lowest(p: Polynomial, extents: Extents) -> Polynomial | None:
    """A lower bound without indices: an index with a positive coefficient is 0, with a negative one extent - 1.  None
    where none is known."""
    out: Polynomial = {}
    for m, c in p.items():
        bound: Polynomial = {(): c}
        for a in m:
            if isinstance(a, Index):
                extent = extents(a.axis)
                if c > 0:
                    bound = {}
                    break
                if extent is None:
                    return None
                bound = _times(bound, _plus(polynomial(extent), {(): 1}, -1))
            elif isinstance(a, Size):
                bound = _times(bound, {(a,): 1})
            elif isinstance(a, Apply) and a.op == "mod" and isinstance(a.args[1], Const):
                if c > 0:
                    bound = {}
                    break
                bound = _times(bound, {(): int(a.args[1].value) - 1})
            elif isinstance(a, Apply) and a.op == "floordiv" and _is_nonnegative(a, extents):
                if c > 0:
                    bound = {}
                    break
                highest = _highest(a, extents)
                if highest is None:
                    return None
                bound = _times(bound, {(): highest})
            elif isinstance(a, Apply) and a.op in ("minimum", "maximum") and c > 0 and _is_nonnegative(a, extents):
                bound = {}
                break
            else:
                return None
        out = _plus(out, bound, 1)
    return out


def _highest(quotient: Apply, extents: Extents) -> int | None:
    """An upper bound of a quotient by a number, where that is a number, too."""
    dividend, divisor = quotient.args
    least = _lowest(_plus({}, polynomial(dividend), -1), extents)
    if least is None or least.keys() - {()} or not isinstance(divisor, Const) or divisor.value <= 0:
        return None
    return -least.get((), 0) // int(divisor.value)


def _positive(e: Expr) -> bool:
    match e:
        case Apply("mul", (a, b)):
            return _positive(a) and _positive(b)
        case Const(value):
            return value > 0
    return isinstance(e, Size)


def _is_nonnegative(e: Apply, extents: Extents) -> bool:
    enough = any if e.op == "maximum" else all
    return enough(nonnegative(polynomial(a), extents) for a in e.args)


def _reduced(p: Polynomial, d: Polynomial) -> tuple[int, Polynomial, Polynomial]:
    """A common integer factor of dividend and divisor taken out of both."""
    common = 0
    for c in (*p.values(), *d.values()):
        common = gcd(common, c)
    return common, {m: c // common for m, c in p.items()}, {m: c // common for m, c in d.items()}


def _without(m: Monomial, atoms: Monomial) -> Monomial | None:
    """The monomial divided by these atoms, None if it does not hold them all."""
    left = list(m)
    for a in atoms:
        if a not in left:
            return None
        left.remove(a)
    return tuple(left)


def _plus(p: Polynomial, q: Polynomial, sign: int) -> Polynomial:
    out = dict(p)
    for m, c in q.items():
        out[m] = out.get(m, 0) + sign * c
        if not out[m]:
            del out[m]
    return out


def _times(p: Polynomial, q: Polynomial) -> Polynomial:
    out: Polynomial = {}
    for m, a in p.items():
        for n, b in q.items():
            key = tuple(sorted((*m, *n), key=str))
            out[key] = out.get(key, 0) + a * b
    return {m: c for m, c in out.items() if c}
