"""GenEval: whether an image shows what its prompt says."""
