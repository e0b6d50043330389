"""Synthetic chest-like scans: data with which the whole loop can be tried where no real scan may be used.

Nothing here is a patient. Every value is drawn from the seed, so equal arguments give equal bytes, and a larger number
of patients gives the same first patients and then new ones: that is how "new scans arrive" is tried out.
"""

from medloop.synth.people import CLASSES
from medloop.synth.synth import synth

__all__ = ["CLASSES", "synth"]
