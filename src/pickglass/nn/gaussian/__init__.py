"""Gaussians describe features: one for each cell (cells, learners, algebra), or one for a whole level (moments)."""
