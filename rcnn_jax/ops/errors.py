"""What operations and models raise where their settings do not fit."""


class ModelError(ValueError):
  """Settings of a model that do not fit each other, or the data; the message says what to set."""
