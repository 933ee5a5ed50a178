"""Our schedule trees as isl's schedules and schedule maps; neither leaves this package."""

from __future__ import annotations

from collections.abc import Iterable

import islpy as isl

from flashlight.expr import Expr, Index
from flashlight.polyhedral.affine import Translator
from flashlight.polyhedral.domain import IterationDomain, box
from flashlight.polyhedral.schedule_tree import Band, Domain, Filter, Mark, Sequence, Tree, times
from flashlight.polyhedral.space import CONTEXT, Space, exclusive


@exclusive
def schedule_map(root: Domain) -> isl.UnionMap:
    """Instance -> time, as isl's relation.  Stays in this package."""
    out = isl.UnionMap.empty(isl.Space.params_alloc(CONTEXT, 0))
    when = times(root)
    for s in root.statements:
        space = Space(s.sizes(), tuple(Index(a.name) for a in s.axes), s.name)
        translate = Translator(space)
        parts = isl.MultiPwAff.from_pw_aff_list(
            isl.Space.map_from_domain_and_range(space.isl, _anonymous(space, len(when[s.name]))),
            _list(translate.value(m.at) for m in when[s.name]),
        )
        out = out.union(isl.UnionMap.from_map(isl.Map.from_multi_pw_aff(parts).intersect_domain(box(s, space))))
    return out


def _anonymous(space: Space, dims: int) -> isl.Space:
    return space.isl.params().add_unnamed_tuple_ui(dims)


def _list(values: Iterable[isl.PwAff]) -> isl.PwAffList:
    out = isl.PwAffList.alloc(CONTEXT, 0)
    for v in values:
        out = out.add(v)
    return out


@exclusive
def isl_schedule(root: Domain) -> isl.Schedule:
    """The tree as isl's.  Stays in this package."""
    domains = {s.name: s for s in root.statements}
    union = isl.UnionSet.empty(isl.Space.params_alloc(CONTEXT, 0))
    for s in root.statements:
        union = union.union(_set(s))
    node = _grow(isl.Schedule.from_domain(union).get_root().child(0), root.child, tuple(domains), domains)
    return node.get_schedule()


def _set(s: IterationDomain) -> isl.UnionSet:
    space = Space(s.sizes(), tuple(Index(a.name) for a in s.axes), s.name)
    return isl.UnionSet.from_set(box(s, space))


def _grow(
    node: isl.ScheduleNode, tree: Tree, names: tuple[str, ...], domains: dict[str, IterationDomain]
) -> isl.ScheduleNode:
    """Insert a tree at a leaf; the node returned is where it was inserted."""
    match tree:
        case Mark(text, child):
            node = node.insert_mark(isl.Id(text, context=CONTEXT))
            return _grow(node.child(0), child, names, domains).parent()
        case Filter(_, child) | Domain(_, child):
            return _grow(node, child, names, domains)
        case Band(members, child, parallel):
            parts = isl.MultiUnionPwAff.from_union_pw_aff_list(
                isl.Space.params_alloc(CONTEXT, 0).add_unnamed_tuple_ui(len(members)),
                _union_list([[_member(domains[n], m) for n in names] for m in members]),
            )
            node = node.insert_partial_schedule(parts).band_set_permutable(1)
            for k in range(len(members) if parallel else 0):
                node = node.band_member_set_coincident(k, 1)
            return _grow(node.child(0), child, names, domains).parent()
        case Sequence(children):
            filters = isl.UnionSetList.alloc(CONTEXT, 0)
            for f in children:
                some = isl.UnionSet.empty(isl.Space.params_alloc(CONTEXT, 0))
                for n in f.statements:
                    some = some.union(_set(domains[n]))
                filters = filters.add(some)
            node = node.insert_sequence(filters)
            for k, f in enumerate(children):
                inner = _grow(node.child(k).child(0), f.child, f.statements, domains)
                node = inner.parent().parent()
    return node


def _member(s: IterationDomain, member: Expr) -> isl.UnionPwAff:
    space = Space(s.sizes(), tuple(Index(a.name) for a in s.axes), s.name)
    return isl.UnionPwAff.from_pw_aff(Translator(space).value(member).intersect_domain(box(s, space)))


def _union_list(rows: list[list[isl.UnionPwAff]]) -> isl.UnionPwAffList:
    out = isl.UnionPwAffList.alloc(CONTEXT, 0)
    for row in rows:
        total = row[0]
        for part in row[1:]:
            total = total.union_add(part)
        out = out.add(total)
    return out
