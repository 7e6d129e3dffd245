"""SNOMED CT codes of what segments show, by the name of the class; DICOM wants every segment coded."""

from __future__ import annotations

import re
from typing import NamedTuple


class Code(NamedTuple):
    """A coded term of the scheme SCT."""

    value: str
    meaning: str


ANATOMY = Code("91723000", "Anatomical Structure")
MORPHOLOGY = Code("49755003", "Morphologically Abnormal Structure")
TISSUE = Code("85756007", "Tissue")
_SIDED = {"left kidney": "18639004", "right kidney": "9846003", "left lung": "44029006", "right lung": "3341006"}
_ANATOMY = {
    "liver": "10200004", "spleen": "78961009", "kidney": "64033007", "pancreas": "15776009", "gallbladder": "28231008",
    "stomach": "69695003", "aorta": "15825003", "esophagus": "32849002", "heart": "80891009", "lung": "39607008",
    "prostate": "41216001", "brain": "12738006", "hippocampus": "5366008", "spinal cord": "2748008",
    "vertebra": "51282000", "bone": "272673000", "adrenal gland": "23451007", "duodenum": "38848004",
    "colon": "71854001", "small intestine": "30315005", "rectum": "34402009", "trachea": "44567001",
    "thyroid": "69748006", "inferior vena cava": "64131007", "portal vein": "32764006", "femur": "71341001",
    "rib": "113197003", "skin": "39937001", "muscle": "71616004", "uterus": "35039007", "lymph node": "59441001",
    **_SIDED,
}  # fmt: skip
_MORPHOLOGY = {
    "neoplasm": "108369006", "mass": "4147007", "lesion": "52988006", "edema": "79654002", "necrosis": "6574001",
    "cyst": "367643001", "hemorrhage": "50960005", "nodule": "27925004", "sarcoma": "1187396000",
}  # fmt: skip
_SPELLINGS = {
    "tumour": "neoplasm", "tumor": "neoplasm", "oedema": "edema", "haemorrhage": "hemorrhage", "oesophagus":
    "esophagus", "postcava": "inferior vena cava", "kidneys": "kidney", "lungs": "lung", "vertebrae": "vertebra",
    "lesions": "lesion",
}  # fmt: skip


def code_of(name: str) -> tuple[Code, Code]:
    """(category, type) of a class name.

    The whole name first, then its last known word (`whole tumour` is a neoplasm, `L3 vertebra` a vertebra); what is not
    known is a tissue: true of everything and of no use, so the segment's label keeps the class' own name.
    """
    words = [_SPELLINGS.get(w, w) for w in re.sub(r"[^a-z0-9]+", " ", name.casefold()).split()]
    if len(words) == 2 and words[1] in ("left", "right"):
        words.reverse()
    for start in range(len(words)):
        for stop in range(len(words), start, -1):
            text = " ".join(words[start:stop])
            if stop < len(words) and any(w in _MORPHOLOGY for w in words[stop:]):
                continue  # a liver tumour is a tumour, not a liver
            for table, category in ((_ANATOMY, ANATOMY), (_MORPHOLOGY, MORPHOLOGY)):
                if text in table:
                    return category, Code(table[text], text[0].upper() + text[1:])
    return TISSUE, TISSUE
