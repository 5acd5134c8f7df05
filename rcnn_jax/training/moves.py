"""The stages that move parameters: from one place of the model to another, or back to where they began.

The running statistics of norms go with the parameters of their layers.
"""

from __future__ import annotations

from rcnn_jax.training import optim
from rcnn_jax.training.stages import CopyParameters, ResetParameters


def copy(stage: CopyParameters, variables: dict) -> tuple[dict, int]:
  """(the variables with `stage.target` like `stage.source`, how many parameters that are).

  Raises:
    TrainingError: there are no such parameters, or not the same ones under both paths.
  """
  copied, count = {}, 0
  for collection, tree in variables.items():
    flat = optim.flatten(tree)
    source, target = (_under(root, flat) for root in (stage.source, stage.target))
    shapes = [{name: leaf.shape for name, leaf in part.items()} for part in (source, target)]
    if shapes[0] != shapes[1] or (collection == "params" and not source):
      raise optim.TrainingError(f"{stage}: the parameters under the two paths are not the same by name and shape")
    copied[collection] = optim.unflatten(flat | {f"{stage.target}/{name}": leaf for name, leaf in source.items()})
    count += sum(leaf.size for leaf in source.values()) if collection == "params" else 0
  return copied, count


def reset(stage: ResetParameters, variables: dict, initial: dict) -> tuple[dict, int]:
  """(the variables with those of `initial` where `stage.pattern` matches, how many parameters that are).

  Raises:
    TrainingError: the pattern matches no parameter.
  """
  moved, count = {}, 0
  for collection, tree in variables.items():
    flat, first = optim.flatten(tree), optim.flatten(initial[collection])
    paths = optim.matching(stage.pattern, flat)
    if collection == "params" and not paths:
      raise optim.TrainingError(f"{stage}: no parameter matches; they are named like {next(iter(flat))}")
    moved[collection] = optim.unflatten(flat | {path: first[path] for path in paths})
    count += sum(flat[path].size for path in paths) if collection == "params" else 0
  return moved, count


def _under(root: str, flat: dict) -> dict:
  """The leaves under a path, by what follows it."""
  return {path.removeprefix(f"{root}/"): leaf for path, leaf in flat.items() if path.startswith(f"{root}/")}
