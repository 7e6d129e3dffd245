"""How published checkpoints become models here: names as tables, files read without running code, and an account."""
