"""A plan in short, as plain JSON: for the report of a compile and for ``inspect``."""

from __future__ import annotations

from typing import Any

from .plan import Collective, Plan


def described(plan: Plan) -> dict[str, Any]:
    """The plan for report and ``inspect``: bytes of weights by share; by entry what the cost model says.

    ``stages``: nodes, and seconds of a run. ``sent``: bytes that a run moves between stages. ``meetings``:
    collectives of a run.
    """
    mesh = plan.mesh
    return {
        "mesh": {"dp": mesh.dp, "pp": mesh.pp, "tp": mesh.tp},
        "ranks": mesh.size,
        "weights": [share.memory for share in plan.shares],
        "entries": {
            estimate.entry: {
                "sizes": dict(estimate.sizes),
                "device": estimate.device,
                "balance": estimate.balance,
                "stages": [
                    {
                        "nodes": cost.nodes,
                        "seconds": cost.seconds,
                        "collectives": cost.collectives,
                        "receiving": cost.receiving,
                    }
                    for cost in estimate.stages
                ],
                "sent": sum(w.bytes * len(w.targets) for w in plan.entries[estimate.entry].wires),
                "wires": len(plan.entries[estimate.entry].wires),
                "meetings": sum(
                    isinstance(step, Collective)
                    for stage in range(mesh.pp)
                    for step in plan.share(stage, 0).steps.get(estimate.entry, ())
                ),
            }
            for estimate in plan.estimates
        },
    }
