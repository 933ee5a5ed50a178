"""From the emitted text to machine code: loading it, and compiling one layout of its arguments."""

from __future__ import annotations

import hashlib
import linecache
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from flashlight.backend import Source
from flashlight.backends.queries import axes_in, lets, stores
from flashlight.backends.triton.address import WHOLE
from flashlight.backends.triton.key import remember_key
from flashlight.backends.triton.start import wait
from flashlight.errors import InternalError
from flashlight.tile import Const, LoadOp, Size

POINTERS = {
    "bfloat16": "*bf16",
    "float16": "*fp16",
    "float32": "*fp32",
    "float64": "*fp64",
    "int64": "*i64",
    "int32": "*i32",
    "int16": "*i16",
    "int8": "*i8",
    "uint8": "*u8",
    "bool": "*i1",
}
ALIGNED = 16
FAR = 2**31
SPILT = 4096  # bytes a thread spills at which it does not matter what strides are
REGISTERS = 65536  # of a multiprocessor
RESERVED_BYTES = 1024  # of shared memory, beside what a program asks for
SPARED = 0.75  # of the registers that a kernel takes unasked: with fewer it is not tried
KEPT = 32  # bytes a thread that may be spilt for it: what waits for the end of a loop is not missed inside
ENOUGH = 16  # warps on a multiprocessor: with more, none are missed
COMPILING = threading.Lock()


@dataclass(frozen=True)
class Module:
    """The emitted text as Python: the Triton function and what its launch needs to know.

    ``strides``: (buffer, dimension, reach) of each stride argument; see the emitted text.
    """

    source: Source
    function: Any
    programs: Callable[..., tuple[int, int, int]]
    strides: tuple[tuple[int, int, int], ...]
    options: dict[str, int]

    @property
    def flattens(self) -> bool:
        """Does the text say what a flat launch is (``FLAT``)?  With one axis it is like any other."""
        return bool(self.function.arg_names[-1] == "FLAT")

    @cached_property
    def tiled(self) -> frozenset[tuple[int, int]]:
        """The dimensions of buffers (by number) that tiled axes run along: those whose lengths change."""
        kernel = self.source.kernel
        names = [b.name for b in (*kernel.inputs, *kernel.outputs)]
        tiled = {d.axis for d in kernel.dims if d.role != "point"}
        places = [(names.index(s.buffer), s.index) for s in stores(kernel.body)]
        places += [(names.index(x.op.buffer), x.op.index) for x in lets(kernel.body) if isinstance(x.op, LoadOp)]
        return frozenset((b, d) for b, index in places for d, e in enumerate(index) if {*axes_in(e)} & tiled)


@dataclass(frozen=True)
class Layout:
    """What a compiled kernel depends on besides the text.

    ``aligned``: which pointers are multiples of 16 bytes.  ``sizes`` and ``strides``: the type of each such argument,
    "i32" or "i64", with a trailing "*" where it is a multiple of 16 (of sizes, those of contiguous dimensions: what is
    masked by them is moved in long vectors then); a stride may be a literal instead.  ``flat``: see the emitted text.
    """

    aligned: tuple[bool, ...]
    sizes: tuple[str, ...]
    strides: tuple[str, ...]
    flat: bool = False


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """Machine code, and what the assembler tells of it.

    ``spills``: bytes stored to and loaded from local memory.  ``serialized``: tensor core instructions wait for each
    other, since registers ran out.
    """

    registers: int
    spills: int
    serialized: bool
    cubin: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Compiled(Assembled):
    """What ahead-of-time compilation tells of a kernel.  ``shared``: bytes of shared memory a program needs."""

    arch: int
    shared: int
    warps: int
    ptx: str = field(repr=False)
    ttgir: str = field(repr=False)

    def count(self, pattern: str) -> int:
        """How often a regular expression occurs in the PTX."""
        return len(re.findall(pattern, self.ptx))

    def sass(self) -> str:
        """The machine code as text."""
        return disassembled(self.cubin)


def load(source: Source) -> Module:
    """Run the text as a module; tracebacks, and Triton, see its lines."""
    digest = hashlib.sha256(source.text.encode()).hexdigest()[:12]
    file = f"<flashlight triton {source.kernel.name} {digest}>"
    linecache.cache[file] = (len(source.text), None, source.text.splitlines(keepends=True), file)
    scope: dict[str, Any] = {"__name__": f"flashlight_triton_{digest}"}
    exec(compile(source.text, file, "exec"), scope)
    return Module(source, scope[source.entry], scope["programs"], tuple(scope["STRIDES"]), dict(scope["OPTIONS"]))


# ---- layouts ---------------------------------------------------------------------------------------------------------
def layout_of(
    module: Module,
    shapes: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
    pointers: Sequence[int],
    sizes: Sequence[int],
    kind: str = "own",
) -> Layout:
    """The layout of a call's tensors.

    ``kind``: "general" serves many; "literal" has strides that are the same at every length as literals, which takes
    fewer registers (and is no faster where there are enough of them).
    """
    general = kind == "general"
    aligned = tuple(not general and p % ALIGNED == 0 for p in pointers)
    given = []
    for b, d, reach in module.strides:
        n = strides[b][d]
        if n == 1 or (kind == "literal" and reach != 1 and _lasting(module, b, d, shapes[b], strides[b])):
            given.append(str(n))
        else:
            width = "i64" if abs(n) * (shapes[b][d] if reach == WHOLE else reach) >= FAR else "i32"
            given.append(width + ("*" if n % ALIGNED == 0 and not general else ""))
    even = {k for k in _contiguous(module, strides) if sizes[k] % ALIGNED == 0 and not general}
    types = (("i32" if n < FAR else "i64") + ("*" if k in even else "") for k, n in enumerate(sizes))
    return Layout(aligned, tuple(types), tuple(given))


def _contiguous(module: Module, strides: Sequence[Sequence[int]]) -> set[int]:
    """The sizes (by number) that are the length of a contiguous dimension of a matrix.  Where that is contiguous, too,
    its stride is the same number, so that knowing whether it is a multiple of 16 takes no further compilation."""
    kernel = module.source.kernel
    shapes = [b.shape for b in (*kernel.inputs, *kernel.outputs)]
    found = {
        e.name
        for s, own in zip(shapes, strides, strict=True)
        for e, n in zip(s, own, strict=True)
        if n == 1 and len(s) > 1 and isinstance(e, Size)
    }
    return {k for k, name in enumerate(kernel.sizes) if name in found}


def _lasting(module: Module, b: int, d: int, shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Is a stride the same at every length?"""
    inner = [k for k, m in enumerate(strides) if k != d and m < strides[d] and shape[k] > 1]
    return 0 <= strides[d] < FAR and not any((b, k) in module.tiled for k in inner)


def contiguous(module: Module, kind: str = "own") -> Layout:
    """The layout of contiguous tensors whose symbolic lengths are multiples of 16 (64 stands for them)."""
    kernel = module.source.kernel
    shapes = [
        [int(n.value) if isinstance(n, Const) else 64 for n in b.shape] for b in (*kernel.inputs, *kernel.outputs)
    ]
    strides = [[prod(s[d + 1 :]) for d in range(len(s))] for s in shapes]
    return layout_of(module, shapes, strides, [0] * len(shapes), [64] * len(kernel.sizes), kind)


# ---- compiling -------------------------------------------------------------------------------------------------------
def compiled(module: Module, layout: Layout, target: Any, options: dict[str, Any]) -> Any:
    """Triton's compiled kernel for one layout.  ``target`` is Triton's GPUTarget.

    One at a time: Python's parser, which Triton asks for syntax trees, may fail in two threads at once ("AST
    constructor recursion depth mismatch", seen with 3.11), and three threads took longer than one.
    """
    from triton.compiler import ASTSource
    from triton.compiler import compile as triton_compile

    wait()
    remember_key()
    kernel = module.source.kernel
    types = [POINTERS[b.dtype] for b in (*kernel.inputs, *kernel.outputs)]
    divisible = list(layout.aligned)
    constants: dict[str, int | bool] = {}
    names = module.function.arg_names
    for kind in (*layout.sizes, *layout.strides):
        if kind.isdigit():
            constants[names[len(types)]] = int(kind)
        types.append("constexpr" if kind.isdigit() else kind.rstrip("*"))
        divisible.append(kind.endswith("*"))
    if module.flattens:
        constants["FLAT"] = layout.flat
        types.append("constexpr")
    attributes = {(k,): [["tt.divisibility", ALIGNED]] for k, yes in enumerate(divisible) if yes}
    signature = dict(zip(names, types, strict=True))
    source = ASTSource(fn=module.function, signature=signature, constexprs=constants, attrs=attributes)
    with COMPILING:
        return triton_compile(source, target=target, options=options)


def compile_only(source: Source, arch: int = 90, layout: Layout | None = None, **options: Any) -> Compiled:
    """Compile for a GPU that need not be here; by default for contiguous, aligned tensors.

    ``options`` go to Triton (num_warps, num_stages, ...).  Raises InternalError: the text was emitted for the
    interpreter.
    """
    if source.target.interpret:
        raise InternalError(f"kernel {source.kernel.name} was emitted for Triton's interpreter, not for a GPU")
    module = load(source)
    done = _compiled(module, layout or contiguous(module), arch, options)
    if layout is None and tight(done.registers, done.spills):
        done = _compiled(module, contiguous(module, "literal"), arch, options)
    fewer = capped(done.registers, done.shared, done.warps, source.target.shared_bytes)
    if fewer and done.spills == 0:
        with suppress(InternalError):  # so few may not be enough
            ptx = withholding(done.ptx, fewer)
            spared = assembled(ptx, arch)
            if spared.spills <= KEPT:
                done = replace(done, ptx=ptx, **asdict(spared))
    return done


def tight(registers: int, spills: int) -> bool:
    """Does a kernel need more registers than there are, but few more, so that strides which take none may save it?
    ``spills``: in bytes.  Far beyond that, literals gained nothing and took a second long compilation."""
    return spills < SPILT and (registers >= 255 or spills > 0)


def capped(registers: int, shared: int, warps: int, room: int) -> int:
    """The registers a thread may take for one more program to share a multiprocessor; 0 where shared memory has no room
    for it, or so few would spill.  ``shared``, ``room``: the bytes that a program takes, and may take at most."""
    threads = 32 * warps
    fit = REGISTERS // (threads * -(-registers // 8) * 8) if registers else 0
    if fit * warps >= ENOUGH or not 0 < fit < (room + RESERVED_BYTES) // (shared + RESERVED_BYTES):
        return 0
    fewer = REGISTERS // (threads * (fit + 1)) // 8 * 8
    return fewer if fewer >= SPARED * registers else 0


def _compiled(module: Module, layout: Layout, arch: int, options: dict[str, Any]) -> Compiled:
    from triton.backends.compiler import GPUTarget

    made = compiled(module, layout, GPUTarget("cuda", arch, 32), {**module.options, **options})
    about, ptx = made.metadata, made.asm["ptx"]
    again = asdict(assembled(ptx, arch))  # for what the assembler reports
    return Compiled(arch=arch, shared=about.shared, warps=about.num_warps, ptx=ptx, ttgir=made.asm["ttgir"], **again)


def withholding(ptx: str, registers: int) -> str:
    """A kernel's PTX with a limit to the registers of a thread, as Triton writes it (``maxnreg``)."""
    return re.sub(r"(\.reqntid [^\n]*\n)", rf"\g<1>.maxnreg {registers}\n", ptx, count=1)


def assembled(ptx: str, arch: int) -> Assembled:
    """Machine code, by the options that Triton gives the assembler.  Raises InternalError: it fails."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        file.write_text(ptx)
        name = f"sm_{arch}{'a' if arch >= 90 else ''}"
        log = _tool("ptxas", "-v", "-lineinfo", f"--gpu-name={name}", str(file), "-o", str(out))
        cubin = out.read_bytes()
    return Assembled(
        registers=max(map(int, re.findall(r"Used (\d+) registers", log)), default=0),
        spills=sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", log))),
        serialized="instructions are serialized" in log,
        cubin=cubin,
    )


def disassembled(cubin: bytes) -> str:
    """Machine code of any compiler as text.  Raises InternalError: the disassembler fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        return _tool("cuobjdump", "-sass", str(file))


def _tool(name: str, *arguments: str) -> str:
    """The output of one of the programs that come with Triton.  Raises InternalError: it fails."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    done = subprocess.run([str(path), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InternalError(f"{name} failed: {done.stderr.strip()[-500:]}")
    return done.stdout + done.stderr
