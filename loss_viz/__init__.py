"""See why a training run behaves as it does: loss landscapes from local planes along the run.

    import loss_viz as lv

    run = lv.train("x^3")            # record a run
    land = lv.landscape(run)         # the loss around it, from local planes along it
    lv.fidelity(land)                # how far the picture is from the run
    lv.surface_figure(land)          # the surface, the trajectory and the ball
    lv.Explorer("x^3")               # all of it in an interactive panel

    recorder = lv.Recorder(model, loss_fn).attach(optimizer)    # the same for a training loop of your own
    run = recorder.run()

The public names are listed in `__init__.pyi` and imported on first use, so that `import loss_viz` is instant and
drawing libraries are loaded only when something is drawn.
"""

from importlib.metadata import version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("loss_viz")
