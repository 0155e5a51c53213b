"""MojiScenes, the embedded benchmark: scenes of OpenMoji drawings, each a pure function of (split, index, seed)."""

from hrcf_lib.data.mojiscenes.scenes import SPLITS, MojiScenes, Scene, SceneLaw, compose, draw, export, label_space

__all__ = ["SPLITS", "MojiScenes", "Scene", "SceneLaw", "compose", "draw", "export", "label_space"]
