"""The commands of `mtl` that are no program of their own: thin shells over the other modules."""
