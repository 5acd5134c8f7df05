"""Augmentations that change the set of objects: crops, scales, turns, images joined. See docs/augmentation.md."""
