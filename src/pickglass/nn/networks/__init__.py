"""Networks that methods train: flows (coupling), EfficientAD's two (pdn), and any one per position (stacked)."""
