from __future__ import annotations

if __name__ != "flashlight.backends":
    raise ImportError(f"import flashlight.backends, not {__name__}: the bare name is a second copy of every class")
