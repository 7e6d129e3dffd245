"""How a domain looks to the model: channels, classes, overlap."""
