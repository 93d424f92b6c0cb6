"""Planes in weight space: the picture's plane, its directions, and the local planes along a run."""
