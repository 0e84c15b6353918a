"""A request as the command line makes it, for tests of single settings."""

from marcli.bench.request import Request


def plan_request(**given) -> Request:
    absent = dict.fromkeys(["steps", "dit_steps", "num", "minutes", "quality", "reference", "features", "inception"])
    rest = {
        "overrides": (),
        "sweep": {},
        "presets": (),
        "each_switch": False,
        "engines": ("auto",),
        "weights": "ema",
        "seed": 0,
        "gated": frozenset(),
        "gated_num": None,
    }
    return Request(**absent, **(rest | given))
