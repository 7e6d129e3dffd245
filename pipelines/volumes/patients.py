"""Whom a model has learned from: kept in its bundle so that another scan of a patient is known again, without a name.

Patient identifiers are short and can be guessed one by one, so a plain hash of them hides little. Each is hashed by
scrypt (RFC 7914; about 50 ms and 16 MB a guess) with a salt that differs from training to training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

DIGITS = 12  # hex digits that tell images apart, as in the tables of an evaluation


def case_rows(cases: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    """What a bundle's provenance keeps of `cases`, (role, sha256 of the image, patient) each: `cases`, `patient_salt`.

    Equal cases give equal rows, so that the same training gives the same bundle.
    """
    salt = hashlib.sha256("".join(sorted(sha256 for _, sha256, _ in cases)).encode()).hexdigest()[:32]
    rows = [{"role": role, "sha256": sha256, "patient": _key(patient, salt)} for role, sha256, patient in cases]
    return {"cases": rows, "patient_salt": salt}


class LearnedFrom:
    """The images and patients that a model with this provenance was trained or tuned on.

    Bundles of before patients were kept know their images alone.
    """

    def __init__(self, provenance: Mapping[str, Any]) -> None:
        rows = [row for row in provenance.get("cases", []) if row["role"] != "test"]
        self.salt: str = provenance.get("patient_salt", "")
        self.images = {row["sha256"][:DIGITS] for row in rows}
        self.patients = {row["patient"] for row in rows if row.get("patient")}

    def knows(self, sha256: str, patient: str) -> bool:
        """Whether it has seen this image (by the first digits of its hash) or any other of this patient."""
        return sha256[:DIGITS] in self.images or (bool(self.patients) and _key(patient, self.salt) in self.patients)


@lru_cache(maxsize=4096)
def _key(patient: str, salt: str) -> str:
    """24 hex digits for a patient."""
    return hashlib.scrypt(patient.encode(), salt=bytes.fromhex(salt), n=2**14, r=8, p=1, dklen=12).hex()
