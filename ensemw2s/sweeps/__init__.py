"""Sweeps: one experiment with many settings, run by Ray Tune, chosen on validation."""
