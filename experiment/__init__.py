"""An experiment, opened: from a command line, for the modes, or from its folder, for Python.

    from experiment import load
    model = load("models/digits_32d_0.1mmd")
    z = model.encode("seven.png")

docs/python.md has the whole of it. `prepare` has the device, the data and fresh models, `checkpoint` what one must
hold, `resuming` whether a folder's run goes on, `validation` what is measured in training, `compiling` --compile,
`autoencoder` z and x_T there and back, `pictures` a user's images, `trained` the model itself.
"""

from experiment.autoencoder import Autoencoder, slerp
from experiment.checkpoint import (
    basis_file,
    checkpoints,
    expand_from,
    find_checkpoint,
    is_plain,
    meant,
    named_checkpoint,
    open_record,
    refuse_other_data,
    refuse_stale,
    without_basis,
)
from experiment.compiling import compile_networks, half_of
from experiment.prepare import (
    assumptions_of,
    batches_of,
    build_fresh,
    describe_network,
    draw_given,
    fit_gaussian,
    load_data,
    pick_device,
    shape_of,
)
from experiment.trained import Trained, load, open_latent, open_trained

__all__ = [
    "Autoencoder", "Trained", "assumptions_of", "basis_file", "batches_of", "build_fresh", "checkpoints",
    "compile_networks", "describe_network", "draw_given", "expand_from", "find_checkpoint", "fit_gaussian", "half_of",
    "is_plain", "load", "load_data", "meant", "named_checkpoint", "open_latent", "open_record", "open_trained",
    "pick_device", "refuse_other_data", "refuse_stale", "shape_of", "slerp", "without_basis",
]
