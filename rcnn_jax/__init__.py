"""rcnn-jax: the R-CNN family in JAX and Flax, under one engine."""

__version__ = "0.1.0"
