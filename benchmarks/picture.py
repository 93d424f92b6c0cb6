"""The picture on top of the README: `python -m benchmarks.picture PATH.png` (needs kaleido and Chrome)."""

import sys

import loss_viz as lv


def main() -> None:
    """Draw x^3 on the PCA plane beside its local planes, at the same scale."""
    run = lv.train("x^3")
    lands = [lv.landscape(run, plane=plane) for plane in ("global", "local")]
    lv.surface_figure(*lands, step=500, log=True, height=480).write_image(sys.argv[1], width=1150, scale=1.5)


if __name__ == "__main__":
    main()
