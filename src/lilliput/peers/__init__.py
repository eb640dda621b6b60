"""Other runtimes on the same weights: each in its own process, driven by `lilliput.bench`. Needs the extra `peers`."""
