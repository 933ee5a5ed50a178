"""The dtypes of the language, and what C++ calls them."""

from __future__ import annotations

from flashlight.tile import ITEM_BYTES

WIDE = {"bfloat16": "bf16", "float16": "f16"}
CTYPES = {
    **WIDE,
    "float64": "double",
    "float32": "float",
    "int64": "long long",
    "int32": "int",
    "int16": "short",
    "int8": "signed char",
    "uint8": "unsigned char",
    "bool": "bool",
}
SIZES = ITEM_BYTES
