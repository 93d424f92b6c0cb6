"""Planes in weight space: the plane of the picture, its directions, and the local planes along a run."""
