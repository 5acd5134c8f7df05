"""Pure functions of one image: no batch axis, no Flax, no input or output. `models/` lifts them with `jax.vmap`."""
