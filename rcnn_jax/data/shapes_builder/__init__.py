"""The TFDS builder of the drawn shapes: TFDS wants a builder in a package folder of its own."""
