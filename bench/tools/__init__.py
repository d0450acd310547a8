"""What makes inputs and pictures and measures nothing, run by ``python -m bench.tools.NAME``."""
