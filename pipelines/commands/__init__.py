"""The verbs of the command line, one file each: thin wrappers that import what they need inside the body."""
