"""`sapwood bench serve`: workloads against any server that speaks the OpenAI API."""

import argparse
import asyncio
import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from services.launcher.bench.client import Target
from services.launcher.bench.clients import run_clients
from services.launcher.bench.figures import Answer, Row, row_of
from services.launcher.bench.plot import check_can_plot, plot
from services.launcher.bench.workloads import FIRST_ID, WORKLOADS, Sizes, make_sessions
from services.launcher.chat import Server
from shared.errors import ConfigError

PLOTTED = (1, 4, 16, 64, 256)  # requests at once, when there is a plot to make and no load was named


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-url", required=True, metavar="URL", help="the server, as http://127.0.0.1:30000")
    parser.add_argument("--model", default=None, help="default: the first that the server lists")
    parser.add_argument(
        "--workload",
        default="single,random,shared,agent,json,free",
        help=f"by commas, of {', '.join(WORKLOADS)} (default: %(default)s)",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="times the number of requests (default: 1)")
    parser.add_argument("--length", type=float, default=1.0, help="times every number of tokens (default: 1)")
    parser.add_argument("--seed", type=int, default=1, help="of the prompts; one more in each repetition")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each workload at each load (default: 1)")
    parser.add_argument("--vocab", type=int, default=48000, help="token ids are below this (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0)
    load = parser.add_mutually_exclusive_group()
    load.add_argument(
        "--concurrency", default=None, metavar="N[,N...]", help="sessions at once; several: a run each (default: 1024)"
    )
    load.add_argument("--rate", default=None, metavar="R[,R...]", help="sessions that arrive a second, at random times")
    parser.add_argument("--processes", type=int, default=4, help="that send requests (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one request (default: %(default)s)")
    parser.add_argument("--api-key", default=os.environ.get("SAPWOOD_API_KEY"), help="or SAPWOOD_API_KEY")
    parser.add_argument("--label", default="", help="name of the server in the results")
    parser.add_argument("--json", default="", metavar="FILE", help="write the results to this file too")
    parser.add_argument(
        "--plot",
        default="",
        metavar="FILE",
        help=f"PNG of latency over load; without a load named, over {', '.join(map(str, PLOTTED))} requests at once",
    )


class Load(msgspec.Struct, frozen=True):
    """Sessions at once, at most; and how many arrive a second, when not all are there from the start."""

    concurrency: int
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.concurrency} at once" if self.rate is None else f"{self.rate:g} a second"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line means, checked."""

    workloads: list[str]
    loads: list[Load]
    sizes: Sizes
    seed: int
    repeat: int
    num_processes: int
    label: str


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Raises ConfigError, naming the flag."""
    workloads = [name.strip() for name in arguments.workload.split(",") if name.strip()]
    for name in workloads:
        if name not in WORKLOADS:
            raise ConfigError(f"--workload {name}: no such workload; there are {', '.join(WORKLOADS)}")
    if not workloads:
        raise ConfigError("--workload names no workload")
    for name in ("scale", "length", "timeout"):
        if not getattr(arguments, name) > 0:
            raise ConfigError(f"--{name} {getattr(arguments, name):g}: has to be above 0")
    for name in ("repeat", "processes"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} {getattr(arguments, name)}: has to be at least 1")
    if arguments.temperature < 0:
        raise ConfigError(f"--temperature {arguments.temperature:g}: cannot be below 0")
    if arguments.vocab <= FIRST_ID + 1:
        raise ConfigError(f"--vocab {arguments.vocab}: has to be above {FIRST_ID + 1}")
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        raise ConfigError(f"--json {arguments.json}: there is no such folder")
    if arguments.plot:
        check_can_plot(arguments.plot)
    return Plan(
        workloads=workloads,
        loads=_loads(arguments),
        sizes=Sizes(arguments.vocab, arguments.scale, arguments.length),
        seed=arguments.seed,
        repeat=arguments.repeat,
        num_processes=arguments.processes,
        label=arguments.label or arguments.base_url,
    )


def _loads(arguments: argparse.Namespace) -> list[Load]:
    if arguments.rate is not None:
        rates = _numbers("--rate", arguments.rate)
        return [Load(1 << 20, rate) for rate in rates]
    if arguments.concurrency is not None:
        counts = _numbers("--concurrency", arguments.concurrency)
        if any(count != int(count) for count in counts):
            raise ConfigError(f"--concurrency {arguments.concurrency}: whole numbers, by commas")
        return [Load(int(count)) for count in counts]
    return [Load(count) for count in PLOTTED] if arguments.plot else [Load(1024)]


def _numbers(flag: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{flag} {text}: numbers are wanted, by commas") from None
    if not all(0 < number < 1e6 for number in numbers):
        raise ConfigError(f"{flag} {text}: each has to be above 0 and below a million")
    return numbers


def run(arguments: argparse.Namespace) -> bool:
    """Runs everything, prints a table, writes the files. Whether no request failed. Raises ConfigError when there is
    no server or a flag makes no sense."""
    plan = plan_of(arguments)
    server = Server(arguments.base_url, arguments.api_key)
    first_model = asyncio.run(server.first_model())
    target = Target(
        base_url=server.base,
        model=arguments.model or first_model,
        api_key=arguments.api_key,
        temperature=arguments.temperature,
        timeout_s=arguments.timeout,
        concurrency=1,
    )
    console = Console(highlight=False)
    rows = run_plan(plan, target, console)
    if not console.is_terminal:
        console.width = max(console.width, 160)  # in a file nobody wants a column cut off
    console.print(table_of(rows))
    for row in rows:
        if row.first_error:
            console.print(
                f"{row.workload}: {row.errors} failed, the first: {row.first_error}", style="red", markup=False
            )
    if arguments.json:
        Path(arguments.json).write_bytes(msgspec.json.format(msgspec.json.encode(report(target, rows)), indent=1))
    if arguments.plot:
        plot(rows, arguments.plot, f"{plan.label}, {target.model}")
    return not any(row.errors for row in rows)


def run_plan(plan: Plan, target: Target, console: Console) -> list[Row]:
    """Each workload at each load, with a progress bar on a terminal."""
    rows = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        for workload in plan.workloads:
            for load in plan.loads:
                for repetition in range(plan.repeat):
                    rows.append(_run_one(plan, target, workload, load, plan.seed + repetition, progress))
    return rows


def _run_one(plan: Plan, target: Target, workload: str, load: Load, seed: int, progress: Progress) -> Row:
    sessions = make_sessions(workload, plan.sizes, seed, load.rate)
    task = progress.add_task(f"{workload}, {load}", total=sum(len(session.asks) for session in sessions))

    def advance(answers: Sequence[Answer]) -> None:
        progress.advance(task, len(answers))

    at_once = msgspec.structs.replace(target, concurrency=load.concurrency)
    answers = run_clients(sessions, at_once, plan.num_processes, advance)
    progress.remove_task(task)
    return row_of(plan.label, workload, min(load.concurrency, len(sessions)), load.rate, answers)


def table_of(rows: Sequence[Row]) -> Table:
    table = Table()
    for name in ("workload", "load"):
        table.add_column(name)
    names = ("ok", "errors", "out tok/s", "in tok/s", "req/s", "TTFT ms 50 %", "99 %", "ITL ms 50 %", "99 %")
    for name in (*names, "TPOT ms", "e2e s 50 %"):
        table.add_column(name, justify="right")
    for row in rows:
        load = f"{row.concurrency}" if row.rate is None else f"{row.rate:g}/s"
        figures = (
            f"{row.ok}", f"{row.errors}", f"{row.out_tok_s:,.1f}", f"{row.in_tok_s:,.1f}", f"{row.req_s:,.2f}",
            f"{row.ttft_p50_ms:,.1f}", f"{row.ttft_p99_ms:,.1f}", f"{row.itl_p50_ms:.2f}", f"{row.itl_p99_ms:.2f}",
            f"{row.tpot_ms:.3f}", f"{row.e2e_p50_s:.3f}",
        )  # fmt: skip
        table.add_row(row.workload, load, *figures, style="red" if row.errors else None)
    return table


def report(target: Target, rows: Sequence[Row]) -> dict[str, object]:
    """Everything, for a file."""
    return {
        "url": target.base_url,
        "model": target.model,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "client": f"{platform.node()}, Python {platform.python_version()}",
        "rows": rows,
    }
