"""How much weight goes from positions of one role to positions of another: text to image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from analysis.call_view import CallView
from analysis.measure import Finish, MeasureContext, Score
from probes.tokens.map import ROLES


@dataclass(frozen=True)
class RoleMass:
    """Mean weight that queries of one role put on all keys of another, 0 to 1.

    One variant ``"text->image"`` per pair of roles that occurs and that the mask allows; over the
    key roles they sum to 1.
    """

    name: str = "role_mass"
    unit: str = "share"
    costly: bool = False
    reads_pattern: bool = True

    def applies(self, context: MeasureContext) -> Literal[True] | str:
        return context.needs_positions()

    def start(self, call: CallView) -> Finish:
        plan = call.plan
        query_roles = plan.memo("query roles", lambda: _occurring(plan.of_queries("role")))
        key_roles = plan.memo("key roles", lambda: _occurring(plan.of_keys("role")))
        rows = {
            role: call.key_product(
                f"role {role}",
                plan.memo(("role", role), lambda role=role: (plan.of_keys("role") == role).float()),
            )
            for role in key_roles
        }

        def finish() -> Iterator[Score]:
            for query_role in query_roles:
                where = plan.of_queries("role") == query_role
                for key_role in key_roles:
                    total, count = call.mean_over_queries(rows[key_role].values, where)
                    variant = f"{ROLES[query_role]}->{ROLES[key_role]}"
                    null = plan.nulls.get((self.name, variant))
                    if null is None or bool((null[0] > 0).any()):
                        yield Score(variant, total, count)

        return finish


def _occurring(roles) -> list[int]:
    return [index for index in roles.unique().tolist() if index >= 0 and ROLES[index] != "pad"]


ROLE_MASS = RoleMass()
