"""Data sources, transforms and the input pipeline. Nothing here runs on the accelerator."""
