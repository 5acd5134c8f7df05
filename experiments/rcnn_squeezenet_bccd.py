"""R-CNN, SqueezeNet 1.1 from ImageNet, on BCCD: the first step of the ladder.  arXiv:1311.2524.

Fine-tuning, one SVM a class with mined hard negatives, one ridge regression a class; every stage is evaluated, so
that metrics.jsonl tells what the SVMs and the box regression brought. Unlike the paper, so that two CPU cores do it:
crops of 113 pixels instead of 227 (and 8 of context instead of 16), the 300 best of selective search's fast mode
instead of about 2,000 boxes, 6 epochs of fine-tuning, one fully connected layer of 256. Images are sampled in pairs,
32 + 96 regions of both together; SVMs have the squared hinge.

    python -m launch.prepare_data --proposals=fast --experiment=rcnn_squeezenet_bccd
    python -m launch.train --experiment=rcnn_squeezenet_bccd --workdir=runs/rcnn
"""

from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.transforms import HorizontalFlip, Resize
from rcnn_jax.data.voc import VocFolder
from rcnn_jax.experiment import BackboneWeights, Evaluation, Experiment
from rcnn_jax.models.backbones.squeezenet import SqueezeNet
from rcnn_jax.models.crops import CropNetwork, Pixels
from rcnn_jax.models.detector import Detector, RoiSampler
from rcnn_jax.models.heads import FcTrunk
from rcnn_jax.models.pooling import WarpCrop
from rcnn_jax.models.proposers import External
from rcnn_jax.models.rcnn_head import RcnnHead
from rcnn_jax.training.optim import Cosine
from rcnn_jax.training.stages import FitBoxRegression, FitSvms, Sgd

BCCD = "../shared/data/bccd"
WEIGHTS = "../shared/weights/squeezenet1_1_imagenet.safetensors"
PROPOSALS = "runs/proposals/bccd"

experiment = Experiment(
  name="rcnn_squeezenet_bccd",
  data=Data(
    train=VocFolder(BCCD, "trainval"),
    eval=VocFolder(BCCD, "test"),
    resize=Resize(short_side=(480,), long_side=640),
    canvases=((480, 640),),
    augmentations=(HorizontalFlip(0.5),),
    batch_size=(2, 2),
    proposals=(f"{PROPOSALS}/train", f"{PROPOSALS}/eval"),
    num_proposals=(300, 300),
  ),
  model=Detector(
    backbone=Pixels(),
    proposer=External(),
    pool=CropNetwork(SqueezeNet(), WarpCrop(output_size=113, context=8), output_size=3),
    sampler=RoiSampler(num_samples=64),
    trunk=FcTrunk((256,)),
    box=RcnnHead(),
    roi_chunk=64,
  ),
  stages=(
    Sgd(epochs=6, schedule=Cosine(0.01, warmup_steps=100), weight_decay=1e-4, clip_norm=10.0),
    FitSvms(),
    FitBoxRegression(),
  ),
  evaluation=Evaluation(every_steps=None),
  init=BackboneWeights(WEIGHTS),
)
