"""The commands of `mtl` beside training and merging: each module has a function `cli`, see `mtl.cli`."""
