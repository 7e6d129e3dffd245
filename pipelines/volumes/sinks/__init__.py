"""Volumes out: NIfTI labels and objects, a table, DICOM-SEG."""

NOTICE = "research use only"
