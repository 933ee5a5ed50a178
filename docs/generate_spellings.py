"""Write docs/spellings.md from tests/spellings, whose tests hold what its columns on flashlight say.

python docs/generate_spellings.py                    flashlight's columns; torch.compile's are kept as they are
python docs/generate_spellings.py --torch            torch.compile's too (a quarter of an hour), and its version
python docs/generate_spellings.py --torch full keep  those of these groups
"""

from __future__ import annotations

import ast
import inspect
import platform
import re
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from tests.spellings import GROUPS, SPELLINGS
from tests.spellings.table import Group, N, Spelling

PAGE = Path(__file__).with_name("spellings.md")
ROW = re.compile(r"\| `([a-z0-9_.]+)` \|.*\| ([^|]*) \|$", re.MULTILINE)
MEASURED = re.compile(r"^torch\.compile: .*$", re.MULTILINE)
SQUARE = re.compile(r"empty_strided_cpu\(\((?:\d+, )*(\d+), \1\)")  # an allocation whose last two lengths agree
HEAD = f"""# Spellings

One computation, written in many ways, and what becomes of each. The programs are in `tests/spellings/`, and
`tests/end_to_end/test_spellings.py` holds what this page says of flashlight: how many kernels a spelling takes, that
nothing of it runs unfused, that its values are right in float32, bfloat16 and float16, and whether its kernel is *the
group's*: equal, letter by letter, to that of the other spellings once names are put aside (`flashlight/canonical.py`).
Where it is another, the column says why, and where a kernel computes a score more than once, how often.

torch.compile is Inductor with its defaults, float32, without gradients, at the same lengths. *fused*: its code calls an
attention kernel. *scores in memory*: it does not, and allocates a tensor of all {N} x {N} scores. *wrong*: the result
is off by the number beside it.

This page is written by `python docs/generate_spellings.py` (`--torch` measures torch.compile's column again).
"""


def page(measured: dict[str, str], version: str) -> str:
    """The text of the page.  ``measured``: torch.compile's column by the spelling's key."""
    own = sum(not s.apart and not s.fails for s in SPELLINGS.values())
    single = sum(s.kernels == 1 and not s.fails for s in SPELLINGS.values())
    fused = sum(x == "fused" for x in measured.values())
    total = len(SPELLINGS)
    lines = [HEAD, version, ""]
    lines += [
        f"Of {total} spellings in {len(GROUPS)} groups, flashlight computes {single} in one kernel, "
        f"and {own} in the kernel of their group; torch.compile fuses {fused}.",
        "",
    ]
    for g in GROUPS:
        lines += [f"## {g.title}", ""] + ([f"{g.note[0].upper()}{g.note[1:]}.", ""] if g.note else [])
        lines += ["| spelling | what | code | flashlight | torch.compile |", "|---|---|---|---|---|"]
        for s in g.spellings:
            theirs = measured.get(s.key, "not measured")
            lines.append(f"| `{s.key}` | {s.what} | `{essence(s, g)}` | {ours(s)} | {theirs} |")
        lines.append("")
    return "\n".join(lines)


def ours(s: Spelling) -> str:
    if s.fails:
        return f"none: {s.fails}"
    kernels = "1 kernel" if s.kernels == 1 else f"{s.kernels} kernels"
    often = f"; every score {s.repeats} times" if s.repeats > 1 else ""
    whose = f"another: {s.apart}" if s.apart else "the group's"
    return f"{kernels}, {whose}{often}"


def essence(s: Spelling, group: Group) -> str:
    """The statements of a program that its group's first does not have, on one line."""
    usual = set(statements(group.spellings[0])) if s is not group.spellings[0] else set()
    own = [x for x in statements(s) if x not in usual] or statements(s)
    text = "; ".join(own)
    return (text if len(text) <= 160 else text[:157] + "...").replace("|", "\\|")


def statements(s: Spelling) -> list[str]:
    """Those of the function, or of the module's forward."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(s.source)))
    functions = [x for x in ast.walk(tree) if isinstance(x, ast.FunctionDef)]
    body = next((f.body for f in functions if f.name == "forward"), functions[0].body)
    return [re.sub(r"\s+", " ", ast.unparse(x)).removeprefix("return ") for x in body]


# ---- torch.compile ---------------------------------------------------------------------------------------------------
def measure(s: Spelling) -> str:
    """What torch.compile makes of a spelling, in a few words."""
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    torch.manual_seed(0)
    want = s.program()(*s.arguments())
    try:
        got, codes = run_and_get_code(torch.compile(s.program()), *s.arguments())
    except Exception as error:
        return f"fails: {type(error).__name__}"
    code = "\n".join(x for text in codes for x in text.splitlines() if not x.lstrip().startswith("#"))
    fused = re.search(r"_scaled_dot_product|_flash_attention", code)
    what = "fused" if fused else "scores in memory" if SQUARE.search(code) else "no attention kernel"
    error = (got.double() - want.double()).abs().max().item()
    return what if error < 1e-3 else f"{what}, **wrong** by {error:.1f}"


def kept(text: str) -> tuple[dict[str, str], str]:
    """What a page says of torch.compile: a result a spelling, and the version."""
    found = MEASURED.search(text)
    return {k: v for k, v in ROW.findall(text) if k in SPELLINGS}, found[0] if found else "torch.compile: not measured"


def again(text: str) -> str:
    """The page anew, with what an old one says of torch.compile."""
    return page(*kept(text))


def main(arguments: list[str]) -> None:
    measured, version = kept(PAGE.read_text() if PAGE.exists() else "")
    if "--torch" in arguments:
        version = f"torch.compile: PyTorch {torch.__version__.partition('+')[0]} on {platform.machine()}, CPU"
        for g in (g for g in GROUPS if g.name in arguments or arguments == ["--torch"]):
            for s in g.spellings:
                with torch.no_grad():
                    measured[s.key] = measure(s)
                print(s.key, measured[s.key], flush=True)
    PAGE.write_text(page(measured, version))


if __name__ == "__main__":
    main(sys.argv[1:])
