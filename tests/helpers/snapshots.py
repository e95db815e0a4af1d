"""What two runs must agree on to be the same run."""

from __future__ import annotations

from typing import Any

from grpo.sumo_interface import TrafficSimulation


def snapshot(simulation: TrafficSimulation) -> tuple[Any, ...]:
    """Time; every vehicle's lane, position and speed; every light's state; who has just arrived."""
    sumo = simulation.sumo
    vehicles = tuple(
        (name, sumo.vehicle.getLaneID(name), sumo.vehicle.getLanePosition(name), sumo.vehicle.getSpeed(name))
        for name in sumo.vehicle.getIDList()
    )
    lights = tuple(sumo.trafficlight.getRedYellowGreenState(name) for name in sumo.trafficlight.getIDList())
    return simulation.time, vehicles, lights, tuple(sumo.simulation.getArrivedIDList())
