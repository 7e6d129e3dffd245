"""How far data are from what a model knows: by band (`bands`), by what its network makes of them (`features`)."""
