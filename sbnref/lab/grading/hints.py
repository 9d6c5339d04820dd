"""Hints: a sentence and a section of the derivations, chosen by the features of the smallest failing step."""

from __future__ import annotations

from typing import Any

SECTIONS = {
    "forward_stats": "One all-reduce",
    "forward_apply": "Combining means and variances",
    "backward_stats": "The backward pass through a collective",
    "backward_apply": "The backward pass through a collective",
    "layer": "Batch norm, and what splitting the batch breaks",
}


def where_to_look(stage: str, status: str, failure: dict[str, Any]) -> tuple[str, str]:
    """Return a hint and a section. Every feature that the smallest failing step still has matters for the failure."""
    features, quantity, what = set(failure["features"]), failure.get("quantity"), failure["what"]
    section = SECTIONS[stage]
    if status == "not written":
        return "The template explains its arguments and result: sbnref lab template functions.", section
    if status in ("crashed", "timed out"):
        return "Call the function yourself on the step above, from a debugger or with prints.", section
    if "graded code may not" in what:
        return "Your instructor has forbidden this function.", section
    if "two different results" in what:
        return "Look for memory that is read before it is written, or sums in a changing order.", "Floating point"
    if "running" in (quantity or "") or quantity == "num_batches_tracked":
        section = "Running statistics that agree on all ranks"
        if "all empty" in features:
            return "A step in which every rank is empty changes nothing.", section
        return "Use the group's M, not this rank's m, and correct the variance by M / (M - 1).", section
    if quantity is not None and "half" in features:
        return "Only half precision fails: sum in float32, and round to the input's dtype last.", "Floating point"
    if quantity is not None and "float64" in features:
        return "Only float64 fails: look for an intermediate result in float32.", "Floating point"
    if quantity is not None and "large mean" in features:
        return "Only a mean far from zero fails: subtract the mean first, E[x^2] - E[x]^2 cancels.", "Floating point"
    if failure.get("relative") is not None and failure["relative"] < 1e-3:
        hint = "Nearly right: precision is lost. Sum deviations from the mean, and carry statistics in float64."
        return hint, "Floating point"
    if "layout" in features:
        return "Only strided inputs fail: index by x.stride(), or make x contiguous first.", section
    if "empty rank" in features or "all empty" in features:
        if stage == "backward_apply" and "default" in features:
            return "With an empty rank in 'default', W is not D: include the last term in the bracket.", section
        if stage == "forward_apply":
            return (
                "Only empty ranks fail: divide by the divisor, or by max(W, 1) if it is None.",
                section,
            )
        return "Only empty ranks fail: m and w are 0 there, so do not divide by them.", section
    return {
        "forward_stats": "The payload is [w mean, w var, w mean^2, w, m], with the biased variance.",
        "forward_apply": "mean = S1 / D, var = (S2 + S3 - mean (2 S1 - mean W)) / D, y = gamma xhat + beta.",
        "backward_stats": "The payload is [sum g, sum g xhat], in this order.",
        "backward_apply": "dx = gamma / sigma { g - k / D [A + xhat B - (B / sigma) mean (1 - W/D)] }.",
        "layer": "Each stage alone is right: look for a common feature of the cases above.",
    }[stage], section
