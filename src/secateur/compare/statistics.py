"""Whether a difference over folds and seeds is more than chance, and what is left of it among many comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, variance


def corrected_t_test(differences: Sequence[float], test_over_train: float) -> float | None:
    """Return the two-sided p of a mean difference over repeated cross-validation.

    t = mean(d) / sqrt((1/J + n2/n1) * var(d)) with J - 1 degrees of freedom: training parts overlap, so the plain
    1/J would make the spread of the mean too small.

    Args:
        differences: (J,) of two networks on the same test parts, J folds times seeds.
        test_over_train: n2/n1, samples of a test part over those of its training part.
    Returns:
        p in [0, 1]. None where it can't be told: one difference alone, or several that are equal and not 0.
    Source: Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003, for random
        cuts. Differs: the cuts are folds times seeds, as in Bouckaert and Frank, PAKDD 2004.

    >>> round(corrected_t_test([0.02, 0.03, 0.01, 0.02], 1 / 3), 3)
    0.049
    """
    from scipy.stats import t as student

    n = len(differences)
    if n < 2:
        return None
    mean, spread = fmean(differences), variance(differences)
    if spread <= 1e-24:
        return 1.0 if abs(mean) <= 1e-12 else None
    found = mean / math.sqrt((1 / n + test_over_train) * spread)
    return float(2 * student.sf(abs(found), n - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number: the chance of any false alarm among all is below the threshold.

    With p sorted upwards, adjusted p_(i) = max over j <= i of min(1, (m - j + 1) * p_(j)).
    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. Statistics 6, 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, worst = [0.0] * len(p_values), 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = worst
    return adjusted
