r"""Where a step of training spends its time, operation by operation, and how far each is from the machine's limits.

    python -m hrcf_lib.speed.operations [--preset mini] [--batch N] [--out FILE.json]

Steps run on random pictures from their frozen features, at the preset's batch, in the types that its training takes;
those of prompts from stored embeddings where the preset's phases have several epochs, as training does. One row per
operation of PyTorch that takes part, of each side:

``calls``      in one step
``ms``         in one step, the median over steps; the row *between operations* is what a step takes beside them all:
               Python, autograd and PyTorch's dispatcher
``share``      of the step
``bound_ms``   what the machine's rates allow: the longer of arithmetic at the rate of a large matrix product of that
               type and traffic at the rate of a large copy (``cost.machine``)
``of_bound``   bound_ms / ms: 1 is as fast as the machine. What stays in a cache between two operations is counted as
               traffic, so it may exceed 1

Each operation is timed by itself, which costs a few microseconds a call; they are taken off the row between operations.
"""

import argparse
import sys
from collections import defaultdict

import pandas as pd
import torch
from torch.utils.benchmark import timer
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from hrcf_lib import config as configs
from hrcf_lib.data import mojiscenes
from hrcf_lib.engine import devices
from hrcf_lib.engine.files import file_argument, write_json
from hrcf_lib.model import HRCF
from hrcf_lib.speed.compare import REPEATS, median_and_spread, seconds
from hrcf_lib.speed.cost import Traffic, machine
from hrcf_lib.speed.images import step
from hrcf_lib.speed.inputs import Sizes, label_names
from hrcf_lib.studies import records

BETWEEN = "between operations"


class Operations(Traffic):
    """Context that adds up calls, seconds, bytes and floating-point operations by name of the operation.

    ``rates``: as ``cost.machine`` gives them; they make ``bound``, in seconds, of each call by itself.
    """

    def __init__(self, rates: dict[str, float]):
        super().__init__()
        self.rates = rates
        self.found = defaultdict(lambda: {"calls": 0, "seconds": 0.0, "bound": 0.0})

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        start = timer()
        result = function(*args, **kwargs)
        taken = timer() - start
        row = self.found[function._overloadpacket.__name__]
        row["calls"] += 1
        row["seconds"] += taken
        row["bound"] += max(
            1e-9 * self.moved(function, args, kwargs, result) / self.rates["GB/s"],
            1e-9 * arithmetic(function, args, kwargs, result) / self.rates[_type(args)],
        )
        return result


def arithmetic(function, args, kwargs, result) -> int:
    """Floating-point operations of one call: of products, convolutions and attention, by PyTorch's own counts."""
    name = function._overloadpacket.__name__
    if name == "_scaled_dot_product_flash_attention_for_cpu":  # which PyTorch's counter leaves out
        return sdpa_flop_count(*(x.shape for x in args[:3]))
    if name == "_scaled_dot_product_flash_attention_for_cpu_backward":
        return sdpa_backward_flop_count(*(x.shape for x in args[:4]))
    count = flop_registry.get(function._overloadpacket)
    return count(*args, **kwargs, out_val=result) if count else 0


def _type(args) -> str:
    first = next((x for x in args if isinstance(x, torch.Tensor)), None)
    return "bfloat16" if first is not None and first.dtype == torch.bfloat16 else "float32"


def operations(model: HRCF, phase: configs.Phase, B: int, names, rates: dict[str, float]) -> pd.DataFrame:
    """One row per operation of a step of ``phase`` with B pictures, the longest first.

    ``names``: the seen labels. Columns: operation, calls, ms, share, bound_ms, of_bound, as the module says.
    """
    frozen, update = step(model, phase.trains, B, names)
    images, e_p = frozen()
    if phase.trains == "prompts" and phase.epochs > 1:  # see ``embeddings.fix_image_side``
        with torch.no_grad(), model.autocast():
            images = tuple(x.float() for x in model.image_embeddings(images))
    run = lambda: update(images, e_p)
    run()
    whole, rows = [], []
    for _ in range(REPEATS):
        whole.append(1e3 * seconds(run))
        with Operations(rates) as counted:
            run()
        rows += [{"operation": name} | found for name, found in counted.found.items()]
    table = pd.DataFrame(rows).groupby("operation").median()
    table = table.set_axis(["calls", "ms", "bound_ms"], axis=1) * [1, 1e3, 1e3]
    total = median_and_spread(whole)[0]
    table.loc[BETWEEN] = [0, max(0.0, total - table["ms"].sum()), 0]
    table.insert(2, "share", table["ms"] / table["ms"].sum())
    table["of_bound"] = table["bound_ms"] / table["ms"]
    return table.astype({"calls": int}).sort_values("ms", ascending=False).reset_index()


def of_preset(preset: str, rates: dict[str, float], batch: int | None = None) -> dict[str, pd.DataFrame]:
    """Side -> ``operations`` of a preset's HRCF, at its own or another batch.

    Weights of the mini VLP are its own, others random. Seen labels are those of MojiScenes or Open Images, elsewhere
    as many as NUS-WIDE has.
    """
    config = configs.preset(preset, augment="none")
    embedded = config.dataset == "mojiscenes"
    K = Sizes.K_large if config.dataset == "open_images" else Sizes.K
    names = mojiscenes.label_space("train").seen if embedded else label_names(K)
    model = HRCF(config.replace(vlp_weights=None), pretrained=embedded).to(devices.best())
    phases = {phase.trains: phase for phase in config.phases}
    return {side: operations(model, one, batch or one.batch, names, rates) for side, one in phases.items()}


def main(words=None) -> int:
    """Prints a table per side; 0, or exits with 2 for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="python -m hrcf_lib.speed.operations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="mini", choices=list(configs.PRESETS), help="default: %(default)s")
    parser.add_argument("--batch", type=int, help="pictures of a step; default: the preset's")
    parser.add_argument("--out", type=file_argument, help="write the tables here, as JSON")
    parser.add_argument(
        "--least", type=float, default=0.02, help="smallest share that is printed; default: %(default)s"
    )
    given = parser.parse_args(words)
    rates = machine(256, 8) if configs.is_smoke() else machine()
    tables = of_preset(given.preset, rates, given.batch)
    print("; ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()), "(GFLOP/s of a large product; copy)")
    for side, table in tables.items():
        print(f"\n{given.preset}, a step of {side}: {table['ms'].sum():.1f} ms")
        shown = table[table["share"] >= given.least]
        print(shown.to_string(index=False, float_format="{:.2f}".format))
    if given.out:
        rows = {side: table.to_dict("records") for side, table in tables.items()}
        write_json(given.out, {"preset": given.preset, "rates": rates, "tables": rows} | records.origin())
    return 0


if __name__ == "__main__":
    sys.exit(main())
