"""Flags that say how many processes make a run, which one this is, and where the first one is."""

import argparse

from medsd_jax.parallel.launch import HostFlags


def add_host_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --coordinator, --num_processes and --process_id."""
    group = parser.add_argument_group(
        "several processes",
        "needed only where no scheduler started them together; see docs/guides/several_hosts.md",
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="of process 0, a free port that all can reach"
    )
    group.add_argument(
        "--num_processes", type=int, metavar="N", help="how many processes make this run; 1: alone"
    )
    group.add_argument(
        "--process_id", type=int, metavar="I", help="which of them this is, 0 to N - 1"
    )


def host_flags(args: argparse.Namespace) -> HostFlags:
    """What `add_host_flags` read."""
    return HostFlags(args.coordinator, args.num_processes, args.process_id)
