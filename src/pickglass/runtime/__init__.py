"""What runs an exported model, and what is known of a model without its tensors: nothing here needs torch."""
