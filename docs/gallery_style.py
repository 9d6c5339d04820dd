"""Set the look of the tutorials' figures; sphinx-gallery calls ``apply`` before each tutorial."""

import matplotlib.pyplot as plt

# Blue, orange, gray, pink, sky: none is the color of a statistics mode (tutorial 3).
COLORS = ["#0072b2", "#e69f00", "#5c677d", "#cc79a7", "#56b4e9"]


def apply(gallery_conf: dict, script: str) -> None:
    """Set matplotlib's defaults."""
    plt.rcdefaults()
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 160,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.prop_cycle": plt.cycler(color=COLORS),
            "legend.frameon": False,
        }
    )
