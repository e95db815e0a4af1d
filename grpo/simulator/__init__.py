"""All knowledge of SUMO: its files, its programs, its signals, what is seen and counted.

``network`` is the only ``import libsumo``.
"""
