"""The mathematics: tensors in, tensors out. No Ray, no files, no global state."""
