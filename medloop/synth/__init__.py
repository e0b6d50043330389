"""Synthetic chest-like scans, for trying the loop without real data.

Every value is drawn from the seed, so equal arguments give equal bytes. A larger number of patients adds new patients
and keeps the existing ones, which simulates new scans.
"""

from medloop.synth.people import CLASSES
from medloop.synth.synth import synth

__all__ = ["CLASSES", "synth"]
