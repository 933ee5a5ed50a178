"""The cpu backend: tile programs as readable torch operators.  Runs anywhere, and is the oracle for the others."""

from __future__ import annotations

import hashlib
import linecache
from typing import Any

from flashlight.backend import Run, Source, Target, Unsupported
from flashlight.backends.cpu_emit import ENTRY, text_of
from flashlight.backends.queries import DTYPES, lets
from flashlight.tile import Kernel


class CpuBackend:
    """Prints a kernel as a Python function of torch operators over blocks."""

    name = "cpu"

    def supports(self, target: Target, kernel: Kernel | None = None) -> Unsupported | None:
        if target.device != "cpu":
            return Unsupported(f"the cpu backend runs on CPU tensors, not on {target.device}")
        if kernel is not None:
            typed = {x.name: x.dtype for x in (*kernel.inputs, *kernel.outputs)}
            typed |= {x.name: x.dtype for x in lets(kernel.body)}
            for name, dtype in typed.items():
                if dtype not in DTYPES:
                    return Unsupported(f"the cpu backend has no {dtype} ({name}); it has {', '.join(DTYPES)}")
        return None

    def emit(self, kernel: Kernel, target: Target) -> Source:
        """Pure: the same kernel gives the same text.  Raises InternalError: the kernel is malformed."""
        return Source("python", ENTRY, text_of(kernel), kernel, target)

    def build(self, source: Source) -> Run:
        """Compile the text; tracebacks show its lines."""
        digest = hashlib.sha256(source.text.encode()).hexdigest()[:12]
        file = f"<flashlight cpu {source.kernel.name} {digest}>"
        linecache.cache[file] = (len(source.text), None, source.text.splitlines(keepends=True), file)
        scope: dict[str, Any] = {}
        exec(compile(source.text, file, "exec"), scope)
        return scope[source.entry]  # type: ignore[no-any-return]
