r"""The methods that HRCF is compared with, one file each, in one harness: same VLP, data, budget and evaluation.

>>> from hrcf_lib import config, methods
>>> methods.names("compared")[:5]
('pre_clip', 'clip_ft', 'mkt', 'ovml_vlp', 'biam')
>>> mkt = methods.build("mkt", config.mini(), topk=8)  # doctest: +SKIP
>>> train(mkt, sources.source(mkt, "train")), mkt.score(images, ["zebra", "bus"])  # doctest: +SKIP

The next method is a copy of ``template.py`` and a line in ``registry.METHODS``, or, outside of this package,
``methods.METHODS["my_method"] = MyMethod``.
"""

from hrcf_lib.methods.registry import METHODS, asks_unseen, build, configure, for_config, load, method, names

__all__ = ["METHODS", "asks_unseen", "build", "configure", "for_config", "load", "method", "names"]
