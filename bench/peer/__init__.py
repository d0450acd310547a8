"""What runs in the peer's environment, which has anomalib and not pickglass."""
