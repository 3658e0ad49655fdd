"""How the model's operations run: one module per kind of machine, behind the protocol in `base`."""
