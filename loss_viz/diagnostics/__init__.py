"""What is measured on runs and landscapes: fidelity, folds, geometry, plateaus, and the report of them all."""
