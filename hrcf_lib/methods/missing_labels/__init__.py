r"""Recognition with missing labels: methods for training sets most of whose labels are unknown, one file each.

They share VLP, data, budget and evaluation with ``baselines``, and are built like these:

>>> from hrcf_lib import config, methods
>>> base = config.preset("mini_short", known=0.1)
>>> base.known, methods.names("missing_labels")[0]
(0.1, 'coop')

Which labels are known is said by ``Config.known`` and ``Config.single_positive`` (``data.partial``); any method, HRCF
too, trains under them. Most methods here learn something of each label's own, so that they answer for the labels they
were trained on (``Method.open_vocabulary`` is False) and need their names beforehand: ``categories`` of their config,
which ``data.feeds.sources.categories`` reads off the training set. Scores are of the seen labels; OP to CF1
are in ``metrics``.
"""
