"""Gaussians of features: one a cell of a grid (cells, learners, algebra), and moments of whole levels (moments)."""
