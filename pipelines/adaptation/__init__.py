"""A trained model to a new domain without its labels: one strategy a file, each `(Subject, Target) -> Subject`."""
