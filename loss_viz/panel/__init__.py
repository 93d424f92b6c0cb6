"""The interactive panel for Jupyter."""
