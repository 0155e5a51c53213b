r"""Recognition with missing labels: methods for training sets most of whose labels are unknown, one file each.

They share VLP, data, budget and evaluation with the other methods, and are built like these:

>>> from hrcf_lib import config, methods
>>> base = config.preset("mini_short", known=0.1)
>>> base.known, methods.names("missing_labels")[0]
(0.1, 'coop')

``Config.known`` and ``Config.single_positive`` say which labels are known (``data.hide_labels``); every method, HRCF
too, trains under them. Most methods here learn something for each label, so they answer only for the labels they were
trained on (``Method.open_vocabulary`` is False) and need the names beforehand: ``categories`` of their config, which
``data.feeds.sources.categories`` takes from the training set. They are asked for the seen labels; OP to CF1 are in
``metrics``.
"""
