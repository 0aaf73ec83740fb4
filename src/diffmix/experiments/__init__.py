"""Measured experiments: single runs, comparisons and the papers' claims."""
