"""From a mask in the frame of its box to a mask of the whole image, and to COCO's run lengths.

Only host code (numpy alone, which worker processes start with) lives here: it runs for each detection, after the
device has answered. What lies beyond the window of pixels that the box touches is never looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Window = tuple[slice, slice, np.ndarray]  # rows and columns of the image, and which of their pixels are inside


def paste(mask: np.ndarray, box: np.ndarray, size: tuple[int, int], threshold: float = 0.5) -> np.ndarray:
  """Samples a box-frame mask bilinearly at the centre of every pixel of the image (Detectron2's paste).

  Beyond the mask's border the probability is 0, so a pixel exactly on the edge of the box gets half the border's
  probability. Sampled in f32, box edges are not rounded.

  Args:
    mask: f32[P, P], probabilities; cell (i, j) covers an equal share of the box.
    box: f32[4], xyxy in pixels of the image; it may reach beyond the image.
    size: (height, width) of the image.
    threshold: a pixel belongs to the object where the sampled probability is at least this.

  Returns:
    u8[height, width] in {0, 1}.
  """
  return _whole(exact_window(mask, box, size, threshold), size)


def paste_rounded(mask: np.ndarray, box: np.ndarray, size: tuple[int, int], threshold: float = 0.5) -> np.ndarray:
  """torchvision's paste: one cell of zeros is put round the mask, the box grows with it and loses its fractions.

  Arguments and result are those of `paste`, but a pixel belongs to the object where the probability is more than
  `threshold`. The box is stretched to whole pixels, its last row and column included, so that a mask reaches up to a
  pixel farther than the exact one.
  """
  return _whole(rounded_window(mask, box, size, threshold), size)


def exact_window(mask: np.ndarray, box: np.ndarray, size: tuple[int, int], threshold: float = 0.5) -> Window:
  """The part of `paste` that may hold a pixel of the object."""
  height, width = size
  x1, y1, x2, y2 = (float(v) for v in box)
  rows, row_weights = _axis_weights(y1, y2, mask.shape[0], height)
  columns, column_weights = _axis_weights(x1, x2, mask.shape[1], width)
  return rows, columns, row_weights @ mask.astype(np.float32) @ column_weights.T >= threshold


def rounded_window(mask: np.ndarray, box: np.ndarray, size: tuple[int, int], threshold: float = 0.5) -> Window:
  """The part of `paste_rounded` that may hold a pixel of the object."""
  side = mask.shape[0]
  x1, y1, x2, y2 = np.float32(box)
  # In float32 and in this order, because the fractions are cut off afterwards.
  half = np.float32([x2 - x1, y2 - y1]) * np.float32(0.5) * np.float32((side + 2) / side)
  centre = np.float32([x2 + x1, y2 + y1]) * np.float32(0.5)
  low, high = np.trunc(centre - half).astype(int), np.trunc(centre + half).astype(int)
  rows, row_weights = _stretched_weights(low[1], high[1], side + 2, size[0])
  columns, column_weights = _stretched_weights(low[0], high[0], side + 2, size[1])
  padded = np.zeros((side + 2, side + 2), np.float32)
  padded[1:-1, 1:-1] = mask
  return rows, columns, row_weights @ padded @ column_weights.T > threshold


WINDOW = {"exact": exact_window, "rounded": rounded_window}  # by MaskHead.pasting


def run_lengths(
  masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], pasting: str = "exact"
) -> tuple[bytes, ...]:
  """COCO's compressed run lengths of N masks pasted into an image: pycocotools' `encode` of each whole mask.

  Args:
    masks: f32[N, P, P], probabilities in the frames of the boxes.
    boxes: [N, 4], xyxy in pixels of the image; they may reach beyond the image.
    size: (height, width) of the image.
    pasting: a key of WINDOW.
  """
  return compress([window_runs(WINDOW[pasting](mask, box, size), size) for mask, box in zip(masks, boxes)])


def window_runs(window: Window, size: tuple[int, int]) -> np.ndarray:
  """i64[R], the lengths of the runs of an image whose pixels outside of the window are 0.

  Runs go down the columns, from the left one to the right; the first is of zeros, of which there may be none.
  """
  rows, columns, inside = window
  height, width = inside.shape
  # Each column of the window has a zero above and below, so that no run goes on from one column into the next.
  padded = np.zeros((width, height + 2), bool)
  padded[:, 1:-1] = inside.T
  flat = padded.reshape(-1)
  column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), height + 2)
  # In the image: the first pixel of each run of ones, and the first behind it.
  borders = (columns.start + column) * size[0] + rows.start + row
  if height == size[0] and len(borders):  # whole columns: the runs at a bottom and at the next top are one
    joined = np.flatnonzero(borders[1:-1:2] == borders[2::2])
    borders = np.delete(borders, np.concatenate([2 * joined + 1, 2 * joined + 2]))
  ends = borders if len(borders) and borders[-1] == size[0] * size[1] else np.append(borders, size[0] * size[1])
  return np.diff(ends, prepend=0)


def compress(runs: Sequence[np.ndarray]) -> tuple[bytes, ...]:
  """Run lengths of N masks as COCO writes them, in one pass over all of them.

  From the fourth on, a length is the difference to the length two before. A number is written in characters of five
  bits, from the lowest on; the sixth bit says that more follow, the fifth of the last is the sign.
  """
  if not runs:
    return ()
  lengths = np.array([len(one) for one in runs])
  numbers = np.concatenate([np.concatenate([one[:3], one[3:] - one[1:-2]]) for one in runs])
  characters, digits = np.zeros((len(numbers), 13), np.uint8), np.ones(len(numbers), np.int64)
  open_rows = np.arange(len(numbers))
  for place in range(13):  # 64 bits, five at a time
    bits, numbers = numbers & 31, numbers >> 5
    more = numbers != np.where(bits & 16, -1, 0)
    characters[open_rows, place] = 48 + bits + 32 * more
    open_rows, numbers = open_rows[more], numbers[more]
    digits[open_rows] += 1
    if not len(open_rows):
      break
  text = characters[np.arange(13) < digits[:, None]].tobytes()
  ends = np.cumsum(digits)[np.cumsum(lengths) - 1].tolist()
  return tuple(text[start:end] for start, end in zip([0, *ends], ends))


def _whole(window: Window, size: tuple[int, int]) -> np.ndarray:
  rows, columns, inside = window
  pasted = np.zeros(size, np.uint8)
  pasted[rows, columns] = inside
  return pasted


def _axis_weights(low: float, high: float, cells: int, length: int) -> tuple[slice, np.ndarray]:
  """The pixels that the interval [low, high] touches, and f32[pixels, cells] of bilinear weights of its cells."""
  first = min(max(int(np.floor(low)), 0), length)
  last = min(max(int(np.ceil(high)), first), length)
  if high <= low:
    return slice(first, first), np.zeros((0, cells), np.float32)
  centres = np.arange(first, last, dtype=np.float32) + 0.5
  position = (centres - low) / (high - low) * cells - 0.5  # in cells; cell j has its centre at j
  distance = np.abs(position[:, None] - np.arange(cells, dtype=np.float32)[None, :])
  return slice(first, last), np.maximum(0.0, 1.0 - distance).astype(np.float32)


def _stretched_weights(low: int, high: int, cells: int, length: int) -> tuple[slice, np.ndarray]:
  """The pixels low..high that lie in the image, and f32[pixels, cells] of bilinear weights, the border's held."""
  first, last = min(max(low, 0), length), min(high + 1, length)
  pixels = np.arange(first, max(last, first))
  position = np.clip((pixels - low + 0.5) * cells / max(high - low + 1, 1) - 0.5, 0, cells - 1)
  distance = np.abs(position[:, None] - np.arange(cells))
  return slice(first, first + len(pixels)), np.maximum(0.0, 1.0 - distance).astype(np.float32)
