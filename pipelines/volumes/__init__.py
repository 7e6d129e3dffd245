"""CT and MRI volumes: NIfTI and DICOM in, their labels and folders, and the way between two grids."""
