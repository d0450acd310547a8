"""Measurements: each module is a suite, run by ``python -m bench run NAME``; bench/README.md says how to write one."""
