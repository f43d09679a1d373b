"""What `scoretk list` and `scoretk describe` read. Keep it light: import no torch here, nor in `__init__.py`."""

from scoretk import ModelSpec

spec = ModelSpec(
    name="double-well",
    family="energy-based",
    factory="my_scoretk_model.model:build",
    provides={"energy"},
    event_shape=(2,),
    summary="two wells at x = -1 and x = 1, with a barrier between them",
    parameters={"barrier": 4.0},
    interface=1,
)
