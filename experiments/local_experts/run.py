"""Which error makes experts specialise (Jacobs, Jordan, Nowlan and Hinton 1991).

    python -m experiments.local_experts.run --out=DIR [--seeds=5]

Writes DIR/results.json and DIR/figure.svg. See README.md for the question and the verdict.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds must be at least 2: the verdict needs paired differences")
    # Imported here: --help and a misspelt flag need no JAX.
    from experiments.local_experts.figure import figure
    from experiments.local_experts.judged import run

    results = run(arguments.seeds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "figure.svg").write_text(figure(results))
    for name, verdict in results["verdict"].items():
        for claim in verdict:
            print(f"{name:10} {claim['claim']:55} {'yes' if claim['holds'] else 'no'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
