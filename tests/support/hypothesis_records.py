"""Records of a hypothesis with drawn numbers, shaped like those of real trainings of a small network."""

import math
import random
from collections.abc import Sequence
from typing import Any

PRUNABLE, STEPS, COMMON = 194_560, 800, 3e-3
RATES = (1e-3, 3e-3, 1e-2)
ROUNDS = (4, 7, 10, 13)  # 41, 21, 11 and 5.5%
LOSSES = {  # at the best rate, by rounds of pruning
    "rewound": (2.277, 2.337, 2.489, 2.700), "original": (2.282, 2.361, 2.540, 2.760), "oneshot": (2.330, 2.548, 2.827, 3.050),
    "tuned": (2.250, 2.300, 2.410, 2.600), "rewound-rate": (2.262, 2.316, 2.450, 2.640), "early": (2.340, 2.450, 2.700, 2.950),
    "permuted": (2.372, 2.421, 2.700, 2.960), "signs": (2.350, 2.402, 2.610, 2.890), "other": (2.390, 2.450, 2.760, 3.020),
    "reinit": (2.366, 2.394, 2.720, 2.990), "shuffled": (2.381, 2.446, 2.790, 3.090), "snip": (2.700, 3.112, 3.183, 3.300),
    "snip-shuffled": (2.640, 3.010, 3.140, 3.280), "grasp": (2.640, 2.900, 3.100, 3.350), "synflow": (2.510, 2.720, 2.950, 3.200),
    "synflow-shuffled": (2.512, 2.722, 2.960, 3.230), "random": (2.520, 2.752, 3.000, 3.300), "untrained": (3.120, 4.380, 6.200, 6.400),
}  # fmt: skip
DENSE = {1: 2.363, 2: 2.129, 5: 1.982}
CONTROLLED = {"rewound": ("permuted", "signs", "other", "reinit", "shuffled"), "original": ("shuffled",),
              "snip": ("snip-shuffled", "random"), "synflow": ("synflow-shuffled", "random")}  # fmt: skip
FAST = ("permuted", "signs", "other", "reinit", "shuffled", "random")  # their best rate is the greatest


def density_of(rounds: int) -> float:
    living = PRUNABLE
    for _ in range(rounds):
        living -= math.ceil(0.2 * living)
    return living / PRUNABLE


def sample(
    seeds: Sequence[int] = (0, 1, 2), arms: Sequence[str] = tuple(LOSSES), rounds: Sequence[int] = ROUNDS, rates: Sequence[float] = RATES,
    rewinds: Sequence[float] = (0.0, 0.05), barriers: bool = True, dense: Sequence[int] = (1, 2, 5), longer: bool = False, shift: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """Returns a whole record. `shift` is added to the loss of every ticket; `longer` adds tickets of twice the steps."""
    draw = random.Random(7)
    trainings = [t for n in dense for t in train(draw, "dense", 0, 0.0, STEPS * n, rates, seeds, DENSE[n])]
    for arm in arms:
        for k in rounds:
            loss = LOSSES[arm][ROUNDS.index(k)] + (shift if arm in ("rewound", "original") else 0.0)
            share = (
                0.0
                if arm in ("original", "random", "untrained") or arm.split("-")[0] in ("snip", "synflow", "grasp")
                else max(rewinds)
            )
            trainings += train(draw, arm, k, share, STEPS, rates, seeds, loss)
            if longer and arm == "rewound":
                trainings += train(draw, arm, k, share, 2 * STEPS, rates, seeds, loss - 0.21)
    rows = rows_of(trainings)
    return {
        "format": 1, "name": "sample", "question": "Does a small Llama hold a winning ticket?",
        "command": "lottery hypothesis --preset sample.yaml --text stories --seed 0 --device auto",
        "text": {"name": "stories", "sha256": "5f" * 32, "tokens": {"train": 4_000_000, "search": 100_000, "report": 200_000},
                 "bytes_per_token": 2.9, "ngram": {"order": 6, "search": 2.52, "report": 2.51}},
        "setup": {"layers": 4, "width": 64, "heads": 4, "inner": 168, "vocabulary": 512, "context": 64, "batch": 16, "steps": STEPS,
                  "lr": COMMON, "warmup": 0.05, "decay": 0.1, "clip": 1.0, "rate": 0.2, "rewind": list(rewinds), "scope": "global",
                  "compile": False, "seeds": list(seeds), "windows": {"search": 256, "report": 512}},
        "parameters": {"all": 227_904, "prunable": PRUNABLE}, "trainings": trainings,
        "barriers": barriers_of(draw, seeds, rounds, rewinds) if barriers else [], "rows": rows, "claims": claims_of(rows),
        "tickets": [{"arm": "rewound", "density": density_of(7), "seed": seeds[0], "model_uri": "models:/ticket-hypothesis-0a1b2c3d/1",
                     "ticket": "0a1b2c3d4e5f", "retrained": None}],
    }  # fmt: skip


def quick() -> dict[str, Any]:
    """Returns the record of one seed, one chain and few arms; what is compared with one rate alone is at the edge."""
    arms = ("rewound", "permuted", "reinit", "shuffled", "snip", "synflow", "random")
    record = sample((0,), arms, (7,), rewinds=(0.05,), barriers=False, dense=(1, 2))
    chain = [
        train(random.Random(k), "rewound", k, 0.05, STEPS, (COMMON,), (0,), 2.363 - 0.03 * k + 0.004 * k * k)[0]
        for k in range(1, 7)
    ]
    kept = [t for t in record["trainings"] if t["arm"] not in ("snip", "synflow", "random") or t["lr"] == COMMON]
    record["trainings"] = kept + chain
    record["rows"] = rows_of(record["trainings"])
    record["claims"] = claims_of(record["rows"])
    record["barriers"] = barriers_of(random.Random(3), (0,), (7,), (0.05,))
    return record


def train(
    draw: random.Random,
    arm: str,
    rounds: int,
    share: float,
    steps: int,
    rates: Sequence[float],
    seeds: Sequence[int],
    best: float,
) -> list[dict[str, Any]]:
    """Returns the trainings of one place at each rate and seed."""
    found = []
    rates = (COMMON,) if arm == "untrained" else rates
    wanted = max(rates) if arm in FAST else COMMON
    for lr in rates:
        for seed in seeds:
            loss = best + 0.06 * abs(math.log(lr / wanted)) + draw.gauss(0, 0.004) + 0.006 * (seed % 2)
            start = round(share * steps)
            found.append({
                "id": f"{draw.getrandbits(48):012x}", "arm": arm, "seed": seed, "round": rounds, "density": density_of(rounds), "rewind": start,
                "lr": lr, "mask_lr": COMMON, "steps": steps, "mask_steps": 0 if arm == "dense" or arm.split("-")[0] in ("snip", "grasp", "synflow", "random") else steps, "order": 0, "scope": "global", "outcome": "done", "reason": None,
                "search_loss": loss - 0.01, "loss": loss, "cost": 0.95 * rounds + share if arm in ("rewound", "original", "permuted") else 1.0 * (rounds > 0),
                "curve": [[s, loss + 3 * math.exp(-s / 120), loss + 2.9 * math.exp(-s / 130) + draw.gauss(0, 0.01)] for s in range(start, steps + 1, 40)],
                "densities": densities_of(rounds), "empty": ["1.q_proj", "2.k_proj"] if arm == "snip" and rounds >= 10 else [],
                "seconds": 27.1, "run_id": f"{draw.getrandbits(128):032x}",
            })  # fmt: skip
    return found


def densities_of(rounds: int) -> dict[str, float]:
    """Returns densities that fall with the layer, and whose weighted mean is about the whole's."""
    tilt = {
        "q_proj": 1.2,
        "k_proj": 1.15,
        "v_proj": 0.8,
        "o_proj": 0.85,
        "gate_proj": 1.02,
        "up_proj": 1.0,
        "down_proj": 0.98,
    }
    whole = density_of(rounds)
    return {
        f"{layer}.{name}": min(1.0, whole * t * (1.15 - 0.1 * layer)) for layer in range(4) for name, t in tilt.items()
    }


def rows_of(trainings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row for each place and rate, as means over seeds, with intervals of a plain size."""
    places: dict[tuple[Any, ...], dict[float, list[dict[str, Any]]]] = {}
    for t in trainings:
        place = (t["arm"], t["density"], t["round"], t["rewind"], t["steps"], t["mask_steps"], t["scope"])
        places.setdefault(place, {}).setdefault(t["lr"], []).append(t)
    rows = []
    for (arm, density, rounds, rewind, steps, mask_steps, scope), of in places.items():
        losses = {lr: [t["loss"] for t in ts if t["outcome"] == "done"] for lr, ts in of.items()}
        known = {lr: sum(x) / len(x) for lr, x in losses.items() if x}
        best = min(known, key=known.__getitem__) if known else None
        for lr, ts in of.items():
            mean = known.get(lr)
            rows.append({
                "arm": arm, "density": density, "round": rounds, "rewind": rewind, "rewind_share": rewind / steps, "steps": steps,
                "mask_steps": mask_steps, "scope": scope, "lr": lr, "best": lr == best, "edge": lr == best and len(of) > 1 and lr in (min(of), max(of)), "seeds": len(losses[lr]),
                "diverged": sum(t["outcome"] == "diverged" for t in ts), "loss": mean, "lo": mean and mean - 0.03, "hi": mean and mean + 0.03,
            })  # fmt: skip
    dense = {r["steps"]: r["loss"] for r in rows if r["arm"] == "dense" and r["best"]}
    for r in rows:
        gap = (
            r["loss"] - dense[r["steps"]]
            if r["loss"] is not None and r["steps"] in dense and r["arm"] != "dense"
            else None
        )
        r |= {"difference": gap, "difference_lo": gap and gap - 0.011, "difference_hi": gap and gap + 0.011}
    return rows


def claims_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns which arms match dense of as many steps, and which beat their controls."""
    names = ("arm", "density", "round", "rewind", "rewind_share", "steps", "mask_steps", "scope", "lr")
    best = {(r["arm"], r["density"], r["steps"]): r for r in rows if r["best"]}
    claims = []
    for (arm, density, steps), r in best.items():
        common, dense = {name: r[name] for name in names}, best["dense", 1.0, steps]
        if arm not in ("dense", "untrained") and not arm.endswith("-shuffled") and arm not in CONTROLLED["rewound"]:
            claims.append({"claim": "matches", "control": None, **common, **judged(r["difference"], 0.01), "control_lr": dense["lr"],
                           "edge": r["edge"], "seeds": r["seeds"]})  # fmt: skip
        beside = [
            best[control, density, steps] for control in CONTROLLED.get(arm, ()) if (control, density, steps) in best
        ]
        claims += [
            {"claim": "beats", "control": other["arm"], **common, **judged(r["loss"] - other["loss"], 0.0),
             "control_lr": other["lr"], "edge": r["edge"] or other["edge"], "seeds": r["seeds"]}
            for other in beside
        ]  # fmt: skip
    return claims


def judged(difference: float, limit: float) -> dict[str, Any]:
    lo, hi = difference - 0.011, difference + 0.011
    holds = True if hi <= limit else False if lo > limit else None
    why = {
        True: f"the upper end of the interval, {hi:+.3f}, is at most {limit:+.2f}",
        False: f"the lower end of the interval, {lo:+.3f}, is above {limit:+.2f}",
        None: f"the interval from {lo:+.3f} to {hi:+.3f} holds {limit:+.2f}",
    }[holds]
    return {"holds": holds, "difference": difference, "lo": lo, "hi": hi, "why": why}


def unjudged(claim: dict[str, Any], why: str) -> dict[str, Any]:
    """Returns the claim as one that is not known."""
    return {**claim, "holds": None, "difference": None, "lo": None, "hi": None, "why": why}


def barriers_of(
    draw: random.Random, seeds: Sequence[int], rounds: Sequence[int], rewinds: Sequence[float]
) -> list[dict[str, Any]]:
    """Returns barriers between two orders of the data for dense, tickets and shuffled masks, and between levels."""
    found = []
    for share in rewinds:
        for seed in seeds:
            places = [("dense", 0, 0.4 - 2.5 * share)]
            places += [(arm, k, top) for k in rounds if k <= 10 for arm, top in (("rewound", 0.02 * (7 / k) ** 3 * (0.1 + 0.9 * (share == 0))),
                                                                               ("shuffled", 0.288))]  # fmt: skip
            for arm, k, top in places:
                found.append(barrier_of(draw, arm, k, share, seed, "order", top))
    for seed in seeds:
        found += [barrier_of(draw, "rewound", k, max(rewinds), seed, "level", 0.002 + 0.001 * k) for k in rounds]
    return found


def barrier_of(
    draw: random.Random, arm: str, rounds: int, share: float, seed: int, kind: str, top: float
) -> dict[str, Any]:
    top *= 1 + draw.gauss(0, 0.05)
    line = [[i / 10, 2.35 + top * 4 * (i / 10) * (1 - i / 10)] for i in range(11)]
    return {"arm": arm, "seed": seed, "density": density_of(rounds), "rewind": round(share * STEPS), "rewind_share": share, "lr": COMMON,
            "steps": STEPS, "kind": kind, "a": f"{draw.getrandbits(48):012x}", "b": f"{draw.getrandbits(48):012x}", "barrier": top, "line": line}  # fmt: skip


def with_accidents(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record with one diverged training, and with an arm (grasp) of which nothing was run."""
    first = next(t for t in record["trainings"] if t["arm"] == "shuffled" and t["lr"] == max(RATES))
    for t in record["trainings"]:
        if t is first:
            t |= {"outcome": "diverged", "reason": "the loss was NaN at step 312", "loss": None, "search_loss": None}
        if t["arm"] == "grasp":
            t |= {
                "outcome": "missing",
                "reason": "not run yet",
                "loss": None,
                "search_loss": None,
                "curve": [],
                "densities": {},
                "seconds": None,
            }
    record["rows"] = rows_of(record["trainings"])
    record["claims"] = [
        unjudged(c, "no training of grasp is done") if c["arm"] == "grasp" else c for c in record["claims"]
    ]
    return record
