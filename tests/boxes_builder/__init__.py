"""A TFDS builder for tests: TFDS wants a builder in a package folder of its own."""
