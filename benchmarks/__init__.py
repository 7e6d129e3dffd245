"""Timings and full trainings. Not tests: they print numbers, and the results are committed."""
