"""Is a certificate right?  Written out, and judged from the text alone by ``verifier``."""

from __future__ import annotations

from flashlight.algebra.certificate_json import to_json
from flashlight.algebra.proof import Certificate
from flashlight.algebra.verifier import verify


def check(certificate: Certificate) -> tuple[str, ...]:
    """What is wrong with a certificate; empty when it is right.  What cannot even be written out is malformed."""
    try:
        text = to_json(certificate)
    except Exception as why:  # whatever a forged certificate does to a writer
        return (f"malformed: {type(why).__name__}: {why}",)
    return verify(text)
