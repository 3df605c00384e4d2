"""What distinguishes the model families: names and shapes of tensors, and constants."""
