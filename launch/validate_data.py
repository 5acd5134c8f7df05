"""Lists every fault of a data set by file and object; exits 1 if there is any.

  python -m launch.validate_data --experiment=NAME_OR_FILE
  python -m launch.validate_data --voc=DIR --split=trainval
  python -m launch.validate_data --coco_images=DIR --coco_annotations=FILE
"""

from __future__ import annotations

from absl import app, flags

from rcnn_jax.data.coco import CocoFolder
from rcnn_jax.data.validate import faults
from rcnn_jax.data.voc import VocFolder

_EXPERIMENT = flags.DEFINE_string('experiment', None, 'Name or file of an experiment: its training and evaluation data.')
_VOC = flags.DEFINE_string('voc', None, 'A folder in the layout of Pascal VOC.')
_SPLIT = flags.DEFINE_string('split', 'trainval', 'With --voc: the split, ImageSets/Main/SPLIT.txt.')
_IMAGES = flags.DEFINE_string('coco_images', None, 'A folder of images, with --coco_annotations.')
_ANNOTATIONS = flags.DEFINE_string('coco_annotations', None, 'A COCO annotation file.')


def _specs() -> list:
  """The data sets that the flags name. Raises app.UsageError unless they name exactly one kind."""
  if (_IMAGES.value is None) != (_ANNOTATIONS.value is None):
    raise app.UsageError('--coco_images and --coco_annotations go together')
  if sum(value is not None for value in (_EXPERIMENT.value, _VOC.value, _IMAGES.value)) != 1:
    raise app.UsageError('name one data set: --experiment, --voc, or --coco_images and --coco_annotations')
  if _VOC.value:
    return [VocFolder(_VOC.value, _SPLIT.value)]
  if _IMAGES.value:
    return [CocoFolder(_IMAGES.value, _ANNOTATIONS.value)]
  from rcnn_jax import experiment

  data = experiment.load(_EXPERIMENT.value).data
  return list(dict.fromkeys((data.train, data.eval)))


def main(argv: list[str]) -> int:
  """Prints the faults and their number; 0 where there are none."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected argument {argv[1]!r}')
  count = 0
  for spec in _specs():
    for fault in faults(spec):
      print(fault, flush=True)
      count += 1
  print(f'{count} fault{"" if count == 1 else "s"}')
  return 1 if count else 0


if __name__ == '__main__':
  app.run(main)
