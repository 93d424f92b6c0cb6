"""The surface over the picture's plane: kernels, blending, evaluation, and the landscape as plain data."""
