"""Write docs/algebra.md: the theory as it stands there, and certificates as the program prints them.

python docs/generate_algebra.py

The page is the text of docs/algebra.md with the parts between markers written again; a test holds that they are what
the program says today.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from flashlight.algebra import Cascade, Certificate, Proved
from flashlight.algebra.certificate_json import to_json
from flashlight.algebra.check import check
from flashlight.algebra.derive import decide
from flashlight.algebra.proof import Fact, Gauge, Slot
from flashlight.algebra.room import anchored
from flashlight.algebra.scans import with_actions
from tests.flashlight.algebra.catalogue import PROVED, REFUTED, UNKNOWN
from tests.flashlight.algebra.stages import BOUNDED, PLACES, SCANS

PAGE = Path(__file__).with_name("algebra.md")
MARKED = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)

PROGRAMS: dict[str, tuple[Cascade, str]] = {
    "Attention": (PROVED["divided inside"], "The row's own division is late: `o` is read as `o'/l`."),
    "Log-sum-exp": (PROVED["logsumexp"], "The gauge is free, provided that `m` in the output is the `m` of the sum."),
    "Entropy": (PROVED["entropy"], "Rank 2, and no slot more than one: the sum of the weights is shared."),
    "Variance": (PROVED["variance"], "Rank 3, centred: the row is the binomial theorem; the prefix has its own count."),
    "The gradient of the queries": (PROVED["dQ in the row sum D"], "Rank 2 in the row sum D, rescaled and centred."),
    "Layer norm and a product": (PROVED["layer norm, product, no bias"], "The root of the variance is late."),
    "Differential attention": (PROVED["differential, one product"], "Rank 2: two gauges that move apart."),
    "A sink": (
        PROVED["sink in the maximum"],
        "The gauge is max(m, sink); the facts x <= m <= max(m, sink) are chained.",
    ),
    "A norm that does not overflow": (PROVED["l2 norm, scaled"], "Scaled: powers of x/m, moved by powers of g/h."),
    "Running sums": (SCANS["running sum"], "An action: (A + c)^2 v = A^2 v + 2 c A v + c^2 v."),
    "Stick breaking": (SCANS["stick breaking"], "Blocks come from the end of the axis; exp(A + c) = exp(c) exp(A)."),
    "The most likely value": (PLACES["most likely value"], "exp(s - m)/l increases in s, so places are those of s."),
    "The second smallest": (PLACES["second smallest"], "A place is kept if its key still is the one at that place."),
}
REFUSALS = ("distance to the mean", "tanh of a difference", "max of a moving mix")


def generated() -> dict[str, str]:
    """What the program says, by the name of the marker."""
    soft_cap = decide(BOUNDED["soft cap, masked"][0])
    assert isinstance(soft_cap, Proved)
    cert = soft_cap.certificate
    return {
        "programs": "\n".join(section(title, *what) for title, what in PROGRAMS.items()),
        "constants": block(f"{cert}\n\nwith the constant, for weights in bfloat16:\n\n{anchored(cert, 'bfloat16')}"),
        "refusals": "\n".join(refusal(name, c) for name, c in ({k: REFUTED[k] for k in REFUSALS} | UNKNOWN).items()),
        "json": "\n".join(written(PROVED["denominator"])),
    }


def section(title: str, cascade: Cascade, note: str) -> str:
    verdict = decide(cascade)
    assert isinstance(verdict, Proved), verdict
    mergeable = with_actions(verdict.certificate)
    cert = mergeable if isinstance(mergeable, Certificate) else verdict.certificate
    faults = check(cert)
    lines = [f"program, {cascade}", *(f"  output {o}" for o in cascade.outputs), ""]
    lines += ["state", *(f"  {state(s)}" for s in cert.slots), ""]
    lines += [*(["gauges", *(f"  {gauge(g)}" for g in cert.gauges), ""] if cert.gauges else [])]
    lines += ["merge", *(f"  {m}" for s in cert.slots for m in merge(s)), ""]
    lines += [
        "results",
        *(f"  {k}" + (f", NaN where {', '.join(k.restore)} is empty" if k.restore else "") for k in cert.links),
        "",
    ]
    if proofs := [p for s in cert.slots for p in bounds(s)]:
        lines += ["exponents", *(f"  {p}" for p in dict.fromkeys(proofs)), ""]
    lines += [f"order: {cert.order}", f"verifier: {'right' if not faults else '; '.join(faults)}"]
    return f"### {title}\n\n{note}\n\n" + block("\n".join(lines))


def block(text: str) -> str:
    return f"```text\n{text}\n```\n"


def state(s: Slot) -> str:
    return f"{s.name} = {s.monoid} {s.body}, {s.identity:g} on nothing"


def gauge(g: Gauge) -> str:
    empty = "" if g.empty != g.empty else f", empty at {g.empty:g}"
    return f"{g.name} stands for {g.final}, so far {g.value}{empty}, {'exact' if g.exact else 'free'}"


def merge(s: Slot) -> list[str]:
    """How a part's slot moves, then joins the other part's."""
    moves = str(s).split(";  ")[1:]
    how = "; ".join(moves) if moves else "as it is"
    return [f"{s.name}: {how}; then {'+' if s.monoid == 'sum' else '*' if s.monoid == 'prod' else s.monoid}"]


def bounds(s: Slot) -> list[str]:
    return [f"<= 0 in {s.name} by " + ", ".join(f"{k} * ({fact(f)})" for k, f in proof) for proof in s.bound if proof]


def fact(f: Fact) -> str:
    return f"{f.low} - {f.high}, for {f.source}"


def refusal(name: str, cascade: Cascade) -> str:
    return block(f"{name}, {cascade}\n{decide(cascade)}")


def written(cascade: Cascade) -> list[str]:
    """A certificate's JSON, a node or record a line."""
    verdict = decide(cascade)
    assert isinstance(verdict, Proved), verdict
    lines = ["```json", "{"]
    items = list(json.loads(to_json(verdict.certificate)).items())
    for k, (key, value) in enumerate(items):
        end = "," if k + 1 < len(items) else ""
        if isinstance(value, list) and value and isinstance(value[0], (list, dict)):
            rows = ",\n    ".join(json.dumps(v) for v in value)
            lines.append(f'  "{key}": [\n    {rows}\n  ]{end}')
        else:
            lines.append(f'  "{key}": {json.dumps(value)}{end}')
    return [*lines, "}", "```", ""]


def again(text: str) -> str:
    """The page with what the program says between its markers."""
    parts = generated()
    return MARKED.sub(lambda m: f"{m[1]}\n{parts[m[2]]}\n{m[3]}", text)


if __name__ == "__main__":
    PAGE.write_text(again(PAGE.read_text()))
