"""Episodes that were never driven: what reports and benchmarks are tried on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from grpo.records import EpisodeResult, TripMeasures

MODEL = "model/grpo_model"


def episode(policy: str, scenario: str, seed: int, delay: float | None, **changes: Any) -> EpisodeResult:
    """An episode with this delay and other measures; ``None`` makes it a failed one."""
    if delay is None:
        return EpisodeResult(policy, scenario, seed, error="SUMO does not start")
    measures = TripMeasures(
        avg_delay_s=delay,
        avg_travel_time_s=delay + 30,
        avg_waiting_s=delay / 2,
        avg_queue_veh=delay / 4,
        throughput_veh=500,
        not_inserted_veh=0,
        stops=300,
        teleports=0,
        emergency_brakings=0,
        jammed=False,
        people=0,
        avg_people_waiting_s=0.0,
        own_signal_faults=0,
        spillback_s=0,
    )
    times = (100, 1.5, 4.0) if policy == MODEL else (0,)
    return EpisodeResult(policy, scenario, seed, replace(measures, **changes), *times)


def episodes_of(delays: Mapping[str, Mapping[str, Sequence[float | None]]]) -> list[EpisodeResult]:
    return [
        episode(policy, scenario, seed, delay, jammed=delay == 90)
        for scenario, policies in delays.items()
        for policy, values in policies.items()
        for seed, delay in enumerate(values, 1)
    ]
