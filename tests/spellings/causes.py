"""Why a spelling's kernel is another than its group's: laws that flashlight does not apply, and differences that are
there."""

from __future__ import annotations

# ---- laws
POLARITY = "a mask of what is kept and one of what is forbidden are two conditions"
NESTED = "a mask inside another is not merged with it"
LOGIC = "arithmetic on a mask's zeros and ones is not taken for logic"
OUTWARDS = "a mask is not moved out of what is done to the masked scores"
RESTORED = "the NaN of a row without keys is put into the sum and into the product"
RECIPROCAL = "a product with 1 / x is not taken for a division"
SCALES = "a scale within a scale is not merged with it"
NUMBERS = "a comparison of two numbers is not folded"
TENSOR = "a number that was made a tensor is read from memory"
JOINED = "a number of heads that was split stays two axes"
SIGNS = "a sign is not moved out of a product"
SEAMS = "a concatenation is a seam; a part written over, a table repeated and a stack are none"
ZEROS = "a product with a number that is zero is computed: it may be with infinity"

# ---- plans
LITERAL = "the captured tensor makes every length a number"
ROWS = "heads and tokens in one axis of the result are not taken apart"
COUNTED = "whether a row has any key is found a second time"
ITERATIONS = "every iteration has states of its own"
WRITTEN = "what is projected once and written has another layout"
REALS = "positions are subtracted as reals"

# ---- faults
NO_INDEX_PUT = "index_put has no meaning yet"
SHADOWED = "a value hoisted out of the loop is given a name that the loop uses"
SYMBOLIC_ALPHA = "alpha as an expression over a length is not understood"
ENDLESS = "tile classes of a real made of a loaded boolean are planned without end"
