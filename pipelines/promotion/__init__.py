"""The gate before @champion: a candidate is judged against the champion on the same frozen data; all is recorded.

frozen.py    the labelled data both are judged on, and its digest
outputs.py   a bundle made ready as `maskbridge predict` does it; units.py counts what it finds, block by block
signature.py finite.py identity.py grid_shift.py quality.py slices.py budget.py shadow.py    the rules
gate.py      the rules in their order; promote.py moves the alias; ledger.py remembers; rollback.py takes it back
"""
