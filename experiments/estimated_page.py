"""An estimate as text: one table for a terminal, and below it what it rests on."""

from __future__ import annotations

from typing import Any

from gsclip_jax.runtime.memory import each

UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0))


def text(found: dict[str, Any]) -> str:
    """What `--estimate` prints of what `estimate.estimate` found."""
    config, record = found["config"], found["record"]
    runs = f", {config['runs']} runs" if config["runs"] > 1 else ""
    lines = [f"{config['task']} of {config['preset'] or 'the embedded default'}: {config['method']} ({config['variant']}){runs}, "
             "from nothing. Nothing was rendered, trained or written.", ""]  # fmt: skip
    for one in found["objects"]:
        train = f", {' / '.join(map(str, one['train']))} of them to train on" if one["train"] else ""
        lines.append(f"objects: {one['records']:,} of {one['categories']} categories{train}; {one['counted']}")
    lines += ["", *_phases(found), ""]
    disk = {name.replace("_", " "): size for name, size in found["disk"].items()}
    lines.append("disk: " + ", ".join(f"{name} {_size(size)}" for name, size in disk.items()))
    if record["seconds_a_core"]:
        lines.append(f"a record: {record['seconds_a_core']:.1f} s of one core, {_size(record['bytes'])}, measured on "
                     f"{record['made_of']}")  # fmt: skip
    else:
        lines.append(f"a record: {record['made_of']}")
    return "\n".join([*lines, "", *_said(found)])


def _phases(found: dict[str, Any]) -> list[str]:
    machines = found["machines"]
    head = ["phase", "objects", "TFLOP", "other", "bytes", *machines]
    records = sum(one["records"] for one in found["objects"])
    rows = [head, ["records", f"{records:,}", "", "", "", *(_time(one["seconds"]["records"]) for one in machines.values())]]
    for phase in found["phases"]:
        name = phase["phase"]
        rows.append([name, f"{phase['objects']:,}", f"{phase['products'] / 1e12:,.4g}", f"{phase['other'] / 1e12:,.3g}",
                     _size(phase["bytes"]), *(_time(one["seconds"][name]) for one in machines.values())])  # fmt: skip
    rows.append(["all", "", f"{sum(phase['products'] for phase in found['phases']) / 1e12:,.4g}", "", "",
                 *(_time(one["total"]) for one in machines.values())])  # fmt: skip
    rows.append(["chip hours", "", "", "", "", *(f"{one['chip_hours']:.3g}" for one in machines.values())])
    wide = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return ["  ".join([row[0].ljust(wide[0]), *map(str.rjust, row[1:], wide[1:])]).rstrip() for row in rows]


def memory_line(row: dict[str, Any]) -> str:
    """A row of `estimate.memory_plans`."""
    took = f"compiled in {_time(row['seconds'])}"
    if not row["fits"]:
        return f"  {row['program']}: does not fit. {row['plan']}; {took}"
    free = "" if row["free"] is None else f" of {_size(row['free'])} that are free"
    return f"  {row['program']}: {row['plan']}; {_size(row['arguments'] + row['more'])}{free} on {each(row['devices'])}; {took}"


def _said(found: dict[str, Any]) -> list[str]:
    rates, machines = found["rates_here"], found["machines"]
    half, single, other = (rates[name] / 1e9 for name in ("bfloat16_products", "float32_products", "elementwise"))
    lines = [
        f"this machine: {rates['devices']}; measured now (load {rates['load']:.1f}): {single:,.0f} GFLOP/s in float32 products"
        + (f", {half:,.0f} in bfloat16" if half != single else "") + f", {other:,.3g} G/s elementwise; programs are taken to "
        f"reach {rates['share']:.0%} of the products.",
        "other machines: estimates from published peak rates, no measurements; programs are taken to reach "
        f"{rates['share_of_peaks']:.0%} of the peak.",
    ]  # fmt: skip
    for name, one in machines.items():
        if one["source"] != "measured":
            mesh = f", --config.mesh.view={one['mesh_view']}" if one["mesh_view"] > 1 else ""
            lines.append(f"  {name}: peaks from {one['source']}; {one['cores']} cores make the records{mesh}")
    lines.append("not counted: compiling on the other machines, metrics, the report. Cost: chip hours times your price of one.")
    return lines + found["notes"]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    unit, size = next((unit for unit in UNITS if seconds >= 1.5 * unit[1]), UNITS[-1])
    return f"{seconds / size:.3g} {unit}" if seconds >= 1 else "< 1 s"


def _size(count: float | None) -> str:
    if count is None:
        return "?"
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
