"""Plotly figures of runs, landscapes and diagnostics. Figures draw what was measured and compute nothing."""
