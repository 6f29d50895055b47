"""The doctor: tries everything that is configured, and says what works, what will not, and what to do about it.

Nothing is changed by it but probes that it takes away again, and nothing of a patient is asked for.
"""

from medflow.doctor.examine import examine
from medflow.doctor.finding import Finding

__all__ = ["Finding", "examine"]
