"""Latency over load as a PNG."""

from collections.abc import Sequence
from pathlib import Path

from services.launcher.bench.figures import Row
from shared.errors import ConfigError


def check_can_plot(path: str) -> None:
    """Raises ConfigError when a plot could not be written to `path`; ahead of a run that takes minutes."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("--plot needs matplotlib: pip install 'sapwood[bench]'") from None
    if Path(path).suffix.lower() != ".png":
        raise ConfigError(f"--plot {path}: the plot is a PNG, so the name has to end in .png")
    if not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"--plot {path}: there is no such folder")


def plot(rows: Sequence[Row], path: str, title: str) -> None:
    """Time to the first token, time per token and throughput, each over the load; a line a workload."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    is_by_rate = any(row.rate is not None for row in rows)
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(1, 3)
    for workload in dict.fromkeys(row.workload for row in rows):
        ours = sorted((row for row in rows if row.workload == workload and row.ok), key=_load)
        loads = [_load(row) for row in ours]
        (line,) = panels[0].plot(loads, [row.ttft_p50_ms for row in ours], "o-", label=f"{workload}, median")
        panels[0].plot(
            loads, [row.ttft_p99_ms for row in ours], "o--", color=line.get_color(), label=f"{workload}, 99 %"
        )
        panels[1].plot(loads, [row.tpot_ms for row in ours], "o-", label=workload)
        panels[2].plot(loads, [row.out_tok_s for row in ours], "o-", label=workload)
    names = ("time to first token (ms)", "time per token (ms)", "output tokens per second")
    for panel, name in zip(panels, names, strict=True):
        panel.set_xlabel("requests per second" if is_by_rate else "requests at once")
        panel.set_ylabel(name)
        panel.set_xscale("log", base=2)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _load(row: Row) -> float:
    return row.concurrency if row.rate is None else row.rate
