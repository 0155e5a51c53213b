r"""The earlier forms of three methods: built when only the abstracts of their papers were at hand.

They differ from their papers in most points, and are kept as they were so that records, models and runs of theirs can
be read and made again. ``settings="first"`` asks for them; without it the paper's form is built:

>>> from hrcf_lib import config, methods
>>> methods.method("ovml_vlp", settings="first").__name__
'OVMLVLPFirst'
"""
