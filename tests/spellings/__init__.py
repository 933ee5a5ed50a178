"""The same attention, written in many ways: groups of programs that compute the same numbers.

Written as people write them; nothing in them knows of flashlight.
"""

from __future__ import annotations

from tests.spellings import causal, full, heads, masks, models, states
from tests.spellings.table import Group, Spelling

GROUPS: tuple[Group, ...] = (*full.GROUPS, *states.GROUPS, *causal.GROUPS, *masks.GROUPS, *heads.GROUPS, *models.GROUPS)
SPELLINGS: dict[str, Spelling] = {s.key: s for g in GROUPS for s in g.spellings}
