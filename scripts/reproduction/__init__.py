"""Experiments of the paper at a smaller scale: what is run, in which order, and what came out."""
