"""What becomes of the SUMO options that a scenario sets: kept, set by the stage, left out, or refused.

The table knows every option of SUMO 1.28 (``tests/test_sumo_options.py`` asks SUMO for its list). SUMO itself reads the
scenario's configuration and says what it sets; a stage then starts SUMO with the kept options and its own, never with
the configuration as it is. So no option can write a file, open a port, wait for a client, sample what is counted, or
start threads that a fork would not survive.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal
from urllib.parse import unquote
from xml.etree import ElementTree

from ..system.errors import ScenarioError

Treatment = Literal["kept", "set", "left out", "refused"]

REFUSED = {
    "mesosim": "a mesoscopic simulation has no lanes on which vehicles could be seen",
    "load-state": "a saved state brings running vehicles and signals of its own",
    "tls.all-off": "it switches every light off",
}
"""Options under which a scenario cannot be controlled or measured, and why."""

SET = {
    "seed": "the stage's seeds",
    "route-steps": "all demand is read at the start",
    "time-to-teleport": "never, or the stage's time_to_teleport",
    "max-depart-delay": "a vehicle that finds no room waits on",
    "no-step-log": "messages",
    "no-warnings": "messages",
    "output-prefix": "files that additional files name go nowhere",
    "tripinfo-output": "measures",
    "tripinfo-output.write-unfinished": "measures",
    "tripinfo-output.write-undeparted": "measures",
    "summary-output": "measures",
    "statistic-output": "measures",
}
"""Options that a stage gives values of its own, and what they are for."""

LEFT_OUT: dict[str, tuple[str, ...]] = {
    "files that SUMO would write": (
        *("netstate-dump", "netstate-dump.*", "full-output", "device.rerouting.output", "device.toc.file"),
        *("emission-output*", "battery-output*", "elechybrid-output*", "chargingstations-output*"),
        *("overheadwiresegments-output", "substations-output*", "fcd-output*", "person-fcd-output", "queue-output*"),
        *("vtk-output", "amitran-output", "summary-output.period", "person-summary-output", "personinfo-output"),
        *("vehroute-output*", "personroute-output", "link-output", "railsignal-block-output"),
        *("railsignal-vehicle-output", "bt-output", "lanechange-output*", "stop-output*", "collision-output"),
        *("edgedata-output", "lanedata-output", "deadlock-output", "save-state.*"),
        *("device.taxi.dispatch-algorithm.output", "device.taxi.idle-algorithm.output"),
        *("pedestrian.jupedsim.wkt*", "pedestrian.jupedsim.py"),
    ),
    "how files are written": (
        *("write-license", "write-metadata", "output-suffix", "precision", "precision.geo"),
        *("output.compression", "output.format", "output.column-*", "human-readable-time"),
    ),
    "devices that only record, for a share of the vehicles or at intervals": (
        *("device.tripinfo.*", "device.vehroute.*", "device.fcd.*", "device.ssm.*", "device.emissions.*"),
        *("device.btreceiver.*", "device.btsender.*", "device.example.*"),
        *("person-device.fcd.*", "person-device.btsender.*", "person-device.btreceiver.*", "emissions.volumetric-fuel"),
    ),
    "what changes a measure": (
        *("time-to-teleport.highways*", "emergencydecel.warning-threshold"),
        *("time-to-teleport.remove", "time-to-teleport.remove-constraint"),
    ),
    "messages": (
        *("verbose", "print-options", "help", "version", "aggregate-warnings", "log", "log.*", "message-log"),
        *("error-log", "language", "duration-log.*", "step-log.period"),
    ),
    "threads, which a fork does not survive": ("threads", "device.rerouting.threads"),
    "another program that would control the simulation": ("remote-port", "num-clients"),
    "a seed from the clock": ("random",),
    "settings of mesoscopic simulations": ("meso-*",),
    "settings of saved states": ("load-state.*",),
    "the configuration file itself": (
        *("configuration-file", "save-configuration", "save-configuration.relative", "save-template", "save-schema"),
        "save-commented",
    ),
    "the window": (
        *("gui-settings-file", "quit-on-end", "game", "game.mode", "start", "delay", "breakpoints", "edgedata-files"),
        *("alternative-net-file", "selection-file", "demo", "disable-textures", "registry-viewport", "window-size"),
        *("window-pos", "tracker-interval", "gui-testing", "gui-testing-debug", "gui-testing.setting-output"),
    ),
}
"""Patterns of options that are not used, by what they are about."""

KEPT = (
    # what is simulated, and when
    *("net-file", "route-files", "additional-files", "weight-files", "weight-attribute", "junction-taz"),
    *("begin", "end", "step-length", "scale", "scale-suffix", "thread-rngs", "random-depart-offset"),
    # how vehicles and people move
    *("step-method.ballistic", "extrapolate-departpos", "lateral-resolution", "no-internal-links"),
    *("ignore-junction-blocker", "ignore-route-errors", "ignore-accidents", "collision.*", "intermodal-collision.*"),
    *("keep-after-arrival", "max-num-vehicles", "max-num-persons", "max-num-teleports"),
    "time-to-teleport.disconnected",
    *("time-to-teleport.ride", "time-to-teleport.bidi", "time-to-teleport.railsignal-deadlock"),
    *("waiting-time-memory", "startup-wait-threshold", "sloppy-insert", "eager-insert", "emergency-insert"),
    *("insertion-checks", "lanechange.duration", "lanechange.overtake-right", "slope-centered"),
    *("time-to-impatience", "default.*", "overhead-wire.*", "parking.maneuver", "use-stop-ended", "use-stop-started"),
    *("pedestrian.model", "pedestrian.timegap-crossing", "pedestrian.striping.*", "pedestrian.jupedsim.step-length"),
    *("pedestrian.jupedsim.exit-tolerance", "pedestrian.jupedsim.model", "pedestrian.jupedsim.strength-*"),
    *("pedestrian.jupedsim.range-*", "ride.stop-tolerance", "mapmatch.*"),
    # signals
    *("tls.actuated.*", "tls.delay_based.*", "tls.yellow.min-decel", "railsignal-moving-block", "railsignal.*"),
    # routes
    *("routing-algorithm", "weights.*", "astar.*", "persontrip.*", "railway.max-train-length", "replay-rerouting"),
    *("device.rerouting.probability", "device.rerouting.explicit", "device.rerouting.deterministic"),
    *("device.rerouting.period", "device.rerouting.pre-period", "device.rerouting.adaptation-*"),
    *("device.rerouting.cch-*", "device.rerouting.threshold.*", "device.rerouting.invalidation"),
    *("device.rerouting.with-taz", "device.rerouting.mode", "device.rerouting.init-with-loaded-weights"),
    *("device.rerouting.synchronize", "device.rerouting.railsignal", "device.rerouting.bike-speeds"),
    "person-device.rerouting.*",
    # devices that change how a vehicle drives
    *("device.battery.*", "device.stationfinder.*", "device.elechybrid.*", "device.driverstate.*"),
    *("device.bluelight.*", "device.glosa.*", "device.friction.*", "device.fcd-replay.*", "device.toc.[!f]*"),
    *("device.taxi.probability", "device.taxi.explicit", "device.taxi.deterministic", "device.taxi.dispatch-algorithm"),
    *("device.taxi.dispatch-algorithm.params", "device.taxi.dispatch-period", "device.taxi.dispatch-keep-unreachable"),
    *("device.taxi.idle-algorithm", "device.taxi.vclasses"),
    *("phemlight-path", "phemlight-year", "phemlight-temperature"),
    # how strictly files are read
    *("xml-validation", "xml-validation.net", "xml-validation.routes"),
)
"""Patterns of options that a scenario may set."""


FILES = (
    *("net-file", "route-files", "additional-files", "weight-files", "phemlight-path", "device.fcd-replay.files"),
    *("astar.all-distances", "astar.landmark-distances"),
)
"""Kept options whose values are paths."""


def treatment(option: str) -> Treatment | None:
    """What becomes of an option; ``None`` for one that SUMO 1.28 does not have."""
    if option in REFUSED:
        return "refused"
    if option in SET:
        return "set"
    if any(_matches(option, patterns) for patterns in LEFT_OUT.values()):
        return "left out"
    return "kept" if _matches(option, KEPT) else None


def why_not_used(option: str) -> str:
    """What a scenario's own value of an option that is set or left out would have been about."""
    return SET.get(option) or next(group for group, patterns in LEFT_OUT.items() if _matches(option, patterns))


def _matches(option: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(option, pattern) for pattern in patterns)


@dataclass(frozen=True, slots=True)
class ScenarioOptions:
    """What a scenario's configuration sets, as SUMO reads it."""

    kept: tuple[tuple[str, str], ...]
    """Names and values of the options that SUMO is started with; files by their full paths."""
    overridden: tuple[str, ...]
    """Names of those that the stage sets itself or leaves out."""

    def get(self, name: str) -> str:
        """The value of a kept option; empty where the scenario does not set it."""
        return dict(self.kept).get(name, "")

    def files(self, name: str) -> list[str]:
        """The files that a kept option names."""
        return [file.strip() for file in self.get(name).split(",") if file.strip()]

    def input_files(self) -> list[str]:
        """All that the scenario reads; there may be folders among them."""
        return [file for name in FILES for file in self.files(name)]

    def signal_files(self) -> list[str]:
        """The files that may hold signal programs."""
        return [*self.files("net-file"), *self.files("additional-files")]

    def arguments(self, additional_files: Sequence[str] = ()) -> list[str]:
        """The kept options as SUMO's command line takes them, with more additional files."""
        values = dict(self.kept)
        if additional_files:
            values["additional-files"] = ",".join([*self.files("additional-files"), *additional_files])
        return [word for name, value in values.items() for word in (f"--{name}", value)]


_FALSE = ("false", "0", "no", "off", "f", "-", "")


def options_from(sumocfg: Path, saved: str, said: Sequence[str]) -> ScenarioOptions:
    """The options of a scenario from the configuration as SUMO saves it, and what SUMO printed meanwhile.

    Raises :class:`ScenarioError` where SUMO could not read the file, and for an option that is refused.
    """
    error = next((line.partition("Error:")[2].strip() for line in said if "Error:" in line), "")
    if unknown := re.match("No option with the name '(.+)' exists", error):
        raise ScenarioError(f"{sumocfg}: {unknown[1]}: an option that this SUMO does not have; remove it")
    if error or not saved:
        reason = f" ({error[:200]})" if error else ""
        raise ScenarioError(f"{sumocfg}: is not a SUMO configuration{reason}; give the path of a .sumocfg file")
    try:
        options_set = ElementTree.fromstring(saved).iterfind("*/*")
    except ElementTree.ParseError:
        raise ScenarioError(f"{sumocfg}: its options, as SUMO saved them, are cut short; is the disk full?") from None
    kept, overridden = [], []
    for element in options_set:
        name, value = element.tag, element.get("value", "")
        what = treatment(name)
        if what is None:
            raise ScenarioError(f"{sumocfg}: {name}: an option that SUMO 1.28 does not have; remove it")
        if what == "refused" and value.lower() not in _FALSE:
            raise ScenarioError(f"{sumocfg}: {name}: {REFUSED[name]}; remove the option")
        if what == "kept":
            kept.append((name, _paths(value, sumocfg.absolute().parent) if name in FILES else value))
        elif what != "refused":
            overridden.append(name)
    options = ScenarioOptions(tuple(kept), tuple(overridden))
    if not options.get("net-file"):
        raise ScenarioError(f"{sumocfg}: names no network (net-file); give the path of a .sumocfg file")
    return options


def _paths(value: str, folder: Path) -> str:
    """Full paths of a list of files, which SUMO saves encoded, and with a variable of the environment as it stands."""
    # SUMO puts the folder before the spaces around a name, which it then does not read as parts of it.
    names = (unquote(part).removeprefix(f"{folder}/").strip() for part in value.split(","))
    return ",".join(os.path.join(folder, re.sub(r"\$\{(.+?)\}", _variable, name)) for name in names)


def _variable(found: re.Match[str]) -> str:
    if found[1] not in os.environ:
        raise ScenarioError(f"{found[0]} in a file name: the environment has no such variable; set it")
    return os.environ[found[1]]
