"""Tasks that a small network learns: formulas in x, regression data, networks and optimizers."""
