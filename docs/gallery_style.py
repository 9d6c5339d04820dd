"""How figures of the tutorials look; sphinx-gallery calls this before each of them."""

import matplotlib.pyplot as plt


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
            "axes.prop_cycle": plt.cycler(color=["#00798c", "#d1495b", "#edae49", "#5c677d", "#66a182", "#8d5a97"]),
        }
    )
