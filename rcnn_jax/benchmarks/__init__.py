"""What `launch.benchmark` measures, one module a suite. Needs nothing beyond jax, flax, optax, numpy and absl."""
