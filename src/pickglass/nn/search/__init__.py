"""Search: a coreset is chosen from many points (coreset), and the nearest of them are found exactly (neighbours)."""
