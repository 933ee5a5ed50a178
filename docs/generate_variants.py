"""Write docs/variants.md from tests/variants, by running every variant; its test holds what the page says.

python docs/generate_variants.py            all (some minutes)
python docs/generate_variants.py masks ...  these families; of the others the errors and reasons are kept
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.variants import FAMILIES, VARIANTS
from tests.variants.outcome import outcome
from tests.variants.table import Variant

PAGE = Path(__file__).with_name("variants.md")
ROW = re.compile(r"\| `([a-z0-9_.]+)` \|.*\| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)
HEAD = """# Variants

The catalogue of attention variants, each in about ten lines of ordinary PyTorch as its inventors would write it, and
what becomes of it. The programs are in `tests/variants/`; `tests/end_to_end/test_variants.py` runs every one of them
and holds what this page says.

*Kernels* are launches; *passes* are sweeps along a streamed axis, over all kernels. A variant is *fused* if nothing of
it runs unfused, if no tensor is written that has more unbounded dimensions than any that comes in or goes out (one of
all scores, say), and if Triton has a text for each kernel. *Error* is the largest against float64, as a multiple of
what eager PyTorch is off by on the same inputs: both in float32, on the cpu backend. Where not all is fused, the last
column has the reason as the report gives it; what is left is fused all the same, and counted in kernels and passes.

This page is written by `python docs/generate_variants.py`.
"""


def page(measured: dict[str, tuple[str, str]]) -> str:
    """The text of the page.  ``measured``: error and reason by the variant's key."""
    rows: dict[int, list[Variant]] = {}
    for v in VARIANTS.values():
        rows.setdefault(v.number, []).append(v)
    beyond = rows.pop(0)
    fused = [number for number, of in rows.items() if all(map(is_fused, of))]
    single = [number for number in fused if all(max(v.kernels, v.passes) == 1 for v in rows[number])]
    lines = [HEAD]
    lines += [
        f"Of {len(rows)} variants in {sum(map(len, rows.values()))} programs, {len(fused)} are fused, {len(single)} of "
        f"them in one kernel and one pass. Beyond the catalogue, {sum(map(is_fused, beyond))} of {len(beyond)} are.",
        "",
    ]
    for f in FAMILIES:
        lines += [f"## {f.title}", ""]
        lines += ["| program | # | variant | what it shows | kernels | passes | fused | error / eager's | why not |"]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for v in f.variants:
            error, why = measured.get(v.key, ("not measured", ""))
            variant = f"[{v.title}]({v.paper})" if v.paper.startswith("http") else v.title
            fate = "fails" if v.fails else "yes" if is_fused(v) else "no"
            cells = [f"`{v.key}`", v.number or "", variant, v.shows, v.kernels, v.passes, fate, error, why]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        lines.append("")
    return "\n".join(lines)


def is_fused(v: Variant) -> bool:
    return not (v.unfused or v.declined or v.fails)


def measure(v: Variant) -> tuple[str, str]:
    """The columns that a run gives: error beside eager's, and reasons."""
    if v.fails:
        return "none", v.fails
    o = outcome(v)
    error = f"{o.error / o.eager:.1f}" if o.eager else "exact"
    reasons = [*o.reasons, *([f"Triton: {o.declined}"] if o.declined else [])]
    return f"{error}{', **wrong**' if o.wrong else ''}", "; ".join(reasons).replace("|", "\\|")


def kept(text: str) -> dict[str, tuple[str, str]]:
    """What a page has of measurements."""
    return {k: (error, why) for k, error, why in ROW.findall(text) if k in VARIANTS}


def again(text: str) -> str:
    """The page anew, with the measurements of an old one."""
    return page(kept(text))


def main(families: list[str]) -> None:
    measured = kept(PAGE.read_text()) if PAGE.exists() and families else {}
    for v in VARIANTS.values():
        if v.family in families or not families:
            measured[v.key] = measure(v)
            print(v.key, *measured[v.key], flush=True)
    PAGE.write_text(page(measured))


if __name__ == "__main__":
    main(sys.argv[1:])
