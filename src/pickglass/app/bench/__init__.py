"""How fast, how large and how good models are on this machine: stages, runtimes and precisions side by side."""
