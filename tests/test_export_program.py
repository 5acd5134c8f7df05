"""A run's detection as a program of its own: what it finds is what `launch.predict` and the detector find."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import types
import zipfile

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from launch import export_program as command
from rcnn_jax import export_program
from rcnn_jax.data import pipeline, transforms
from rcnn_jax.data.pipeline import Data
from rcnn_jax.data.transforms import PaddedToMultiple, Resize
from rcnn_jax.evaluation.image_files import matching_files
from rcnn_jax.evaluation.predict import predict
from rcnn_jax.experiment import Evaluation, Views
from rcnn_jax.export_program import ExportError
from tests import scenes
from tests.small_detector import fresh, small_detector

pytest.importorskip("flatbuffers", reason="jax.export writes and reads its files with flatbuffers")
ROOT = pathlib.Path(__file__).parents[1]
CANVASES = ((480, 640), (640, 480), (512, 512))


def a_run(model, variables, data=scenes.DATA):
  experiment = types.SimpleNamespace(name="scenes", model=model, data=data, evaluation=Evaluation())
  return types.SimpleNamespace(
    experiment=experiment, categories=scenes.CATEGORIES, keypoints=None, variables=variables, step=12
  )


def script() -> str:
  """The one that stands in the documentation."""
  return re.search(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)[1]


def found_by_the_script(folder, names):
  """What it prints, run where neither this project nor anything but jax and numpy can be imported by mistake."""
  (folder / "run.py").write_text(script())
  environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")}
  line = [sys.executable, "run.py", "detector.zip", *names]
  ended = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
  assert ended.returncode == 0, ended.stderr
  return [json.loads(line) for line in ended.stdout.splitlines()]


def assert_as_predicted(run, folder, drawn, batch_size):
  """Exports the run, and holds what the script of the documentation finds in the images against launch.predict's."""
  export_program.write(run, folder / "detector.zip", batch_size, ("cpu",))
  for name, image in drawn.items():
    np.save(folder / f"{name}.npy", image)
    Image.fromarray(image).save(folder / f"{name}.png")
  predict(run, matching_files(f"{folder}/*.png"), folder / "out", min_score=0)
  expected = json.loads((folder / "out" / "detections.json").read_text())
  found = found_by_the_script(folder, [f"{name}.npy" for name in sorted(drawn)])
  assert len(found) > 0
  names = lambda entries, key: [(pathlib.Path(entry[key]).stem, entry["category"]) for entry in entries]
  assert names(found, "file") == names(expected, "file_name")
  corners = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in expected)]
  np.testing.assert_allclose([entry["box"] for entry in found], corners, atol=1e-3)
  np.testing.assert_allclose([entry["score"] for entry in found], [entry["score"] for entry in expected], atol=1e-5)


@pytest.mark.parametrize("batch_size", [None, pytest.param(5, marks=pytest.mark.long)])
def test_the_script_of_the_documentation_finds_what_predict_finds(tmp_path, batch_size):
  source = scenes.Scenes(7)
  drawn = {f"scene{i}": source.image(i) for i in range(len(source)) if source.image(i).shape[0] == 24}
  assert_as_predicted(a_run(scenes.ColourFinder(), scenes.VARIABLES), tmp_path, drawn, batch_size)


@pytest.mark.long
def test_a_real_detector_finds_on_images_that_are_resized_what_predict_finds(tmp_path):
  data = dataclasses.replace(scenes.DATA, batch_size=(3, 3))
  rng = np.random.default_rng(0)
  drawn = {f"noise{i}": rng.integers(0, 256, (60 + i, 90, 3), np.uint8) for i in range(3)}
  model = small_detector(num_classes=3)
  assert_as_predicted(a_run(model, fresh(model), data), tmp_path, drawn, None)


@pytest.mark.long
def test_the_program_gives_what_the_detector_gives(tmp_path):
  model, canvas = small_detector(num_classes=3), (48, 64)
  variables, data = fresh(model), dataclasses.replace(scenes.DATA, canvases=((48, 64),))
  said = export_program.write(a_run(model, variables, data), tmp_path / "detector.zip", batch_size=2)
  assert said["platforms"] == ["cpu", "cuda", "tpu"]
  with zipfile.ZipFile(tmp_path / "detector.zip") as file:
    program = jax.export.deserialize(bytearray(file.read("program.bin")))
  images = np.random.default_rng(0).integers(0, 256, (2, *canvas, 3), np.uint8)  # which are not resized
  batch = pipeline.image_batch(images, data).replace(truth=None)
  expected = jax.jit(lambda batch: model.apply(variables, batch, method="detect"))(batch)
  found = program.call(images, np.array([canvas] * 2, np.int32))
  assert expected.valid.any()
  for name in ("boxes", "scores", "classes", "valid"):
    np.testing.assert_allclose(found[name], getattr(expected, name), rtol=1e-5, atol=1e-5)
  none = program.call(images, np.array([canvas, (0, 0)], np.int32))  # the second row has no image
  assert none["valid"][0].any() and not none["valid"][1].any()


def test_what_travels_with_the_program(tmp_path):
  run = a_run(scenes.ColourFinder(masks=True), scenes.VARIABLES)
  export_program.write(run, tmp_path / "detector.zip", 2, ("cpu", "tpu"))
  with zipfile.ZipFile(tmp_path / "detector.zip") as file:
    said = json.loads(file.read("about.json"))
  assert said["classes"][1] == {"class": 2, "id": 9, "name": "green"}
  assert said["keypoints"] is None and said["pasting"] is None
  assert said["canvases"] == [[48, 64], [64, 48]] and said["platforms"] == ["cpu", "tpu"] and said["step"] == 12
  assert said["takes"] == {"images": "uint8[2, h, w, 3]", "sizes": "int32[2, 2]"}
  assert said["gives"]["boxes"] == "float32[2, 3, 4]" and said["gives"]["masks"] == "float32[2, 3, 28, 28]"


@pytest.mark.parametrize(
  "resize, canvases, most",
  [
    (Resize((48,), 64), ((48, 64), (64, 48)), 0),
    (Resize((50,), 90, pixels="float32"), PaddedToMultiple(32), 0.01),  # torchvision's
    (Resize((50,), 90, interpolation="pillow", rounding="nearest"), PaddedToMultiple(32), 1),  # Detectron2's
  ],
)
def test_a_batch_is_prepared_as_by_the_input_pipeline(resize, canvases, most):
  rng, sizes = np.random.default_rng(0), [(61, 85), (64, 80), (30, 45)]
  drawn = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
  data = Data(train=None, eval=None, resize=resize, canvases=canvases)
  expected = pipeline.image_batch(drawn, data)
  corner = np.full((3, 70, 90, 3), 99, np.uint8)
  for row, image in zip(corner, drawn):
    row[: image.shape[0], : image.shape[1]] = image
  canvas = expected.image.shape[1:3]
  found = jax.jit(lambda *inputs: export_program.prepared(*inputs, data, canvas).replace(truth=()))(
    corner, np.array(sizes, np.int32)
  )
  assert found.image.dtype == expected.image.dtype
  np.testing.assert_array_equal(found.image_size, expected.image_size)
  np.testing.assert_array_equal(found.scale, expected.scale)
  for row, (height, width) in enumerate(expected.image_size):
    of_both = (np.float64(each.image[row, :height, :width]) for each in (found, expected))
    np.testing.assert_allclose(*of_both, rtol=0, atol=most)


@settings(max_examples=60, deadline=None)
@given(size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)), rounding=st.sampled_from(["down", "nearest"]))
def test_sizes_scales_and_canvases_are_those_of_the_input_pipeline(size, rounding):
  data = Data(train=None, eval=None, resize=Resize((480,), 640, rounding=rounding), canvases=CANVASES)
  canvas = pipeline.canvas_of(size, data)
  expected = transforms.fit(transforms.resized_size(size, data.resize), canvas)
  chosen, new, scale = sizes_in_a_program(data)(np.int32(size))
  assert CANVASES[int(chosen)] == canvas
  place = CANVASES.index(canvas)
  assert tuple(new[place].tolist()) == expected
  assert scale[place].tolist() == [np.float32(after / before) for after, before in zip(expected, size)]


PROGRAMS = {}


def sizes_in_a_program(data):
  """size i32[2] -> (the place of its canvas, its new size on each canvas, and the factors), compiled once."""

  def sizes(size):
    on_each = [export_program.new_size(size, data, canvas) for canvas in CANVASES]
    return export_program.chosen_canvas(size, data, CANVASES), *zip(*on_each)

  return PROGRAMS.setdefault(data.resize, jax.jit(sizes))


def test_what_cannot_be_exported_is_said(tmp_path):
  refused = lambda run, batch_size=None: export_program.write(run, tmp_path / "detector.zip", batch_size, ("cpu",))
  changed = lambda **changes: a_run(scenes.ColourFinder(), {}, dataclasses.replace(scenes.DATA, **changes))
  with pytest.raises(ExportError, match="proposals from outside"):
    refused(changed(proposals=("a", "b")))
  with pytest.raises(ExportError, match="interpolation='area': only linear and pillow can be exported"):
    refused(changed(resize=Resize(interpolation="area")))
  with pytest.raises(ExportError, match="name the sizes of the images"):
    refused(changed(canvases=PaddedToMultiple(32)))
  with pytest.raises(ExportError, match="with SimpleNamespace, the program's batch size must be fixed"):
    export_program.check(types.SimpleNamespace(heads=(types.SimpleNamespace(),)), scenes.DATA, None)
  with pytest.raises(ExportError, match="several views"):
    export_program.check(scenes.ColourFinder(), scenes.DATA, None, Views(flip=True))
  assert not list(tmp_path.iterdir())


def test_canvases_of_named_sizes_where_each_image_has_its_own():
  data = dataclasses.replace(scenes.DATA, resize=Resize((60,), 100), canvases=PaddedToMultiple(32))
  assert export_program.canvases_for(data, [(480, 640), (640, 480), (60, 80)]) == ((64, 96), (96, 64))


@pytest.mark.parametrize(
  "check, given, message",
  [
    (command.check_output, "{0}/none/x.zip", "--output={0}/none/x.zip: there is no folder {0}/none"),
    (command.check_output, "{0}", "--output={0} is there already"),
    (command.check_platforms, ["gpu"], "--platforms=gpu: it takes cpu, cuda, tpu"),
    (command.check_platforms, [], "--platforms=: it takes cpu, cuda, tpu"),
    (command.size_of, "640", "--image_sizes=640: it takes HEIGHTxWIDTH, e.g. 480x640"),
  ],
)
def test_flags_that_do_not_fit_are_said(tmp_path, check, given, message):
  given = pathlib.Path(given.format(tmp_path)) if check is command.check_output else given
  with pytest.raises(ExportError) as raised:
    check(given)
  assert str(raised.value) == message.format(tmp_path)


@pytest.mark.long
def test_bad_input_to_the_command_ends_with_one_line(tmp_path):
  line = [sys.executable, "-m", "launch.export_program", f"--workdir={tmp_path}/run", f"--output={tmp_path}/x.zip"]
  ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert ended.returncode == 1 and ended.stdout == "" and ended.stderr.count("\n") == 1
  assert f"{tmp_path}/run" in ended.stderr and not list(tmp_path.iterdir())
