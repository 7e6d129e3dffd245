"""The gate for volumes: studies as data, patients as the bootstrap's units, Dice and the F1 of lesions as scores."""
