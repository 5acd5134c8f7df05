"""Compares detectors on the same images: which is better, by how much, how sure, and why.

    python -m launch.compare --runs=[NAME=]DIR[@CHECKPOINT],... --output=DIR2
    python -m launch.compare --sweep=DIR --output=DIR2
    python -m launch.compare --truth=FILE --detections=NAME=FILE,NAME=FILE,... --output=DIR2

The first variant is the base. Runs that differ in their seed alone, or that are given one name, are the seeds of one
variant. --detections beside --runs are other libraries' detections on the runs' evaluation images. DIR2 gets
index.html, table.md, numbers.csv, comparison.json and plots/. Variants that were not evaluated on the same images and
objects are refused.
"""

from __future__ import annotations

import pathlib

from absl import flags

from launch import flags as launch_flags
from rcnn_jax import experiment as experiments
from rcnn_jax.evaluation.compare import bootstrap, comparison, costs, inputs, page, tables
from rcnn_jax.evaluation.tables import text_table

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the options of this command."""
  flags.DEFINE_list("runs", [], "Run directories, [NAME=]DIR[@CHECKPOINT], or a ladder's.")
  launch_flags.define_path("sweep", "The directory of a finished sweep.")
  launch_flags.define_path("truth", "COCO annotation file that --detections are of.")
  flags.DEFINE_list("detections", [], "COCO results files, NAME=FILE.")
  launch_flags.define_path("output", "Folder for the page and what belongs to it.", required=True)
  flags.DEFINE_string("checkpoint", "latest", "Whose detections of each run: latest, best or a step.")
  flags.DEFINE_string("experiment", None, "The runs' experiment file, if that defines classes of its own.")
  flags.DEFINE_integer("resamples", bootstrap.RESAMPLES, "Draws of the images.", 2)
  flags.DEFINE_integer("seed", 0, "Of the draws.")
  flags.DEFINE_integer("max_detections", None, "Counted in each image and class; by default as in the runs.", 1)
  flags.DEFINE_integer("pictures", 4, "Images drawn for each variant beside the base.", 0)
  flags.DEFINE_bool("time", False, "Time detection of all runs here, in turns.")


def main(argv: list[str]) -> None:
  """Reads, compares, writes the page and prints the table."""
  del argv
  output = pathlib.Path(FLAGS.output)
  page.check_output(output)
  if FLAGS.experiment:
    experiments.load(FLAGS.experiment)  # whoever names the file lets it run: its classes are known from here on
  found = inputs.read(FLAGS.runs, FLAGS.sweep, FLAGS.truth, FLAGS.detections, FLAGS.checkpoint)
  report = lambda line: print(line, flush=True)
  compared = comparison.compare(found, FLAGS.resamples, FLAGS.seed, FLAGS.max_detections, report)
  known = costs.measured(found) if FLAGS.time else costs.from_runs(found)
  for folder in FLAGS.runs if not FLAGS.time else ():
    known |= costs.of_ladder(pathlib.Path(folder).expanduser())
  path = page.write(found, compared, output, known, FLAGS.pictures)
  for kind, one in compared.kinds.items():
    header, rows = tables.headline_rows(one, "AP")
    print(f"\n{text_table([kind, *header[1:]], rows)}")
  print(f"\nwritten: {path}, table.md, numbers.csv, comparison.json, plots/")


if __name__ == "__main__":
  launch_flags.run(main, define_flags)
