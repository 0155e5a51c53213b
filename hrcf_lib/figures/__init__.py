"""Figures: charts of results, pictures with what was seen where, one style for all."""

import matplotlib.pyplot as plt

from hrcf_lib.figures.charts import (
    COLOURS,
    COLUMN,
    PAGE,
    RIGHT,
    WRONG,
    curves,
    effects,
    examples,
    gallery,
    legend,
    printed,
    publish,
    reliability,
    save,
    scene_gallery,
    style,
    sweep,
    where,
)
