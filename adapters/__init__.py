"""How a domain looks to the model: its channels, its classes, and whether its objects may overlap."""
