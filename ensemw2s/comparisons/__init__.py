"""Comparisons: several ways to make an ensemble, on the same data, with several seeds, in one table."""
