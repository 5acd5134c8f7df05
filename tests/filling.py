"""What both sides of a comparison are given: numbers made from a name, so that none of them have to be stored.

The script that records torchvision's answers and the tests that compare ours with them run in different environments;
both import this module, which needs numpy alone. Numbers come from PCG64's raw bits, seeded with the name's CRC-32:
that stream is the same in every version of numpy. Here live inputs, weights and the settings of both sides.
"""

from __future__ import annotations

import math
import pathlib
import zlib

import numpy as np

# One RPN level with two sizes, and a pyramid: (sizes of each level, strides, canvas).
RATIOS = (0.5, 1.0, 2.0)
SINGLE = {"sizes": ((32.0, 64.0),), "strides": (16,), "canvas": (64, 96)}
PYRAMID = {"sizes": ((8.0,), (16.0,), (32.0,)), "strides": (4, 8, 16), "canvas": (64, 96)}
# Levels on a canvas that their strides do not divide, maps rounded up: (sizes, stride, map) of each.
UNEVEN = {"levels": (((64.0,), 32, (3, 5)), ((128.0,), 64, (2, 3))), "canvas": (96, 160)}
IMAGE_SIZES = ((64, 80), (50, 96))  # (height, width) of the images on those canvases

PROPOSAL_COUNTS = ({"training": 60, "testing": 40}, {"training": 50, "testing": 15})  # before and after NMS
PROPOSAL_NMS = 0.7
MAX_DETECTIONS = 30

ROI_STRIDE = 8
ROI_MAP = (9, 12, 3)  # rows, columns, channels
ROI_OUTPUT = (3, 4)
SAMPLING_RATIOS = (0, 1, 2, 4)

# Original sizes (height, width) and the resize rule (short side, long side) that each of them meets.
ORIGINAL_SIZES = [(480, 640), (640, 427), (333, 500), (375, 500), (123, 457), (612, 612), (1080, 1920), (37, 91)]
RESIZE_RULES = [(800, 1333), (480, 640), (128, 192), (600, 1000)]
RESIZED = [((37, 53), (48, 69)), ((60, 45), (41, 30)), ((24, 32), (60, 23)), ((30, 40), (30, 41))]

FEATURE_CANVAS = (64, 96)

# The small Faster R-CNN of the losses and of the detections; pairs are (training, evaluation).
DETECTOR = {
  "num_classes": 4,
  "anchor_sizes": ((16.0,), (32.0,), (64.0,), (128.0,), (256.0,)),
  "num_pre_nms": (120, 200),
  "num_post_nms": (40, 60),
  "trunk_width": 64,
  "mask_widths": (16, 16),
  "score_threshold": 0.05,
  "max_detections": 100,
}
# Beyond twice the number of candidates, so that all of them are sampled and nothing depends on a draw.
EVERY_ANCHOR, EVERY_ROI = 6200, 100
LOSS_IMAGES = ((96, 112), (80, 128))  # (height, width), padded to 96 x 128
PACKED = np.array([100.0, 100.0, 100.0, 100.0, 65535.0, 1.0])
DETECT_SIDES = (128, 192)  # short and long side of the images detected in

# What is changed in the configurations of Detectron2, by the names of these: small images, few regions.
DETECTRON2 = {
  "INPUT.MIN_SIZE_TEST": DETECT_SIDES[0],
  "INPUT.MAX_SIZE_TEST": DETECT_SIDES[1],
  "MODEL.RPN.POST_NMS_TOPK_TEST": 40,
  "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.1,
  "TEST.DETECTIONS_PER_IMAGE": 20,
}
DETECTRON2_MASKS = 4  # of each image
# Its configurations, and the folder in which each of them stands there.
DETECTRON2_MODELS = {
  "faster_rcnn_R_50_C4_3x": "COCO-Detection",
  "faster_rcnn_R_50_DC5_3x": "COCO-Detection",
  "faster_rcnn_R_50_FPN_3x": "COCO-Detection",
  "mask_rcnn_R_50_C4_3x": "COCO-InstanceSegmentation",
  "mask_rcnn_R_50_FPN_3x": "COCO-InstanceSegmentation",
  "keypoint_rcnn_R_50_FPN_3x": "COCO-Keypoints",
  "cascade_mask_rcnn_R_50_FPN_3x": "Misc",
}
# Those whose detections are recorded; what is left of a Mask R-CNN without its masks is the Faster R-CNN.
DETECTRON2_RECORDED = (
  "faster_rcnn_R_50_DC5_3x",
  "mask_rcnn_R_50_C4_3x",
  "mask_rcnn_R_50_FPN_3x",
  "keypoint_rcnn_R_50_FPN_3x",
)
# Of these, those whose class scores are calibrated: without a pyramid, regions are so alike that one class wins
# everywhere, or none.
DETECTRON2_CALIBRATED = ("faster_rcnn_R_50_DC5_3x", "mask_rcnn_R_50_C4_3x")
# Its losses, and a cascade's detections too, of a smaller network: every anchor and every proposal is a sample, so
# that nothing depends on a draw.
DETECTRON2_LOSSES = {
  "MODEL.RESNETS.DEPTH": 18,
  "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
  "MODEL.ROI_HEADS.NUM_CLASSES": DETECTOR["num_classes"],
  "MODEL.RPN.PRE_NMS_TOPK_TRAIN": DETECTOR["num_pre_nms"][0],
  "MODEL.RPN.POST_NMS_TOPK_TRAIN": DETECTOR["num_post_nms"][0],
  "MODEL.RPN.PRE_NMS_TOPK_TEST": DETECTOR["num_pre_nms"][1],
  "MODEL.RPN.POST_NMS_TOPK_TEST": DETECTOR["num_post_nms"][1],
  "MODEL.ANCHOR_GENERATOR.SIZES": [[float(side) for side in sides] for sides in DETECTOR["anchor_sizes"]],
  "MODEL.RPN.BATCH_SIZE_PER_IMAGE": EVERY_ANCHOR,
  "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": EVERY_ROI,
  "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.5,
}
# What torchvision's whole detectors are cut down to: images, regions and detections of each; and how far the class
# scores of the regions are spread, of Detectron2's too.
MODEL_LIMITS = {"short_side": 128, "long_side": 160, "num_proposals": 200, "max_detections": 25, "logit_spread": 2.0}


# The small Keypoint R-CNN: the same with a keypoint head of so many joints and channels of two convolutions.
NUM_KEYPOINTS = 5
KEYPOINT_CHANNELS = (16, 16)


def uniform(name: str, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> np.ndarray:
  """f32[shape], uniform in [low, high), the same for the same name on every machine."""
  raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape))
  unit = (raw >> np.uint64(40)).astype(np.float64) * 2.0**-24
  return (low + (high - low) * unit).astype(np.float32).reshape(shape)


def integers(name: str, shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
  """i64[shape], uniform in low .. high - 1."""
  return np.floor(uniform(name, shape, low, high)).astype(np.int64)


def boxes(name: str, count: int, size: tuple[int, int], sides: tuple[float, float]) -> np.ndarray:
  """f32[count, 4], xyxy: centres anywhere in an image of size (height, width), sides within `sides`, uncut."""
  centres = uniform(name + ".centres", (count, 2)) * np.float32([size[1], size[0]])
  halves = uniform(name + ".sides", (count, 2), *sides) / 2
  return np.concatenate([centres - halves, centres + halves], axis=1).astype(np.float32)


def boxes_inside(name: str, count: int, size: tuple[int, int], sides: tuple[float, float]) -> np.ndarray:
  """f32[count, 4]: `boxes`, cut at the image."""
  height, width = size
  return np.clip(boxes(name, count, size, sides), 0, np.float32([width, height, width, height]))


def image(name: str, size: tuple[int, int]) -> np.ndarray:
  """u8[H, W, 3]: patches of one colour each, 8 to 32 pixels wide, and noise over them."""
  height, width = size
  pixels = np.zeros((height, width, 3), np.float32)
  for side in (8, 32):
    colours = uniform(f"{name}.{side}", (-(-height // side), -(-width // side), 3), 0, 100)
    pixels += colours.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
  return (pixels + uniform(f"{name}.noise", (height, width, 3), 0, 50)).astype(np.uint8)


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """f32[shape]: a parameter or statistic by torchvision's name, in PyTorch's layout; signals keep their size."""
  kind = name.rpartition(".")[2]
  if kind == "running_var":
    return uniform(name, shape, 0.5, 1.5)
  if len(shape) == 1:
    return uniform(name, shape, 0.4, 0.8) if kind == "weight" else uniform(name, shape, -0.1, 0.1)
  limit = math.sqrt(6.0 / math.prod(shape[1:]))  # He's variance
  # Boxes stay near their anchors and proposals, and no class wins everywhere.
  limit *= {"bbox_pred": 0.1, "anchor_deltas": 0.1, "cls_score": 0.3}.get(name.split(".")[-2], 1.0)
  if name.endswith("stem.conv1.weight"):
    limit /= 57  # Detectron2's pixels are not divided by their standard deviation
  return uniform(name, shape, -limit, limit)


def sample(name: str, values: np.ndarray, count: int = 400) -> np.ndarray:
  """f32[<= count + 1]: the norm of an array, then some of its elements, all of them where there are only few."""
  flat = np.asarray(values, np.float32).reshape(-1)
  if flat.size > count:
    flat = flat[integers(name + ".sample", (count,), 0, flat.size)]
  return np.concatenate([[np.linalg.norm(np.asarray(values, np.float64))], flat]).astype(np.float32)


def packed(detections: np.ndarray) -> np.ndarray:
  """f32[D, 6] of box, score and class as u16[D, 6]: hundredths of a pixel, 1/65,535 of the score."""
  return np.rint(detections * PACKED).astype(np.uint16)


def unpacked(detections: np.ndarray) -> np.ndarray:
  """The inverse of `packed`, to its precision."""
  return (detections / PACKED).astype(np.float32)


def roi_boxes() -> np.ndarray:
  """f32[19, 4]: usual boxes, then over each border, tiny, empty, far outside and larger than the map."""
  height, width = ROI_MAP[0] * ROI_STRIDE, ROI_MAP[1] * ROI_STRIDE
  special = [
    [-12, 10, 20, 30],
    [10, -12, 30, 20],
    [width - 20, 10, width + 12, 30],
    [10, height - 20, 30, height + 12],
    [40.25, 30.5, 40.5, 30.75],
    [0, 0, 1, 1],
    [20, 20, 20, 20],
    [33, 20, 33, 40],
    [400, 400, 440, 460],
    [0, 0, width, height],
    [-10, -10, width + 10, height + 10],
  ]
  usual = boxes_inside("roi.boxes", 8, (height, width), (6, 60))
  return np.concatenate([usual, np.float32(special)])


def paste_case() -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
  """(probabilities f32[30, 28, 28], boxes f32[30, 4], image size): inside, over borders, tiny, thin and huge.

  Neighbouring cells of a mask are alike, as a network's are.
  """
  size = (90, 120)
  special = [
    [-12.3, 10.2, 20.7, 30.1],
    [10.5, -12.5, 30.25, 20.75],
    [100.2, 10.9, 132.4, 30.6],
    [10.1, 70.3, 30.8, 102.9],
    [0, 0, 120, 90],
    [-40.5, -30.5, 160.5, 120.5],
    [40.2, 30.2, 40.7, 30.6],
    [40.9, 30.9, 41.1, 31.1],
    [0, 0, 1, 1],
    [119.2, 89.3, 120, 90],
    [20.4, 5.6, 21.0, 80.2],
    [5.1, 60.2, 110.7, 60.9],
    [33.0, 22.0, 61.0, 50.0],  # as many pixels as cells
    [4, 3, 60, 59],
  ]
  boxes_ = np.concatenate([boxes("paste.boxes", 16, size, (4, 90)), np.float32(special)])
  coarse = uniform("paste.masks", (30, 8, 8))
  blend = np.maximum(0, 1 - np.abs(np.linspace(0, 7, 28)[:, None] - np.arange(8))).astype(np.float32)
  return np.einsum("ai,nij,bj->nab", blend, coarse, blend).astype(np.float32), boxes_, size


def nms_case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(boxes f32[60, 4], scores f32[60], groups i64[60]): scores are tenths, so that many are equal."""
  scores = integers("nms.scores", (60,), 0, 10).astype(np.float32) / 10
  return boxes_inside("nms.boxes", 60, (60, 80), (10, 40)), scores, integers("nms.groups", (60,), 0, 3)


def coder_case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(boxes, anchors, deltas), each f32[40, 4]; some deltas lie beyond the clamp of the decoder."""
  size = (60, 80)
  deltas = uniform("coder.deltas", (40, 4), -2, 2)
  deltas[:6, 2:] *= 12
  return boxes("coder.boxes", 40, size, (1, 50)), boxes("coder.anchors", 40, size, (4, 60)), deltas


def overlap_case() -> tuple[np.ndarray, np.ndarray]:
  """(predicted f32[40, 4], targets f32[40, 4]): overlapping or not, the last three pairs equal."""
  predicted, targets = (
    boxes("overlap.predicted", 40, (60, 80), (4, 50)),
    boxes("overlap.targets", 40, (60, 80), (4, 50)),
  )
  targets[-3:] = predicted[-3:]
  return predicted, targets


def matcher_case() -> tuple[np.ndarray, np.ndarray]:
  """(regions f32[200, 4], objects f32[6, 4]): small objects that only the low-quality rule matches, and one twice."""
  regions = boxes("matcher.regions", 200, (60, 80), (8, 40))
  objects = boxes_inside("matcher.objects", 5, (60, 80), (6, 30))
  return np.concatenate([regions, regions[:4]]), np.concatenate([objects, objects[:1]])


def level_boxes() -> np.ndarray:
  """f32[48, 4]: boxes whose sides run from 1 to 1,000 pixels, then those on the borders between levels."""
  usual = boxes("levels.boxes", 40, (800, 1200), (1, 1000))
  sides = np.float32([56, 112, 224, 448, 896, 111.999, 224.001, 0])
  return np.concatenate([usual, np.stack([0 * sides, 0 * sides, sides, sides], axis=1)])


def proposal_case(setting: dict) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """(logits f32[2, A], deltas f32[2, A, 4]) of each level for the two images of IMAGE_SIZES."""
  logits, deltas = [], []
  for sizes, stride in zip(setting["sizes"], setting["strides"]):
    count = math.prod(side // stride for side in setting["canvas"]) * len(sizes) * len(RATIOS)
    name = f"proposals.{len(setting['sizes'])}.{stride}"
    logits.append(uniform(name + ".logits", (2, count), -4, 4))
    deltas.append(uniform(name + ".deltas", (2, count, 4), -1, 1))
  return logits, deltas


def detection_case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(class logits f32[2, 40, 5], box deltas f32[2, 40, 5, 4], proposals f32[2, 40, 4]) of the two images."""
  proposals = [boxes_inside(f"detections.{i}", 40, size, (1, 50)) for i, size in enumerate(IMAGE_SIZES)]
  logits = uniform("detections.logits", (2, 40, 5), -3, 3)
  return logits, uniform("detections.deltas", (2, 40, 5, 4), -4, 4), np.stack(proposals)


def loss_case() -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
  """(images u8[h, w, 3], boxes f32[3, 4], classes i64[3] in 1..K) for each image of LOSS_IMAGES."""
  pictures = [image(f"loss.image{i}", size) for i, size in enumerate(LOSS_IMAGES)]
  objects = [boxes_inside(f"loss.boxes{i}", 3, size, (20, 70)) for i, size in enumerate(LOSS_IMAGES)]
  classes = [integers(f"loss.classes{i}", (3,), 1, DETECTOR["num_classes"] + 1) for i in range(len(LOSS_IMAGES))]
  return pictures, objects, classes


def loss_masks() -> list[np.ndarray]:
  """u8[3, 112, 112] for each image of LOSS_IMAGES: blots in the frames of the objects' boxes.

  They are of whole blocks of 4×4, so that no cell of an object's own 28×28 target is exactly half covered.
  """
  blend = np.maximum(0, 1 - np.abs(np.linspace(0, 5, 28)[:, None] - np.arange(6))).repeat(4, axis=0)
  coarse = [uniform(f"loss.masks{i}", (3, 6, 6)) for i in range(len(LOSS_IMAGES))]
  return [(np.einsum("ai,nij,bj->nab", blend, each, blend) > 0.45).astype(np.uint8) for each in coarse]


def mask_targets(crops: np.ndarray, frames: np.ndarray, regions: np.ndarray, size: int) -> np.ndarray:
  """f32[N, size, size] in {0, 1}: the masks of regions f32[N, 4], of crops u8[N, P, P] in their frames f32[N, 4].

  torchvision samples full masks instead; both sides of the comparison of losses are given these targets.
  """
  offsets = (np.arange(2 * size) + 0.5) / (2 * size)
  targets = np.zeros((len(regions), size, size), np.float32)
  for target, crop, frame, region in zip(targets, crops, frames.astype(np.float64), regions.astype(np.float64)):
    weights = []
    for axis in (1, 0):
      share = region[axis] + offsets * (region[axis + 2] - region[axis]) - frame[axis]
      share /= frame[axis + 2] - frame[axis]
      cell = np.clip(share * len(crop) - 0.5, 0, len(crop) - 1)
      near = np.maximum(0, 1 - np.abs(cell[:, None] - np.arange(len(crop))))
      weights.append((near * ((share >= 0) & (share <= 1))[:, None]).reshape(size, 2, -1).mean(1))
    target[:] = weights[0] @ crop @ weights[1].T >= 0.5
  return targets


def loss_keypoints() -> list[np.ndarray]:
  """f32[3, J, 3] for each image of `loss_case`: joints in and about its boxes, of every visibility."""
  keypoints = []
  for i, boxes in enumerate(loss_case()[1]):
    share = uniform(f"loss.keypoints{i}", (3, NUM_KEYPOINTS, 2), -0.2, 1.2)
    points = boxes[:, None, :2] + share * (boxes[:, None, 2:] - boxes[:, None, :2])
    visibility = integers(f"loss.visibility{i}", (3, NUM_KEYPOINTS, 1), 0, 3)
    keypoints.append(np.concatenate([points, visibility], axis=2).astype(np.float32))
  return keypoints


def heat_map_case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(keypoints f32[12, 5, 3], regions f32[12, 4], logits f32[12, 56, 56, 5]) of regions of 2 to 600 pixels.

  The first joints lie on the borders of their region; the logits are noise of half that size, enlarged by repetition
  and smoothed, as high in places that are far from each other.
  """
  sides = np.geomspace(2, 600, 12)
  low = uniform("heat_maps.low", (12, 2), 0, 40)
  regions = np.concatenate([low, low + sides[:, None] * uniform("heat_maps.sides", (12, 2), 0.5, 1)], axis=1)
  share = uniform("heat_maps.joints", (12, NUM_KEYPOINTS, 2), -0.1, 1.1)
  points = regions[:, None, :2] + share * (regions[:, None, 2:] - regions[:, None, :2])
  points[:, 0], points[:, 1, 0] = regions[:, 2:], regions[:, 0]
  visibility = integers("heat_maps.visibility", (12, NUM_KEYPOINTS, 1), 0, 3)
  logits = uniform("heat_maps.logits", (12, 28, 28, NUM_KEYPOINTS), -8, 8).repeat(2, axis=1).repeat(2, axis=2)
  for axis in (1, 2):
    logits = (np.roll(logits, 1, axis) + 2 * logits + np.roll(logits, -1, axis)) / 4
  keypoints = np.concatenate([points, visibility], axis=2)
  return keypoints.astype(np.float32), regions.astype(np.float32), logits.astype(np.float32)


def detect_images() -> dict[str, np.ndarray]:
  """Images of four sizes that the resize rule of DETECT_SIDES leaves as they are, by name."""
  sizes = ((128, 176), (120, 192), (192, 120), (150, 128))
  return {f"noise{i}": image(f"detect.image{i}", size) for i, size in enumerate(sizes)}


# Photographs of COCO 2017's validation set, of 20 sizes: each four of them hold both orientations.
PHOTOGRAPHS = pathlib.Path(__file__).parents[2] / "shared" / "data" / "coco_mini" / "val2017"
COCO_IMAGES = (
  "000000000139",
  "000000000802",
  "000000018575",
  "000000011813",
  "000000022892",
  "000000034417",
  "000000101787",
  "000000062554",
  "000000109313",
  "000000092660",
  "000000160012",
  "000000151938",
  "000000181303",
  "000000174231",
  "000000192699",
  "000000205401",
  "000000237517",
  "000000214753",
  "000000262227",
  "000000229358",
)
