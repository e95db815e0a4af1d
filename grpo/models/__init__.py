"""Language models: load, save, tokens, weights. ``loading`` is the only ``import unsloth``.

Knows nothing of the simulator.
"""
