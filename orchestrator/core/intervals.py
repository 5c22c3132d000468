"""How often to save, from what saving costs and how often it is needed. Pure arithmetic.

J. W. Young, "A first order approximation to the optimum checkpoint interval" (1974); J. T. Daly, "A higher order
estimate of the optimum checkpoint interval for restart dumps" (2006). The mean time that counts is that between two
*restores*: where a failure is answered from replicas, it costs no saved state and calls for no saving.
"""

from __future__ import annotations

import math


def young_daly_seconds(stall_seconds: float, mean_seconds_between_restores: float) -> float:
    """The interval between two saves that loses least, in seconds of training; Daly's higher-order estimate.

    Raises ValueError for a negative stall or a mean that is not positive.
    """
    if stall_seconds < 0 or not mean_seconds_between_restores > 0:
        raise ValueError(
            f"a stall of {stall_seconds} s and a mean of {mean_seconds_between_restores} s between restores: "
            "give 0 or more and more than 0"
        )
    if stall_seconds >= 2 * mean_seconds_between_restores:
        return mean_seconds_between_restores
    ratio = stall_seconds / (2 * mean_seconds_between_restores)
    first_order = math.sqrt(2 * stall_seconds * mean_seconds_between_restores)
    return first_order * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall_seconds


def efficiency(
    interval_seconds: float,
    stall_seconds: float,
    restart_seconds: float,
    mean_seconds_between_restores: float,
) -> float:
    """The share of time that is useful when every failure goes back to the last save (Daly 2006, equation 20).

    Failures are exponential; a restart can fail too.
    """
    mean = mean_seconds_between_restores
    a_segment = math.expm1((interval_seconds + stall_seconds) / mean)
    return interval_seconds / (mean * math.exp(restart_seconds / mean) * a_segment)
